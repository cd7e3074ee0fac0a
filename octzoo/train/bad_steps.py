"""Steps that would spoil the weights: found by all processes together, before the optimizer's step."""

import json
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from octzoo.errors import RunError, some

MOST_IN_A_ROW = 10
LAG = 2  # steps after which a GPU's answer is read: it has long been there


class BadStep(RunError):  # noqa: N818
    """Training met a step that it must not make."""

    exit_code = 4


class SkipStep(Exception):  # noqa: N818  (no error: it leads past the optimizer's step)
    """Raised between backward and step, where the step is not to be made; the task catches it."""


class BadSteps(pl.Callback):
    """A step is bad where a loss or the gradient's norm is not finite in any process, or the norm is too large.

    An overflow under float16's loss scaling is none: the scaler leaves such a step out by itself. To stop, no GPU is
    waited for: what a step was is read while a later one runs, and before anything is saved. To skip, the result is
    needed before the step, so that the host waits for the GPU once a step.

    Args:
        run_dir: where the samples of a bad step are written down (bad_steps.jsonl, one line a step and process)
        action: stop ends the run with the last good checkpoint kept; skip leaves weights, optimizer and average alone
        abort_grad_norm: a larger norm of all gradients together is bad too; None takes any finite one

    Raises:
        BadStep: the action is stop, or more than ten bad steps came in a row.
    """

    def __init__(
        self, run_dir: Path, action: Literal["stop", "skip"] = "stop", abort_grad_norm: float | None = None
    ) -> None:
        self.run_dir, self.action, self.abort_grad_norm = run_dir, action, abort_grad_norm
        self.total = self.in_a_row = 0
        self.bad_loss: Tensor | None = None  # of this step's micro-batches
        self.kept: list[Tensor] = []  # to skip: what the forward pass had changed, as it was before
        self.pending: list[tuple[Tensor, Any, dict[str, Any]]] = []  # (on the host, ready event, which step)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.run_dir = Path(trainer.strategy.broadcast(str(self.run_dir)))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.action == "skip" and batch_idx % trainer.accumulate_grad_batches == 0:
            self.kept = [state.clone() for state in forward_state(pl_module)]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        bad = ~torch.isfinite(loss.detach())
        self.bad_loss = bad if self.bad_loss is None else self.bad_loss | bad

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        bad = self._is_bad(trainer, optimizer)
        step = self._which(trainer, optimizer)
        if bad.is_cuda and self.action == "stop":
            host = torch.empty_like(bad, device="cpu", pin_memory=True).copy_(bad, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self.pending.append((host, event, step))
            self._read(trainer, behind=LAG)
        else:
            self._handle(bool(bad), step, trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._read(trainer, behind=0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read(trainer, behind=0)
        if self.total:
            pl_module.log("train/skipped_steps", float(self.total), rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self.in_a_row = state_dict["total"], state_dict["in_a_row"]

    def _is_bad(self, trainer: pl.Trainer, optimizer: torch.optim.Optimizer) -> Tensor:
        """A bool on the gradients' device, the same in every process."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        bad = torch.zeros_like(norm, dtype=torch.bool) if scaled else ~torch.isfinite(norm)
        if self.abort_grad_norm is not None:
            bad |= torch.isfinite(norm) & (norm > self.abort_grad_norm)
        if self.bad_loss is not None:
            bad |= self.bad_loss.to(bad.device)
            self.bad_loss = None
        if trainer.world_size > 1:
            anywhere = bad.to(torch.uint8)
            dist.all_reduce(anywhere, dist.ReduceOp.MAX)
            bad = anywhere.bool()
        return bad

    def _which(self, trainer: pl.Trainer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What is said of this step if it is bad."""
        number = trainer.fit_loop.epoch_loop.batch_idx
        return {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch": number,
            "batches": 1 + number % trainer.accumulate_grad_batches,
            "learning_rate": max(group["lr"] for group in optimizer.param_groups),
        }

    def _read(self, trainer: pl.Trainer, behind: int) -> None:
        """Reads what is known of all but the newest `behind` steps: in every process at the same step."""
        while len(self.pending) > behind:
            host, event, step = self.pending.pop(0)
            event.synchronize()
            self._handle(bool(host), step, trainer)

    def _handle(self, bad: bool, step: dict[str, Any], trainer: pl.Trainer) -> None:
        if not bad:
            self.in_a_row = 0
            return
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        samples = self._write(step, trainer)
        where = f"step {step['step']} (epoch {step['epoch']}, batch {step['batch']})"
        what = (
            f"{where}: the loss or the gradient is not finite or too large, at learning rate {step['learning_rate']:g}"
        )
        file = self.run_dir / "bad_steps.jsonl"
        if self.action == "stop":
            raise BadStep(
                f"{what}; the weights of the last checkpoint are good. Pictures: {some(samples)} ({file}). Lower the "
                "learning rate, clip (--trainer.gradient_clip_val), or leave such steps out (--bad_steps.action skip)"
            )
        if self.in_a_row > MOST_IN_A_ROW:
            raise BadStep(f"{what}: the {self.in_a_row}th in a row ({file})")
        if trainer.is_global_zero:
            print(f"left out {what}", flush=True)
        for state, kept in zip(forward_state(trainer.lightning_module), self.kept):
            state.copy_(kept)
        raise SkipStep

    def _write(self, step: dict[str, Any], trainer: pl.Trainer) -> list[str]:
        """Writes the step and its pictures' names down; gives the names."""
        describe = getattr(trainer.datamodule, "names_of_batch", None)  # type: ignore[attr-defined]
        numbers = range(step["batch"] - step["batches"] + 1, step["batch"] + 1)
        names = [name for number in numbers for name in describe(step["epoch"], number)] if describe else []
        facts = {key: value for key, value in step.items() if key != "batches"}
        with (self.run_dir / "bad_steps.jsonl").open("a") as file:
            file.write(json.dumps({**facts, "process": trainer.global_rank, "samples": names}) + "\n")
        return names


def forward_state(task: Any) -> list[Tensor]:
    """What a training step's forward pass changes: batch norms' statistics, and the epoch's loss so far."""
    return [*task.model.buffers(), task.train_loss.sums]
