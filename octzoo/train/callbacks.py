"""Callbacks that Lightning lacks: the run's papers, pictures per second, and a log for outputs without a terminal."""

import json
import time
import traceback
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.cli import SaveConfigCallback

from octzoo.train.environment import environment
from octzoo.train.runs import CONFIG
from octzoo.train.task import ClassificationTask


class RunFolder(SaveConfigCallback):
    """Writes config.yaml (resolved, without what belongs to one run only) and environment.json as the run starts,
    and error.txt with the traceback if it fails. One process writes."""

    def __init__(self, parser: Any, config: Any, run_dir: Path) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.run_dir = run_dir

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        config = self.config.clone()
        config.ckpt_path = None  # the run that repeats this one starts anew
        self.parser.save(config, str(self.run_dir / CONFIG), skip_unset=False)
        (self.run_dir / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and isinstance(exception, Exception):
            (self.run_dir / "error.txt").write_text("".join(traceback.format_exception(exception)))


class ImagesPerSecond(pl.Callback):
    """Training pictures per second of all processes: in the bar as it goes, in the logs once an epoch.

    The time is that from the epoch's start to its last training batch, without validation.
    """

    def __init__(self) -> None:
        self.count, self.since, self.until, self.paused = 0, 0.0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.count, self.since = 0, time.monotonic()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.paused = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pause = time.monotonic() - self.paused
        self.since, self.until = self.since + pause, self.until + pause

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.count, self.until = self.count + len(batch[0]) * trainer.world_size, time.monotonic()
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("images/s", self._rate(), prog_bar=True, logger=False, rank_zero_only=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("train/images_per_second", self._rate(), rank_zero_only=True)

    def _rate(self) -> float:
        return self.count / max(self.until - self.since, 1e-9)


class EpochLines(pl.Callback):
    """One line an epoch, for an output that is no terminal (where a progress bar would be a mess or nothing)."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = cast(ClassificationTask, pl_module).train_loss.compute()  # by every process: they add up their shares
        shown = {"train/loss": float(loss)}
        shown |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if trainer.is_global_zero:
            values = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            print(f"epoch {trainer.current_epoch}  {values}", flush=True)
