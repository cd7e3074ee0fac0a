"""The progress bar: Lightning's, with pictures per second, the time left of the whole run, and memory."""

import math
import resource
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text

REFRESH = 4  # a second


class Facts(ProgressColumn):
    """A column whose text is a function of the task."""

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__()
        self.text = text

    def render(self, task: Task) -> Text:
        return Text(self.text(task), style="cyan")


class Bar(RichProgressBar):
    """Looks at the run at most `refresh_rate` times a second; the steps between cost a comparison.

    (Lightning's own reads every figure, with a wait for the GPU each, at every step.)
    """

    def __init__(self, refresh_rate: int = REFRESH, leave: bool = False) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self.next = 0.0  # when to look again
        self.started, self.first_step, self.last_step = 0.0, 0, math.inf
        self.pictures = {"train": 0, "other": 0}  # in a step, of all processes
        self.memory, self.left, self.figures = "", "", ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.started, self.first_step = time.monotonic(), trainer.global_step
        self.last_step = trainer.estimated_stepping_batches

    def configure_columns(self, trainer: pl.Trainer) -> list:
        description, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = 10  # 80 columns hold the facts in one line
        return [description, bar, batches, Facts(self._facts)]

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Puts the figures below the facts, where a narrow terminal has room; Lightning's own column stays empty."""
        figures = super().get_metrics(trainer, pl_module).items()
        self.figures = "  ".join(
            f"{name}={value:.3f}" for name, value in figures if isinstance(value, float) and name != "images/s"
        )
        return {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._due(trainer, batch, batch_idx, lambda: self.total_train_batches):
            spent, done = time.monotonic() - self.started, trainer.global_step - self.first_step
            self.left = left_text(spent, done, self.last_step - trainer.global_step)
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *step: Any) -> None:
        if self._due(trainer, step[1], step[2], lambda: self.total_val_batches_current_dataloader):
            super().on_validation_batch_end(trainer, pl_module, *step)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *step: Any) -> None:
        if self._due(trainer, step[1], step[2], lambda: self.total_test_batches_current_dataloader):
            super().on_test_batch_end(trainer, pl_module, *step)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *step: Any) -> None:
        if self._due(trainer, step[1], step[2], lambda: self.total_predict_batches_current_dataloader):
            super().on_predict_batch_end(trainer, pl_module, *step)

    def _due(self, trainer: pl.Trainer, batch: Any, batch_idx: int, total: Callable[[], float]) -> bool:
        """Whether it is time to look, or the last of `total` batches; if so, looks."""
        if self.is_disabled:
            return False
        now = time.monotonic()
        if now < self.next and batch_idx + 1 != total():
            return False
        self.next = now + 1 / self.refresh_rate
        count = len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])
        self.pictures["train" if trainer.training else "other"] = count * trainer.world_size
        self.memory = memory_text(trainer.strategy.root_device)
        return True

    def _facts(self, task: Task) -> str:
        training = task.id == self.train_progress_bar_id
        pictures = self.pictures["train" if training else "other"]
        epoch = "" if task.time_remaining is None else f"left {timedelta(seconds=int(task.time_remaining))}"
        speed = f"{task.speed * pictures:,.0f} images/s" if task.speed else ""
        facts = [speed, self.memory, epoch, self.left if training else ""]
        text = "  ".join(filter(None, facts))
        return f"{text}\n{self.figures}" if training else text


def left_text(spent: float, done: int, to_do: float) -> str:
    """The time that the rest of a run takes, if it goes on like the part that is done, validations included."""
    if not done or not math.isfinite(to_do):
        return ""
    return f"run {timedelta(seconds=round(spent / done * max(to_do, 0)))}"


def memory_text(device: torch.device) -> str:
    """On a GPU the most that tensors have taken so far, else what the process has in memory now."""
    taken = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()
    return f"{taken / 1e9:.1f} GB"


def resident_bytes() -> int:
    """Memory of this process (where the system does not tell: the most it has had)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
