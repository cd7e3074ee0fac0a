"""Batch norm of few channels in training, on a processor: by rows of pixels instead of by pixels.

PyTorch's own works on one pixel after the other where channels come last. The narrow parts of small octave networks
have fewer channels than a vector has places, and 12 took it longer than 16 (docs/speed.md, "Training").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VECTOR = 16  # channels from which on PyTorch's own is faster


def is_narrow(x: Tensor) -> bool:
    """Whether ``batch_norm`` below is the faster one for [B, C, H, W]."""
    return (
        x.shape[1] < VECTOR
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
        and not torch.compiler.is_compiling()
    )


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    """What ``torch.nn.functional.batch_norm`` gives in training, gradients and updates of the statistics included.

    Args:
        x: [B, C, H, W], channels last.
        running_mean, running_var, weight, bias: [C].
        momentum: how much of this batch the running statistics take.
        eps: added to the variance.
    """
    y, mean, var = _Rows.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        n = x.numel() // x.shape[1]
        # .data, for PyTorch's own, which may have worked on the buffer's other part, keeps it for its gradient unused
        running_mean.data.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.data.lerp_((var * (n / (n - 1))).to(running_var.dtype), momentum)
    return y


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.empty_like(x)  # no view of something else, for an activation may work in place
        mean = _mean(x)
        centred = torch.sub(_rows(x), mean.repeat(x.shape[-1]), out=_rows(y))
        var = _variance(centred, x)
        centred.mul_(((var + eps).rsqrt() * weight).repeat(x.shape[-1])).add_(bias.repeat(x.shape[-1]))
        return y, mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again: the statistics are functions of x too
            mean = _mean(x)
            var = _variance(_rows(x) - mean.repeat(x.shape[-1]), x)
        inverse = (var + ctx.eps).rsqrt()
        width, n = x.shape[-1], x.numel() // x.shape[1]
        of_y, rows = _rows(g), _rows(x)
        of_bias = _folded(of_y.sum(0), width)
        of_weight = (_folded((of_y * rows).sum(0), width) - mean * of_bias) * inverse
        a = weight * inverse
        b = -a * inverse * of_weight / n
        c = -a * of_bias / n - b * mean
        of_x = torch.addcmul(c.repeat(width), of_y, a.repeat(width)).addcmul_(rows, b.repeat(width))
        maps = of_x.view(*(x.shape[i] for i in (0, 2, 3, 1))).permute(0, 3, 1, 2)
        return maps, of_weight, of_bias, None


def _mean(x: Tensor) -> Tensor:
    """[C], over pictures and space."""
    return _folded(_rows(x).sum(0), x.shape[-1]) / (x.numel() // x.shape[1])


def _variance(centred: Tensor, x: Tensor) -> Tensor:
    """[C], the mean square of the rows of ``x`` less their mean."""
    squares = torch.linalg.vector_norm(centred, dim=0).square()
    return _folded(squares, x.shape[-1]) / (x.numel() // x.shape[1])


def _rows(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B * H, W * C], a view where channels come last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] * x.shape[2], -1)


def _folded(row: Tensor, width: int) -> Tensor:
    """[W * C] -> [C], summed over W."""
    return row.view(width, -1).sum(0)
