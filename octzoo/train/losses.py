"""What is minimised: timm's losses, on class indices or on the soft targets of mixup."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor
from torch.nn import functional as F


@dataclass
class LossArgs:
    """Which loss, and what it needs.

    Args:
        name: cross_entropy, or bce (one yes-or-no question a class, "ResNet strikes back")
        target_threshold: bce: a (mixed) target above this counts as 1, any other as 0; null leaves targets as they are
        sum_classes: bce: the sum over the classes instead of their mean
    """

    name: Literal["cross_entropy", "bce"] = "cross_entropy"
    target_threshold: float | None = None
    sum_classes: bool = False


def make_loss(args: LossArgs, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of logits [B, C] and targets, class indices [B] or probabilities [B, C], to the mean over pictures.

    Smoothing comes before the threshold, as where timm's Mixup smooths.
    """
    if args.name == "cross_entropy":
        return lambda logits, targets: F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    bce = BinaryCrossEntropy(smoothing=0.0, target_threshold=args.target_threshold, sum_classes=args.sum_classes)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        classes = logits.shape[1]
        if targets.ndim == 1:
            targets = F.one_hot(targets, classes)
        targets = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / classes
        return bce(logits, targets)

    return loss


class LossMean:
    """The mean loss over an epoch's pictures, and what a resumed run needs to go on with it.

    Unlike torchmetrics' mean it waits for no GPU, keeps a NaN, and can be put back to the same bits.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(2)  # of loss x pictures, and pictures: of this process since the epoch began

    def add(self, loss: Tensor, pictures: int) -> None:
        """Counts a batch's mean loss."""
        if self.sums.device != loss.device:  # once
            self.sums = self.sums.to(loss.device)
        self.sums[0] += loss.detach().float() * pictures
        self.sums[1] += pictures

    def put_back(self, rows: list[list[float]], rank: int, world: int) -> None:
        """Takes up the sums of all processes: each its own, or where their number changed the first one all."""
        if len(rows) == world:
            self.sums = torch.tensor(rows[rank])
        else:
            self.sums = torch.tensor(rows).sum(dim=0) if rank == 0 else torch.zeros(2)

    def take(self, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean over all processes, whose sums `reduce` adds; then begins anew."""
        total = reduce(self.sums.clone())
        self.sums = torch.zeros_like(self.sums)
        return total[0] / total[1]
