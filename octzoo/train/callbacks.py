"""Callbacks that Lightning lacks: the run's papers, each step's random numbers, broken pictures, speed, log lines."""

import json
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import SaveConfigCallback

from octzoo.data import ImageData
from octzoo.data.order import run_seed, seed_everywhere
from octzoo.errors import some
from octzoo.train.environment import differences, environment, same_bits
from octzoo.train.pictures import replace_text
from octzoo.train.runs import CONFIG

ENVIRONMENT = "octzoo_environment"  # a checkpoint's key


class RunFolder(SaveConfigCallback):
    """Writes config.yaml and environment.json as the run starts, and error.txt with the traceback if it fails.

    A resumed run keeps what an earlier attempt wrote, as config-0.yaml, environment-0.json ... One process writes. A
    checkpoint remembers what its bits depend on; resuming elsewhere warns.

    Args:
        parser: the command's
        config: what was set
        run_dir: where it goes
        attempt: how many fits went into this folder before
        written: makes of the resolved config, as YAML text, what is saved
    """

    def __init__(
        self, parser: Any, config: Any, run_dir: Path, attempt: int = 0, written: Callable[[str], str] = str
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.run_dir, self.attempt, self.written = run_dir, attempt, written

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        config = self.config.clone()
        config.ckpt_path = config.run_dir = None  # the run that repeats this one starts anew, elsewhere
        self._write(CONFIG, self.written(self.parser.dump(config, skip_unset=False)))
        self._write("environment.json", json.dumps(environment() | same_bits(trainer.world_size), indent=2) + "\n")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint[ENVIRONMENT] = same_bits(trainer.world_size)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        found = differences(checkpoint.get(ENVIRONMENT, {}), same_bits(trainer.world_size))
        if found and trainer.is_global_zero:
            print(f"warning: the run goes on, but not to the same bits: {'; '.join(found)}", flush=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and isinstance(exception, Exception):
            (self.run_dir / "error.txt").write_text("".join(traceback.format_exception(exception)))

    def _write(self, name: str, text: str) -> None:
        path = self.run_dir / name
        if path.exists() and path.read_text() != text:
            shutil.copy(path, path.with_stem(f"{path.stem}-{max(self.attempt - 1, 0)}"))
        replace_text(path, text)


class StepRandomness(pl.Callback):
    """A training step's random numbers (mixup, dropout, drop path) are a function of (seed, step, rank).

    The step counts batches over all epochs. A resumed run has nothing to restore.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        numbers = run_seed(), trainer.fit_loop.epoch_loop.total_batch_idx, trainer.global_rank, 0
        seed_everywhere(*numbers)
        if torch.cuda.is_available():
            torch.cuda.manual_seed(torch.default_generator.initial_seed())


class BrokenCount(pl.Callback):
    """Says after each epoch which pictures did not decode, and logs how many (data/broken, val/broken).

    Every one stands in broken_pictures.jsonl of the run folder, a line each.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        self.run_dir = run_dir

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.run_dir is not None:
            self.run_dir = Path(trainer.strategy.broadcast(str(self.run_dir)))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count("train", "data/broken", "replaced", trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count("val", "val/broken", "left out", trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count("test", "test/broken", "left out", trainer, pl_module)
        self._count("val", "val/broken", "left out", trainer, pl_module)

    def _count(self, kind: str, name: str, fate: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loader = cast(ImageData, trainer.datamodule).loaders.get(kind)  # type: ignore[attr-defined]
        if loader is None:
            return
        found, loader.broken = loader.broken, []
        if trainer.sanity_checking:
            return
        pl_module.log(name, float(len(found)), reduce_fx="sum", sync_dist=True)
        if not found:
            return
        names = some([f"{note.name} ({note.error})" for note in found])
        print(f"epoch {trainer.current_epoch}: {len(found)} pictures that do not decode, {fate}: {names}", flush=True)
        if self.run_dir is not None:
            with (self.run_dir / "broken_pictures.jsonl").open("a") as file:
                file.writelines(json.dumps({"split": kind, **note._asdict()}) + "\n" for note in found)


class ImagesPerSecond(pl.Callback):
    """Training pictures per second of all processes, in the logs once an epoch.

    The time is that from the epoch's start to its last training batch, without validation.
    """

    def __init__(self) -> None:
        self.count, self.since, self.until, self.paused = 0, 0.0, 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.count, self.since = 0, time.monotonic()  # a run that is resumed inside an epoch does not start one

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

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.count:  # none where a resumed run only had an epoch's validation left
            rate = self.count / max(self.until - self.since, 1e-9)
            pl_module.log("train/images_per_second", rate, sync_dist=True)


class EpochLines(pl.Callback):
    """One line an epoch, for an output that is no terminal (where a progress bar would be a mess or nothing)."""

    def __init__(self) -> None:
        self.ended: int | None = None  # an epoch whose figures are not all there yet

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ended = trainer.current_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.ended is not None and trainer.is_global_zero:
            found = trainer.callback_metrics.items()
            shown = {k: float(v) for k, v in found if k == "train/loss" or (k.startswith("val/") and k != "val/broken")}
            values = "  ".join(f"{name} {value:.4f}" for name, value in sorted(shown.items()))
            print(f"epoch {self.ended}  {values}", flush=True)
        self.ended = None

    on_train_end = on_train_epoch_start
