"""The figures of a run over its attempts, and the picture of them, kept up to date while it trains."""

import csv
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from octzoo.train.curves import draw_curves
from octzoo.train.metrics import by_epoch, merge, merge_metrics, read_rows, run_rows
from octzoo.train.pictures import Seldom, replace_text
from octzoo.train.watch import Curves


def write(run: Path, attempt: int, text: str) -> None:
    (run / "logs" / str(attempt)).mkdir(parents=True)
    (run / "logs" / str(attempt) / "metrics.csv").write_text(text)


def rows(*steps: int, attempt: str) -> list[dict[str, str]]:
    return [{"step": str(step), "by": attempt} for step in steps]


class TestMerging:
    def test_what_a_later_attempt_did_again_counts_as_done_last(self) -> None:
        parts = [rows(0, 5, 9, 9, 12, attempt="a"), rows(9, 12, 15, attempt="b")]
        assert merge(parts) == rows(0, 5, attempt="a") + rows(9, 12, 15, attempt="b")

    def test_an_attempt_that_logged_nothing_takes_nothing_away(self) -> None:
        assert merge([rows(0, 5, attempt="a"), [], rows(6, attempt="c")]) == rows(0, 5, attempt="a") + rows(
            6, attempt="c"
        )

    def test_a_third_attempt_from_before_the_second_replaces_both(self) -> None:
        parts = [rows(0, 5, 9, attempt="a"), rows(6, 9, attempt="b"), rows(3, attempt="c")]
        assert merge(parts) == rows(0, attempt="a") + rows(3, attempt="c")

    def test_the_run_has_the_columns_of_all_attempts(self, tmp_path: Path) -> None:
        write(tmp_path, 0, "epoch,step,train/loss\n0,3,2.5\n")
        write(tmp_path, 1, "step,epoch,val/top1\n7,1,0.5\n")
        merge_metrics(tmp_path)
        assert (tmp_path / "metrics.csv").read_text() == "epoch,step,train/loss,val/top1\n0,3,2.5,\n1,7,,0.5\n"

    def test_attempts_are_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        for attempt in (10, 9, 2):
            write(tmp_path, attempt, f"epoch,step\n0,{attempt}\n")
        assert [row["step"] for row in run_rows(tmp_path)] == ["2", "9", "10"]

    def test_a_last_line_that_a_kill_cut_short_is_left_out(self, tmp_path: Path) -> None:
        write(tmp_path, 0, "epoch,step,train/loss\n0,3,2.5\n0,4,0.12")
        assert [row["step"] for row in run_rows(tmp_path)] == ["3"]

    def test_a_run_without_figures_has_no_table(self, tmp_path: Path) -> None:
        assert merge_metrics(tmp_path) == []
        assert list(tmp_path.iterdir()) == []

    def test_a_run_of_before_attempts_had_folders_is_read_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.csv").write_text("epoch,step,val/top1\n0,3,0.5\n")
        assert by_epoch(merge_metrics(tmp_path)) == {"val/top1": [(0, 0.5)]}


class Logging(BoringModel):
    """Logs an epoch's loss and a validation's accuracy; `fails` in the middle of that epoch."""

    def __init__(self, fails: int = -1) -> None:
        super().__init__()
        self.fails = fails

    def training_step(self, batch, batch_idx):
        if self.current_epoch == self.fails and batch_idx == 1:
            raise KeyboardInterrupt
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log("val/top1", 0.5 + self.current_epoch / 10)


class Watcher(pl.Callback):
    """What RUN/metrics.csv holds whenever an epoch starts: (training losses, accuracies)."""

    def __init__(self, run: Path) -> None:
        self.run, self.seen = run, []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        metrics = by_epoch(read_rows(self.run / "metrics.csv"))
        self.seen.append((len(metrics.get("train/loss", [])), len(metrics.get("val/top1", []))))


class Rate(pl.Callback):
    """Logs past the trainer before each step, as LearningRateMonitor does; the logger keeps it back."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step < 3:
            trainer.logger.log_metrics({"lr": 0.1}, step=trainer.global_step)


def fit(run: Path, *callbacks: pl.Callback, fails: int = -1, epochs: int = 3) -> None:
    trainer = pl.Trainer(
        default_root_dir=str(run),
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=1,
        accelerator="cpu",
        logger=CSVLogger(str(run), name="logs", version="0"),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Logging(fails))


class TestWhileTraining:
    def test_table_and_picture_are_up_to_date_at_every_epoch(self, tmp_path: Path) -> None:
        watcher = Watcher(tmp_path)
        fit(tmp_path, Curves(tmp_path, seconds=0), watcher)
        assert watcher.seen == [(0, 0), (1, 1), (2, 2)]
        assert Image.open(tmp_path / "curves.png").format == "PNG"

    def test_between_them_nothing_is_written_but_at_the_end_everything_is(self, tmp_path: Path) -> None:
        curves, watcher = Curves(tmp_path, seconds=1000), Watcher(tmp_path)
        fit(tmp_path, curves, watcher)
        assert watcher.seen == [(0, 0), (0, 1), (0, 1)]
        with (tmp_path / "metrics.csv").open() as file:
            assert sum(bool(row["train/loss"]) for row in csv.DictReader(file)) == 3

    def test_a_run_that_is_interrupted_keeps_what_it_has(self, tmp_path: Path) -> None:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(tmp_path, Curves(tmp_path, seconds=1000), Rate(), fails=1)
        metrics = by_epoch(read_rows(tmp_path / "metrics.csv"))
        assert [epoch for epoch, _ in metrics["train/loss"]] == [epoch for epoch, _ in metrics["val/top1"]] == [0]
        assert [row["step"] for row in read_rows(tmp_path / "metrics.csv") if row["lr"]] == ["0", "1", "2"]

    def test_a_picture_that_cannot_be_drawn_is_one_warning(self, tmp_path: Path, monkeypatch) -> None:
        def fails(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr("octzoo.train.watch.draw_curves", fails)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(tmp_path, Curves(tmp_path, seconds=0))
        texts = [str(w.message) for w in caught if "not written" in str(w.message)]
        assert texts == ["not written: OSError: no space left on device; training goes on"]


def test_an_action_that_takes_long_is_run_more_seldom(monkeypatch) -> None:
    """A fiftieth of the time at most: after 4 s of work it rests for 200 s."""
    now, calls = [0.0], []

    def action() -> None:
        calls.append(now[0])
        now[0] += 4

    monkeypatch.setattr("octzoo.train.pictures.time.monotonic", lambda: now[0])
    refresh = Seldom(action, seconds=20)
    for _ in range(500):
        refresh()
        now[0] += 1
    assert calls == [0, 204, 408]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    replace_text(tmp_path / "a.txt", "old")

    def fails(*_):
        raise OSError("full")

    monkeypatch.setattr("octzoo.train.pictures.os.replace", fails)
    with pytest.raises(OSError, match="full"):
        replace_text(tmp_path / "a.txt", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


@pytest.mark.parametrize("epochs", [0, 1, 500])
def test_any_number_of_epochs_is_drawn(epochs: int, tmp_path: Path) -> None:
    series = [(epoch, 1 / (1 + epoch)) for epoch in range(epochs)]
    draw_curves({"train/loss": series, "val/top1": series}, "runs/$a_$/0", tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1200, 480)
