"""last.ckpt: the state that a run is resumed from, to the same bits, whenever it ends."""

import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from octzoo.train.runs import LAST
from octzoo.train.stopping import Stopped, StopRequest

VALIDATION = "epoch_loop.val_loop.batch_progress"  # where Lightning keeps what is done of a validation


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt between updates, before each validation and at each epoch's end; stops the run when asked.

    It comes after all other callbacks, so that their states are those of the same moment. What is saved inside an epoch
    is only ever saved where Lightning resumes to the same bits: after an update that is neither an epoch's last nor
    followed by validation, before validation (see `before_validation`), or at an epoch's end.

    Args:
        run_dir: where last.ckpt goes
        every_n_steps: save after so many updates; 0 does not count them
        every_minutes: save after an update when so much time went by since the last save; 0 looks at no clock
        group_timeout: seconds that processes wait for one that is lost, when they agree on a stop
    """

    def __init__(
        self, run_dir: Path, every_n_steps: int = 0, every_minutes: float = 0.0, group_timeout: float = 1800.0
    ) -> None:
        self.path, self.group_timeout = run_dir / LAST, group_timeout
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self.request = StopRequest()
        self.stopping = self.saved_to_stop = False
        self.saved_step, self.saved_time = 0, time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.path = Path(trainer.strategy.broadcast(str(self.path)))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.connect(self.group_timeout)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.install()  # Lightning installs its own after on_fit_start

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.install()
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.request.restore()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.saved_to_stop:
            raise Stopped(self.request.signum, self.path)
        late = bool(self.every_minutes) and time.monotonic() - self.saved_time >= 60 * self.every_minutes
        self.request.ask(late)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.stopping |= self.request.agreed()
        loop = trainer.fit_loop.epoch_loop
        inside = loop.batch_progress.current.ready % trainer.accumulate_grad_batches
        if inside or loop.batch_progress.is_last_batch or validation_follows(trainer):
            return  # gradients are in no checkpoint; the epoch's end, or validation, comes next and saves
        if self.stopping or self._due(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._save(trainer)
            self._stop_if_asked()

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._equally_long(trainer):
            self.request.ask()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._equally_long(trainer) and self.request.agreed():  # saved as it began; nothing was trained since
            raise Stopped(self.request.signum, self.path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        self.request.ask()
        self.stopping |= self.request.agreed()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stopping:  # here, since an epoch's figures are logged after its end
            raise Stopped(self.request.signum, self.path)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        loops = checkpoint["loops"]
        loops["fit_loop"] = (before_validation if trainer.validating else outside_validation)(loops["fit_loop"])

    def _due(self, trainer: pl.Trainer) -> bool:
        """Whether a periodic save is due, by all processes' counts or any one's clock."""
        steps = trainer.global_step - self.saved_step
        return bool(self.every_n_steps and steps >= self.every_n_steps) or (steps > 0 and self.request.late)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        self.saved_to_stop = self.stopping

    def _stop_if_asked(self) -> None:
        self.request.ask()
        if self.request.agreed() or self.stopping:
            raise Stopped(self.request.signum, self.path)

    def _equally_long(self, trainer: pl.Trainer) -> bool:
        """Whether all processes have as many validation batches: only then can they agree at each."""
        return trainer.world_size == 1 or all(isinstance(n, int) for n in trainer.num_val_batches)


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after this batch, by its count of batches."""
    every, loop = trainer.val_check_batch, trainer.fit_loop.epoch_loop
    if not trainer.enable_validation or not isinstance(every, int):
        return False
    done = loop.batch_idx if trainer.check_val_every_n_epoch else loop.total_batch_idx
    return (done + 1) % every == 0


def before_validation(fit_loop: dict[str, Any]) -> dict[str, Any]:
    """The progress of Lightning's fit loop, so put that a resumed run begins with the validation that is under way.

    Saved as it is, a resumed run would skip it. Lightning takes up a validation that has started and not completed
    (`restarted_mid_evaluation`), from its first batch where none is completed.
    """
    loop = deepcopy(fit_loop)
    progress = loop[VALIDATION]
    for span in ("total", "current"):
        progress[span].update(ready=1, started=1, processed=0, completed=0)
    progress["is_last_batch"] = False
    return loop


def outside_validation(fit_loop: dict[str, Any]) -> dict[str, Any]:
    """The same between two validations: no batch of one is under way, also where the last was taken up again."""
    loop = deepcopy(fit_loop)
    for span in ("total", "current"):
        done = loop[VALIDATION][span]["completed"]
        loop[VALIDATION][span].update(ready=done, started=done, processed=done)
    return loop
