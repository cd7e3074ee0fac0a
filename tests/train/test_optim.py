"""octzoo.train.optim: timm's optimizers and schedules as the settings ask for them."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from octzoo.data import SettingError
from octzoo.train.optim import OptimizerArgs, ScheduleArgs, make_optimizer, make_schedule, scaled_lr


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


class TestLearningRateOfABatch:
    def test_linear_and_square_root(self) -> None:
        assert scaled_lr(OptimizerArgs(lr=0.4, lr_batch=1024), 256) == pytest.approx(0.1)
        assert scaled_lr(OptimizerArgs(lr=0.4, lr_batch=1024, lr_scaling="sqrt"), 256) == pytest.approx(0.2)

    def test_the_batch_that_it_is_for_and_no_batch_leave_it(self) -> None:
        assert scaled_lr(OptimizerArgs(lr=0.4, lr_batch=1024), 1024) == 0.4
        assert scaled_lr(OptimizerArgs(lr=0.4), 7) == 0.4

    def test_no_pictures_is_an_error(self) -> None:
        with pytest.raises(SettingError) as raised:
            scaled_lr(OptimizerArgs(lr_batch=0), 8)
        text = "model.optimizer.lr_batch is 0, a number of pictures; null does not scale lr"
        assert str(raised.value) == text


class TestLayerDecay:
    """An octave network is grouped by depth as timm's are, and its schedule keeps each layer's part of the rate."""

    @pytest.fixture(params=["oct_resnet26_a0.25", "oct_resnet50_v1_a0.5", "oct_mobilenetv2_100_a0.375"])
    def model(self, request: pytest.FixtureRequest) -> Any:
        return timm.create_model(request.param, num_classes=5)

    def scales(self, model: Any) -> dict[str, float]:
        """Parameter -> its factor, in the network's order."""
        groups = make_optimizer(model, OptimizerArgs("adamw", layer_decay=0.7)).param_groups
        scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        return {name: scale[id(p)] for name, p in model.named_parameters()}

    def test_it_rises_with_the_depth_to_1_at_the_head(self, model: Any) -> None:
        scales = self.scales(model)
        head = [name for name in scales if name.startswith(f"{model.pretrained_cfg['classifier']}.")]
        assert head
        assert {scales[name] for name in head} == {1.0}
        stem = next(iter(scales))
        assert scales[stem] == min(scales.values())
        assert len(set(scales.values())) >= 5  # at least stem, four stages
        stages = [
            max(s for name, s in scales.items() if name.startswith(f"{info['module']}."))
            for info in model.feature_info[1:]
        ]
        assert stages == sorted(set(stages))

    def test_the_schedule_keeps_it(self, model: Any) -> None:
        optimizer = make_optimizer(model, OptimizerArgs("adamw", lr=0.01, layer_decay=0.7))
        schedule = make_schedule(optimizer, ScheduleArgs("cosine", warmup_epochs=1, warmup_lr=0.0), 40, 10)
        assert schedule is not None
        for update in (5, 10, 25):
            schedule.step_update(update)
            rates = {group["lr"] / group["lr_scale"] for group in optimizer.param_groups}
            assert max(rates) == pytest.approx(min(rates))
            assert len({group["lr"] for group in optimizer.param_groups}) >= 5


def test_further_arguments_reach_the_optimizer() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), OptimizerArgs("adamw", opt_kwargs={"betas": [0.8, 0.9]}))
    assert list(optimizer.defaults["betas"]) == [0.8, 0.9]


def test_an_unknown_optimizer_is_named_with_a_hint() -> None:
    with pytest.raises(SettingError) as raised:
        make_optimizer(nn.Linear(2, 2), OptimizerArgs("adamww"))
    assert str(raised.value) == "model.optimizer.opt: timm has no optimizer 'adamww'; did you mean 'adamw'?"
