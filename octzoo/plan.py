"""Plans: which layers of a network become octave layers, as a small table of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.utils._pytree as pytree
from timm.layers import SpaceToDepth
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from octzoo.geometry import OctaveError, StrideMode
from octzoo.layers import OCTAVE_OF
from octzoo.octave import Octave

Kind = Literal["octave", "zero", "plain", "whole"]


class Row(NamedTuple):
    """One row of a plan.

    Attributes:
        pattern: of module names, with ``*`` and ``?``; "layer1.*" is everything inside layer1.
        kind: "octave", "zero" (an octave layer of alpha 0: takes both parts, gives a tensor), "plain" (untouched) or
            "whole" (untouched, but an octave is merged before it; for any module, not for leaves alone).
        multiple: the low channels are rounded down to a multiple of this, where the network splits them afterwards.
        stride_mode: what stride 2 does; None: "pool", but "conv" for even kernels, which pooling cannot keep.
    """

    pattern: str
    kind: Kind = "octave"
    multiple: int = 1
    stride_mode: StrideMode | None = None


Plan = Sequence[Row | tuple]


def read_plan(plan: Plan, names: Sequence[str] | None = None) -> tuple[Row, ...]:
    """Rows from rows or plain tuples; OctaveError for one that means nothing, or would change none of ``names``."""
    rows = tuple(Row(*row) for row in plan)
    for row in rows:
        if row.kind not in get_args(Kind):
            raise OctaveError(
                f"plan row {row.pattern!r}: kind {row.kind!r} is not 'octave', 'zero', 'plain' or 'whole'"
            )
        if row.stride_mode not in (None, "pool", "conv"):
            raise OctaveError(f"plan row {row.pattern!r}: stride_mode={row.stride_mode!r} is neither 'pool' nor 'conv'")
        if not isinstance(row.multiple, int) or row.multiple < 1:
            raise OctaveError(f"plan row {row.pattern!r}: multiple={row.multiple!r} is not a whole number from 1")
        if row.kind != "plain" and names is not None and not any(fnmatchcase(name, row.pattern) for name in names):
            raise OctaveError(f"plan row {row.pattern!r} matches no module of the network")
    return rows


def find_row(plan: Sequence[Row], name: str) -> Row | None:
    """The first row whose pattern matches the module's name."""
    return next((row for row in plan if fnmatchcase(name, row.pattern)), None)


def default_plan(model: nn.Module) -> tuple[Row, ...]:
    """The plan for a network built in stages: the stem plain, the last stage of alpha 0, all between octave.

    The authors leave the last stage out because its low maps would be 3.5 x 3.5 at 224. Stages are timm's
    ``feature_info``; without it the stem is the first convolution and the last stage the module in which the final
    resolution is reached. Convolutions of pooled vectors (squeeze-excite) stay plain. Where the network splits a
    layer's channels, that layer's low channels become a multiple of the number of pieces. A module that takes feature
    maps apart into tokens or windows (attention) stays plain as a whole, and octaves are merged before it.

    Raises OctaveError if the network does not run on pictures of its size, or has fewer than two stages.
    """
    try:
        trace = Trace(model)
    except RuntimeError as error:
        size = "x".join(map(str, picture_size(model)))
        raise OctaveError(
            f"{type(model).__name__} does not run on pictures of {size} (say octavize(..., input_size=)): {error}"
        ) from error
    start, end = _octave_range(model, trace)
    kinds: dict[str, Kind] = {}
    for i, name in enumerate(trace.leaves):
        if type(model.get_submodule(name)) in OCTAVE_OF or isinstance(model.get_submodule(name), nn.Conv2d):
            kinds[name] = "plain" if i < start else "octave" if i < end else "zero"
    whole = _patterns(trace.apart_after(start), [name for name, _ in model.named_modules()])
    within = [Row(pattern + ".*", "plain") for pattern in whole]
    vectors = [Row(pattern, "plain") for pattern in _patterns(trace.vectors, kinds)]
    split = [Row(name, kinds[name], pieces) for name, pieces in trace.pieces.items() if kinds[name] == "octave"]
    stages = _compress({name: kind for name, kind in kinds.items() if name not in trace.vectors})
    return (*(Row(pattern, "whole") for pattern in whole), *within, *vectors, *split, *stages)


def _octave_range(model: nn.Module, trace: Trace) -> tuple[int, int]:
    """Where, in order of execution, the octave layers start and the last stage begins."""
    convs = trace.convs
    if len(convs) < 2:
        raise OctaveError(f"{type(model).__name__} has no convolutions between a stem and a last stage")
    taps = [entry["module"] for entry in getattr(model, "feature_info", None) or []]
    taps = sorted((t for t in taps if t in trace.spans), key=lambda t: trace.spans[t][1])
    if len(taps) < 2:
        return convs[1], _last_stage(trace)
    start, end = trace.spans[taps[0]]
    stem_is_tapped = start <= convs[0] < end or not any(start <= i < end for i in convs)
    ends = [trace.spans[t][1] for t in taps]
    last = next(a for a, b in reversed(list(zip(ends, ends[1:]))) if any(a <= i < b for i in convs))
    return end if stem_is_tapped else start, last


def _last_stage(trace: Trace) -> int:
    """Where the largest module begins in which the final resolution is reached, and which does not hold the stem."""
    final = min(trace.area[i] for i in trace.convs)
    first = next(i for i in trace.convs if trace.area[i] == final)
    parts = trace.leaves[first].split(".")
    spans = (trace.spans[".".join(parts[:n])] for n in range(1, len(parts) + 1))
    return next((start for start, _ in spans if start > trace.convs[0]), first)


class Trace:
    """What one forward pass of a plain network shows, in order of execution.

    Attributes:
        leaves: the names of the modules that do the work.
        convs: indices into ``leaves`` of the convolutions of feature maps.
        area: index of a convolution -> the pixels of its output.
        spans: module name -> the leaves executed within, as [first, last + 1).
        vectors: the names of the convolutions of pooled vectors (1x1 maps).
        pieces: name of a convolution -> into how many pieces its channels are split afterwards.
        apart: name of a module that takes feature maps apart -> how many leaves had been executed before.
    """

    def __init__(self, model: nn.Module):
        self.leaves: list[str] = []
        self.convs: list[int] = []
        self.area: dict[int, int] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        self.vectors: set[str] = set()
        self.pieces: dict[str, int] = {}
        self.apart: dict[str, int] = {}
        self._inside: list[str] = []  # the modules at work; "" for one that is not given a map
        self._channels: dict[int, str] = {}  # channel count -> the last convolution that gave so many
        with hooked(model, self._enter, self._leave), _Watch(self):
            trial_run(model)

    def apart_after(self, start: int) -> list[str]:
        """The modules that take feature maps apart after ``start`` leaves, none inside another of them."""
        names = {name for name, leaf in self.apart.items() if leaf >= start}
        return sorted(n for n in names if not any(n.startswith(other + ".") for other in names))

    def _enter(self, name: str, module: nn.Module, x: Any) -> None:
        self.spans.setdefault(name, (len(self.leaves), len(self.leaves)))
        takes_map = isinstance(x, Tensor) and x.ndim == 4 and tuple(x.shape[2:]) != (1, 1)
        # A convolution that standardises its weight reshapes that, not the map.
        self._inside.append(name if takes_map and not isinstance(module, nn.Conv2d) else "")
        if isinstance(module, nn.Conv2d) and isinstance(x, Tensor) and tuple(x.shape[2:]) == (1, 1):
            self.vectors.add(name)

    def _leave(self, name: str, module: nn.Module, y: Any) -> None:
        self._inside.pop()
        if (not any(module.children()) or type(module) in OCTAVE_OF) and name not in self.leaves:
            if isinstance(module, nn.Conv2d) and name not in self.vectors:
                self.convs.append(len(self.leaves))
                self.area[len(self.leaves)] = y.shape[2] * y.shape[3]
                self._channels[module.out_channels] = name
            self.leaves.append(name)
        self.spans[name] = (self.spans[name][0], len(self.leaves))

    def note_split(self, channels: int, pieces: int) -> None:
        if pieces > 1 and channels in self._channels:
            self.pieces[self._channels[channels]] = pieces

    def note_apart(self) -> None:
        if self._inside and self._inside[-1]:
            self.apart.setdefault(self._inside[-1], len(self.leaves))


_RESHAPES = (torch.reshape, Tensor.reshape, Tensor.view, torch.flatten, Tensor.flatten)


class _Watch(TorchFunctionMode):
    """Tells a trace of every split of a feature map's channels, and of every one whose rows and columns are undone."""

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.split, Tensor.split, torch.chunk, Tensor.chunk) and args[0].ndim == 4:
            widths = [piece.shape[1] for piece in out]
            if sum(widths) == args[0].shape[1]:
                self.trace.note_split(sum(widths), sum(widths) // math.gcd(*widths))
        elif func in _RESHAPES and args[0].ndim == 4 and out.shape[-2:] != args[0].shape[2:] != (1, 1):
            self.trace.note_apart()
        return out


def picture_size(model: nn.Module) -> tuple[int, int]:
    """(H, W) of the pictures that a network is for: what octavize was told, else its pretrained_cfg, else 224."""
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    size = getattr(model, "octave_input_size", None) or cfg.get("input_size") or (3, 224, 224)
    return size[1], size[2]


def picture_channels(model: nn.Module) -> int:
    """C of the pictures that a network is for: what its first convolution takes, before any pixels became channels."""
    block = 1
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels // block**2
        if isinstance(module, (SpaceToDepth, nn.PixelUnshuffle)):
            block *= module.bs if isinstance(module, SpaceToDepth) else module.downscale_factor
    raise OctaveError(f"{type(model).__name__} has no convolution")


def trial_run(model: nn.Module) -> Any:
    """The output of ``model`` in training mode on two pictures of its size, on the meta device.

    Costs no memory and no arithmetic and changes nothing: parameters, buffers, random numbers, training flags.
    """
    channels, dtype = picture_channels(model), next(model.parameters()).dtype
    x = torch.zeros(2, channels, *picture_size(model), device="meta", dtype=dtype)
    state = {name: t.detach().to("meta") for name, t in [*model.named_parameters(), *model.named_buffers()]}
    counts = {n: b for n, b in model.named_buffers() if not (b.ndim or b.is_floating_point())}
    state |= {n: torch.zeros((), dtype=b.dtype) for n, b in counts.items()}  # batch norm may read its count of batches
    flags = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        with torch.no_grad():
            return torch.func.functional_call(model, state, (x,))
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def hooked(model: nn.Module, enter: Callable, leave: Callable) -> Iterator[None]:
    """Call ``enter(name, module, input)`` and ``leave(name, module, output)`` around every module inside ``model``."""
    handles = []
    for name, module in model.named_modules():
        if name:
            before = lambda m, args, name=name: enter(name, m, args[0] if args else None)  # noqa: E731
            after = lambda m, args, out, name=name: leave(name, m, out)  # noqa: E731
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trial_octaves(model: nn.Module) -> None:
    """Run an octave network once on the meta device; OctaveError with the layer if it cannot, or ends in an octave."""
    inside: list[str] = []

    def enter(name: str, module: nn.Module, x: Any) -> None:
        inside.append(name)

    def leave(name: str, module: nn.Module, y: Any) -> None:
        inside.remove(name)

    with hooked(model, enter, leave):
        try:
            out = trial_run(model)
        except Exception as error:
            where = f"{inside[-1]}: " if inside and not str(error).startswith(inside[-1]) else ""
            raise OctaveError(f"{where}{error}") from error
    ends = pytree.tree_leaves(out, is_leaf=lambda y: isinstance(y, Octave))
    for octave in (y for y in ends if isinstance(y, Octave)):
        raise OctaveError(f"{type(model).__name__} ends in {octave}: end it with a plain layer or one of alpha 0")


def _patterns(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Patterns of ``names``, by their last two parts where that matches none of ``others``."""
    chosen, patterns = set(names), list[str]()
    for name in sorted(chosen):
        short = "*." + ".".join(name.split(".")[-2:])
        fits = all(other in chosen for other in others if fnmatchcase(other, short))
        pattern = short if fits and fnmatchcase(name, short) else name
        patterns += [pattern] if pattern not in patterns else []
    return patterns


def _compress(kinds: dict[str, Kind]) -> Iterator[Row]:
    """Rows for the leaves, one for a whole module where all of its leaves agree."""

    def rows(names: list[str], depth: int) -> Iterator[Row]:
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(".".join(name.split(".")[: depth + 1]), []).append(name)
        for prefix, members in groups.items():
            if members == [prefix]:
                yield Row(prefix, kinds[prefix])
            elif len({kinds[name] for name in members}) == 1:
                yield Row(prefix + ".*", kinds[members[0]])
            else:
                yield from rows(members, depth + 1)

    return rows(list(kinds), 0)
