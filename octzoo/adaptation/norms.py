"""Batch norms get the statistics of what reaches them, and the network stays what it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from octzoo.adaptation.refit import absorb
from octzoo.fused import NORMS
from octzoo.octave import Octave
from octzoo.plan import hooked


def settle(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the mean and the variance of what each batch norm is given, and make them its statistics, in place.

    Scale and shift are changed with them so that the network in eval mode gives what it gave; in training, where a norm
    takes the batch's own statistics, it now starts from the same function.
    """
    sums: dict[str, Tensor] = {}  # norm -> [3, C]: count, sum, sum of squares; each part over its own pixels

    def enter(name: str, module: nn.Module, x: Any) -> None:
        if type(module) in NORMS and getattr(module, "running_mean", None) is not None:
            parts = [p for p in ((x.high, x.low) if isinstance(x, Octave) else (x,)) if p.shape[1]]
            found = torch.cat([_moments(part.double()) for part in parts], 1)
            sums[name] = sums.get(name, 0) + found

    model.eval()
    with hooked(model, enter, lambda *ignored: None), torch.inference_mode():
        for batch in batches:
            model(batch)
    with torch.no_grad():
        for name, (count, total, squares) in sums.items():
            mean = (total / count).clone()
            absorb(model.get_submodule(name), slice(None), mean, (squares / count).clone() - mean.square())


def _moments(x: Tensor) -> Tensor:
    """[3, n] of [B, n, H, W]."""
    count = x.new_full((x.shape[1],), x.numel() / x.shape[1])
    return torch.stack([count, x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
