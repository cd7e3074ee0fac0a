"""Follows the channels of a network through one run: which tensors have theirs in which order.

What a convolution gives is in an order that is still free; where maps are added, theirs are one. A concatenation, a
split and a group put together the orders of their pieces, high parts before low ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from types import EllipsisType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from octzoo.geometry import OctaveError
from octzoo.layers import OCTAVE_OF, OctConv2d
from octzoo.octave import RULES, Octave, low_channels

numbers = partial(torch.arange, device="cpu")  # whatever device a caller has made the default


# ---- orders, known or still free -----------------------------------------------------------------------------------


class Order:
    """The plain index of each of n channels: ``known()``, or that of ``link``; free, and then 0 to n - 1, without both.

    Orders of maps that are added are linked into one. A known order asks those of fewer channels that it is made of.
    """

    def __init__(self, n: int, known: Callable[[], Tensor] | None = None, pieces: Sequence[Order] = ()):
        self.n, self.known, self.pieces = n, known, pieces  # pieces: of a concatenation
        self.link: Order | None = None

    def root(self) -> Order:
        return self if self.link is None else self.link.root()

    def indices(self) -> Tensor:
        root = self.root()
        return root.known() if root.known else numbers(root.n)

    def free(self, values: Tensor) -> Iterator[tuple[Order, Tensor]]:
        """The free orders that this one is made of, each with its share of ``values``, one a plain channel."""
        root = self.root()
        if root.known is None:
            yield root, values
        for piece, share in zip(root.pieces, values.split([piece.n for piece in root.pieces] or len(values))):
            yield from piece.free(share)


def _identity(n: int) -> Order:
    return Order(n, partial(numbers, n))


def _joined(pieces: Sequence[Order], high: Sequence[int]) -> Order:
    """Of a concatenation: the high channels of every piece, then the low ones; plain, piece after piece."""

    def known() -> Tensor:
        starts = accumulate((p.n for p in pieces), initial=0)
        plain = [p.indices() + start for p, start in zip(pieces, starts)]
        return torch.cat([v[:h] for v, h in zip(plain, high)] + [v[h:] for v, h in zip(plain, high)])

    return Order(sum(p.n for p in pieces), known, pieces)


def _grouped(n: int, low: int, groups: int) -> Order:
    """What a grouped convolution reads or gives: group g has the g-th chunk of the high and of the low channels."""
    return _joined([_identity(n // groups)] * groups, [(n - low) // groups] * groups)


def _shared(order: Order, positions: Tensor, first: int, where: str) -> Order:
    """Of the plain channels from ``first`` on, which stand at ``positions`` of a map."""

    def known() -> Tensor:
        indices = order.indices()[positions] - first
        if not torch.equal(indices.sort().values, numbers(len(positions))):
            raise OctaveError(
                f"{where}: takes {len(positions)} channels that are others in the plain network; give the layers that "
                "feed it a 'plain' row in the plan"
            )
        return indices

    return Order(len(positions), known)


def _spread(order: Order, times: int) -> Order:
    """Of a map with each channel made into ``times``: flattened, or multiplied by a depthwise convolution."""
    return Order(order.n * times, lambda: (order.indices()[:, None] * times + numbers(times)).flatten())


# ---- the run -------------------------------------------------------------------------------------------------------


class _Tag(NamedTuple):
    """The channels [start, stop) of a map in ``order``, which a tensor holds; ``cut``: not a part of an octave."""

    order: Order
    start: int
    stop: int
    cut: bool = False


_LEAVES = (*OCTAVE_OF, nn.Linear)
_JOINS = (torch.cat, torch.concat)
_SPLITS = (torch.split, Tensor.split, torch.chunk, Tensor.chunk)
_RESHAPES = (
    torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view, torch.squeeze, Tensor.squeeze,
    torch.unsqueeze, Tensor.unsqueeze, Tensor.__getitem__,
)  # fmt: skip
_KEEPS = {*RULES, F.interpolate, F.pad}
_FRESH = (Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, torch.zeros_like, torch.ones_like)


def _axis(t: Tensor) -> int:
    """Where the channels are: [B, C, H, W] and [B, C], but [C] and [C, 1, 1] as parameters are."""
    return int(t.ndim in (2, 4))


class Flow(TorchFunctionMode):
    """Follows the channels through one run: layers through hooks, functions between them as torch meets them.

    A tensor without a tag has its channels in the plain order, and what is not understood wants them so. An octave is
    known by the tags of its two parts.

    Attributes:
        axes: state dict key -> the orders of its dimensions 0 and 1, None where nothing is known to move.
    """

    def __init__(self) -> None:
        super().__init__()
        self.axes: dict[str, tuple[Order | None, Order | None]] = {}
        self.split: set[Order] = set()  # of octaves
        self._tags: dict[int, tuple[Tensor, _Tag]] = {}  # by id; the tensor is kept, so that no other gets its id
        self._ties: list[tuple[Order, Order, str]] = []
        self._pieces: dict[tuple[Order, int, int], list[Order]] = {}
        self._shares: dict[tuple[Order, int, int], Order] = {}
        self._narrowed: tuple[_Tag, int, int, Tensor] | None = None  # of the high part; the low one comes next
        self._inside: list[str] = []
        self._leaf: tuple[str, Any] | None = None  # the layer at work, and its input

    # -- what is known

    def tie(self, a: Order, b: Order, where: str) -> None:
        """Make two orders one. Where both are known already, ``check`` finds out whether they are."""
        self._ties.append((a, b, where))
        a, b = a.root(), b.root()
        if a is not b and None in (a.known, b.known):
            free, other = (b, a) if b.known is None else (a, b)
            free.link = other

    def check(self) -> None:
        for a, b, where in self._ties:
            if not torch.equal(a.indices(), b.indices()):
                raise OctaveError(
                    f"{where}: found no order of its {a.n} channels that suits it and the layers that share them; give "
                    "it, or the layers that feed it, a 'plain' row in the plan"
                )

    def tag_of(self, t: Tensor) -> _Tag | None:
        return self._tags[id(t)][1] if id(t) in self._tags else None

    def tag(self, x: Any, order: Order) -> None:
        """Note that ``x``, a tensor or an octave, has its channels in ``order``."""
        high = order.n - low_channels(x)
        if isinstance(x, Octave):
            self.split.add(order)
        parts = ((x.high, 0, high), (x.low, high, order.n)) if isinstance(x, Octave) else ((x, 0, high),)
        for part, start, stop in parts:
            self._tags[id(part)] = part, _Tag(order, start, stop)

    def order_of(self, x: Any, where: str) -> Order:
        """The order of all channels of ``x``; the plain one is demanded of what is not wholly known."""
        parts = [p for p in ((x.high, x.low) if isinstance(x, Octave) else (x,)) if p.shape[1]]
        whole = self._whole(parts)
        if whole and (whole.start, whole.stop) == (0, whole.order.n):
            return whole.order
        self._want_plain(parts, where)
        return _identity(x.shape[1])

    def _whole(self, parts: Sequence[Tensor]) -> _Tag | None:
        """What tensors hold together that are consecutive channels of one map."""
        tags = [tag for tag in map(self.tag_of, parts) if tag]
        if not tags or len(tags) < len(parts) or any(t.order.root() is not tags[0].order.root() for t in tags):
            return None
        follow = all(a.stop == b.start for a, b in pairwise(tags))
        return _Tag(tags[0].order, tags[0].start, tags[-1].stop, any(t.cut for t in tags)) if follow else None

    def _want_plain(self, tensors: Sequence[Tensor], where: str) -> None:
        for tag in filter(None, map(self.tag_of, tensors)):
            self.tie(tag.order, _identity(tag.order.n), where)

    # -- layers

    def enter(self, name: str, module: nn.Module, x: Any) -> None:
        self._inside.append(name)
        if self._leaf:
            return
        if isinstance(module, _LEAVES):
            self._leaf = name, x
            return
        for key, p in module._parameters.items():  # layer scales and the like meet their map in a function
            if p is not None and p.numel() > 1 and p.numel() == p.shape[_axis(p)] and not self.tag_of(p):
                self.tag(p, order := Order(p.numel()))
                self.axes[f"{name}.{key}"] = (None, order) if _axis(p) else (order, None)

    def leave(self, name: str, module: nn.Module, y: Any) -> None:
        self._inside.pop()
        if self._leaf and self._leaf[0] == name:
            x, self._leaf = self._leaf[1], None
            self._layer(name, module, x, y)

    def _layer(self, name: str, module: nn.Module, x: Any, y: Any) -> None:
        columns: Order | None = None
        if isinstance(module, nn.Conv2d):
            rows, columns = self._convolution(name, module, x, y)
        elif isinstance(module, nn.Linear) and x.ndim == 2:
            rows, columns = Order(module.out_features), self.order_of(x, name)
        elif isinstance(module, nn.Linear) or not any(map(self.tag_of, tree_leaves(x))):
            return self._want_plain(tree_leaves(x), name)
        else:  # a norm
            rows = self.order_of(x, name)
            if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
                self._want_plain(tree_leaves(x), name)
        for key, t in (*module._parameters.items(), *module._buffers.items()):
            if t is not None and t.ndim and t.shape[0] == rows.n:
                self._note(f"{name}.{key}", rows, columns if key == "weight" else None)
        return self.tag(y, rows)

    def _convolution(self, name: str, conv: nn.Conv2d, x: Any, y: Any) -> tuple[Order, Order | None]:
        """The orders of the weight's rows, which are the output's, and of its columns."""
        order = self.order_of(x, name)
        if conv.groups == 1:
            return Order(conv.out_channels), order
        if conv.groups == conv.in_channels:
            times = conv.out_channels // conv.in_channels
            return order if times == 1 else _spread(order, times), None
        low = low_channels(x) if isinstance(conv, OctConv2d) else 0  # a plain one is given the merged map
        self.tie(order, _grouped(order.n, low, conv.groups), name)
        return _grouped(conv.out_channels, low_channels(y), conv.groups), None

    def _note(self, key: str, rows: Order, columns: Order | None) -> None:
        """Enter a tensor; one of a layer that runs twice must have one order."""
        for new, old in zip((rows, columns), self.axes.get(key, ())):
            if new and old:
                self.tie(new, old, key)
        self.axes[key] = rows, columns

    # -- functions

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._leaf:
            return func(*args, **kwargs)
        if Octave in types and func not in _JOINS:  # all but a concatenation shows in what is done to the parts
            with self:
                return Octave.__torch_function__(func, types, args, kwargs)
        out = func(*args, **kwargs)
        if func not in _FRESH and any(isinstance(t, Tensor) for t in tree_leaves(out)):
            where = f"{self._inside[-1] if self._inside else 'the network'} ({getattr(func, '__name__', func)})"
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            if any(map(self.tag_of, inputs)) and not self._understand(func, args, kwargs, inputs, out, where):
                self._want_plain(inputs, where)
        return out

    def _understand(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], out: Any, where: str) -> bool:
        """Tag what ``func`` gave; False if what it does to the channels is not known."""
        if func in _JOINS:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            return self._join(args[0] if args else kwargs["tensors"], dim, out, where)
        tag = self.tag_of(inputs[0])
        if func in _SPLITS:
            return tag is not None and self._split(tag, inputs[0], out, where)
        if func is torch.narrow:
            return tag is not None and self._narrow(tag, args[2], args[3], out, where)
        if func in _RESHAPES:
            if tag and out.ndim == inputs[0].ndim > 2 and func is Tensor.__getitem__:
                return self._cut(tag, inputs[0], args[1], out)
            return tag is not None and self._reshape(tag, inputs[0], out)
        return func in _KEEPS and self._keep(inputs, out, where)

    def _join(self, values: Sequence[Any], dim: int, out: Any, where: str) -> bool:
        if out.ndim not in (2, 4) or dim % out.ndim != 1:
            return False
        whole = None if isinstance(out, Octave) else self._whole(values)
        if whole:  # the two parts of one map: merged, or reduced to vectors
            self._tags[id(out)] = out, whole
        else:
            orders = [self.order_of(v, where) for v in values]
            self.tag(out, _joined(orders, [v.shape[1] - low_channels(v) for v in values]))
        return True

    def _split(self, tag: _Tag, x: Tensor, out: Sequence[Tensor], where: str) -> bool:
        """Equal pieces of a tensor, or of one part of an octave, whose map then is its pieces joined."""
        k, n = len(out), tag.order.n
        if {p.shape for p in out} != {(x.shape[0], x.shape[1] // k, *x.shape[2:])} or x.ndim not in (2, 4):
            return False
        if tag.cut:
            raise OctaveError(f"{where}: split of a slice or of a dropped map, which leaves the channels' order open")
        high = tag.start or tag.stop
        pieces = self._pieces.get((tag.order.root(), k, high))
        if pieces is None:  # the other part of an octave, split next, has the same pieces
            pieces = [Order(n // k) for _ in out]
            self.tie(tag.order, _joined(pieces, [high // k] * k), where)
            self._pieces[tag.order.root(), k, high] = pieces
        for piece, order in zip(out, pieces):
            self._tags[id(piece)] = piece, _Tag(order, tag.start // k, tag.stop // k)
        return True

    def _narrow(self, tag: _Tag, start: int, length: int, out: Tensor, where: str) -> bool:
        """A share of an octave's channels, of which the high part is narrowed first."""
        high, self._narrowed = self._narrowed, None
        if high is None or high[0].order is not tag.order or high[0].stop != tag.start:
            self._narrowed = tag, start, length, out
            self._tags[id(out)] = out, _Tag(tag.order, tag.start + start, tag.start + start + length, True)
            return True
        if tag.cut or high[0].cut:
            raise OctaveError(f"{where}: slice of a slice or of a dropped map, which leaves the channels' order open")
        _, start_high, width, part = high
        order = self._share(tag.order, tag.start, (start_high, start_high + width), (start, start + length), where)
        self._tags[id(part)] = part, _Tag(order, 0, width)
        self._tags[id(out)] = out, _Tag(order, width, width + length)
        return True

    def _share(self, order: Order, high: int, highs: tuple[int, int], lows: tuple[int, int], where: str) -> Order:
        """The order of a share of a map of ``high`` high channels: those of the high and of the low part from, to."""
        start, stop = highs[0] + lows[0], highs[1] + lows[1]
        if (start, stop) == (0, order.n):
            return order
        if (order.root(), start, stop) not in self._shares:
            if order.root().known:
                positions = torch.cat([numbers(*highs), numbers(high + lows[0], high + lows[1])])
                self._shares[order.root(), start, stop] = _shared(order, positions, start, where)
            else:  # nothing is known of it yet: it is what it is cut into, joined
                cuts = sorted({(0, 0), (start, highs[0]), (stop, highs[1]), (order.n, high)})
                pieces = [Order(b[0] - a[0]) for a, b in pairwise(cuts)]
                self.tie(order, _joined(pieces, [b[1] - a[1] for a, b in pairwise(cuts)]), where)
                for (a, b), piece in zip(pairwise(cuts), pieces):
                    self._shares[order.root(), a[0], b[0]] = piece
        return self._shares[order.root(), start, stop]

    def _cut(self, tag: _Tag, x: Tensor, index: Any, out: Tensor) -> bool:
        """A slice: which channels it takes shows on a tensor that holds their numbers."""
        if not all(isinstance(i, (slice, EllipsisType)) for i in (index if isinstance(index, tuple) else [index])):
            return False
        if out.numel():
            taken = numbers(tag.start, tag.stop)[:, None, None].expand(x.shape)[index][..., 0, 0].flatten()
            start, stop = int(taken[0]), int(taken[-1]) + 1
            if stop - start != out.shape[_axis(out)]:
                return False
            cut = tag.cut or (start, stop) != (tag.start, tag.stop)
            self._tags[id(out)] = out, _Tag(tag.order, start, stop, cut)
        return True

    def _reshape(self, tag: _Tag, x: Tensor, out: Tensor) -> bool:
        """More or fewer dimensions of size 1, or [B, C, H, W] as [B, C * H * W]."""
        n, axis = tag.stop - tag.start, _axis(out)
        if 0 < out.ndim <= 4 and out.shape[axis] == n and (out.numel() == n or out.shape[:2] == x.shape[:2]):
            self._tags[id(out)] = out, tag
        elif x.ndim == 4 and out.ndim == 2 and out.shape[0] == x.shape[0] and n == tag.order.n:
            self.tag(out, _spread(tag.order, out.shape[1] // n))
        else:
            return False
        return True

    def _keep(self, inputs: list[Tensor], out: Any, where: str) -> bool:
        """Elementwise functions, and those over space alone. Maps that meet have one order."""
        wide = [t for t in inputs if t.numel() > 1 and t.shape[_axis(t)] > 1] or inputs[:1]
        tags = [self.tag_of(t) for t in wide]
        known = [tag for tag in tags if tag]
        if len(known) < len(tags) or len({(tag.start, tag.stop) for tag in known}) != 1:
            return False
        if not isinstance(out, Tensor) or out.shape[_axis(out) :][:1] != (known[0].stop - known[0].start,):
            return False
        for tag in known[1:]:
            self.tie(known[0].order, tag.order, where)
        self._tags[id(out)] = out, next((tag for tag in known if not tag.cut), known[0])
        return True
