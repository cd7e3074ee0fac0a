"""What one sees of a run, from real processes: presets, pictures, Weights & Biases offline, two processes, a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

import octzoo_cli
from octzoo.train.metrics import by_epoch, run_rows
from octzoo.train.overfit import SameBatches

ROOT = Path(octzoo_cli.__file__).parent
DIGITS = str(ROOT / "configs" / "digits.yaml")
PRESETS = sorted((ROOT / "configs" / "presets").glob("*.yaml"))
WANDB = "trainer:\n  logger:\n    class_path: WandbLogger\n    init_args: {project: octzoo}\n"


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "octzoo_cli.py"), "fit", "--config", DIGITS, *arguments]


def fit(folder: Path, *arguments: str) -> Path:
    """Trains on the digits in a process of its own; the run's folder."""
    environment = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(command(*arguments), cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (folder / "runs" / "digits").iterdir()
    return run


def preset(name: str) -> tuple[str, str]:
    return "--config", str(ROOT / "configs" / "presets" / f"{name}.yaml")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_says_what_it_claims(path: Path) -> None:
    text = path.read_text()
    for word in ("source", "expected", "hardware", "command"):
        assert f"\n# {word} " in text
    assert f"--config configs/digits.yaml --config configs/presets/{path.name}\n" in text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    (folder / "wandb.yaml").write_text(WANDB)
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.limit_val_batches", "1.0")
    return fit(folder, *preset("smoke"), "--config", "wandb.yaml", *two)


class TestTwoStepsOfEverything:
    """presets/smoke.yaml in two processes, all validation pictures, with a logger of the user's."""

    def test_it_trains_validates_and_saves(self, run: Path) -> None:
        metrics = by_epoch(run_rows(run))
        assert [len(metrics[name]) for name in ("train/loss", "val/loss", "val/top1")] == [1, 1, 1]
        assert max(int(row["step"]) for row in run_rows(run)) == 1
        assert (run / "last.ckpt").is_file()
        assert len(list(run.glob("epoch=000*.ckpt"))) == 1
        assert json.loads((run / "summary.json").read_text())["state"] == "finished"

    def test_the_confusion_is_that_of_both_processes(self, run: Path) -> None:
        with (run / "confusion.csv").open() as file:
            header, *rows = csv.reader(file)
        counts = [[int(cell) for cell in row[1:]] for row in rows]
        assert header[1:] == [row[0] for row in rows] == list("0123456789")
        assert sum(map(sum, counts)) == 359  # every validation picture once
        right = sum(counts[i][i] for i in range(10)) / 359
        assert by_epoch(run_rows(run))["val/top1"] == [(0, pytest.approx(right, abs=1e-6))]

    def test_there_is_a_picture_of_each(self, run: Path) -> None:
        assert {Image.open(run / name).format for name in ("curves.png", "confusion.png")} == {"PNG"}

    def test_tensorboard_is_there_too(self, run: Path) -> None:
        assert list(run.glob("events.out.tfevents.*"))

    def test_weights_and_biases_writes_into_the_run_folder(self, run: Path) -> None:
        (offline,) = (run / "wandb").glob("offline-run-*")
        assert list(offline.glob("*.wandb"))
        assert {path.name for path in run.parents[2].iterdir()} == {"runs", "wandb.yaml"}

    def test_the_saved_config_repeats_it_into_another_folder(self, run: Path) -> None:
        logger = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"]
        assert logger["class_path"].endswith("WandbLogger")
        assert str(run) not in str(logger)
        assert logger["init_args"]["save_dir"] == "."


@pytest.mark.slow
def test_a_network_learns_one_batch_by_heart(tmp_path: Path) -> None:
    run = fit(tmp_path, *preset("overfit"))
    losses = [loss for _, loss in by_epoch(run_rows(run))["train/loss"]]
    assert losses[0] > 2
    assert losses[-1] < 0.01  # with other pictures in every epoch: 0.036


def test_the_batches_of_every_epoch_are_the_firsts() -> None:
    epochs: Any = []
    loader = SimpleNamespace(batch_sampler=SimpleNamespace(set_epoch=epochs.append))
    trainer: Any = SimpleNamespace(train_dataloader=loader)
    SameBatches().on_train_epoch_start(trainer, trainer)
    assert epochs == [0]


def test_the_profile_says_where_the_time_goes(tmp_path: Path) -> None:
    report = (fit(tmp_path, *preset("profile")) / "logs" / "0" / "fit-profile.txt").read_text()
    for action in ("run_training_batch", "train_dataloader_next", "backward", "validation_step"):
        assert action in report


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_has_one_table_of_figures(tmp_path: Path) -> None:
    short = ("--run_dir", "run", "--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "4")
    killed = subprocess.Popen(
        command(*short), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("epoch 0"):
            time.sleep(0.5)  # into the next epoch
            killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = subprocess.run(
        command(*short, "--ckpt_path", "last"), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in 2 attempts" in done.stdout
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row["train/loss"]] == ["0", "1", "2"]
    steps = [int(row["step"]) for row in rows if row["train/loss_step"]]
    assert steps == sorted(set(steps))
