"""Where a network's time goes, operation by operation, against where its arithmetic goes and what the machine allows.

A pass in eval mode is watched once, to learn what each operation of PyTorch is, and then timed many times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from octzoo.deploy.ceilings import Ceilings
from octzoo.deploy.paths import PathFinder, memory
from octzoo.deploy.stopwatch import Stopwatch
from octzoo.errors import UserError
from octzoo.plan import hooked

# What each of PyTorch's operations does; a trailing "_" is the one in place. Convolutions go by their path.
KINDS = {
    "linear": "mm addmm bmm baddbmm scaled_dot_product",
    "norm": "batch_norm layer_norm group_norm rms_norm rsqrt var_mean",
    "activation": "relu gelu silu mish elu hardtanh hardswish hardsigmoid sigmoid leaky_relu prelu clamp softmax tanh",
    "pooling": "avg_pool max_pool adaptive mean amax",
    "upsampling": "upsample",
    "add": "add",
    "copy": "cat stack clone copy to_copy constant_pad reflection_pad replication_pad",
}
VIEW, OTHER = "view", "other"
_ALLOCATE = ("empty", "new_empty")


class Operation(NamedTuple):
    """One call of one of PyTorch's operations in one pass.

    Attributes:
        layer: name of the innermost module at work; "" is the network itself.
        name: of the operation, "convolution".
        kind: "h2h" and so on for convolutions (see ``PathFinder``), else one of ``KINDS``, "view" or "other".
        macs: multiply-accumulates of convolutions and matrix products.
        parameters: numbers of the network's parameters that it reads.
        written: bytes that come out.
        moved: bytes that it reads and writes, weights included.
    """

    layer: str
    name: str
    kind: str
    macs: int
    parameters: int
    written: int
    moved: int


class Row(NamedTuple):
    """The operations of one kind in one layer, of one pass.

    Attributes:
        layer, kind, macs, parameters, written, moved: as of ``Operation``, summed.
        calls: how many operations.
        ms: milliseconds of a pass, the sum of each operation's median.
        bound: the least milliseconds at the machine's ceilings, each operation for itself.
    """

    layer: str
    kind: str
    calls: int
    macs: int
    parameters: int
    written: int
    moved: int
    ms: float
    bound: float


class Profile(NamedTuple):
    """Of one network.

    Attributes:
        rows: layers in order of execution, and kinds within.
        passes: milliseconds of each whole pass that nothing watched.
    """

    rows: tuple[Row, ...]
    passes: tuple[float, ...]


def profile(models: Mapping[str, nn.Module], x: Tensor, ceilings: Ceilings, rounds: int = 10) -> dict[str, Profile]:
    """The profiles of several networks, measured in turns.

    Args:
        models: by name, in eval mode.
        x: a batch, [B, C, H, W], on the networks' device and in their memory format.
        ceilings: of this device.
        rounds: how often each network is timed whole, and again operation by operation.

    Raises:
        UserError: a network does not take ``x``, or does something else in every pass.
    """
    watched = {name: operations(model, x) for name, model in models.items()}
    passes: dict[str, list[float]] = {name: [] for name in models}
    times: dict[str, list[list[float]]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(rounds):
            for name, model in models.items():
                whole = Stopwatch(x.device)
                whole(model, x)
                passes[name] += whole.seconds()
                times[name].append(_timed(model, x))
                if len(times[name][-1]) != len(watched[name]):
                    raise UserError(f"{name} cannot be profiled: its operations differ from pass to pass")

    def found(name: str) -> Profile:
        seconds = [median(each) for each in zip(*times[name])]
        return Profile(_rows(watched[name], seconds, ceilings), tuple(1000 * s for s in passes[name]))

    return {name: found(name) for name in models}


def operations(model: nn.Module, x: Tensor) -> list[Operation]:
    """Every operation of one pass of ``model`` in eval mode on ``x`` [B, C, H, W], in order.

    UserError if the network does not take ``x``.
    """
    watch = _Watch(model)
    try:
        with torch.no_grad(), hooked(model, watch.paths.enter, watch.paths.leave), watch:
            model(x)
    except (RuntimeError, ValueError, AssertionError) as problem:
        shape = "x".join(map(str, x.shape[1:]))
        raise UserError(f"{type(model).__name__} does not run on pictures of {shape}: {problem}") from problem
    watch.paths.end()
    return [done._replace(kind=watch.paths.of.get(i, done.kind)) for i, done in enumerate(watch.done)]


def by_kind(rows: Iterable[Row]) -> list[Row]:
    """The rows of each kind summed, convolutions first; ``layer`` is ""."""
    rows = list(rows)
    order = ["h2h", "h2l", "l2h", "l2l", *sorted({r.kind for r in rows if is_path(r.kind) and "+" in r.kind}), *KINDS]
    kinds = [kind for kind in (*order, OTHER, VIEW) if any(row.kind == kind for row in rows)]
    return [total((row for row in rows if row.kind == kind), kind) for kind in kinds]


def total(rows: Iterable[Row], kind: str = "") -> Row:
    """The sum of some rows."""
    figures = list(zip(*(row[2:] for row in rows))) or [(0,)] * len(Row._fields[2:])
    return Row("", kind, *map(sum, figures))


def multiplies(row: Row) -> bool:
    """Whether a row is arithmetic (convolutions and matrix products), not a pass over memory."""
    return is_path(row.kind) or row.kind == "linear"


def is_path(kind: str) -> bool:
    """Whether a kind of work is a convolution."""
    return "2" in kind


class _Watch(TorchDispatchMode):
    """Notes every operation, and the module at work."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.paths = PathFinder()
        self.done: list[Operation] = []
        self._weights = {memory(t) for t in (*model.parameters(), *model.buffers()) if t.layout is torch.strided}
        self._parameters = {memory(t) for t in model.parameters() if t.layout is torch.strided}
        # The weight of a convolution that changes it first is counted where it convolves.
        convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
        self._kernels = {memory(t) for t in convolutions}
        self._counted: set[tuple] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        convolves = "convolution" in name
        taken, given = _tensors((args, kwargs)), _tensors(out)
        activations = [t for t in taken if memory(t) not in self._weights]
        if convolves:  # a weight cut or made from a parameter is in other memory
            activations = [t for t in activations if t is not args[1]]
        self.paths.note(name, len(self.done), activations, given, convolves)
        view = _is_view(name, taken, given)
        still = view or name in _ALLOCATE
        read = taken[1:] if name == "copy_" else taken
        self.done.append(
            Operation(
                self.paths.module,
                name,
                VIEW if view else _kind(name),
                _macs(name, args, out),
                0 if view else self._count(args[1:3] if convolves else taken, convolves),
                0 if still else sum(map(_bytes, given)),
                0 if still else sum(map(_bytes, [*read, *given])),
            )
        )
        return out

    def _count(self, tensors: Iterable[Any], convolves: bool) -> int:
        """Numbers of parameters among some tensors, each piece of a parameter once."""
        found = 0
        for t in tensors:
            if not isinstance(t, Tensor) or (not convolves and memory(t) in self._kernels):
                continue
            piece = (memory(t), t.storage_offset(), tuple(t.shape)) if t.layout is torch.strided else (id(t),)
            made = convolves and piece[0] not in self._weights  # a weight that something made of a parameter
            if (made or piece[0] in self._parameters) and piece not in self._counted:
                self._counted |= {piece} if piece[0] in self._parameters else set()
                found += _numbers(t)
        return found


class _Clock(TorchDispatchMode):
    """Times every operation, and nothing of its own work."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.watch = Stopwatch(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.watch(func, *args, **(kwargs or {}))


def _timed(model: nn.Module, x: Tensor) -> list[float]:
    """Seconds of every operation of one pass."""
    with _Clock(x.device) as clock:
        model(x)
    return clock.watch.seconds()


def _rows(done: Iterable[Operation], seconds: Iterable[float], ceilings: Ceilings) -> tuple[Row, ...]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for each, took in zip(done, seconds):
        least = ceilings.seconds(each.macs, each.moved)
        figures = (1, each.macs, each.parameters, each.written, each.moved, 1000 * took, 1000 * least)
        groups.setdefault((each.layer, each.kind), []).append(Row(each.layer, each.kind, *figures))
    return tuple(total(rows)._replace(layer=layer, kind=kind) for (layer, kind), rows in groups.items())


def _kind(name: str) -> str:
    name = name.strip("_").removeprefix("native_").removeprefix("cudnn_").removeprefix("fused_")
    found = (kind for kind, words in KINDS.items() if any(name.startswith(word) for word in words.split()))
    return next(found, OTHER)


def _macs(name: str, args: tuple, out: Any) -> int:
    """Multiply-accumulates of a convolution or matrix product."""
    if "convolution" in name:
        transposed = name == "convolution" and args[6]
        return (args[0] if transposed else out).numel() * args[1][0].numel()
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        return out.numel() * (args[1] if "add" in name else args[0]).shape[-1]
    if name.startswith("_scaled_dot_product"):  # [B, heads, queries, width], and as many keys as args[1] says
        return 2 * args[0].numel() * args[1].shape[-2]
    return 0


def _is_view(name: str, taken: list[Tensor], given: list[Tensor]) -> bool:
    """Whether an operation gives its input's own memory, and did not write to it."""
    written = name.endswith("_") and not name.endswith("as_strided_")
    inputs = {memory(t) for t in taken if t.numel()}
    return not written and bool(given) and all(memory(t) in inputs for t in given if t.numel())


def _numbers(t: Tensor) -> int:
    """How many a tensor has in memory: a dimension that is only repeated counts once."""
    if t.layout is not torch.strided:
        return t.numel()
    return math.prod(n for n, stride in zip(t.shape, t.stride()) if stride)


def _bytes(t: Tensor) -> int:
    return _numbers(t) * t.element_size()


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]
