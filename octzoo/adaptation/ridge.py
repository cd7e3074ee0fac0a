"""Ridge regression from sums that pictures are added to one batch after the other: no map is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # of the pull to the old weights, in variances of the feature


@dataclass
class Sums:
    """What a regression of O targets on F features needs, for each of G groups.

    Attributes:
        count: how many rows were added.
        x: [G, F], sums of the features.
        y: [G, O], of the targets.
        xx: [G, F, F], xy: [G, F, O], yy: [G, O], of their products.
    """

    count: float
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, features: Tensor, targets: Tensor) -> Sums:
        """Of [G, N, F] and [G, N, O]."""
        x, y = features, targets
        sums = (x.sum(1), y.sum(1), x.mT @ x, x.mT @ y, y.square().sum(1))
        return cls(x.shape[1], *(s.double() for s in sums))

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    def centred(self) -> Sums:
        """The same of features and targets less their means, which then stand in ``x`` and ``y``; divided by count."""
        x, y, n = self.x / self.count, self.y / self.count, self.count
        xx = self.xx / n - x[:, :, None] * x[:, None, :]
        return Sums(n, x, y, xx, self.xy / n - x[:, :, None] * y[:, None, :], self.yy / n - y.square())


def raw(sums: Sums) -> Sums:
    """As ``centred``, of a regression that may not add a constant: nothing is taken off."""
    n = sums.count
    return Sums(n, torch.zeros_like(sums.x), torch.zeros_like(sums.y), sums.xx / n, sums.xy / n, sums.yy / n)


def error(s: Sums, w: Tensor) -> float:
    """The mean square that ``w`` [G, F, O] misses, as a share of the targets' variance; ``s`` is centred."""
    missed = s.yy - 2 * (w * s.xy).sum(1) + (w * (s.xx @ w)).sum(1)
    return float(missed.sum() / s.yy.sum().clamp_min(1e-30))


def solve(s: Sums, w: Tensor, strength: float) -> Tensor:
    """The weights [G, F, O] with the least error and pull to ``w`` together (the ridge's prior mean).

    Each feature is pulled by ``strength`` times its variance, so its scale does not matter.
    """
    pull = torch.diagonal(s.xx, dim1=1, dim2=2)
    pull = strength * pull + 1e-6 * pull.mean(1, keepdim=True) + 1e-12
    return w + torch.linalg.solve(s.xx + torch.diag_embed(pull), s.xy - s.xx @ w)


def fit(learn: Sums, check: Sums, w: Tensor, constant: bool) -> tuple[Tensor, Tensor, float, float]:
    """New weights from the old ones, never worse than these on the pictures they are checked on.

    Args:
        learn: sums over the pictures to learn from.
        check: over other ones, which choose the strength of the pull.
        w: the old weights, [G, F, O].
        constant: whether one may be added to each output.

    Returns:
        The weights; the constant that goes with them [G, O] (zeros without); the error on ``check`` before (with the
        best constant, if there is one) and after.
    """
    ready = Sums.centred if constant else raw
    to_learn, to_check = ready(learn), ready(check)
    w = w.double()
    before = after = error(to_check, w)
    best = None
    for strength in STRENGTHS:
        found = error(to_check, solve(to_learn, w, strength))
        if found < after:
            best, after = strength, found
    everything = ready(learn + check)
    new = w if best is None else solve(everything, w, best)
    return new, everything.y - (new * everything.x[:, :, None]).sum(1), before, after
