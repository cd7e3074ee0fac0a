"""Which of the four paths of an octave convolution each convolution of a network serves, seen from outside.

Nothing is assumed of how a layer computes: what goes into a convolution is traced from the two parts of the layer's
input, what comes out of it to the two parts of the layer's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from octzoo.octave import Octave

PATHS = ("h2h", "h2l", "l2h", "l2l")


class _Scope:
    """A module at work."""

    def __init__(self, name: str, octave: bool, size: tuple[int, ...] | None):
        self.name, self.octave, self.size = name, octave, size
        self.convolutions: list[int] = []  # that are not on a path yet


class PathFinder:
    """Told of every module and operation of one pass, says what each convolution does.

    Attributes:
        of: index of a convolution -> "h2h", or for one that serves several paths "l2h+l2l".
    """

    def __init__(self) -> None:
        self.of: dict[int, str] = {}
        self._taken: dict[int, set[str]] = {}  # index of a convolution -> the parts that it takes
        self._scopes = [_Scope("", False, None)]
        # Memory of a tensor -> the parts ("h", "l") that are in it, and the convolutions (their indices) on the way
        # from there that no other follows.
        self._inside: dict[int, set[Any]] = {}

    @property
    def module(self) -> str:
        """The name of the innermost module at work."""
        return self._scopes[-1].name

    def enter(self, name: str, module: Any, x: Any) -> None:
        octaves = list(_octaves(x))
        self._mark(octaves)
        size = tuple(octaves[0].high.shape[-2:]) if octaves else self._scopes[-1].size
        self._scopes.append(_Scope(name, bool(octaves), size))

    def leave(self, name: str, module: Any, y: Any) -> None:
        scope = self._scopes.pop()
        octaves = list(_octaves(y))
        if not octaves and not scope.octave:
            self.of.update(dict.fromkeys(scope.convolutions, "h2h"))
            return
        tensors = [t for t in pytree.tree_leaves(y, is_leaf=_is_octave) if isinstance(t, Tensor)]
        high = self._of([*(octave.high for octave in octaves), *tensors])
        low = self._of([octave.low for octave in octaves])
        for i in scope.convolutions:
            taken = self._taken[i] or {"h"}
            given = {part for part, inside in (("h", high), ("l", low)) if i in inside}
            # One that reaches the output through another convolution only leaves a part what it is.
            found = {f"{a}2{b}" for a in taken for b in given} if given else {f"{a}2{a}" for a in taken}
            self.of[i] = "+".join(path for path in PATHS if path in found)
        for t in tensors:
            self._inside[memory(t)] = {"h"}
        self._mark(octaves)

    def end(self) -> None:
        """The pass is over: what the network itself convolves is high to high."""
        self.of.update(dict.fromkeys(self._scopes[0].convolutions, "h2h"))

    def note(self, name: str, index: int, taken: Iterable[Tensor], given: Iterable[Tensor], weight: bool) -> None:
        """Tell of an operation.

        Args:
            name: of the operation in torch, "cat".
            index: counts the operations.
            taken: the tensors that it reads, without weights.
            given: the tensors that it returns.
            weight: whether it is a convolution.
        """
        taken = [t for t in taken if t.numel()]
        inside = self._of(taken)
        if weight:
            self._taken[index] = {part for part in inside if isinstance(part, str)}
            inside = self._taken[index] | {index}
            if tuple(taken[0].shape[-2:]) == (1, 1) != self._scopes[-1].size:
                self.of[index] = "h2h"  # of a vector of all channels, as in squeeze-excite: an ordinary one
            else:
                self._scopes[-1].convolutions.append(index)
        for t in given:
            if name == "cat" and tuple(t.shape[-2:]) == self._scopes[-1].size:
                inside = (inside - {"l"}) | {"h"}  # an octave merged
            self._inside[memory(t)] = inside

    def _of(self, tensors: Iterable[Tensor]) -> set[Any]:
        return set().union(*(self._inside.get(memory(t), set()) for t in tensors if t.numel()))

    def _mark(self, octaves: Iterable[Octave]) -> None:
        for octave in octaves:
            for part, t in (("h", octave.high), ("l", octave.low)):
                if t.numel():
                    self._inside[memory(t)] = {part}


def _is_octave(x: Any) -> bool:
    return isinstance(x, Octave)


def _octaves(x: Any) -> Iterator[Octave]:
    return (leaf for leaf in pytree.tree_leaves(x, is_leaf=_is_octave) if isinstance(leaf, Octave))


def memory(t: Tensor) -> int:
    """What a tensor, its views, and itself after a change in place have in common."""
    return t.untyped_storage().data_ptr() if t.layout is torch.strided else id(t)
