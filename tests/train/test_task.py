"""octzoo.train.task: what is trained, what is measured, what a checkpoint holds."""

import logging
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
from lightning.pytorch.loggers import Logger
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from octzoo.data import ImageData, Preprocess, SettingError
from octzoo.train.ema import EMA
from octzoo.train.initial import head_keys
from octzoo.train.last import LastCheckpoint
from octzoo.train.losses import LossArgs, LossMean
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
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # it is not running
    return module.training_step((images.clone(), targets), 0)


class TestLoss:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(8) % CLASSES

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

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize(("threshold", "sums"), [(None, False), (0.2, False), (None, True)])
    def test_bce_of_mixed_pictures_is_timms(self, smoothing: float, threshold: float | None, sums: bool) -> None:
        settings = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}
        module = task(loss=LossArgs("bce", threshold, sums), label_smoothing=smoothing, mix=MixArgs(**settings)).eval()
        np.random.seed(3)
        ours = step_loss(module, self.images, self.targets)
        np.random.seed(3)
        mixup = Mixup(**settings, label_smoothing=smoothing, num_classes=CLASSES)
        mixed, soft = mixup(self.images.clone(), self.targets)
        timms = BinaryCrossEntropy(0.0, target_threshold=threshold, sum_classes=sums)
        torch.testing.assert_close(ours, timms(module(mixed), soft))

    def test_bce_of_classes_is_timms(self) -> None:
        module = task(loss=LossArgs("bce"), label_smoothing=0.1).eval()
        expected = BinaryCrossEntropy(0.1)(module(self.images), self.targets)
        torch.testing.assert_close(step_loss(module, self.images, self.targets), expected)

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


def test_validation_hands_its_logits_to_callbacks() -> None:
    module, (images, targets) = task().eval(), loader().dataset.tensors
    given = module.validation_step((images, targets), 0)
    assert torch.equal(given["logits"], module(images))
    assert given["logits"].dtype == torch.float32
    assert torch.equal(given["targets"], targets)


def test_a_batch_without_pictures_counts_nothing(tmp_path: Path) -> None:
    """As a process may get one where there are fewer pictures than processes."""
    full = list(loader())
    empty = (torch.empty(0, 3, 1, 1), torch.empty(0, dtype=torch.long))
    module = task()
    measured = [
        trainer(tmp_path).validate(module, DataLoader(batches, batch_size=None), verbose=False)[0]  # type: ignore
        for batches in (full, [empty, *full])
    ]
    assert measured[0] == measured[1]
    assert module.validation_step(empty, 0)["logits"].shape == (0, CLASSES)


class Figures(Logger):
    """Writes down what is logged."""

    name, version = "", ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((int(step or 0), metrics))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def of(self, name: str) -> dict[int, float]:
        """Step -> value."""
        return {step: row[name] for step, row in self.rows if name in row}


class TestTrainLoss:
    """train/loss is the mean over an epoch's pictures; train/loss_step that of one step, where it is logged."""

    def test_it_is_the_mean_over_pictures_not_batches(self, tmp_path: Path) -> None:
        figures, module = Figures(), task(optimizer=OptimizerArgs(lr=0.0)).eval()
        module.train = lambda mode=True: module  # type: ignore[method-assign]  # batch norms stay as they are
        trainer(tmp_path, logger=figures, limit_val_batches=0).fit(module, loader(22, batch=8))
        images, targets = loader(22).dataset.tensors
        expected = F.cross_entropy(module(images), targets).item()
        assert figures.of("train/loss") == {2: pytest.approx(expected, rel=1e-5)}

    def test_a_step_is_looked_at_only_where_it_is_logged(self, tmp_path: Path) -> None:
        figures, module, asked = Figures(), task(), []
        log = module.log
        module.log = lambda name, *rest, **more: (asked.append(name), log(name, *rest, **more))  # type: ignore
        run = trainer(tmp_path, logger=figures, log_every_n_steps=3, max_epochs=2, limit_val_batches=0)
        run.fit(module, loader(64, batch=8))
        assert list(figures.of("train/loss_step")) == [2, 5, 8, 11, 14]
        assert asked.count("train/loss_step") == 5

    def test_a_resumed_epoch_has_that_of_an_unbroken_one(self, tmp_path: Path) -> None:
        """Stopped inside an epoch, at its last validation, and between two."""
        unbroken = self.fit(tmp_path / "whole", every=1)
        assert len(unbroken) == 2
        saved = sorted((tmp_path / "whole" / "all").iterdir())
        assert len(saved) == 2 * (4 + 1 + 1)  # 4 of 5 updates, before validation, after the epoch
        for number, checkpoint in enumerate(saved):
            resumed = self.fit(tmp_path / "again", checkpoint=checkpoint)
            left = 2 - (number >= 5) - (number == 11)  # epochs that were not over
            assert resumed == dict(list(unbroken.items())[2 - left :]), checkpoint.name

    def fit(self, folder: Path, every: int = 0, checkpoint: Path | None = None) -> dict[int, float]:
        """The logged losses of two epochs; with `every`, each last.ckpt is kept in folder/all."""
        data = ImageData(batch_size=8, num_workers=0, preprocess=Preprocess(image_size=16))
        torch.manual_seed(0)
        figures, module = Figures(), ClassificationTask(NAME, 10, optimizer=OptimizerArgs(lr=0.01))
        callbacks = [Keep(folder, every_n_steps=every)] if every else []
        limits = {"limit_train_batches": 5, "limit_val_batches": 1, "num_sanity_val_steps": 0, "max_epochs": 2}
        run = trainer(folder, logger=figures, callbacks=callbacks, use_distributed_sampler=False, **limits)
        run.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return figures.of("train/loss")

    def test_each_process_takes_its_own_sum_or_the_first_takes_all(self) -> None:
        rows = [[0.1, 3.0], [0.7, 4.0]]
        means = [LossMean() for _ in range(4)]
        for rank in (0, 1):
            means[rank].put_back(rows, rank, world=2)
            means[2 + rank].put_back([*rows, [1.0, 1.0]], rank, world=2)
        assert [mean.sums.tolist() for mean in means[:2]] == torch.tensor(rows).tolist()
        assert [mean.sums.tolist() for mean in means[2:]] == [torch.tensor([1.8, 8.0]).tolist(), [0.0, 0.0]]


class Keep(LastCheckpoint):
    """Keeps every last.ckpt: the numbers of updates and of saves in its name."""

    def _save(self, trainer: pl.Trainer) -> None:
        super()._save(trainer)
        kept = self.path.parent / "all"
        kept.mkdir(exist_ok=True)
        shutil.copy(self.path, kept / f"{trainer.global_step:02}-{len(list(kept.iterdir())):02}.ckpt")


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


@pytest.mark.parametrize("name", [NAME, "oct_cifar_resnet20_a0.5"])
def test_a_frozen_backbone_keeps_every_weight_and_statistic_and_the_head_learns(name: str, tmp_path: Path) -> None:
    module = ClassificationTask(name, CLASSES, freeze_backbone=True, optimizer=OptimizerArgs(lr=0.1))
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    trainer(tmp_path, max_epochs=2, limit_val_batches=1).fit(module, loader(), loader())
    changed = {key for key, value in module.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == head_keys(module.model)
    norms = [m for m in module.train().model.modules() if hasattr(m, "running_mean")]
    assert norms
    assert not any(m.training for norm in norms for m in norm.modules())


def test_a_frozen_backbone_has_no_average_but_of_the_head(tmp_path: Path) -> None:
    module = task(freeze_backbone=True, optimizer=OptimizerArgs(lr=0.1))
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    run = trainer(tmp_path, max_epochs=2, callbacks=[EMA(0.5)])
    run.fit(module, loader(), loader())
    after = module.model.state_dict()  # the average, once the fit is over
    assert {key for key in after if not torch.equal(after[key], before[key])} == {"fc.weight", "fc.bias"}


class TestLearningRate:
    """lr is for lr_batch pictures; the run's global batch gets its own."""

    def rates(self, folder: Path, args: OptimizerArgs, batch: int = 16, **settings: Any) -> list[float]:
        data = ImageData(batch_size=batch, num_workers=0, preprocess=Preprocess(image_size=16))
        module, seen = ClassificationTask(NAME, 10, optimizer=args, schedule=ScheduleArgs("none")), Rates()
        limits = {"limit_train_batches": 2, "limit_val_batches": 0, "use_distributed_sampler": False}
        trainer(folder, callbacks=[seen], **limits, **settings).fit(module, data)
        return seen.seen

    def test_it_is_in_proportion_to_the_global_batch(self, tmp_path: Path) -> None:
        args = OptimizerArgs(lr=0.4, lr_batch=1024)
        assert self.rates(tmp_path, args) == pytest.approx([0.4 * 16 / 1024] * 2)
        assert self.rates(tmp_path, args, accumulate_grad_batches=2) == pytest.approx([0.4 * 32 / 1024] * 2)
        assert self.rates(tmp_path, OptimizerArgs(lr=0.4)) == [0.4, 0.4]

    def test_it_is_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        logging.getLogger("lightning.pytorch").propagate = True
        with caplog.at_level(logging.INFO):
            self.rates(tmp_path, OptimizerArgs(lr=0.4, lr_batch=1024))
        assert "learning rate 0.00625 for a global batch of 16 (lr 0.4 for 1024)" in caplog.text

    def test_without_a_known_batch_it_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError) as raised:
            trainer(tmp_path).fit(task(optimizer=OptimizerArgs(lr_batch=1024)), loader())
        assert str(raised.value) == (
            "model.optimizer.lr_batch is 1024, but the data do not say their batch_size; set lr_batch to null, and lr "
            "for the batches that there are"
        )


def test_channels_last_changes_memory_and_nothing_else() -> None:
    plain, last = task().eval(), task(channels_last=True).eval()
    last.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert last.model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images), plain(images))


def test_gradient_checkpointing_changes_memory_and_nothing_else() -> None:
    plain, sparing = (
        ClassificationTask("oct_cifar_resnet20_a0.25", CLASSES, grad_checkpointing=on) for on in (False, True)
    )
    sparing.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    for module in (plain, sparing):
        module(images).square().sum().backward()
    for a, b in zip(plain.parameters(), sparing.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    with pytest.raises(SettingError, match=r"^model.grad_checkpointing: dla34 cannot: "):
        ClassificationTask("dla34", grad_checkpointing=True)


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
