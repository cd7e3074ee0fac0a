"""Being asked to stop: SIGTERM and Ctrl-C become a request that all processes agree on between two batches."""

import os
import shlex
import signal
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import distributed as dist


class Stopped(BaseException):
    """The run was asked to stop, has saved its state and ends. `exit_code` is what a shell says of the signal."""

    def __init__(self, signum: int, last: Path) -> None:
        again = f"octzoo fit --run_dir {shlex.quote(str(last.parent))} --ckpt_path last"
        what = f"to resume: {again}" if last.exists() else "nothing was trained yet"
        super().__init__(f"stopped by {signal.Signals(signum).name}; {what}")
        self.exit_code = 128 + signum


class StopRequest:
    """Notes SIGTERM and SIGINT; tells every process at the same place whether any of them was signalled.

    A second SIGINT ends the process at once (KeyboardInterrupt).
    """

    def __init__(self) -> None:
        self.signum = self._interrupts = 0
        self.late = False
        self._former: dict[int, Any] = {}
        self._group: Any = None
        self._asking: tuple[torch.Tensor, Any] | None = None

    def install(self) -> None:
        """Takes over both signals, and again from whoever took them since. Only the main thread can."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(signum) != self._note:
                self._former.setdefault(signum, signal.getsignal(signum))
                signal.signal(signum, self._note)

    def restore(self) -> None:
        """Gives the signals back."""
        while self._former:
            signum, handler = self._former.popitem()
            if signal.getsignal(signum) == self._note:  # else Lightning gave back what it had found
                signal.signal(signum, handler)

    def connect(self, timeout: float) -> None:
        """Makes the group of processes that agree (gloo, so that no GPU is waited for). All processes call it.

        Args:
            timeout: seconds after which a process that does not answer is lost
        """
        if self._group is None and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def ask(self, late: bool = False) -> None:
        """Begins to ask all processes; the answer is there when a step is done. All call it at the same place.

        Args:
            late: whether this process holds a save to be due; `late` then says whether any does
        """
        self.late = late
        if self._group is not None:
            question = torch.tensor([self.signum, late])
            self._asking = question, dist.all_reduce(question, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def agreed(self) -> bool:
        """Whether any process was signalled before its last `ask`."""
        if self._asking is None:
            return self._group is None and self.signum > 0
        (question, work), self._asking = self._asking, None
        work.wait()
        signum, late = question.tolist()
        self.signum, self.late = max(self.signum, signum), bool(late)
        return signum > 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._interrupts += signum == signal.SIGINT
        if self._interrupts > 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.signum = signum


class EndAtOnce(pl.Callback):
    """SIGTERM ends a measurement, which has nothing to save, in all processes. Lightning would note it and go on."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def end(signum: int, frame: FrameType | None) -> None:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGTERM)
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

        signal.signal(signal.SIGTERM, end)

    on_test_start = on_predict_start = on_validation_start
