"""octzoo.train.bad_steps: steps that would spoil the weights are not made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from octzoo.data import ImageData, Preprocess
from octzoo.errors import RunError
from octzoo.train.bad_steps import MOST_IN_A_ROW, BadStep, BadSteps
from octzoo.train.checkpoints import AtomicIO
from octzoo.train.ema import EMA
from octzoo.train.last import LastCheckpoint
from octzoo.train.optim import OptimizerArgs, ScheduleArgs
from octzoo.train.task import ClassificationTask
from tests.faults import same

NAME = "test_resnet.r160_in1k"
NAN, INF = float("nan"), float("inf")


def task(**settings: Any) -> ClassificationTask:
    torch.manual_seed(0)
    fixed = {"optimizer": OptimizerArgs("adamw", lr=0.01), "schedule": ScheduleArgs("none")}
    return ClassificationTask(NAME, 10, **{**fixed, **settings})


def data() -> ImageData:
    return ImageData(batch_size=8, num_workers=0, preprocess=Preprocess(image_size=16))


def trainer(folder: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    more = {"max_epochs": 1, "limit_train_batches": 6, "limit_val_batches": 0, "use_distributed_sampler": False}
    plugins = [*settings.pop("plugins", []), AtomicIO()]
    saves = any(isinstance(c, LastCheckpoint) for c in callbacks)
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        plugins=plugins,
        **{**quiet, **more, "enable_checkpointing": saves, **settings},
    )


class Spoil(pl.Callback):
    """Makes the loss, the gradient or both something else in some batches, counted over the run."""

    def __init__(self, batches: Sequence[int], value: float = NAN, what: str = "loss") -> None:
        self.batches, self.value, self.what = batches, value, what

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        plain = pl_module.loss

        def spoilt(logits: Tensor, targets: Tensor) -> Tensor:
            loss = plain(logits, targets)
            if trainer.fit_loop.epoch_loop.total_batch_idx not in self.batches:
                return loss
            if self.what == "loss":
                return loss * self.value
            loss.register_hook(lambda gradient: gradient * self.value)
            return loss

        pl_module.loss = spoilt


class State(pl.Callback):
    """What the run has after each batch: weights with their statistics, the optimizer's state, the average."""

    def __init__(self, ema: EMA | None = None) -> None:
        self.ema = ema
        self.after: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        (optimizer,) = trainer.optimizers
        state = {str(i): dict(values) for i, values in enumerate(optimizer.state.values())}
        seen = {"weights": dict(pl_module.model.named_parameters()), "optimizer": state}
        seen["buffers"] = dict(pl_module.model.named_buffers())
        if self.ema is not None:
            seen["average"] = dict(self.ema._average.module.state_dict())
        self.after.append(copied(seen))


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]


class TestStop:
    @pytest.mark.parametrize(("what", "value"), [("loss", NAN), ("loss", INF), ("gradient", INF), ("gradient", NAN)])
    def test_the_run_ends_and_says_where_and_with_which_pictures(self, what: str, value: float, tmp_path: Path) -> None:
        module, pictures = task(), data()
        run = trainer(tmp_path, BadSteps(tmp_path), Spoil([3], value, what), max_epochs=2)
        with pytest.raises(BadStep) as raised:
            run.fit(module, pictures)
        names = pictures.names_of_batch(0, 3)
        file = tmp_path / "bad_steps.jsonl"
        assert str(raised.value) == (
            "step 3 (epoch 0, batch 3): the loss or the gradient is not finite or too large, at learning rate 0.01; "
            f"the weights of the last checkpoint are good. Pictures: {', '.join(names[:5])} and 3 more ({file}). Lower "
            "the learning rate, clip (--trainer.gradient_clip_val), or leave such steps out (--bad_steps.action skip)"
        )
        assert (raised.value.exit_code, isinstance(raised.value, RunError)) == (4, True)
        facts = {"step": 3, "epoch": 0, "batch": 3, "learning_rate": pytest.approx(0.01), "process": 0}
        assert lines(tmp_path) == [{**facts, "samples": names}]

    def test_the_weights_are_those_before_it_and_the_last_checkpoint_stays(self, tmp_path: Path) -> None:
        module, state = task(), State()
        callbacks = [BadSteps(tmp_path), Spoil([3]), state, LastCheckpoint(tmp_path, every_n_steps=1)]
        with pytest.raises(BadStep):
            trainer(tmp_path, *callbacks).fit(module, data())
        assert len(state.after) == 3
        assert not same(copied(dict(module.model.named_parameters())), state.after[-1]["weights"])
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert saved["global_step"] == 3
        assert not same(copied(dict(module.model.named_parameters())), {
            k.removeprefix("model."): v
            for k, v in saved["state_dict"].items()
            if k.removeprefix("model.") in state.after[-1]["weights"]
        })  # fmt: skip

    def test_without_octzoos_data_it_names_no_pictures(self, tmp_path: Path) -> None:
        loader = DataLoader(TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 10), batch_size=8)
        with pytest.raises(BadStep, match=r"^step 1 \(epoch 0, batch 1\)"):
            trainer(tmp_path, BadSteps(tmp_path), Spoil([1])).fit(task(), loader)
        assert lines(tmp_path)[0]["samples"] == []

    def test_a_run_without_bad_steps_writes_nothing(self, tmp_path: Path) -> None:
        trainer(tmp_path, BadSteps(tmp_path)).fit(task(), data())
        assert not (tmp_path / "bad_steps.jsonl").exists()


class TestNorm:
    def largest(self, folder: Path) -> float:
        """The largest norm of a run's first two steps, by a formula of its own."""
        norms = []

        class Norm(pl.Callback):
            def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
                gradients = [p.grad.double().flatten() for p in pl_module.parameters() if p.grad is not None]
                norms.append(torch.cat(gradients).square().sum().sqrt().item())

        trainer(folder, Norm(), limit_train_batches=2).fit(task(), data())
        return max(norms)

    def test_a_larger_norm_than_allowed_is_a_bad_step(self, tmp_path: Path) -> None:
        largest = self.largest(tmp_path)
        trainer(tmp_path, BadSteps(tmp_path, abort_grad_norm=largest * 1.001), limit_train_batches=2).fit(
            task(), data()
        )
        with pytest.raises(BadStep):
            trainer(tmp_path, BadSteps(tmp_path, abort_grad_norm=largest * 0.999), limit_train_batches=2).fit(
                task(), data()
            )

    def test_it_is_the_norm_before_clipping(self, tmp_path: Path) -> None:
        bad = BadSteps(tmp_path, abort_grad_norm=self.largest(tmp_path) * 0.999)
        with pytest.raises(BadStep):
            trainer(tmp_path, bad, limit_train_batches=2, gradient_clip_val=1e-3).fit(task(), data())

    def test_none_is_allowed_any_finite_one(self, tmp_path: Path) -> None:
        trainer(tmp_path, BadSteps(tmp_path), Spoil([2], 1e6, "gradient")).fit(task(), data())


class TestSkip:
    @pytest.mark.parametrize(("what", "value"), [("loss", NAN), ("gradient", INF)])
    @pytest.mark.parametrize("opt", ["adamw", "lamb", "sgd"])
    def test_weights_optimizer_and_average_are_untouched(self, what, value, opt, tmp_path: Path, capsys) -> None:
        ema = EMA(0.9)
        bad, state = BadSteps(tmp_path, "skip"), State(ema)
        module = task(optimizer=OptimizerArgs(opt, lr=0.01))
        trainer(tmp_path, bad, Spoil([2, 3], value, what), ema, state).fit(module, data())
        made = [[kind for kind in ("weights", "optimizer", "average") if same(a[kind], b[kind])]
                for a, b in zip(state.after, state.after[1:])]  # fmt: skip
        everything = ["weights", "optimizer", "average"]
        assert made == [everything, [], [], everything, everything]
        assert (bad.total, bad.in_a_row) == (2, 0)
        assert [line["step"] for line in lines(tmp_path)] == [2, 3]
        said = capsys.readouterr().out.splitlines()
        assert said == [
            f"left out step {n} (epoch 0, batch {n}): the loss or the gradient is not finite or too large, at learning "
            "rate 0.01"
            for n in (2, 3)
        ]

    def test_lambs_own_count_of_steps_is_that_of_the_steps_made(self, tmp_path: Path) -> None:
        module = task(optimizer=OptimizerArgs("lamb", lr=0.01))
        run = trainer(tmp_path, BadSteps(tmp_path, "skip"), Spoil([2, 3]))
        run.fit(module, data())
        (optimizer,) = run.optimizers
        assert {float(group["step"]) for group in optimizer.param_groups} == {4}

    def test_training_goes_on_as_if_the_step_had_not_been(self, tmp_path: Path) -> None:
        """Without a schedule and batch norms: as a run that never had the batch."""
        images, targets = torch.randn(5, 8, 3, 16, 16), torch.arange(40).view(5, 8) % 10

        def end(left_out: list[int], spoilt: list[int]) -> dict[str, Tensor]:
            batches = [(images[i], targets[i]) for i in range(5) if i not in left_out]
            module = task(freeze_backbone=True)
            run = trainer(tmp_path, BadSteps(tmp_path, "skip"), Spoil(spoilt))
            run.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
            return dict(module.model.state_dict())

        assert not same(end([], [2]), end([2], []))
        assert same(end([], [2]), end([], []))

    def test_the_statistics_of_batch_norms_are_untouched_by_pictures_that_are_not_finite(self, tmp_path: Path) -> None:
        images = torch.randn(4, 8, 3, 16, 16)
        images[2, 0, 0, 0, 0] = NAN
        batches = [(images[i], torch.arange(8)) for i in range(4)]
        ema = EMA(0.9)
        bad, state, module = BadSteps(tmp_path, "skip"), State(ema), task()
        trainer(tmp_path, bad, ema, state).fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        assert bad.total == 1
        assert not same(state.after[1], state.after[2])
        assert all(torch.isfinite(value).all() for value in module.model.state_dict().values())

    @pytest.mark.parametrize("spoilt", [[2], [3], [2, 3]])
    def test_with_accumulation_the_whole_update_is_left_out(self, spoilt: list[int], tmp_path: Path) -> None:
        """Batches 2 and 3 are update 1; the epoch's last update has one batch."""
        bad, state, pictures = BadSteps(tmp_path, "skip"), State(), data()
        run = trainer(tmp_path, bad, Spoil([*spoilt, 6]), state, accumulate_grad_batches=2, limit_train_batches=7)
        run.fit(task(), pictures)
        made = [bool(same(a["weights"], b["weights"])) for a, b in zip(state.after, state.after[1:])]
        assert made == [True, False, False, False, True, False]
        assert bad.total == 2
        assert [(line["step"], line["batch"]) for line in lines(tmp_path)] == [(1, 3), (3, 6)]
        names = [name for number in (2, 3) for name in pictures.names_of_batch(0, number)]
        assert [line["samples"] for line in lines(tmp_path)] == [names, pictures.names_of_batch(0, 6)]

    def test_its_gradient_does_not_stay_for_the_next_update(self, tmp_path: Path) -> None:
        bad = BadSteps(tmp_path, "skip")
        trainer(tmp_path, bad, Spoil([0], INF, "gradient"), accumulate_grad_batches=2).fit(task(), data())
        assert bad.total == 1

    def test_ten_in_a_row_are_left_out_and_the_eleventh_ends_the_run(self, tmp_path: Path) -> None:
        ten, more = tmp_path / "ten", tmp_path / "more"
        for folder in (ten, more):
            folder.mkdir()
        some = [*range(1, 11), *range(12, 20)]
        bad = BadSteps(ten, "skip")
        trainer(ten, bad, Spoil(some), limit_train_batches=20).fit(task(), data())
        assert bad.total == 18
        with pytest.raises(BadStep) as raised:
            trainer(more, BadSteps(more, "skip"), Spoil(range(1, 20)), limit_train_batches=20).fit(task(), data())
        assert str(raised.value) == (
            "step 11 (epoch 0, batch 11): the loss or the gradient is not finite or too large, at learning rate 0.01: "
            f"the 11th in a row ({more}/bad_steps.jsonl)"
        )
        assert raised.value.exit_code == 4
        assert MOST_IN_A_ROW == 10

    def test_they_are_counted_in_the_logs_and_by_a_resumed_run(self, tmp_path: Path) -> None:
        run = trainer(tmp_path, BadSteps(tmp_path, "skip"), Spoil([2, 3]), LastCheckpoint(tmp_path))
        run.fit(task(), data())
        assert run.callback_metrics["train/skipped_steps"] == 2
        again = BadSteps(tmp_path, "skip")
        run = trainer(tmp_path, again, Spoil([8]), LastCheckpoint(tmp_path), max_epochs=2)
        run.fit(task(), data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert again.total == 3
        assert run.callback_metrics["train/skipped_steps"] == 3

    def test_the_epochs_mean_loss_is_that_of_the_steps_made(self, tmp_path: Path) -> None:
        run = trainer(tmp_path, BadSteps(tmp_path, "skip"), Spoil([2]))
        run.fit(task(), data())
        assert torch.isfinite(run.callback_metrics["train/loss"])


class TestFloat16:
    """Lightning's MixedPrecision with torch's own GradScaler, both on the CPU."""

    def scaled(self, scale: float) -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000))

    def test_an_overflow_of_the_scale_is_no_bad_step(self, tmp_path: Path) -> None:
        precision, bad, state = self.scaled(2.0**60), BadSteps(tmp_path), State()
        trainer(tmp_path, bad, state, plugins=[precision]).fit(task(), data())
        assert precision.scaler is not None
        assert precision.scaler.get_scale() < 2.0**60  # it did overflow
        assert not same(state.after[0]["weights"], state.after[1]["weights"])
        assert bad.total == 0

    def test_a_loss_that_is_not_finite_is_one_all_the_same(self, tmp_path: Path) -> None:
        with pytest.raises(BadStep, match="^step 3 "):
            trainer(tmp_path, BadSteps(tmp_path), Spoil([3]), plugins=[self.scaled(8.0)]).fit(task(), data())

    def test_it_can_be_left_out_and_training_goes_on(self, tmp_path: Path) -> None:
        bad, state = BadSteps(tmp_path, "skip"), State()
        trainer(tmp_path, bad, Spoil([2]), state, plugins=[self.scaled(8.0)]).fit(task(), data())
        made = [bool(same(a["weights"], b["weights"])) for a, b in zip(state.after, state.after[1:])]
        assert made == [True, False, True, True, True]
        assert bad.total == 1

    def test_a_norm_is_measured_without_the_scale(self, tmp_path: Path) -> None:
        trainer(tmp_path, BadSteps(tmp_path, abort_grad_norm=1e3), plugins=[self.scaled(2.0**12)]).fit(task(), data())
        with pytest.raises(BadStep):
            trainer(tmp_path, BadSteps(tmp_path, abort_grad_norm=1e-3), plugins=[self.scaled(2.0**12)]).fit(
                task(), data()
            )


class TestLag:
    """On a GPU, to stop, an answer is read some steps later; here the answers stand in for those of a GPU."""

    class Ready:
        def synchronize(self) -> None:
            pass

    def pending(self, folder: Path, answers: list[bool]) -> tuple[BadSteps, pl.Trainer]:
        bad, run = BadSteps(folder), trainer(folder)
        for number, answer in enumerate(answers):
            step = {"step": number, "epoch": 0, "batch": number, "batches": 1, "learning_rate": 0.1}
            bad.pending.append((torch.tensor(answer), self.Ready(), step))
        run.datamodule = None  # type: ignore[attr-defined]
        return bad, run

    def test_the_newest_stay_unread_until_something_is_saved(self, tmp_path: Path) -> None:
        bad, run = self.pending(tmp_path, [False, False, True])
        bad._read(run, behind=2)
        assert len(bad.pending) == 2
        with pytest.raises(BadStep, match="^step 2 "):
            bad.on_save_checkpoint(run, None, {})  # type: ignore[arg-type]

    def test_an_epochs_end_reads_all(self, tmp_path: Path) -> None:
        bad, run = self.pending(tmp_path, [True, False])
        with pytest.raises(BadStep, match="^step 0 "):
            bad.on_train_epoch_end(run, None)  # type: ignore[arg-type]
