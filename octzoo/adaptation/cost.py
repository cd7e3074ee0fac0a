"""What it costs a plain network if a channel is kept at half the resolution, from one pass over pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from octzoo.octave import pool, upsample
from octzoo.plan import hooked


def pooling_costs(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """How much of each convolution's output is lost with the details of each of its input channels.

    A channel that is pooled and upsampled loses the energy ||x - upsample(pool(x))||^2, and the convolution multiplies
    it by the squares of its weights: that is what the output loses, if details of different channels and pixels are
    not correlated. A depthwise convolution then works on the pooled channel, where its taps are twice as far apart:
    what it misses by that comes on top.

    Args:
        model: a plain network.
        batches: of pictures, [B, C, H, W].

    Returns:
        Name of a convolution of feature maps -> [C_in], as shares of the variance of its output.
    """
    lost: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}  # name -> [2, C_out], the sums of the outputs and of their squares
    counts: dict[str, list[float]] = {}  # name -> pixels of the inputs and of the outputs
    inputs: dict[str, Tensor] = {}

    def enter(name: str, module: nn.Module, x: Any) -> None:
        if isinstance(module, nn.Conv2d) and min(x.shape[-2:]) > 1:
            inputs[name] = x

    def leave(name: str, module: nn.Module, y: Any) -> None:
        x = inputs.pop(name, None)
        if x is None:
            return
        conv = cast(nn.Conv2d, module)
        details = _gains(conv) * (x - upsample(pool(x), x.shape[-2:])).double().square().sum((0, 2, 3))
        if conv.groups == conv.in_channels == conv.out_channels > 1:
            coarse = conv.forward(pool(x))  # not called, for that would come back here
            h, w = coarse.shape[-2:]
            per_pixel = x.numel() / coarse.numel()
            details = details + (pool(y)[..., :h, :w] - coarse).double().square().sum((0, 2, 3)) * per_pixel
        out = torch.stack([y.double().sum((0, 2, 3)), y.double().square().sum((0, 2, 3))])
        lost[name] = lost.get(name, 0) + details
        moments[name] = moments.get(name, 0) + out
        seen = counts.setdefault(name, [0.0, 0.0])
        seen[0] += x.numel() / x.shape[1]
        seen[1] += y.numel() / y.shape[1]

    model.eval()
    with hooked(model, enter, leave), torch.inference_mode():
        for batch in batches:
            model(batch)
    found = {}
    for name, details in lost.items():
        mean, square = moments[name] / counts[name][1]
        variance = (square - mean.square()).sum().clamp_min(1e-12)
        found[name] = (details / counts[name][0] / variance).float()
    return found


def _gains(conv: nn.Conv2d) -> Tensor:
    """[C_in]: the squared weights that a convolution gives to each input channel, summed."""
    squares = conv.weight.detach().double().square().sum((2, 3))  # [C_out, C_in / groups]
    return squares.reshape(conv.groups, -1, squares.shape[1]).sum(1).flatten()
