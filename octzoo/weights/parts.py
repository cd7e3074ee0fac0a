"""Tensors in parts <-> whole ones: others store what we keep in one tensor as up to four (h2h, h2l, l2h, l2l).

Rows are high outputs, then low ones; columns high inputs, then low ones. Where a network cuts its tensors is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from octzoo.errors import some
from octzoo.weights.official import ALL, NamesError, Rules, our_name, with_fixed_scales


class Split(NamedTuple):
    """How many rows and columns of a tensor are low. Columns None: depthwise, where no column belongs to a part."""

    rows: int = 0
    columns: int | None = 0


class _Place(NamedTuple):
    key: str
    filled: list[tuple[str, tuple[str, str]]]  # (key, (source, target)) of every part that is filled
    region: tuple[slice, ...]  # rows and columns


Splits = Mapping[str, Split]
Shapes = Mapping[str, Sequence[int]]


def to_ours(foreign: Mapping[str, np.ndarray], shapes: Shapes, splits: Splits, rules: Rules) -> dict[str, np.ndarray]:
    """Foreign tensors -> a state dict of ours, each value of a dtype that holds all of its parts exactly.

    Args:
        foreign: name -> array.
        shapes: our key -> shape; keys ending in "num_batches_tracked" need no source.
        splits: our key -> where the network cuts it; without an entry it is whole.
        rules: a table of ``official``.

    Raises:
        NamesError: a name without a place, two tensors in one place, a part that is not as large as the network's, or a
            gap. So another alpha, or another network with the same whole tensors, does not pass.
    """
    wanted = {key: tuple(shape) for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}
    missing = {(key, part) for key, shape in wanted.items() for part in _parts(splits.get(key, Split()), shape)}
    ours: dict[str, np.ndarray] = {}
    for name, array in with_fixed_scales(foreign, rules).items():
        key, filled, region = _place(name, array.shape, wanted, splits, rules)
        if not missing.issuperset(filled):
            raise NamesError(f"{name} falls where another tensor of {key} already is")
        missing.difference_update(filled)
        whole = ours.get(key, np.empty(wanted[key], array.dtype))
        ours[key] = whole.astype(np.result_type(whole, array), copy=False)
        ours[key][region] = _ranked(array, len(wanted[key]))
    if missing:
        raise NamesError(f"nothing, or not enough, for {some(sorted({key for key, _ in missing}))}")
    return ours


def to_theirs(ours: Mapping[str, np.ndarray], wanted: Shapes, splits: Splits, rules: Rules) -> dict[str, np.ndarray]:
    """A state dict of ours -> foreign tensors, the inverse of ``to_ours``.

    Args:
        ours: our key -> array.
        wanted: foreign name -> shape.
        splits: our key -> where the network cuts it.
        rules: a table of ``official``.

    Raises:
        NamesError: a name without a rule or without a tensor of ours, or a shape that does not fit.
    """
    shapes = {key: array.shape for key, array in ours.items()}
    theirs = {}
    for name, shape in wanted.items():
        key, _, region = _place(name, shape, shapes, splits, rules)
        theirs[name] = ours[key][region].reshape(shape)
    return theirs


def _place(name: str, shape: Sequence[int], shapes: Shapes, splits: Splits, rules: Rules) -> _Place:
    """Where a foreign tensor goes; NamesError if there is no such place, or it is not of that size."""
    key, source, target = our_name(name, rules)
    if key not in shapes:
        raise NamesError(f"{name} would be {key}, which this network does not have")
    whole = tuple(shapes[key])
    parts = _parts(splits.get(key, Split()), whole)
    filled = [(s, t) for s, t in parts if t == target and (source in (s, ALL) or len(whole) == 1)]
    if not filled:
        raise NamesError(f"{name}: {key} of this network has no such part")
    region = tuple(slice(ends[0].start, ends[-1].stop) for ends in zip(*(parts[part] for part in filled)))
    size = [s.stop - s.start for s in region] + list(whole[2:])
    if _ranked(np.broadcast_to(0, shape), len(whole)).shape != tuple(size):
        raise NamesError(f"{name} of shape {list(shape)} is not the {size} that {key} takes there")
    return _Place(key, [(key, part) for part in filled], region)


def _parts(split: Split, whole: Sequence[int]) -> dict[tuple[str, str], tuple[slice, ...]]:
    """(source, target), each "h" or "l" -> the rows and columns of that part; no empty ones."""
    high = whole[0] - split.rows
    rows = {"h": slice(0, high), "l": slice(high, whole[0])}
    if len(whole) == 1:
        return {(t, t): (r,) for t, r in rows.items() if r.start < r.stop}
    if split.columns is None:
        return {(t, t): (r, slice(0, whole[1])) for t, r in rows.items() if r.start < r.stop}
    edge = whole[1] - split.columns
    columns = {"h": slice(0, edge), "l": slice(edge, whole[1])}
    both = {(s, t): (r, c) for t, r in rows.items() for s, c in columns.items()}
    return {part: slices for part, slices in both.items() if all(s.start < s.stop for s in slices)}


def whole_shapes(foreign: Shapes, rules: Rules) -> tuple[dict[str, tuple[int, ...]], float]:
    """What foreign names and shapes are put together, whatever network they belong to: (our key -> shape, alpha).

    Alpha is the smallest that gives every tensor the low rows that it has.
    """
    rows: dict[str, dict[str, int]] = {}
    columns: dict[str, dict[str, int]] = {}
    rest: dict[str, tuple[int, ...]] = {}
    crossed = set()
    for name, shape in foreign.items():
        key, source, target = our_name(name, rules)
        rows.setdefault(key, {})[target] = shape[0]
        if len(shape) > 1:
            columns.setdefault(key, {})[source] = shape[1]
            rest[key] = tuple(shape[2:])
            crossed |= {key} if source != target else set()
    shapes = {}
    for key, of in rows.items():
        wide = columns.get(key, {})
        width = sum(wide.values()) if key in crossed or len(wide) < 2 else max(wide.values())
        shapes[key] = (sum(of.values()), *([width] if wide else []), *rest.get(key, ()))
    alpha = max((of["l"] / (of["h"] + of["l"]) for of in rows.values() if len(of) == 2), default=0.0)
    return shapes, alpha


def _ranked(array: np.ndarray, rank: int) -> np.ndarray:
    """A linear weight [O, I] as the 1x1 convolution [O, I, 1, 1] that the other side has in its place, or back."""
    shape = array.shape
    fits = set(shape[rank:]) <= {1}
    return array.reshape(shape[:rank] + (1,) * (rank - len(shape))) if fits else array
