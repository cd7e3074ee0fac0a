"""octzoo.train.optim: timm's optimizers and schedules as the settings ask for them."""

import pytest
import timm
import torch
from torch import nn

from octzoo.data import SettingError
from octzoo.train.optim import OptimizerArgs, ScheduleArgs, make_optimizer, make_schedule


def rates(args: ScheduleArgs, updates: int, per_epoch: int, lr: float = 1.0) -> list[float]:
    """The learning rate of each update of a run."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make_schedule(optimizer, args, updates, per_epoch)
    seen = []
    for update in range(updates):
        seen.append(optimizer.param_groups[0]["lr"])
        if schedule is not None:
            schedule.step_update(update + 1)
    return seen


def test_warm_up_rises_to_the_full_rate_and_the_cosine_falls_from_there_to_the_end() -> None:
    seen = rates(ScheduleArgs("cosine", warmup_epochs=2, warmup_lr=0.1, min_lr=0.01), updates=100, per_epoch=10)
    assert seen[0] == pytest.approx(0.1)
    assert seen[20] == pytest.approx(1.0)  # no jump where warm-up ends
    assert seen[:21] == sorted(seen[:21])
    assert seen[20:] == sorted(seen[20:], reverse=True)
    assert seen[60] == pytest.approx((1 + 0.01) / 2)  # half of the cosine
    assert seen[-1] == pytest.approx(0.01, abs=1e-3)


def test_the_rate_changes_at_every_update() -> None:
    assert len(set(rates(ScheduleArgs("cosine", warmup_epochs=1), updates=40, per_epoch=10))) == 40


def test_a_run_shorter_than_its_warm_up_ends_while_warming_up() -> None:
    seen = rates(ScheduleArgs("cosine", warmup_epochs=5, warmup_lr=0.0), updates=10, per_epoch=10)
    assert seen == pytest.approx([i / 50 for i in range(10)])


def test_step_counts_epochs() -> None:
    seen = rates(ScheduleArgs("step", decay_epochs=2, decay_rate=0.1), updates=40, per_epoch=10)
    assert seen[19] == pytest.approx(1.0)
    assert seen[21] == pytest.approx(0.1)


def test_none_leaves_the_rate_alone() -> None:
    assert rates(ScheduleArgs("none", warmup_epochs=3), updates=7, per_epoch=2) == [1.0] * 7


def test_biases_and_norms_are_not_decayed_and_frozen_parameters_are_left_out() -> None:
    model = timm.create_model("test_resnet.r160_in1k")
    model.conv1.requires_grad_(False)
    groups = make_optimizer(model, OptimizerArgs(weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    expected = {id(p): 0.3 if p.ndim > 1 else 0.0 for p in model.parameters() if p.requires_grad}
    assert decay == expected


def test_further_arguments_reach_the_optimizer() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), OptimizerArgs("adamw", opt_kwargs={"betas": [0.8, 0.9]}))
    assert list(optimizer.defaults["betas"]) == [0.8, 0.9]


def test_an_unknown_optimizer_is_named_with_a_hint() -> None:
    with pytest.raises(SettingError) as raised:
        make_optimizer(nn.Linear(2, 2), OptimizerArgs("adamww"))
    assert str(raised.value) == "model.optimizer.opt: timm has no optimizer 'adamww'; did you mean 'adamw'?"
