"""octzoo.train.callbacks: papers, random numbers, broken pictures, speed, log lines."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.demos.boring_classes import BoringModel

from octzoo.data import BrokenPictures, ImageData, Preprocess
from octzoo.data.loading import Broken
from octzoo.train import callbacks
from octzoo.train.callbacks import ENVIRONMENT, BrokenCount, EpochLines, ImagesPerSecond, RunFolder, StepRandomness
from octzoo.train.optim import OptimizerArgs
from octzoo.train.task import ClassificationTask, MixArgs
from tests import faults

NAME = "test_resnet.r160_in1k"


def trainer(folder: Path, *given: pl.Callback, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    more = {"max_epochs": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    return pl.Trainer(default_root_dir=folder, callbacks=list(given), **{**quiet, **more, **settings})


class TestImagesPerSecond:
    """Pictures per second count training alone."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock.now)
        return clock

    def measure(
        self, clock: SimpleNamespace, resumed: bool = False, world: int = 1, batches: int = 10
    ) -> dict[str, float]:
        """Batches of 8 in 1 s each, with validation of 100 s in the middle and at the end of the epoch."""
        logged: dict[str, float] = {}
        run = SimpleNamespace(world_size=world)
        module = SimpleNamespace(log=lambda name, value, **options: logged.update({name: value}))
        speed = ImagesPerSecond()
        clock.now = 1000.0
        speed.on_train_start(run, module)  # type: ignore[arg-type]
        if not resumed:
            clock.now += 50  # the sanity check
            speed.on_train_epoch_start(run, module)  # type: ignore[arg-type]
        for batch in range(batches):
            clock.now += 1
            speed.on_train_batch_end(run, module, None, (range(8), None), batch)  # type: ignore[arg-type]
            if batch in (4, 9):
                speed.on_validation_start(run, module)  # type: ignore[arg-type]
                clock.now += 100
                speed.on_validation_end(run, module)  # type: ignore[arg-type]
        clock.now += 30
        speed.on_train_epoch_end(run, module)  # type: ignore[arg-type]
        return logged

    def test_validation_does_not_count_as_training_time(self, clock: SimpleNamespace) -> None:
        assert self.measure(clock)["train/images_per_second"] == pytest.approx(8)

    def test_they_are_those_of_all_processes(self, clock: SimpleNamespace) -> None:
        assert self.measure(clock, world=4)["train/images_per_second"] == pytest.approx(32)

    def test_a_run_that_is_resumed_inside_an_epoch_counts_from_there(self, clock: SimpleNamespace) -> None:
        assert self.measure(clock, resumed=True)["train/images_per_second"] == pytest.approx(8)

    def test_without_a_batch_there_is_none(self, clock: SimpleNamespace) -> None:
        assert self.measure(clock, batches=0) == {}


class TestStepRandomness:
    """A step's random numbers are a function of (seed, step over all epochs, rank)."""

    def drawn(self, folder: Path, epochs: int = 2, batches: int = 3, disturbed: bool = False) -> list[Any]:
        seen: list[Any] = []

        class Draws(BoringModel):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                seen.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
                if disturbed:
                    torch.rand(batch_idx)
                return super().training_step(batch, batch_idx)

        settings = {"limit_val_batches": 0, "limit_train_batches": batches, "accumulate_grad_batches": 2}
        run = trainer(folder, StepRandomness(), max_epochs=epochs, **settings)
        run.fit(Draws())
        return seen

    def test_no_two_steps_share_them(self, tmp_path: Path) -> None:
        seen = self.drawn(tmp_path)
        assert [len({draw[kind] for draw in seen}) for kind in range(3)] == [6, 6, 6]

    def test_they_do_not_depend_on_what_was_drawn_before(self, tmp_path: Path) -> None:
        expected = self.drawn(tmp_path)
        torch.manual_seed(99)
        random.seed(99)
        assert self.drawn(tmp_path, disturbed=True) == expected

    def test_each_step_of_each_seed_and_process_has_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def drawn(seed: int, step: int, rank: int) -> float:
            monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
            loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=step))
            StepRandomness().on_train_batch_start(SimpleNamespace(fit_loop=loop, global_rank=rank), None)  # type: ignore
            return float(torch.rand(()))

        places = [(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)]
        draws = [drawn(*place) for place in places]
        assert len(set(draws)) == len(places)
        assert [drawn(*place) for place in places] == draws

    def test_mixup_and_dropout_of_a_step_are_those_of_its_number(self, tmp_path: Path) -> None:
        """The losses of a second run, that begins from another random state, are the same bits."""

        def losses(state: int) -> list[float]:
            torch.manual_seed(0)
            module = ClassificationTask(
                NAME, 10, optimizer=OptimizerArgs(lr=0.0), mix=MixArgs(0.5, 0.5), model_args={"drop_rate": 0.5}
            )
            seen: list[torch.Tensor] = []
            step = module.training_step
            module.training_step = lambda *a: (seen.append(loss := step(*a)), loss)[1]  # type: ignore
            random.seed(state)
            np.random.seed(state)
            torch.manual_seed(state)
            data = ImageData(batch_size=8, num_workers=0, preprocess=Preprocess(image_size=16))
            trainer(tmp_path, StepRandomness(), limit_train_batches=3, limit_val_batches=0).fit(module, data)
            return [float(loss.detach()) for loss in seen]

        assert losses(1) == losses(2)


class TestBrokenCount:
    def data(self, root: Path, **settings: Any) -> ImageData:
        """27 training pictures of which 2 do not decode, 12 of validation of which 1 does not."""
        faults.pictures(root)
        for broken in ("train/class0/3.png", "train/class2/1.png", "val/class1/0.png"):
            path = root / broken
            path.write_bytes(path.read_bytes()[:60])
        plain = {"batch_size": 9, "num_workers": 0, "preprocess": Preprocess(image_size=16)}
        plain["broken"] = BrokenPictures(val="skip")
        return ImageData("folder", str(root), **{**plain, **settings})

    def test_each_epoch_says_which_and_logs_how_many(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        run = trainer(folder, BrokenCount(folder), max_epochs=2, num_sanity_val_steps=1)
        run.fit(ClassificationTask(NAME, 3), self.data(tmp_path / "p"))
        assert run.callback_metrics["data/broken"] == 2
        assert run.callback_metrics["val/broken"] == 1
        said = [line for line in capsys.readouterr().out.splitlines() if "decode" in line]
        assert [line.partition(":")[0] for line in said] == ["epoch 0", "epoch 0", "epoch 1", "epoch 1"]
        assert "epoch 0: 1 pictures that do not decode, left out: " in said[0]
        assert "val/class1/0.png (" in said[0]
        assert "epoch 1: 2 pictures that do not decode, replaced: " in said[3]
        assert all(f"{name}.png (" in said[3] for name in ("class0/3", "class2/1"))
        notes = [json.loads(line) for line in (folder / "broken_pictures.jsonl").read_text().splitlines()]
        assert [(note["split"], note["epoch"]) for note in notes if note["split"] == "train"] == [
            ("train", 0), ("train", 0), ("train", 1), ("train", 1)
        ]  # fmt: skip
        assert sum(note["split"] == "val" for note in notes) == 2  # that of the sanity check counts for nothing
        assert set(notes[0]) == {"split", *Broken._fields}

    def test_without_any_nothing_is_said_or_written(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        run = trainer(tmp_path, BrokenCount(tmp_path), limit_train_batches=2, limit_val_batches=1)
        data = ImageData(batch_size=8, num_workers=0, preprocess=Preprocess(image_size=16))
        run.fit(ClassificationTask(NAME, 10), data)
        assert run.callback_metrics["data/broken"] == run.callback_metrics["val/broken"] == 0
        assert "decode" not in capsys.readouterr().out
        assert not (tmp_path / "broken_pictures.jsonl").exists()

    def test_a_measurement_counts_too_without_a_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        for verb in ("validate", "test"):
            run = trainer(tmp_path, BrokenCount())
            data = self.data(tmp_path / verb)
            (figures,) = getattr(run, verb)(ClassificationTask(NAME, 3), data, verbose=False)
            assert figures["val/broken"] == 1
            assert "1 pictures that do not decode, left out: " in capsys.readouterr().out

    def test_many_are_named_in_part(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        notes = [Broken(0, i, f"{i}.png", "OSError: x") for i in range(8)]
        loader = SimpleNamespace(broken=notes)
        run = SimpleNamespace(
            datamodule=SimpleNamespace(loaders={"train": loader}), sanity_checking=False, current_epoch=4
        )
        BrokenCount(tmp_path).on_train_epoch_end(run, SimpleNamespace(log=lambda *_, **__: None))  # type: ignore
        shown = ", ".join(f"{i}.png (OSError: x)" for i in range(5))
        assert capsys.readouterr().out == (f"epoch 4: 8 pictures that do not decode, replaced: {shown} and 3 more\n")
        assert len((tmp_path / "broken_pictures.jsonl").read_text().splitlines()) == 8
        assert loader.broken == []


class Nothing(BoringModel):
    """Figures of an epoch, as the task logs them."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("train/loss_step", loss)
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"val/top1": 0.25 * (1 + self.current_epoch), "val/loss": 2.0, "val/broken": 0.0})

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", 3.0)


class TestEpochLines:
    def test_each_epoch_has_one_line_with_its_own_figures(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        settings = {"max_epochs": 3, "limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 1}
        trainer(tmp_path, EpochLines(), **settings).fit(Nothing())
        assert capsys.readouterr().out.splitlines() == [
            f"epoch {epoch}  train/loss 3.0000  val/loss 2.0000  val/top1 {0.25 * (1 + epoch):.4f}"
            for epoch in range(3)
        ]

    def test_an_epoch_that_did_not_end_has_none(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        class Stops(Nothing):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                if self.current_epoch == 1:
                    raise ValueError
                return super().training_step(batch, batch_idx)

        with pytest.raises(ValueError):  # noqa: PT011
            trainer(tmp_path, EpochLines(), max_epochs=3, limit_train_batches=2, limit_val_batches=1).fit(Stops())
        assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["epoch", "0"]]


class TestRunFolder:
    def folder(self, place: Path, attempt: int = 0, lr: float = 0.1, **more: Any) -> RunFolder:
        parser = LightningArgumentParser()
        for name in ("--ckpt_path", "--run_dir"):
            parser.add_argument(name, type=str | None, default=None)
        parser.add_argument("--lr", type=float, default=0.1)
        config = parser.parse_args([f"--lr={lr}", "--ckpt_path=auto", f"--run_dir={place}"])
        place.mkdir(exist_ok=True)
        return RunFolder(parser, config, place, attempt, **more)

    def fit(self, papers: RunFolder, module: BoringModel | None = None, **settings: Any) -> pl.Trainer:
        checkpoint = settings.pop("ckpt_path", None)
        run = trainer(papers.run_dir, papers, limit_train_batches=1, limit_val_batches=0, **settings)
        run.fit(module or BoringModel(), ckpt_path=checkpoint, weights_only=True)
        return run

    def test_the_config_is_what_was_set_but_for_where_it_went_and_what_it_resumed(self, tmp_path: Path) -> None:
        papers = self.folder(tmp_path / "run", lr=0.3)
        self.fit(papers)
        content = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
        assert content == {"ckpt_path": None, "run_dir": None, "lr": 0.3}
        assert papers.config.ckpt_path == "auto"  # the command's own stays
        said = json.loads((tmp_path / "run" / "environment.json").read_text())
        assert {"command", "packages", "machine", "threads", "processes"} <= said.keys()
        assert not (tmp_path / "run" / "error.txt").exists()

    def test_it_is_written_as_it_is_told(self, tmp_path: Path) -> None:
        self.fit(self.folder(tmp_path / "run", written=lambda text: text.replace("0.1", "${oc.env:LR}")))
        assert "lr: ${oc.env:LR}" in (tmp_path / "run" / "config.yaml").read_text()

    def test_a_resumed_run_keeps_what_earlier_attempts_wrote(self, tmp_path: Path) -> None:
        place = tmp_path / "run"
        for attempt, lr in enumerate((0.1, 0.2, 0.2, 0.3)):
            self.fit(self.folder(place, attempt, lr))
        rates = {p.name: yaml.safe_load(p.read_text())["lr"] for p in place.glob("config*.yaml")}
        assert rates == {"config.yaml": 0.3, "config-0.yaml": 0.1, "config-2.yaml": 0.2}
        assert [p.name for p in place.glob("environment*.json")] == ["environment.json"]  # all four are the same

    @pytest.mark.parametrize(
        ("error", "written"), [(ValueError, True), (KeyboardInterrupt, False), (SystemExit, False)]
    )
    def test_a_failure_leaves_its_traceback_and_an_interruption_does_not(self, error, written, tmp_path: Path) -> None:
        class Fails(BoringModel):
            def training_step(self, *_: Any) -> Any:
                raise error("here it is")

        with pytest.raises((error, SystemExit)):
            self.fit(self.folder(tmp_path / "run"), Fails())
        file = tmp_path / "run" / "error.txt"
        assert file.exists() == written
        if written:
            assert file.read_text().startswith("Traceback")
            assert file.read_text().endswith("ValueError: here it is\n")

    def test_a_checkpoint_remembers_what_its_bits_depend_on_and_resuming_elsewhere_warns(
        self, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        run, file = self.fit(self.folder(tmp_path / "run")), tmp_path / "a.ckpt"
        run.save_checkpoint(file, weights_only=False)
        saved = torch.load(file, weights_only=True)
        assert saved[ENVIRONMENT]["processes"] == 1
        self.fit(self.folder(tmp_path / "run", 1), max_epochs=2, ckpt_path=file)
        assert "same bits" not in capsys.readouterr().out
        saved[ENVIRONMENT] |= {"torch": "1.0", "processes": 8}
        torch.save(saved, file)
        self.fit(self.folder(tmp_path / "run", 2), max_epochs=2, ckpt_path=file)
        now = torch.__version__
        assert capsys.readouterr().out == (
            f"warning: the run goes on, but not to the same bits: torch was 1.0, is {now}; processes was 8, is 1\n"
        )
        del saved[ENVIRONMENT]
        torch.save(saved, file)
        self.fit(self.folder(tmp_path / "run", 3), max_epochs=2, ckpt_path=file)
        assert capsys.readouterr().out == ""
