"""octzoo.train.ema: the average is what is validated, loaded and left; the weights that are trained stand beside it."""

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from octzoo.data import ImageData, Preprocess
from octzoo.errors import UserError
from octzoo.train.bad_steps import SkipStep
from octzoo.train.callbacks import StepRandomness
from octzoo.train.checkpoints import AtomicIO, network_weights
from octzoo.train.ema import EMA, RAW
from octzoo.train.last import LastCheckpoint
from octzoo.train.optim import OptimizerArgs
from octzoo.train.task import ClassificationTask, MixArgs
from tests.faults import same

NAME = "test_resnet.r160_in1k"
CLASSES = 3
State = dict[str, Tensor]


def task(**settings: Any) -> ClassificationTask:
    torch.manual_seed(0)
    return ClassificationTask(NAME, CLASSES, **{"optimizer": OptimizerArgs("sgd", lr=0.05), **settings})


def loader(count: int = 16, batch: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(count) % CLASSES), batch_size=batch)


def trainer(folder: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    more = {"max_epochs": 2, "limit_val_batches": 0, "num_sanity_val_steps": 0, "plugins": [AtomicIO()]}
    more["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **more, **settings})


def copied(state: State) -> State:
    return {name: value.clone() for name, value in state.items()}


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def network(state: State) -> State:
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


class Watch(pl.Callback):
    """Copies of the weights: at the start, after each update, and as validation sees them."""

    def __init__(self) -> None:
        self.start: State = {}
        self.trained: list[State] = []
        self.validated: list[State] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.start = copied(pl_module.model.state_dict())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if len(self.trained) < trainer.global_step:
            self.trained.append(copied(pl_module.model.state_dict()))

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.validated.append(copied(pl_module.model.state_dict()))

    def averages(self, decay: float, warmup: bool) -> list[State]:
        """By the formula, in float64: the first update takes the weights; then w_ema = d w_ema + (1 - d) w."""
        found: list[State] = []
        for number, weights in enumerate(self.trained):
            d = min(decay, 1 - (1 + number) ** (-2 / 3)) if warmup else decay
            d = d if number else 0.0
            before = found[-1] if found else self.start
            found.append(
                {
                    k: d * before[k].double() + (1 - d) * v.double() if v.is_floating_point() else v.clone()
                    for k, v in weights.items()
                }
            )
        return found


def close(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k].double(), b[k].double(), rtol=1e-4, atol=1e-6) for k in a)


class TestAverage:
    @pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.9, True), (0.5, True)])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_it_is_that_of_the_formula_over_updates(self, decay, warmup, accumulate, tmp_path: Path) -> None:
        module, watch = task(), Watch()
        trainer(tmp_path, EMA(decay, warmup), watch, accumulate_grad_batches=accumulate).fit(module, loader())
        assert len(watch.trained) == 8 // accumulate
        left = module.model.state_dict()
        assert close(left, watch.averages(decay, warmup)[-1])
        assert not close(left, watch.trained[-1])

    def test_it_is_timms(self, tmp_path: Path) -> None:
        class Timms(pl.Callback):
            def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
                self.average = ModelEmaV3(pl_module.model, decay=0.9, use_warmup=True)

            def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
                self.average.update(pl_module.model, step=trainer.global_step)

        module, timms = task(), Timms()
        trainer(tmp_path, EMA(0.9), timms).fit(module, loader())
        assert not same(dict(module.model.state_dict()), dict(timms.average.module.state_dict()))

    def test_validation_sees_the_average_and_training_goes_on_from_the_weights(self, tmp_path: Path) -> None:
        plain, watch = Watch(), Watch()
        trainer(tmp_path, plain).fit(task(), loader())
        trainer(tmp_path, EMA(0.9), watch, limit_val_batches=1, val_check_interval=2).fit(task(), loader(), loader())
        averages = watch.averages(0.9, True)
        assert len(watch.validated) == 4
        for seen, update in zip(watch.validated, (2, 4, 6, 8)):
            assert close(seen, averages[update - 1])
            assert not close(seen, watch.trained[update - 1])
        assert not same(watch.trained, plain.trained)

    def test_outside_a_fit_there_is_none_and_nothing_is_touched(self, tmp_path: Path) -> None:
        module = task()
        before = copied(module.state_dict())
        trainer(tmp_path, EMA(0.9), limit_val_batches=1).validate(module, loader(), verbose=False)
        assert not same(dict(module.model.state_dict()), network(before))
        with pytest.raises(UserError, match="^EMA: there is an average only while fitting$"):
            EMA()._average  # noqa: B018

    def test_a_skipped_step_leaves_it(self, tmp_path: Path) -> None:
        class Skip(pl.Callback):
            def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 3:
                    raise SkipStep

        class After(pl.Callback):
            def __init__(self) -> None:
                self.seen: list[State] = []

            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                self.seen.append(copied(ema._average.module.state_dict()))

        ema, after = EMA(0.9), After()
        trainer(tmp_path, Skip(), ema, after, max_epochs=1).fit(task(), loader(20))
        assert not same(after.seen[3], after.seen[2])
        assert same(after.seen[4], after.seen[3])


class TestCheckpoint:
    def fitted(self, folder: Path, **settings: Any) -> tuple[dict[str, Any], Watch]:
        watch = Watch()
        saving = ModelCheckpoint(str(folder), filename="x", save_last=False)
        run = trainer(folder, EMA(0.9), watch, saving, **settings)
        run.fit(task(), loader(), loader())
        return read(folder / "x.ckpt"), watch

    @pytest.mark.parametrize("validates", [0, 1])
    def test_its_weights_are_the_average_and_the_trained_ones_stand_beside(self, validates, tmp_path: Path) -> None:
        saved, watch = self.fitted(tmp_path, limit_val_batches=validates)
        assert close(network(saved["state_dict"]), watch.averages(0.9, True)[-1])
        assert not same(network(saved[RAW]), watch.trained[-1])
        assert saved["state_dict"].keys() == saved[RAW].keys()

    def test_whatever_loads_it_gets_the_average(self, tmp_path: Path) -> None:
        saved, _ = self.fitted(tmp_path)
        average = network(saved["state_dict"])
        module = ClassificationTask.load_from_checkpoint(tmp_path / "x.ckpt")
        assert not same(dict(module.model.state_dict()), average)
        assert not same(network_weights(tmp_path / "x.ckpt"), average)
        started = task(init_from=str(tmp_path / "x.ckpt"))
        assert not same(dict(started.model.state_dict()), average)
        measuring = task()
        trainer(tmp_path, limit_val_batches=1).validate(
            measuring, loader(), ckpt_path=tmp_path / "x.ckpt", verbose=False, weights_only=True
        )
        assert not same(dict(measuring.model.state_dict()), average)

    def test_saved_inside_validation_they_are_the_right_way_round(self, tmp_path: Path) -> None:
        class Save(pl.Callback):
            def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
                trainer.save_checkpoint(tmp_path / "inside.ckpt", weights_only=False)

        watch = Watch()
        trainer(tmp_path, EMA(0.9), watch, Save(), limit_val_batches=1).fit(task(), loader(), loader())
        saved = read(tmp_path / "inside.ckpt")
        assert close(network(saved["state_dict"]), watch.averages(0.9, True)[-1])
        assert not same(network(saved[RAW]), watch.trained[-1])

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_also_after_an_exception_inside_validation(self, error: type[BaseException], tmp_path: Path) -> None:
        class Fail(pl.Callback):
            def on_validation_batch_end(self, *_: Any) -> None:
                raise error("in validation")

        module, watch = task(), Watch()
        saving = ModelCheckpoint(str(tmp_path), filename="x", save_on_exception=True, every_n_epochs=100)
        run = trainer(tmp_path, EMA(0.9), watch, saving, Fail(), limit_val_batches=1)
        with pytest.raises((error, SystemExit)):
            run.fit(module, loader(), loader())
        (path,) = tmp_path.glob("*.ckpt")
        saved = read(path)
        assert close(network(saved["state_dict"]), watch.averages(0.9, True)[-1])
        assert not same(network(saved[RAW]), watch.trained[-1])
        assert not same(dict(module.model.state_dict()), watch.trained[-1])

    def test_weights_only_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError) as raised:
            trainer(tmp_path, EMA(0.9), ModelCheckpoint(str(tmp_path), save_weights_only=True)).fit(task(), loader())
        assert str(raised.value) == (
            "checkpoint.save_weights_only would save the raw weights; set it to false, or ema.decay to 0"
        )

    def test_its_keys_are_the_same_compiled_or_not(self, tmp_path: Path) -> None:
        def keys(compiled: bool) -> tuple[list[str], list[str], list[str]]:
            class Uncompiled(pl.Callback):  # before a step needs the compiler
                def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
                    trainer.save_checkpoint(tmp_path / f"{compiled}.ckpt", weights_only=False)

            trainer(tmp_path, EMA(0.9), Uncompiled(), limit_train_batches=1, max_epochs=1).fit(
                compiled_task() if compiled else task(), loader()
            )
            saved = read(tmp_path / f"{compiled}.ckpt")
            return list(saved["state_dict"]), list(saved[RAW]), list(task().state_dict())

        def compiled_task() -> ClassificationTask:
            module = task()
            module.model.compile(backend="eager")
            return module

        plain, compiled = keys(False), keys(True)
        assert plain == compiled
        assert plain[0] == plain[1] == plain[2]


class TestResume:
    def fit(self, folder: Path, ema: EMA | None, stop: int = -1, checkpoint: Path | None = None) -> dict[str, Any]:
        """Two epochs of 4 updates with dropout, mixup and an average, or as many as `stop`; then last.ckpt."""
        data = ImageData(batch_size=8, num_workers=0, preprocess=Preprocess(image_size=16))
        torch.manual_seed(0)
        module = ClassificationTask(
            NAME, 10, optimizer=OptimizerArgs("adamw", lr=0.01), mix=MixArgs(0.3), model_args={"drop_rate": 0.3}
        )
        callbacks = [StepRandomness(), *([ema] if ema else []), Watched(stop), LastCheckpoint(folder, every_n_steps=1)]
        limits = {"limit_train_batches": 8, "limit_val_batches": 1, "accumulate_grad_batches": 2}
        run = trainer(folder, *callbacks, use_distributed_sampler=False, **limits)
        with suppress(Enough):
            run.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return read(folder / "last.ckpt")

    @pytest.mark.parametrize("stop", [1, 3, 4, 6])
    def test_a_resumed_run_has_the_same_bits_as_an_unbroken_one(self, stop: int, tmp_path: Path) -> None:
        whole = self.fit(tmp_path / "whole", EMA(0.9))
        self.fit(tmp_path / "part", EMA(0.9), stop)
        resumed = self.fit(tmp_path / "part", EMA(0.9), checkpoint=tmp_path / "part" / "last.ckpt")
        assert whole["global_step"] == 8
        for key in ("state_dict", RAW, "optimizer_states", "lr_schedulers", "global_step"):
            assert not same(whole[key], resumed[key], key)
        assert same(whole["state_dict"], whole[RAW])

    def test_a_run_without_an_average_goes_on_with_one_from_its_weights(self, tmp_path: Path) -> None:
        before = copy.deepcopy(self.fit(tmp_path, None, stop=3))
        assert RAW not in before
        after = self.fit(tmp_path, EMA(0.9, warmup=False), checkpoint=tmp_path / "last.ckpt")
        assert set(after[RAW]) == set(before["state_dict"])

    def test_a_run_with_an_average_goes_on_without_one(self, tmp_path: Path) -> None:
        """From the average: the only weights that "state_dict" has."""
        self.fit(tmp_path, EMA(0.9), stop=3)
        assert RAW not in self.fit(tmp_path, None, checkpoint=tmp_path / "last.ckpt")


class Enough(Exception):  # noqa: N818
    pass


class Watched(pl.Callback):
    """Ends the run in the batch after so many updates, as a kill would: what was saved is all there is."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.stop:
            raise Enough
