"""The time that a fit's training steps take, for `octzoo bench loop`."""

import time
from typing import Any

import lightning.pytorch as pl


class StepClock(pl.Callback):
    """`StepClock.seconds`: of the newest fit, from its step number `first` to its epoch's last."""

    seconds = 0.0

    def __init__(self, first: int = 0) -> None:
        self.first, self.since = first, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        StepClock.seconds = time.perf_counter() - self.since
