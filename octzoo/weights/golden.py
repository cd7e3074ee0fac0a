"""A picture by formula, and what a network says of it: by that a loaded network is known to be the published one.

Weights have the same shapes at every alpha: neither a checksum nor a strict load notices a wrong alpha, this does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

GOLDEN = "golden_logits"  # beside what timm and transformers read of config.json
COUNT = 16  # logits that are kept
TOLERANCE = 1e-3  # of the largest logit: another processor adds in another order


def golden_input(input_size: Sequence[int]) -> Tensor:
    """The picture, [1, C, H, W], float32, slow waves and fast ones, so that both parts of an octave count."""
    channels, height, width = input_size
    c, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (channels, height, width)), indexing="ij")
    picture = torch.sin(0.21 * x + 0.13 * y + c) + 0.5 * torch.sin(2.3 * x - 1.9 * y + 2 * c)
    return picture.float()[None]


def golden_logits(model: nn.Module, input_size: Sequence[int]) -> list[float]:
    """The first logits for the picture, by the network in evaluation mode and float32, on its own device."""
    training = model.training
    parameter = next(model.parameters())
    with torch.inference_mode():
        logits = model.eval()(golden_input(input_size).to(parameter.device, parameter.dtype))[0]
    model.train(training)
    return [float(f"{value:.6g}") for value in logits[:COUNT].tolist()]


def differs(config: Mapping[str, Any], model: nn.Module) -> str | None:
    """How a network's answer differs from config.json's; None where it does not. A config without one says nothing."""
    expected = config.get(GOLDEN)
    if expected is None:
        return None
    found = golden_logits(model, config["pretrained_cfg"]["input_size"])
    scale = max(abs(value) for value in expected) or 1.0
    off = [abs(a - b) / scale for a, b in zip(found, expected)]
    if len(found) == len(expected) and all(value <= TOLERANCE for value in off):
        return None
    return f"its answer to the golden picture is off by {max(off, default=0.0):.2g} of the largest logit"
