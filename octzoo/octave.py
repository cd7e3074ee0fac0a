"""Octave convolution on one screen: the value, the split, the convolution. The two resamplings: ``resample.py``.

Chen et al., "Drop an Octave", ICCV 2019, arXiv 1904.05049. Pure functions, no ``nn.Module``.

Shapes: B pictures, C channels of which c are low, H x W the size of the high part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octzoo.geometry import (
    Geometry,
    OctaveAttributeError,
    OctaveError,
    Size2,
    StrideMode,
    check_geometry,
    check_groups,
    pair,
)
from octzoo.resample import add_upsampled_, conv_pooled, pool, upsample

# Function -> what it means for an Octave; octzoo/rules.py fills it.
RULES: dict[Callable, Callable] = {}


@dataclass(frozen=True, eq=False)
class Octave:
    """A feature map of C channels, the last c of them at half the resolution (section 3.1).

    ``high``: [B, C - c, H, W]; ``low``: [B, c, ceil(H/2), ceil(W/2)] with 0 < c <= C. Where c = C, ``high`` is an empty
    [B, 0, H, W] that only carries the size. Where c = 0 there is no Octave but an ordinary tensor.

    Flows through code written for tensors: elementwise functions map over both parts, ``+`` adds part by part, and
    everything else that has a meaning stands in a table (``octzoo/rules.py``). What does not raises an OctaveError.
    """

    high: Tensor
    low: Tensor

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in (Tensor.__rsub__, Tensor.__rtruediv__):  # the compiler does not find these in a dict
            return RULES[torch.sub if func is Tensor.__rsub__ else torch.div](*reversed(args))
        rule = RULES.get(func)
        if rule is None:
            raise OctaveError(no_rule(func, args))
        return rule(*args, **(kwargs or {}))

    @property
    def shape(self) -> torch.Size:
        """[B, C, H, W] of the merged map."""
        b, n, h, w = self.high.shape
        return torch.Size((b, n + self.low.shape[1], h, w))

    @property
    def ndim(self) -> int:
        return 4

    @property
    def dtype(self) -> torch.dtype:
        return self.low.dtype

    @property
    def device(self) -> torch.device:
        return self.low.device

    @property
    def requires_grad(self) -> bool:
        return self.high.requires_grad or self.low.requires_grad

    def dim(self) -> int:
        return 4

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def new_empty(self, *size: Any, **kwargs: Any) -> Tensor:
        """An ordinary tensor, as drop path asks for one: a draw a sample serves both parts."""
        return self.low.new_empty(*size, **kwargs)

    def map(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Octave:
        """``function`` of each part; an empty part stays as it is."""
        return Octave(*(function(p, *args, **kwargs) if p.shape[1] else p for p in (self.high, self.low)))

    def __getattr__(self, name: str) -> Any:
        if hasattr(Tensor, name) and not name.startswith("__"):
            raise OctaveAttributeError(no_rule(getattr(Tensor, name), (self,)))
        raise AttributeError(f"'Octave' object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"Octave(high={list(self.high.shape)}, low={list(self.low.shape)})"


torch.serialization.add_safe_globals([Octave])  # a saved torch.export program names it
# A pytree node: hooks, checkpointing, FSDP2 and torch.export see the two tensors inside.
torch.export.register_dataclass(Octave, serialized_type_name="octzoo.Octave")


# ---- the split -----------------------------------------------------------------------------------------------------


def split_channels(channels: int, alpha: float, multiple: int = 1) -> int:
    """How many of ``channels`` are low: alpha of them, truncated as the authors do, then to a multiple."""
    return int(alpha * channels) // multiple * multiple


def low_channels(x: Tensor | Octave) -> int:
    """c, the number of low channels of ``x``; 0 for a tensor."""
    return x.low.shape[1] if isinstance(x, Octave) else 0


def resplit(x: Tensor | Octave, c: int) -> Tensor | Octave:
    """The same map with ``c`` low channels: those that change sides are pooled or upsampled."""
    old, channels = low_channels(x), x.shape[1]
    if not 0 <= c <= channels:
        raise OctaveError(f"cannot make {c} of {channels} channels low")
    if c == old:
        return x
    n = channels - c
    if not isinstance(x, Octave):
        return Octave(x[:, :n], pool(x[:, n:]))
    if c > old:
        return Octave(x.high[:, :n], torch.cat([pool(x.high[:, n:]), x.low], 1))
    high = torch.cat([x.high, upsample(x.low[:, : old - c], x.high.shape[-2:])], 1)
    return Octave(high, x.low[:, old - c :]) if c else high


def drop(x: Tensor, c: int) -> Tensor | Octave:
    """Tensor [B, C, H, W] -> Octave whose low part is the last ``c`` channels, pooled. High is a view of ``x``."""
    return resplit(x, c)


def merge(x: Tensor | Octave) -> Tensor:
    """Octave -> Tensor [B, C, H, W]: the low part upsampled, then behind the high one. A tensor stays as it is."""
    merged = resplit(x, 0)
    assert isinstance(merged, Tensor)
    return merged


def share(x: Octave, start: int, stop: int) -> Tensor | Octave:
    """Channels [start, stop) with their share of the low ones: the first k of C channels hold ``k * c // C`` of c.

    Neighbouring shares neither overlap nor leave a gap. Both parts are narrowed, the high one first.
    """
    first, last = (k * low_channels(x) // x.shape[1] for k in (start, stop))
    high = torch.narrow(x.high, 1, start - first, stop - start - last + first)
    low = torch.narrow(x.low, 1, first, last - first)
    return Octave(high, low) if last > first else high


# ---- the convolution -----------------------------------------------------------------------------------------------


def octave_conv2d(
    x: Tensor | Octave,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Size2 = 1,
    padding: str | int | Size2 = 0,
    dilation: int | Size2 = 1,
    groups: int = 1,
    *,
    low_out: int = 0,
    stride_mode: StrideMode = "pool",
    padding_mode: str = "zeros",
    h2l: bool = True,
    l2h: bool = True,
) -> Tensor | Octave:
    """The octave convolution (equation 4), one weight of the ordinary shape for all four paths.

        high = conv(high, W_hh) + upsample(conv(low, W_lh))
        low  = conv(low, W_ll)  + conv(pool(high), W_hl)

    Args:
        x: [B, C_in, H, W], a Tensor or an Octave.
        weight: [C_out, C_in / groups, k, k]. Rows: high outputs, then low ones. Columns: high inputs, then low ones.
            With G groups all four paths have G groups. Depthwise (groups = C_in) has no exchange.
        bias: [C_out], added once an output part.
        stride: 1 or 2.
        padding: as in ``nn.Conv2d``; "same" goes with stride 2 as well (as in TensorFlow).
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
        low_out: the low channels of the output, 0 to C_out.
        stride_mode: what stride 2 does. "pool", the authors' way: the inputs are pooled, then convolved at stride 1.
            "conv": each part is strided, as plain weights expect.
        padding_mode: as in ``nn.Conv2d``.
        h2l: False switches the path from high to low off (Table 3).
        l2h: False switches the path from low to high off (Table 3).

    Returns:
        A Tensor if ``low_out`` is 0, else an Octave, of the size the plain convolution gives.

    Raises:
        OctaveError: channels that do not fit, a group number that does not divide all parts, a stride above 2, or a
            geometry that pooling does not keep.
    """
    geometry = Geometry(pair(weight.shape[-2:]), pair(stride), padding, pair(dilation), padding_mode)
    _check(geometry, x, weight, groups, low_out, stride_mode)
    if groups == x.shape[1] > 1:  # depthwise: a channel stays where it is, unless the output is split elsewhere
        x = resplit(x, low_out * groups // weight.shape[0])
    paths = cut_weight(weight, bias, x.shape[1] - low_channels(x), x.shape[1], low_out, h2l, l2h, geometry.stride)
    return convolve(x, paths, geometry, stride_mode)


class Path(NamedTuple):
    """A block of the weight; the first path into an output brings the bias."""

    weight: Tensor
    bias: Tensor | None


class Paths(NamedTuple):
    """The paths of a convolution; None for one that is not there.

    ``l2b`` stands for ``l2h`` and ``l2l``: one convolution of the low part, whose first outputs are the high ones.
    """

    h2h: Path | None
    h2l: Path | None
    l2h: Path | None
    l2l: Path | None
    l2b: Path | None
    high_out: int


def cut_weight(
    weight: Tensor,
    bias: Tensor | None,
    high_in: int,
    channels: int,
    low_out: int,
    to_low: bool = True,
    to_high: bool = True,
    stride: Size2 = (1, 1),
) -> Paths:
    """The paths of ``weight`` for an input of ``channels``, the first ``high_in`` of them high; views of it.

    ``to_low`` and ``to_high``: whether the exchange paths, h2l and l2h, are on.
    """
    groups, high_out, low_in = channels // weight.shape[1], weight.shape[0] - low_out, channels - high_in
    depthwise = groups == channels > 1
    # Not slices, for the gradient of a slice is a whole weight of zeros, to be filled and added.
    from_high, from_low = (weight, weight) if depthwise else weight.split([high_in // groups, low_in // groups], 1)
    (hh, hl), (lh, ll) = (w.split([high_out, low_out]) for w in (from_high, from_low))
    high_bias, low_bias = (None, None) if bias is None else bias.split([high_out, low_out])
    h2h = Path(hh, high_bias) if high_in and high_out else None
    h2l = Path(hl, low_bias) if high_in and low_out and to_low and not depthwise else None
    l2h = Path(lh, None if h2h else high_bias) if low_in and high_out and to_high and not depthwise else None
    l2l = Path(ll, None if h2l else low_bias) if low_in and low_out else None
    for part, empty in (("high", high_out and not (h2h or l2h)), ("low", low_out and not (h2l or l2l))):
        if empty:
            raise OctaveError(f"nothing reaches the {part} output: an exchange path is off")
    if h2h and h2l and l2h and l2l and groups == 1 and stride == (1, 1):  # groups have rows in both outputs
        return Paths(h2h, h2l, None, None, Path(from_low, None), high_out)
    return Paths(h2h, h2l, l2h, l2l, None, high_out)


def convolve(x: Tensor | Octave, paths: Paths, geometry: Geometry, stride_mode: StrideMode) -> Tensor | Octave:
    """``octave_conv2d`` behind its checks, of a weight that is cut already."""
    high, low = (x.high, x.low) if isinstance(x, Octave) else (x, x)
    size = geometry.out_size(high.shape[-2:])
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    pooled = geometry.stride == (2, 2) and stride_mode == "pool"
    strided = geometry.stride == (2, 2) and stride_mode == "conv"
    if pooled:
        geometry = replace(geometry, stride=(1, 1))
        high = pool(high) if high.shape[1] else high

    def conv(part: Tensor, path: Path, size: Size2) -> Tensor:
        part = geometry.reach(part, size) if strided else part
        return geometry.conv(part, path.weight, path.bias, part.shape[1] // path.weight.shape[1])

    to_high = [conv(high, paths.h2h, size)] if paths.h2h else []
    to_low = []
    if paths.h2l:
        to_low.append(conv(pool(high), paths.h2l, half) if strided else conv_pooled(high, *paths.h2l, geometry))
    if paths.l2b:
        z = conv(low, paths.l2b, half)
        z_high, z_low = z.split([paths.high_out, z.shape[1] - paths.high_out], 1)
        to_high.append(z_high)
        to_low.append(z_low)
    if paths.l2h:  # at stride 2 the old low part is as large as the new high one
        to_high.append(conv(upsample(low, high.shape[-2:]) if strided else low, paths.l2h, size))
    if paths.l2l:
        to_low.append(conv(pool(low) if pooled else low, paths.l2l, half))
    y_high = total(to_high, size)
    if y_high is None:
        y_high = to_low[0].new_empty((x.shape[0], 0, *size))
    return Octave(y_high, y_low) if (y_low := total(to_low, half)) is not None else y_high


def total(terms: list[Tensor], size: Size2) -> Tensor | None:
    """The sum of what reaches one output, in the memory of the first term; the last one may have half the ``size``."""
    if not terms:
        return None
    y = terms[0] if terms[0].shape[-2:] == size else upsample(terms[0], size)
    for z in terms[1:]:
        y = y.add_(z) if z.shape[-2:] == size else add_upsampled_(y, z)
    return y


def _check(g: Geometry, x: Tensor | Octave, weight: Tensor, groups: int, low_out: int, stride_mode: str) -> None:
    """Refuse what octaves cannot do, before anything is computed."""
    c_out, c_in, c = weight.shape[0], weight.shape[1] * groups, low_channels(x)
    if x.ndim != 4 or x.shape[1] != c_in:
        raise OctaveError(f"expected an input of {c_in} channels, [B, {c_in}, H, W], and got {describe(x)}")
    if not 0 <= low_out <= c_out:
        raise OctaveError(f"{low_out} of {c_out} output channels cannot be low")
    if stride_mode not in ("pool", "conv"):
        raise OctaveError(f"stride_mode={stride_mode!r} is neither 'pool' nor 'conv'")
    if isinstance(x, Octave) and x.low.shape[-2:] != (half := tuple((n + 1) // 2 for n in x.shape[-2:])):
        raise OctaveError(f"the low part of {x} should be {half[0]}x{half[1]}, half of the high part, rounded up")
    check_groups(groups, c_in, c_out, low_out, c)
    check_geometry(g.kernel, g.stride, g.padding, g.dilation, bool(c or low_out), stride_mode)


# ---- errors -------------------------------------------------------------------------------------------------------


def describe(x: Any) -> str:
    return repr(x) if isinstance(x, Octave) else f"Tensor{list(x.shape)}" if isinstance(x, Tensor) else repr(x)


def no_rule(func: Callable, args: tuple) -> str:
    name = getattr(func, "__name__", str(func))
    if name in ("batch_norm", "is_contiguous"):  # what nn.BatchNorm2d and nn.SyncBatchNorm ask for
        remedy = (
            "a plain batch norm met an octave; use octzoo.sync_batchnorm instead of a converter that makes plain ones"
        )
    else:
        remedy = "leave the layers that feed it plain, or merge(x) before it"
    flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
    shapes = ", ".join(describe(a) for a in flat if isinstance(a, (Tensor, Octave)))
    return f"{name} has no meaning for an Octave ({shapes}): {remedy}"
