"""The two resamplings between the parts of an Octave, and what is cheaper than doing them by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octzoo.geometry import Geometry, Size2, pair


def pool(x: Tensor) -> Tensor:
    """2x2 average, [B, n, H, W] -> [B, n, ceil(H/2), ceil(W/2)]; a window over the edge averages what it holds."""
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest neighbour, [B, n, ceil(H/2), ceil(W/2)] -> [B, n, H, W] with ``size`` = (H, W), odd ones too."""
    return F.interpolate(x, scale_factor=2, mode="nearest")[..., : size[0], : size[1]]


def add_upsampled_(y: Tensor, x: Tensor) -> Tensor:
    """``y`` [B, n, H, W] with ``upsample(x)`` added, in place."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # backward and the compiler are slow on strided views
        return y.add_(upsample(x, y.shape[-2:]))
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = y[..., i::2, j::2]
        part.add_(x[..., : part.shape[-2], : part.shape[-1]])
    return y


def conv_pooled(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution of ``pool(x)`` [B, C_out, H/2, W/2], which keeps ``x`` for its backward pass and not ``pool(x)``.

    ``x`` is kept anyway, by the convolution of the same layer that is not pooled.
    """
    groups = x.shape[1] // weight.shape[1]
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if (
        isinstance(geometry.padding, str)
        or geometry.padding_mode != "zeros"
        or not trains
        or torch.compiler.is_compiling()
    ):  # the compiler chooses for itself what is kept
        return geometry.conv(pool(x), weight, bias, groups)
    how = geometry.stride, pair(geometry.padding), geometry.dilation
    return _ConvPooled.apply(x, weight, bias, *how, groups)


class _ConvPooled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Size2, padding: Size2, dilation: Size2, groups: int
    ) -> Tensor:
        return F.conv2d(pool(x), weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *ctx.how, ctx.groups = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        pooled, w = pool(x).to(g.dtype), weight.to(g.dtype) / 4  # the precision is that of autocast in the forward pass
        wanted, sizes = ctx.needs_input_grad[:3], [weight.shape[0]]
        of_pooled, of_weight, of_bias = torch.ops.aten.convolution_backward(
            g, pooled, w, sizes, *ctx.how, False, [0, 0], ctx.groups, wanted
        )
        of_x = _pool_backward(of_pooled, x.shape[-2:]).to(x.dtype) if wanted[0] else None
        return of_x, *(of if want else None for of, want in zip((of_weight, of_bias), wanted[1:])), *[None] * 4


def _pool_backward(g: Tensor, size: Sequence[int]) -> Tensor:
    """The gradient of ``pool``'s input of ``size``, for a quarter of that of its output.

    Windows over the edge hold two numbers, or one, instead of four.
    """
    for axis, n in ((-2, size[0]), (-1, size[1])):
        if n % 2:
            g = torch.cat([g.narrow(axis, 0, n // 2), 2 * g.narrow(axis, n // 2, 1)], axis)
    return upsample(g, size)
