"""timm's optimizers and learning-rate schedules, from settings."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from octzoo.data import SettingError


@dataclass
class OptimizerArgs:
    """Arguments of timm's create_optimizer_v2, with timm's names.

    Args:
        opt: one of timm.optim.list_optimizers()
        lr: the highest learning rate, after the warm-up
        lr_batch: the global batch (over all processes and accumulated steps) that lr is for; another one gets a rate in
            proportion. null takes lr as it is
        lr_scaling: in proportion to the batch (linear) or to its square root (sqrt)
        weight_decay: not applied to biases and norms (see filter_bias_and_bn)
        momentum: for the optimizers that have one
        filter_bias_and_bn: leave one-dimensional parameters out of the weight decay
        layer_decay: learning rate factor a layer, from the head down; null is off
        opt_kwargs: further arguments of this optimizer, such as {nesterov: false} or {betas: [0.9, 0.95]}
    """

    opt: str = "sgd"
    lr: float = 0.1
    lr_batch: int | None = None
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    weight_decay: float = 1e-4
    momentum: float = 0.9
    filter_bias_and_bn: bool = True
    layer_decay: float | None = None
    opt_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ScheduleArgs:
    """Arguments of timm's create_scheduler_v2, with timm's names. The rate changes at every update.

    The schedule ends with the run: warm-up first, then `sched` over the remaining epochs.

    Args:
        sched: the course after the warm-up; none leaves the rate alone, without a warm-up
        warmup_epochs: linear warm-up from warmup_lr
        warmup_lr: the rate of the first update
        min_lr: the rate at the end
        decay_epochs: between two steps (step), or the length of the decay (wsd, rsqrt)
        decay_milestones: epochs of the steps (multistep)
        decay_rate: factor of a step (step, multistep), the power (poly)
    """

    sched: Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "none"] = "cosine"
    warmup_epochs: float = 0.0
    warmup_lr: float = 1e-5
    min_lr: float = 0.0
    decay_epochs: float | None = None
    decay_milestones: list[int] = field(default_factory=lambda: [30, 60, 90])
    decay_rate: float = 0.1


def scaled_lr(args: OptimizerArgs, batch: int) -> float:
    """The learning rate for a global batch of `batch` pictures."""
    if args.lr_batch is None:
        return args.lr
    if args.lr_batch < 1:
        raise SettingError(f"model.optimizer.lr_batch is {args.lr_batch}, a number of pictures; null does not scale lr")
    return args.lr * (batch / args.lr_batch) ** (0.5 if args.lr_scaling == "sqrt" else 1)


def make_optimizer(model: torch.nn.Module, args: OptimizerArgs) -> torch.optim.Optimizer:
    """timm's optimizer over the parameters of `model` that are trained.

    Raises:
        SettingError: timm has no such optimizer.
    """
    if args.opt.lower() not in list_optimizers():
        near = get_close_matches(args.opt.lower(), list_optimizers(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "timm.optim.list_optimizers() has them all"
        raise SettingError(f"model.optimizer.opt: timm has no optimizer '{args.opt}'; {hint}")
    return create_optimizer_v2(
        model,
        opt=args.opt,
        lr=args.lr,
        weight_decay=args.weight_decay,
        momentum=args.momentum,
        filter_bias_and_bn=args.filter_bias_and_bn,
        layer_decay=args.layer_decay,
        **args.opt_kwargs,
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, args: ScheduleArgs, updates: int, updates_per_epoch: int
) -> Scheduler | None:
    """timm's schedule over a run of `updates` updates; None for "none". Call step_update(n) after the n-th update.

    A run shorter than the warm-up ends while warming up.
    """
    epochs = updates / updates_per_epoch
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=args.sched,
        num_epochs=max(epochs - args.warmup_epochs, 1 / updates_per_epoch),  # type: ignore[arg-type]  # timm takes parts
        warmup_epochs=args.warmup_epochs,  # type: ignore[arg-type]
        warmup_lr=args.warmup_lr,
        warmup_prefix=True,
        min_lr=args.min_lr,
        decay_epochs=args.decay_epochs,
        decay_milestones=args.decay_milestones,
        decay_rate=args.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler
