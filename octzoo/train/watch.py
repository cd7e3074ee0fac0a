"""What keeps a run's folder up to date while it trains: its figures, its curves, its clock."""

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from octzoo.train.curves import draw_curves
from octzoo.train.metrics import by_epoch, merge_metrics
from octzoo.train.pictures import SELDOM, Seldom, replace_text
from octzoo.train.stopping import Stopped
from octzoo.train.summary import CLOCK

TICK = 10.0  # seconds; an attempt that is killed loses no more of its time


class Curves(pl.Callback):
    """Keeps RUN/metrics.csv and RUN/curves.png up to date: after a validation or an epoch, at most every `seconds`, and
    however training ends. The first process does it alone."""

    def __init__(self, run_dir: Path, seconds: float = SELDOM) -> None:
        self.run_dir = run_dir
        self.refresh = Seldom(self._write, seconds)

    def _write(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # a CSVLogger keeps the learning rates back
        draw_curves(by_epoch(merge_metrics(self.run_dir)), str(self.run_dir), self.run_dir / "curves.png")

    def _after(self, trainer: pl.Trainer, now: bool = False) -> None:
        if trainer.is_global_zero and trainer.loggers and not trainer.sanity_checking:
            self.refresh(trainer, now=now)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch:  # Lightning logs an epoch's figures after on_train_epoch_end
            self._after(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._after(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._after(trainer, now=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._after(trainer, now=True)


class Clock(pl.Callback):
    """Keeps logs/<attempt>/clock.json: the seconds since `started` (of time.monotonic()) and how the attempt ended."""

    def __init__(self, attempt: Path, started: float) -> None:
        self.file, self.started, self.state = attempt / CLOCK, started, "running"
        self.tick = Seldom(self._write, TICK)

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.file, json.dumps({"seconds": time.monotonic() - self.started, "state": self.state}) + "\n")

    def _end(self, trainer: pl.Trainer, state: str) -> None:
        self.state = state
        if trainer.is_global_zero:
            self.tick(now=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self.tick()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self.tick()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(trainer, "finished")  # also where a finished run is resumed, which trains nothing

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end(
            trainer, "stopped" if isinstance(exception, KeyboardInterrupt | SIGTERMException | Stopped) else "failed"
        )
