"""What came out of a run: from its folder alone, after one attempt or several, finished or not."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from octzoo.train.summary import duration, finish, is_run, lines, summarize
from octzoo.train.watch import Clock

CONFIG = "model: {name: oct_cifar_resnet20_a0.25}\ntrainer: {max_epochs: 4}\n"
FIRST = "epoch,step,train/images_per_second,train/loss,val/top1\n0,21,100,2.0,0.5\n1,43,300,1.0,0.75\n"
SECOND = "epoch,step,train/images_per_second,train/loss,val/top1\n2,65,100,0.5,0.75\n3,87,300,0.4,0.625\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two epochs, stopped, resumed, two more."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    for attempt, (figures, state) in enumerate([(FIRST, "stopped"), (SECOND, "finished")]):
        (tmp_path / "logs" / str(attempt)).mkdir(parents=True)
        (tmp_path / "logs" / str(attempt) / "metrics.csv").write_text(figures)
        clock = {"seconds": 1900.0, "state": state}
        (tmp_path / "logs" / str(attempt) / "clock.json").write_text(json.dumps(clock))
    return tmp_path


def test_it_counts_all_attempts(run: Path) -> None:
    summary = summarize(run, run / "epoch=001.ckpt", run / "last.ckpt")
    assert (summary.epochs, summary.max_epochs, summary.attempts, summary.seconds) == (4, 4, 2, 3800.0)
    assert (summary.network, summary.state) == ("oct_cifar_resnet20_a0.25", "finished")


def test_the_best_epoch_is_the_first_with_the_highest_top1(run: Path) -> None:
    summary = summarize(run)
    assert (summary.best_epoch, summary.best_top1, summary.final_top1) == (1, 0.75, 0.625)


def test_throughput_is_all_pictures_by_all_time(run: Path) -> None:
    """Epochs of 300 pictures at 100, 300, 100 and 300 a second: 1,200 in 3 + 1 + 3 + 1 seconds."""
    assert summarize(run).images_per_second == pytest.approx(1200 / 8)


def test_lines_and_file_say_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(run, run / "epoch=001-top1=0.750.ckpt", run / "last.ckpt")
    assert capsys.readouterr().out.splitlines() == [
        "",
        f"run folder   {run}",
        "network      oct_cifar_resnet20_a0.25",
        "best top-1   75.00 % in epoch 1 (4 trained here)",
        "throughput   150 images/s",
        "wall time    1 h 03 min in 2 attempts",
        f"best         {run}/epoch=001-top1=0.750.ckpt",
        f"last         {run}/last.ckpt",
        f"next         octzoo test --ckpt_path {run}",
    ]
    written = json.loads((run / "summary.json").read_text())
    assert written["best_checkpoint"] == f"{run}/epoch=001-top1=0.750.ckpt"
    assert written["next"] == [f"octzoo test --ckpt_path {run}", f"octzoo compare {run} OTHER_RUN"]


def test_the_next_command_of_an_unfinished_run_resumes_it(run: Path) -> None:
    (run / "logs" / "1" / "clock.json").write_text('{"seconds": 5, "state": "failed"}')
    assert summarize(run, None, run / "last.ckpt").next[0] == f"octzoo fit --run_dir {run} --ckpt_path last"


def test_a_path_with_a_space_can_be_pasted(tmp_path: Path) -> None:
    run = tmp_path / "my runs"
    run.mkdir()
    assert summarize(run, None, run / "last.ckpt").next[-2] == f"octzoo test --ckpt_path '{run}'"


def test_a_running_attempt_that_is_silent_was_killed(run: Path) -> None:
    clock = run / "logs" / "1" / "clock.json"
    clock.write_text('{"seconds": 5, "state": "running"}')
    assert summarize(run).state == "running"
    os.utime(clock, (time.time() - 400,) * 2)
    assert summarize(run).state == "killed"


def test_a_run_that_has_nothing_yet_says_so_little(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    summary = summarize(tmp_path)
    assert (summary.best_epoch, summary.images_per_second, summary.seconds, summary.epochs) == (None, None, None, 0)
    assert [line.split("  ")[0] for line in lines(summary)] == ["run folder", "network", "next"]


def test_a_run_folder_is_told_from_another(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert is_run(run)
    assert not is_run(tmp_path_factory.mktemp("other"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (2e5, "55 h 33 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class TestClock:
    trainer: Any = SimpleNamespace(is_global_zero=True)

    def clock(self, attempt: Path) -> dict:
        return json.loads((attempt / "clock.json").read_text())

    def test_it_runs_from_the_start_of_the_process(self, tmp_path: Path) -> None:
        clock = Clock(tmp_path / "logs" / "0", time.monotonic() - 100)
        clock.on_train_batch_end(self.trainer, None, None, None, 0)
        found = self.clock(tmp_path / "logs" / "0")
        assert found["state"] == "running"
        assert 100 <= found["seconds"] < 110

    def test_between_ticks_a_step_writes_nothing(self, tmp_path: Path) -> None:
        clock = Clock(tmp_path, time.monotonic())
        clock.on_train_batch_end(self.trainer, None, None, None, 0)
        (tmp_path / "clock.json").unlink()
        clock.on_train_batch_end(self.trainer, None, None, None, 1)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("problem", "state"),
        [(None, "finished"), (KeyboardInterrupt(), "stopped"), (SIGTERMException(), "stopped"), (OSError(), "failed")],
    )
    def test_it_tells_how_the_attempt_ended(self, problem: BaseException | None, state: str, tmp_path: Path) -> None:
        clock: Any = Clock(tmp_path, time.monotonic())
        clock.on_train_batch_end(self.trainer, None, None, None, 0)
        if problem is None:
            clock.on_fit_end(self.trainer, None)
        else:
            clock.on_exception(self.trainer, None, problem)
        assert self.clock(tmp_path)["state"] == state

    def test_one_process_writes(self, tmp_path: Path) -> None:
        clock: Any = Clock(tmp_path, time.monotonic())
        clock.on_train_batch_end(SimpleNamespace(is_global_zero=False), None, None, None, 0)
        clock.on_fit_end(SimpleNamespace(is_global_zero=False), None)
        assert list(tmp_path.iterdir()) == []
