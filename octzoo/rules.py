"""What an Octave answers: the table from a function of torch to what it does with the two parts.

Elementwise functions map, binary ones meet part by part, joining and splitting go along the channels, reductions over
space give an ordinary vector of all channels, pooling works where it keeps the sizes of both parts. Nothing else.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octzoo.geometry import OctaveError, pair
from octzoo.octave import RULES, Octave, describe, drop, low_channels, no_rule, resplit, share


def _rule(*functions: Callable) -> Callable:
    """Enter a rule in the table; the functions are as torch (in eager and in the compiler) names them."""

    def enter(rule: Callable) -> Callable:
        RULES.update(dict.fromkeys(functions, rule))
        return rule

    return enter


def _map(func: Callable, empty: bool = False) -> None:
    """Enter ``func`` as one that works on each part by itself, ``empty`` ones too; in-place ones change them."""
    both = lambda x, *args, **kwargs: Octave(func(x.high, *args, **kwargs), func(x.low, *args, **kwargs))  # noqa: E731
    RULES[func] = both if empty else lambda x, *args, **kwargs: x.map(func, *args, **kwargs)


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
for _name in _TENSOR_MAPS.split():  # an empty part as well: it has a precision and a device too
    _map(getattr(Tensor, _name), empty=True)
for _name in _FUNCTIONAL_MAPS.split():
    _map(getattr(F, _name))


def _binary(func: Callable, *spellings: Callable, inplace: bool = False, linear: bool = False) -> None:
    """Enter an elementwise function of two arguments.

    ``linear`` ones take a whole feature map, which is dropped, and octaves that are split elsewhere: the result has as
    many low channels as the one with more, or, in place, as the first.
    """

    def rule(a: Any, b: Any, *args: Any, **kwargs: Any) -> Octave:
        if "out" in kwargs:
            raise OctaveError(no_rule(func, (a, b)))
        if linear and isinstance(a, Octave) and isinstance(b, Octave) and a.shape == b.shape:
            c = low_channels(a) if inplace else max(low_channels(a), low_channels(b))
            a, b = resplit(a, c), resplit(b, c)
        octave = a if isinstance(a, Octave) else b
        pairs = zip(_parts_like(a, octave, func, linear), _parts_like(b, octave, func, linear))
        f = getattr(Tensor, func.__name__ + "_") if inplace and octave is a else func
        return Octave(*(f(*pair, *args, **kwargs) for pair in pairs))

    RULES.update(dict.fromkeys(spellings, rule))


def _parts_like(t: Any, x: Octave, func: Callable, linear: bool) -> tuple[Any, Any]:
    """What of ``t`` meets the high and the low part of ``x``."""
    n, c = x.high.shape[1], x.low.shape[1]
    if isinstance(t, Octave):
        if (t.high.shape[1], t.low.shape[1]) == (n, c):
            return t.high, t.low
    elif not isinstance(t, Tensor) or t.numel() == 1 or (t.ndim >= 3 and t.shape[-3:] == (1, 1, 1)):
        return t, t
    elif t.ndim >= 3 and t.shape[-3:] == (n + c, 1, 1):
        return t[..., :n, :, :], t[..., n:, :, :]
    elif linear and t.ndim == 4 and t.shape[1:] == x.shape[1:]:
        dropped = drop(t, c)
        assert isinstance(dropped, Octave)
        return dropped.high, dropped.low
    raise OctaveError(f"{func.__name__} of {describe(x)} and {describe(t)}: their channels or sizes do not match")


_binary(torch.add, torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, operator.add, linear=True)
_binary(torch.add, Tensor.add_, Tensor.__iadd__, operator.iadd, linear=True, inplace=True)
_binary(torch.sub, torch.sub, Tensor.sub, Tensor.__sub__, operator.sub, linear=True)
_binary(torch.mul, torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, operator.mul)
_binary(torch.mul, Tensor.mul_, Tensor.__imul__, operator.imul, inplace=True)
_binary(torch.div, torch.div, Tensor.div, Tensor.__truediv__, operator.truediv)
_binary(torch.div, Tensor.div_, Tensor.__itruediv__, operator.itruediv, inplace=True)


@_rule(Tensor.__rsub__)
def _rsub(x: Any, y: Any) -> Octave:
    """y - x, as x is asked for it."""
    return RULES[torch.sub](y, x)


@_rule(Tensor.__rtruediv__)
def _rtruediv(x: Any, y: Any) -> Octave:
    """y / x, as ``_rsub``."""
    return RULES[torch.div](y, x)


@_rule(torch.cat, torch.concat)
def _cat(tensors: Sequence[Tensor | Octave], dim: int = 0) -> Octave:
    """On channels, part by part: all high parts, then all low ones. A Tensor among them is all high."""
    if dim not in (1, -3):
        raise OctaveError(f"cat of octaves on dimension {dim}: only channels (1) can be joined")
    high = [t.high if isinstance(t, Octave) else t for t in tensors]
    return Octave(torch.cat(high, 1), torch.cat([t.low for t in tensors if isinstance(t, Octave)], 1))


@_rule(torch.pow, Tensor.pow, Tensor.__pow__, operator.pow)
def _pow(x: Any, exponent: Any) -> Octave:
    """A number's power of both parts."""
    if not isinstance(x, Octave) or not isinstance(exponent, (int, float)):
        raise OctaveError(no_rule(torch.pow, (x, exponent)))
    return x.map(torch.pow, exponent)


@_rule(torch.split, Tensor.split)
def _split(x: Octave, split_size_or_sections: int | Sequence[int], dim: int = 0) -> list[Tensor | Octave]:
    """Pieces of the channels, part by part."""
    size, channels = split_size_or_sections, x.shape[1]
    sizes = [size] * -(-channels // size) if isinstance(size, int) else list(size)
    if dim not in (1, -3) or sum(sizes) != channels:
        raise OctaveError(f"split of {x} into {size} on dimension {dim}: only the channels (1), all of them")
    equal, pieces = len(set(sizes)) == 1, channels // math.gcd(*sizes)
    if x.low.shape[1] % pieces:
        raise OctaveError(
            f"split of {x} into {f'{pieces} pieces' if equal else sizes}, which do not divide both parts: give the "
            f"layer before it multiple={pieces} in the plan"
        )
    if not equal:
        starts = accumulate(sizes, initial=0)
        return [share(x, start, start + n) for start, n in zip(starts, sizes)]
    return [Octave(*p) for p in zip(x.high.chunk(pieces, 1), x.low.chunk(pieces, 1))]


@_rule(torch.chunk, Tensor.chunk)
def _chunk(x: Octave, chunks: int, dim: int = 0) -> list[Tensor | Octave]:
    """As ``_split``."""
    return _split(x, -(-x.shape[1] // chunks), dim)


@_rule(Tensor.__getitem__, operator.getitem)
def _getitem(x: Octave, key: Any) -> Tensor | Octave:
    """``x[:, a:b]``: consecutive channels, with their share of the low ones (rounded down at both ends)."""
    everything = slice(None)
    if isinstance(key, tuple) and 2 <= len(key) <= 4 and key[0] == everything and isinstance(key[1], slice):
        start, stop, step = key[1].indices(x.shape[1])
        if step == 1 and start < stop and all(k is Ellipsis or k == everything for k in key[2:]):
            return share(x, start, stop)
    raise OctaveError(no_rule(Tensor.__getitem__, (x,)))


@_rule(Tensor.expand_as)
def _expand_as(x: Tensor, other: Octave) -> Octave:
    """A gate [B, C, 1, 1] spread over the pixels of both parts."""
    high, low = _parts_like(x, other, Tensor.expand_as, False)
    return Octave(high.expand_as(other.high), low.expand_as(other.low))


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
def _max_pool2d(
    x: Octave,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Octave:
    if pair(dilation) != (1, 1) or return_indices:
        raise OctaveError(f"max_pool2d of {x} with dilation or indices: merge(x) before it")

    pool = functools.partial(F.max_pool2d, ceil_mode=ceil_mode)
    return _window(x, "max_pool2d", pool, kernel_size, stride or kernel_size, padding, ceil_mode)


@_rule(F.avg_pool2d)
def _avg_pool2d(
    x: Octave,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Octave:
    options: dict[str, Any] = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    pool = functools.partial(F.avg_pool2d, ceil_mode=ceil_mode, **options)
    return _window(x, "avg_pool2d", pool, kernel_size, stride or kernel_size, padding, ceil_mode)


def _window(x: Octave, name: str, f: Callable, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> Octave:
    """Pool both parts with the same window; the low one's edge is repeated where it would come out too small."""
    (k, m), (s, t), (p, q) = pair(kernel), pair(stride), pair(padding)
    if not (s == t and s in (1, 2) and all(0 <= a - 1 - 2 * b <= 2 * (s - 1) for a, b in ((k, p), (m, q)))):
        raise OctaveError(
            f"{name} with kernel {kernel}, stride {stride}, padding {padding} does not keep the sizes of both "
            f"parts of {x}: merge(x) before it, or leave the layers that feed it plain"
        )
    if not x.high.shape[1]:  # an empty part still has to tell the size
        probe = f(x.low.new_zeros(1, 1, *x.high.shape[-2:]), kernel, stride, padding)
        high = x.high.new_empty(x.high.shape[0], 0, *probe.shape[-2:])
    else:
        high = f(x.high, kernel, stride, padding)
    h, w = ((n + 1) // 2 for n in high.shape[-2:])
    rows, columns = _missing(x.low.shape[-2], h, k, s, p, ceil_mode), _missing(x.low.shape[-1], w, m, t, q, ceil_mode)
    low = F.pad(x.low, (0, columns, 0, rows), "replicate") if rows or columns else x.low
    return Octave(high, f(low, kernel, stride, padding)[..., :h, :w])


def _missing(n: int, size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """How many pixels a window needs beyond ``n`` to give ``size``; 0 where it gives it."""
    given = (n + 2 * padding - kernel + (stride - 1) * ceil_mode) // stride + 1
    if ceil_mode and (given - 1) * stride >= n + padding:  # a window that starts in the padding is left out
        given -= 1
    return max((size - 1) * stride + kernel - 2 * padding - n, 0) if given < size else 0


@_rule(F.interpolate)
def _interpolate(
    x: Octave,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Octave:
    """Nearest neighbour by a whole factor, of each part: what the merged map would become."""
    factors = pair(scale_factor) if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
    if size is not None or mode != "nearest" or any(f is None or f < 1 or f != int(f) for f in factors):
        raise OctaveError(f"interpolate of {x}: only by nearest neighbour and whole factors; merge(x) before it")
    h, w = (n * int(f) for n, f in zip(x.shape[-2:], factors))
    high, low = (F.interpolate(p, scale_factor=factors) if p.shape[1] else p for p in (x.high, x.low))
    high = high if x.high.shape[1] else x.high.new_empty(x.high.shape[0], 0, h, w)
    return Octave(high, low[..., : (h + 1) // 2, : (w + 1) // 2])


def _method(rule: Callable) -> Callable:
    return lambda self, *args, **kwargs: rule(self, *args, **kwargs)


for _name in dir(Tensor):  # x.add(y), x + y, x.mean((2, 3)), ... as methods
    _function = getattr(Tensor, _name)
    if callable(_function) and _function in RULES and _name not in vars(Octave):
        setattr(Octave, _name, _method(RULES[_function]))
