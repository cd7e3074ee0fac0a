"""octzoo.train.task: what is trained, what is measured, what a checkpoint holds."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from octzoo.data import SettingError
from octzoo.train.optim import OptimizerArgs, ScheduleArgs
from octzoo.train.task import ClassificationTask, MixArgs

NAME = "test_resnet.r160_in1k"  # timm's own test network, 0.4 M parameters
CLASSES = 7


def task(**settings: Any) -> ClassificationTask:
    return ClassificationTask(NAME, CLASSES, **settings)


def loader(count: int = 22, batch: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    return DataLoader(TensorDataset(images, targets), batch_size=batch)


def trainer(folder: Path, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, **{**quiet, "max_epochs": 1, **settings})


def step_loss(module: ClassificationTask, images: Tensor, targets: Tensor) -> Tensor:
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer to log to
    return module.training_step((images.clone(), targets), 0)


class TestLoss:
    images, targets = torch.randn(8, 3, 32, 32), torch.randint(CLASSES, (8,))

    def test_it_is_cross_entropy(self) -> None:
        module = task().eval()
        assert torch.equal(
            step_loss(module, self.images, self.targets), F.cross_entropy(module(self.images), self.targets)
        )

    def test_label_smoothing_is_timms(self) -> None:
        module = task(label_smoothing=0.1).eval()
        torch.testing.assert_close(
            step_loss(module, self.images, self.targets),
            LabelSmoothingCrossEntropy(0.1)(module(self.images), self.targets),
        )

    @pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
    def test_mixup_and_cutmix_with_smoothing_are_timms(self, mode: str) -> None:
        settings = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "mode": mode}
        module = task(label_smoothing=0.1, mix=MixArgs(**settings)).eval()  # type: ignore[arg-type]
        np.random.seed(3)
        ours = step_loss(module, self.images, self.targets)
        np.random.seed(3)
        mixed, soft = Mixup(**settings, label_smoothing=0.1, num_classes=CLASSES)(self.images.clone(), self.targets)
        torch.testing.assert_close(ours, SoftTargetCrossEntropy()(module(mixed), soft))

    def test_an_odd_batch_cannot_be_mixed(self) -> None:
        with pytest.raises(SettingError, match=r"batch_size is 7, but mixup and cutmix pair the pictures"):
            step_loss(task(mix=MixArgs(mixup_alpha=0.1)), self.images[:7], self.targets[:7])


def test_metrics_are_those_of_all_pictures_together_whatever_the_batches(tmp_path: Path) -> None:
    module = task()
    images, targets = loader().dataset.tensors
    measured = trainer(tmp_path).validate(module, loader(batch=8), verbose=False)[0]
    with torch.no_grad():
        logits = module.eval()(images)
    best = logits.topk(5).indices
    assert measured["val/loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert measured["val/top1"] == pytest.approx((best[:, 0] == targets).float().mean().item())
    assert measured["val/top5"] == pytest.approx((best == targets[:, None]).any(dim=1).float().mean().item())


def test_top5_of_five_classes_says_nothing_and_is_left_out() -> None:
    assert set(ClassificationTask(NAME, 5).val_metrics.keys()) == {"val/loss", "val/top1"}


class Rates(pl.Callback):
    """Writes down the learning rate of every batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_the_schedule_counts_updates_not_batches_and_ends_with_the_run(tmp_path: Path) -> None:
    schedule = ScheduleArgs("cosine", warmup_epochs=1, warmup_lr=0.0)
    module, rates = task(schedule=schedule, optimizer=OptimizerArgs(lr=0.01)), Rates()
    run = trainer(tmp_path, max_epochs=3, accumulate_grad_batches=2, callbacks=[rates], limit_val_batches=0)
    run.fit(module, loader(count=32, batch=8))  # 4 batches, 2 updates an epoch
    expected = [0.0, 0.005, 0.01] + [0.005 * (1 + np.cos(np.pi * i / 4)) for i in (1, 2, 3)]
    assert rates.seen[::2] == pytest.approx(expected)
    assert rates.seen[::2] == rates.seen[1::2]


def test_a_frozen_backbone_keeps_every_weight_and_statistic_and_the_head_learns(tmp_path: Path) -> None:
    module = task(freeze_backbone=True, optimizer=OptimizerArgs(lr=0.1))
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    trainer(tmp_path, max_epochs=2, limit_val_batches=1).fit(module, loader(), loader())
    changed = {key for key, value in module.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_channels_last_changes_memory_and_nothing_else() -> None:
    plain, last = task().eval(), task(channels_last=True).eval()
    last.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert last.model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images), plain(images))


def test_checkpoints_are_the_same_with_and_without_compile() -> None:
    assert list(task(compile=True).state_dict()) == list(task().state_dict())


def test_a_checkpoint_of_a_task_made_in_python_loads_by_itself(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(CLASSES)]
    module = task(class_names=names, optimizer=OptimizerArgs("adamw", lr=0.001), mix=MixArgs(mixup_alpha=0.2))
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, loader())
    again = ClassificationTask.load_from_checkpoint(run.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    assert (again.class_names, again.optimizer.opt) == (names, "adamw")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), module.eval()(images))


def test_a_head_of_another_size_starts_new_and_the_rest_is_the_published_network(tmp_path: Path, monkeypatch) -> None:
    published = timm.create_model(NAME)
    path = tmp_path / "published.pth"
    torch.save(published.state_dict(), path)
    local = {"pretrained_cfg_overlay": {"file": str(path)}}
    ours = task(pretrained=True, model_args=local).model.state_dict()
    theirs = published.state_dict()
    assert {k for k in theirs if theirs[k].shape != ours[k].shape} == {"fc.weight", "fc.bias"}
    assert all(torch.equal(theirs[k], ours[k]) for k in theirs if not k.startswith("fc."))


class TestMistakes:
    """The exact text that a user sees."""

    def message(self, act: Any) -> str:
        with pytest.raises(SettingError) as raised:
            act()
        return str(raised.value)

    def test_unknown_network(self) -> None:
        text = self.message(lambda: ClassificationTask("resnet5O"))
        assert text == "model.name: no network 'resnet5O'; did you mean 'resnet50'?"

    def test_unknown_octave_network(self) -> None:
        text = self.message(lambda: ClassificationTask("oct_resnt50_a0.25"))
        assert text == "model.name: no network 'oct_resnt50_a0.25'; did you mean 'oct_resnet50_a0.25'?"

    def test_unknown_model_argument(self) -> None:
        text = self.message(lambda: task(model_args={"drop_rat": 0.1}))
        assert text.startswith(f"model.name: timm cannot make {NAME}: ")
        assert "drop_rat" in text

    def test_no_published_weights(self) -> None:
        text = self.message(lambda: ClassificationTask("oct_cifar_resnet20_a0.3", pretrained=True))
        assert text.startswith("model.name: timm cannot make oct_cifar_resnet20_a0.3: ")

    @pytest.mark.parametrize(
        ("saved", "text"),
        [
            ({"num_classes": 9}, "the checkpoint has model.num_classes 9, this network 7"),
            ({"name": "resnet50"}, f"the checkpoint has model.name resnet50, this network {NAME}"),
        ],
    )
    def test_another_networks_checkpoint(self, saved: dict[str, Any], text: str) -> None:
        assert self.message(lambda: task().on_load_checkpoint({"hyper_parameters": saved})) == text
