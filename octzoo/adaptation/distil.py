"""The octave network as a whole learns to answer as the plain one, on unlabelled pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from octzoo.octave import merge


class Schedule(NamedTuple):
    """How long, and how fast.

    Attributes:
        epochs: passes over the pictures.
        lr: Adam's largest learning rate: small, for what refitting found is soon lost.
        warm_up: steps until it is reached; it falls to 0 along a cosine then.
        scale: the least share of a picture's area that a random crop takes.
    """

    epochs: int
    lr: float = 5e-5
    warm_up: int = 20
    scale: float = 0.25


class Distillation:
    """Trains ``octave``, in place, epoch by epoch: its last feature map and its answers are to be those of ``plain``.

    Both see the same random crops, each mixed with another one, for few pictures are soon known by heart (Beyer et al.
    2022, "Knowledge distillation: a good teacher is patient and consistent"). Batch norms keep their statistics; see
    ``norms.settle``.

    Args:
        octave: the network; in eval mode afterwards too.
        plain: the network that it learns from.
        steps: batches of an epoch.
        schedule: how long, and how fast.
        seed: of the crops and how they are mixed.
    """

    def __init__(self, octave: nn.Module, plain: nn.Module, steps: int, schedule: Schedule, seed: int = 0):
        self.octave, self.plain, self.schedule, self.seed = octave.eval(), plain.eval(), schedule, seed
        self.optimizer = torch.optim.Adam([p.requires_grad_() for p in octave.parameters()], schedule.lr)
        total = steps * schedule.epochs
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda i: _rate(i, schedule.warm_up, total))
        self.epochs = 0  # done

    def epoch(self, batches: Iterable[Tensor]) -> float:
        """One pass over pictures, [B, C, H, W]; returns the mean loss."""
        losses = []
        for number, batch in enumerate(batches):
            x = vary(batch, self.schedule.scale, self.seed + self.epochs * 100_003 + number)
            with torch.no_grad():
                wanted = answers(self.plain, x)
            loss = difference(answers(self.octave, x), wanted)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.rate.step()
            losses.append(float(loss.detach()))
        self.epochs += 1
        return sum(losses) / len(losses)

    def state(self) -> dict[str, Any]:
        """All but the network."""
        return {"optimizer": self.optimizer.state_dict(), "rate": self.rate.state_dict(), "epochs": self.epochs}

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from ``state``; None: from the start."""
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.rate.load_state_dict(state["rate"])
            self.epochs = state["epochs"]


class Answers(NamedTuple):
    """What a network makes of pictures.

    Attributes:
        features: its last feature map, merged, [B, C, H, W].
        logits: [B, classes].
    """

    features: Tensor
    logits: Tensor


def answers(model: Any, x: Tensor) -> Answers:
    """Of a network of timm, for pictures [B, C, H, W]."""
    features = merge(model.forward_features(x))
    return Answers(features, model.forward_head(features))


def difference(found: Answers, wanted: Answers) -> Tensor:
    """Of two networks: Kullback-Leibler of the classes, and the share of the features' variance that is missed."""
    missed = F.mse_loss(found.features, wanted.features) / wanted.features.var()
    classes = F.kl_div(
        F.log_softmax(found.logits, 1), F.log_softmax(wanted.logits, 1), reduction="batchmean", log_target=True
    )
    return missed + classes


def vary(batch: Tensor, scale: float, seed: int) -> Tensor:
    """Of each picture a random part, as large as it was, mirrored or not, and mixed with that of another one."""
    size = list(batch.shape[-2:])
    change = v2.Compose([v2.RandomResizedCrop(size, scale=(scale, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cropped = torch.stack([change(picture) for picture in batch])
        share = torch.rand(len(batch), 1, 1, 1)
    return torch.lerp(cropped.flip(0), cropped, share).contiguous(memory_format=torch.channels_last)


def _rate(i: int, warm_up: int, steps: int) -> float:
    return min(1.0, (i + 1) / max(warm_up, 1)) * 0.5 * (1 + math.cos(math.pi * min(i / max(steps, 1), 1)))
