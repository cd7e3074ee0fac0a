"""Octave convolution on one screen: the value, the split, the two resamplings, the convolution.

Chen et al., "Drop an Octave", ICCV 2019, arXiv 1904.05049. Pure functions, no ``nn.Module``.

Shapes: B pictures, C channels of which c are low, H x W the size of the high part.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

StrideMode = Literal["pool", "conv"]
Size2 = tuple[int, int]


class OctaveError(ValueError):
    """Something that octaves cannot do; the text says what came, where, and what to do instead."""


class OctaveAttributeError(OctaveError, AttributeError):
    """A tensor attribute that an Octave does not have."""


@dataclass(frozen=True, eq=False)
class Octave:
    """A feature map of C channels, the last c of them at half the resolution (section 3.1).

    ``high``: [B, C - c, H, W]; ``low``: [B, c, ceil(H/2), ceil(W/2)] with 0 < c <= C. Where c = C, ``high`` is an empty
    [B, 0, H, W] that only carries the size. Where c = 0 there is no Octave but an ordinary tensor.

    Flows through code written for tensors: elementwise functions map over both parts, ``+`` adds part by part, and
    everything else that has a meaning stands in a table below. What does not raises an OctaveError.
    """

    high: Tensor
    low: Tensor

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        rule = _RULES.get(func)
        if rule is None:
            raise OctaveError(_no_rule(func, args))
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
            raise OctaveAttributeError(_no_rule(getattr(Tensor, name), (self,)))
        raise AttributeError(f"'Octave' object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"Octave(high={list(self.high.shape)}, low={list(self.low.shape)})"


# A pytree node: hooks, checkpointing, FSDP2 and torch.export see the two tensors inside.
torch.export.register_dataclass(Octave, serialized_type_name="octzoo.Octave")


# ---- the split and the two resamplings -----------------------------------------------------------------------------


def split_channels(channels: int, alpha: float, multiple: int = 1) -> int:
    """How many of ``channels`` are low: alpha of them, truncated as the authors do, then to a multiple."""
    return int(alpha * channels) // multiple * multiple


def low_channels(x: Tensor | Octave) -> int:
    """c, the number of low channels of ``x``; 0 for a tensor."""
    return x.low.shape[1] if isinstance(x, Octave) else 0


def pool(x: Tensor) -> Tensor:
    """2x2 average, [B, n, H, W] -> [B, n, ceil(H/2), ceil(W/2)]; a window over the edge averages what it holds."""
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest neighbour, [B, n, ceil(H/2), ceil(W/2)] -> [B, n, H, W] with ``size`` = (H, W), odd ones too."""
    return F.interpolate(x, scale_factor=2, mode="nearest")[..., : size[0], : size[1]]


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
        padding, dilation, groups, padding_mode: as in ``nn.Conv2d``; "same" goes with stride 2 as well (as TensorFlow).
        low_out: the low channels of the output, 0 to C_out.
        stride_mode: what stride 2 does. "pool", the authors' way: the inputs are pooled, then convolved at stride 1.
            "conv": each part is strided (Table 3), as plain weights expect.
        h2l, l2h: False switches an exchange path off (Table 3).

    Returns:
        A Tensor if ``low_out`` is 0, else an Octave, of the size the plain convolution gives.

    Raises:
        OctaveError: channels that do not fit, a group number that does not divide all parts, a stride above 2, or a
            geometry that pooling does not keep.
    """
    geometry = _Geometry(pair(weight.shape[-2:]), pair(stride), padding, pair(dilation), padding_mode)
    _check(geometry, x, weight, groups, low_out, stride_mode)
    depthwise = groups == x.shape[1] > 1
    if depthwise:  # a channel stays where it is, unless the output is split elsewhere
        x = resplit(x, low_out * groups // weight.shape[0])
        h2l = l2h = False
    high, low = (x.high, x.low) if isinstance(x, Octave) else (x, None)
    high_out = weight.shape[0] - low_out
    pooled = geometry.stride == (2, 2) and stride_mode == "pool"
    strided = geometry.stride == (2, 2) and stride_mode == "conv"
    size = geometry.out_size(high.shape[-2:])
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    if pooled:
        geometry = replace(geometry, stride=(1, 1))

    # The paths into each part: what it convolves, and with which columns of the weight.
    split = weight.shape[1] if depthwise else high.shape[1] // groups
    from_high, from_low = slice(0, split), slice(0 if depthwise else split, None)
    to_high, to_low = [], []
    if high.shape[1]:
        high = pool(high) if pooled else high
        if high_out:
            to_high.append((high, from_high))
        if low_out and h2l:
            to_low.append((pool(high), from_high))
    if low is not None:
        if high_out and l2h:  # at stride 2 the old low part is as large as the new high one
            to_high.append((upsample(low, high.shape[-2:]) if strided else low, from_low))
        if low_out:
            to_low.append((pool(low) if pooled else low, from_low))

    def total(paths: list[tuple[Tensor, slice]], rows: slice, size: Size2) -> Tensor:
        if not paths:
            raise OctaveError(f"nothing reaches the {'low' if rows.start else 'high'} output: an exchange path is off")
        y = None
        for part, columns in paths:
            b = bias[rows] if bias is not None and y is None else None
            part = geometry.reach(part, size) if strided else part
            z = geometry.conv(part, weight[rows, columns], b, part.shape[1] if depthwise else groups)
            z = z if z.shape[-2:] == size else upsample(z, size)
            y = z if y is None else y + z
        return y

    y_low = total(to_low, slice(high_out, None), half) if low_out else None
    y_high = total(to_high, slice(0, high_out), size) if high_out else x.new_empty((x.shape[0], 0, *size))
    return y_high if y_low is None else Octave(y_high, y_low)


@dataclass(frozen=True)
class _Geometry:
    """How a convolution moves over its input; what ``nn.Conv2d`` calls kernel, stride, padding and dilation."""

    kernel: Size2
    stride: Size2
    padding: str | int | Size2
    dilation: Size2
    padding_mode: str

    def spans(self) -> Size2:
        """Pixels from a kernel's first tap to its last, for height and width."""
        return self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1)

    def pads(self, size: Sequence[int]) -> tuple[Size2, Size2]:
        """(before, after) for height and width, on an input of ``size``."""
        if self.padding == "same":
            total = [max((-(-n // s) - 1) * s + k + 1 - n, 0) for n, s, k in zip(size, self.stride, self.spans())]
            return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
        h, w = (0, 0) if isinstance(self.padding, str) else pair(self.padding)
        return (h, h), (w, w)

    def out_size(self, size: Sequence[int]) -> Size2:
        """(H, W) after the convolution."""
        pads = self.pads(size)
        h, w = ((n + sum(p) - k - 1) // s + 1 for n, p, k, s in zip(size, pads, self.spans(), self.stride))
        return h, w

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """The ordinary convolution. ``nn.Conv2d`` pads itself where the mode is not zeros, and so does this."""
        if self.padding_mode == "zeros" and (self.padding != "same" or self.stride == (1, 1)):
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)
        (top, bottom), (left, right) = self.pads(x.shape[-2:])
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = F.pad(x, (left, right, top, bottom), mode)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, groups)

    def reach(self, x: Tensor, size: Size2) -> Tensor:
        """``x`` with its last row and column repeated where it is too small to give ``size``."""
        (top, bottom), (left, right) = self.pads(x.shape[-2:])
        (h, w), (s, t), (k, m) = size, self.stride, self.spans()
        rows = (h - 1) * s + k + 1 - x.shape[-2] - top - bottom
        columns = (w - 1) * t + m + 1 - x.shape[-1] - left - right
        return F.pad(x, (0, max(columns, 0), 0, max(rows, 0)), "replicate") if max(rows, columns) > 0 else x


def _check(g: _Geometry, x: Tensor | Octave, weight: Tensor, groups: int, low_out: int, stride_mode: str) -> None:
    """Refuse what octaves cannot do, before anything is computed."""
    c_out, c_in, c = weight.shape[0], weight.shape[1] * groups, low_channels(x)
    if x.ndim != 4 or x.shape[1] != c_in:
        raise OctaveError(f"expected an input of {c_in} channels, [B, {c_in}, H, W], and got {_describe(x)}")
    if not 0 <= low_out <= c_out:
        raise OctaveError(f"{low_out} of {c_out} output channels cannot be low")
    if stride_mode not in ("pool", "conv"):
        raise OctaveError(f"stride_mode={stride_mode!r} is neither 'pool' nor 'conv'")
    if isinstance(x, Octave) and x.low.shape[-2:] != (half := tuple((n + 1) // 2 for n in x.shape[-2:])):
        raise OctaveError(f"the low part of {x} should be {half[0]}x{half[1]}, half of the high part, rounded up")
    check_groups(groups, c_in, c_out, low_out, c)
    check_geometry(g.kernel, g.stride, g.padding, g.dilation, bool(c or low_out), stride_mode)


def check_groups(groups: int, c_in: int, c_out: int, low_out: int, low_in: int = 0) -> None:
    """Raise unless ``groups`` divides each part of the input and of the output. Depthwise needs whole multiples."""
    if groups == c_in > 1:
        if low_out * groups % c_out:
            raise OctaveError(f"{low_out} low outputs of a depthwise convolution are not whole channels of {c_in}")
        return
    parts = {"high in": c_in - low_in, "low in": low_in, "high out": c_out - low_out, "low out": low_out}
    if bad := [f"{n} {part}" for part, n in parts.items() if n % groups]:
        raise OctaveError(
            f"{groups} groups do not divide the parts ({', '.join(bad)}): choose an alpha whose low channels are a "
            f"multiple of {groups}, or leave this layer plain"
        )


def check_geometry(
    kernel: Size2, stride: Size2, padding: str | int | Size2, dilation: Size2, octave: bool, stride_mode: str
) -> None:
    """Raise unless the convolution keeps a size that both resolutions can have (``octave``: it meets a low part)."""
    if stride not in ((1, 1), (2, 2)):
        raise OctaveError(f"stride {stride} is not 1 or 2: leave this layer plain")
    if stride == (1, 1) and not octave or stride == (2, 2) and stride_mode == "conv" and not octave:
        return
    spans = [d * (k - 1) for d, k in zip(dilation, kernel)]
    pads = spans if padding == "same" else [0, 0] if isinstance(padding, str) else [2 * p for p in pair(padding)]
    short = [k - p for k, p in zip(spans, pads)]
    what = f"kernel {kernel}, padding {padding}, dilation {dilation}"
    if stride == (2, 2) and stride_mode == "pool" and (any(short) or any(k % 2 for k in spans)):
        raise OctaveError(
            f"{what} at stride 2 does not keep its size behind pooling (an odd kernel with padding k//2 does): "
            "use stride_mode='conv', or leave this layer plain"
        )
    if stride == (1, 1) and any(short) or not all(0 <= n <= 1 for n in short):
        raise OctaveError(f"{what} at stride {stride[0]} does not keep the sizes of both parts: leave this layer plain")


def pair(x: int | Sequence[int]) -> Size2:
    return (x, x) if isinstance(x, int) else (x[0], x[1])


def _describe(x: Any) -> str:
    return repr(x) if isinstance(x, Octave) else f"Tensor{list(x.shape)}" if isinstance(x, Tensor) else repr(x)


# ---- what an Octave answers ----------------------------------------------------------------------------------------

_RULES: dict[Callable, Callable] = {}


def _rule(*functions: Callable) -> Callable:
    """Enter a rule in the table; the functions are as torch (in eager and in the compiler) names them."""

    def enter(rule: Callable) -> Callable:
        _RULES.update(dict.fromkeys(functions, rule))
        return rule

    return enter


def _no_rule(func: Callable, args: tuple) -> str:
    name = getattr(func, "__name__", str(func))
    if name in ("batch_norm", "is_contiguous"):  # what nn.BatchNorm2d and nn.SyncBatchNorm ask for
        remedy = (
            "a plain batch norm met an octave; use octzoo.sync_batchnorm instead of a converter that makes plain ones"
        )
    else:
        remedy = "leave the layers that feed it plain, or merge(x) before it"
    flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
    shapes = ", ".join(_describe(a) for a in flat if isinstance(a, (Tensor, Octave)))
    return f"{name} has no meaning for an Octave ({shapes}): {remedy}"


def _map(func: Callable) -> None:
    """Enter ``func`` as one that works on each part by itself; in-place ones change the parts."""
    _RULES[func] = lambda x, *args, **kwargs: x.map(func, *args, **kwargs)


_MAPS = (
    "relu relu_ sigmoid sigmoid_ tanh tanh_ clamp clamp_ clamp_min clamp_min_ hardshrink neg abs exp square rsqrt sqrt"
)
_TENSOR_MAPS = "contiguous clone detach float half bfloat16 double to requires_grad_"
_FUNCTIONAL_MAPS = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh softplus softsign tanhshrink "
    "sigmoid tanh logsigmoid threshold rrelu dropout dropout2d alpha_dropout feature_alpha_dropout"
)
for _name in _MAPS.split():
    for _space in (torch, Tensor):
        if hasattr(_space, _name):
            _map(getattr(_space, _name))
for _name in _TENSOR_MAPS.split():
    _map(getattr(Tensor, _name))
for _name in _FUNCTIONAL_MAPS.split():
    _map(getattr(F, _name))


def _binary(func: Callable, *spellings: Callable, inplace: bool = False, linear: bool = False) -> None:
    """Enter an elementwise function of two arguments. ``linear`` ones take a whole feature map, which is dropped."""

    def rule(a: Any, b: Any, *args: Any, **kwargs: Any) -> Octave:
        octave = a if isinstance(a, Octave) else b
        pairs = zip(_parts_like(a, octave, func, linear), _parts_like(b, octave, func, linear))
        f = getattr(Tensor, func.__name__ + "_") if inplace and octave is a else func
        return Octave(*(f(*pair, *args, **kwargs) for pair in pairs))

    _RULES.update(dict.fromkeys(spellings, rule))


def _parts_like(t: Any, x: Octave, func: Callable, linear: bool) -> tuple[Any, Any]:
    """What of ``t`` meets the high and the low part of ``x``."""
    n, c = x.high.shape[1], x.low.shape[1]
    if isinstance(t, Octave):
        if (t.high.shape[1], t.low.shape[1]) == (n, c):
            return t.high, t.low
    elif not isinstance(t, Tensor) or t.ndim == 0:
        return t, t
    elif t.ndim >= 3 and t.shape[-3:] == (1, 1, 1):
        return t, t
    elif t.ndim >= 3 and t.shape[-3:] == (n + c, 1, 1):
        return t[..., :n, :, :], t[..., n:, :, :]
    elif linear and t.ndim == 4 and t.shape[1:] == x.shape[1:]:
        dropped = drop(t, c)
        assert isinstance(dropped, Octave)
        return dropped.high, dropped.low
    raise OctaveError(f"{func.__name__} of {_describe(x)} and {_describe(t)}: their channels or sizes do not match")


_binary(torch.add, torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, operator.add, linear=True)
_binary(torch.add, Tensor.add_, Tensor.__iadd__, operator.iadd, linear=True, inplace=True)
_binary(torch.sub, torch.sub, Tensor.sub, Tensor.__sub__, operator.sub, linear=True)
_binary(torch.mul, torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, operator.mul)
_binary(torch.mul, Tensor.mul_, Tensor.__imul__, operator.imul, inplace=True)
_binary(torch.div, torch.div, Tensor.div, Tensor.__truediv__, operator.truediv)
_binary(torch.div, Tensor.div_, Tensor.__itruediv__, operator.itruediv, inplace=True)


@_rule(torch.cat, torch.concat)
def _cat(tensors: Sequence[Tensor | Octave], dim: int = 0) -> Octave:
    """On channels, part by part: all high parts, then all low ones. A Tensor among them is all high."""
    if dim not in (1, -3):
        raise OctaveError(f"cat of octaves on dimension {dim}: only channels (1) can be joined")
    high = [t.high if isinstance(t, Octave) else t for t in tensors]
    return Octave(torch.cat(high, 1), torch.cat([t.low for t in tensors if isinstance(t, Octave)], 1))


@_rule(torch.split, Tensor.split)
def _split(x: Octave, split_size_or_sections: int | Sequence[int], dim: int = 0) -> list[Octave]:
    """Equal pieces of the channels, part by part."""
    size, channels = split_size_or_sections, x.shape[1]
    sizes = [size] * -(-channels // size) if isinstance(size, int) else list(size)
    if dim not in (1, -3) or len(set(sizes)) != 1 or sum(sizes) != channels:
        raise OctaveError(f"split of {x} into {size} on dimension {dim}: only into equal pieces of the channels (1)")
    pieces = len(sizes)
    if x.high.shape[1] % pieces or x.low.shape[1] % pieces:
        raise OctaveError(
            f"split of {x} into {pieces} pieces, which do not divide both parts: give the layer before it "
            f"multiple={pieces} in the plan"
        )
    return [Octave(*p) for p in zip(x.high.chunk(pieces, 1), x.low.chunk(pieces, 1))]


@_rule(torch.chunk, Tensor.chunk)
def _chunk(x: Octave, chunks: int, dim: int = 0) -> list[Octave]:
    """As ``_split``."""
    return _split(x, -(-x.shape[1] // chunks), dim)


def _join(x: Octave, function: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, C, ...] of a reduction over all of space, high channels first."""
    return torch.cat([function(p) for p in (x.high, x.low) if p.shape[1]], 1)


@_rule(torch.mean, Tensor.mean)
def _mean(x: Octave, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The global average of every channel, a Tensor [B, C, 1, 1] or [B, C]: what squeeze-excite and heads ask for."""
    _check_space(x, dim, "mean")
    return _join(x, lambda p: p.mean((2, 3), keepdim))


@_rule(torch.amax, Tensor.amax)
def _amax(x: Octave, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The global maximum of every channel, as ``_mean``."""
    _check_space(x, dim, "amax")
    return _join(x, lambda p: p.amax((2, 3), keepdim))


def _check_space(x: Octave, dim: Any, name: str) -> None:
    if not isinstance(dim, (tuple, list)) or sorted(d % 4 for d in dim) != [2, 3]:
        raise OctaveError(f"{name} of {x} over dimensions {dim}: only over height and width, (2, 3)")


@_rule(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Octave, output_size: Any) -> Tensor:
    _check_global(x, output_size, "adaptive_avg_pool2d")
    return _mean(x, (2, 3), True)


@_rule(F.adaptive_max_pool2d)
def _adaptive_max_pool2d(x: Octave, output_size: Any, return_indices: bool = False) -> Tensor:
    _check_global(x, output_size, "adaptive_max_pool2d")
    return _amax(x, (2, 3), True)


def _check_global(x: Octave, output_size: Any, name: str) -> None:
    if output_size not in (1, (1, 1), [1, 1]):
        raise OctaveError(f"{name} of {x} to {output_size}: only to size 1; merge(x) before it")


@_rule(F.max_pool2d)
def _max_pool2d(x: Octave, kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **kwargs: Any) -> Octave:
    stride = kernel_size if stride is None else stride
    return _window(x, F.max_pool2d, kernel_size, stride, padding, *args, **kwargs)


@_rule(F.avg_pool2d)
def _avg_pool2d(x: Octave, kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **kwargs: Any) -> Octave:
    stride = kernel_size if stride is None else stride
    return _window(x, F.avg_pool2d, kernel_size, stride, padding, *args, **kwargs)


def _window(x: Octave, f: Callable, kernel: Any, stride: Any, padding: Any, *args: Any, **kwargs: Any) -> Octave:
    """Pool both parts with the same window; the low one's edge is repeated where it would come out too small."""
    (k, m), (s, t), (p, q) = pair(kernel), pair(stride), pair(padding)
    if not (s == t and s in (1, 2) and all(0 <= a - 1 - 2 * b <= 2 * (s - 1) for a, b in ((k, p), (m, q)))):
        raise OctaveError(
            f"{f.__name__} with kernel {kernel}, stride {stride}, padding {padding} does not keep the sizes of both "
            f"parts of {x}: merge(x) before it, or leave the layers that feed it plain"
        )
    if not x.high.shape[1]:  # an empty part still has to tell the size
        probe = f(x.low.new_zeros(1, 1, *x.high.shape[-2:]), kernel, stride, padding, *args, **kwargs)
        high = x.high.new_empty(x.high.shape[0], 0, *probe.shape[-2:])
    else:
        high = f(x.high, kernel, stride, padding, *args, **kwargs)
    h, w = ((n + 1) // 2 for n in high.shape[-2:])
    low = f(x.low, kernel, stride, padding, *args, **kwargs)
    if low.shape[-2] < h or low.shape[-1] < w:
        edge = (0, int(low.shape[-1] < w), 0, int(low.shape[-2] < h))
        low = f(F.pad(x.low, edge, "replicate"), kernel, stride, padding, *args, **kwargs)
    return Octave(high, low[..., :h, :w])


def _method(rule: Callable) -> Callable:
    return lambda self, *args, **kwargs: rule(self, *args, **kwargs)


for _function, _entry in list(_RULES.items()):  # x.add(y), x + y, x.mean((2, 3)), ... as methods
    _name = getattr(_function, "__name__", "")
    if getattr(Tensor, _name, None) is _function and _name not in vars(Octave):
        setattr(Octave, _name, _method(_entry))
