"""An exponential moving average of the weights: what is validated, saved as the weights, and left after the fit."""

from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from octzoo.data import SettingError
from octzoo.errors import UserError
from octzoo.train.task import ClassificationTask

RAW = "raw_state_dict"  # a checkpoint's key for the weights that training goes on from


class EMA(pl.Callback):
    """timm's ModelEmaV3 of the network at every update.

    Validation sees the average. A checkpoint's "state_dict" is the average, so that whatever loads one gets it; the
    weights that are trained stand beside it under "raw_state_dict" for a resumed run.

    Args:
        decay: the part that stays at an update
        warmup: begin with a smaller decay, 1 - (1 + updates)^(-2/3), until it reaches `decay`

    Raises:
        UserError: the weights are sharded (FSDP2), or a checkpoint of weights only would hold the raw ones.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.average: ModelEmaV3 | None = None
        self.updates = 0  # of the optimizer, when the average last moved
        self.raw: dict[str, Tensor] | None = None  # the trained weights, while the network holds the average

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        refuse_sharded(trainer.strategy)
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            raise UserError(
                "checkpoint.save_weights_only would save the raw weights; set it to false, or ema.decay to 0"
            )
        self.average = ModelEmaV3(pl_module.model, decay=self.decay, use_warmup=self.warmup, warmup_power=2 / 3)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._average.to(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > self.updates:
            self.updates = trainer.global_step
            if not cast(ClassificationTask, pl_module).step_skipped:
                self._average.update(pl_module.model, step=self.updates)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.average is not None:
            state = cast(nn.Module, pl_module.model).state_dict()
            self.raw = {name: value.clone() for name, value in state.items()}
            cast(nn.Module, pl_module.model).load_state_dict(cast(nn.Module, self.average.module).state_dict())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._put_back(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._put_back(pl_module)  # before any checkpoint callback may save

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        average = {f"model.{name}": value for name, value in self._average.module.state_dict().items()}
        raw = checkpoint["state_dict"] | {f"model.{name}": value for name, value in (self.raw or {}).items()}
        checkpoint[RAW] = raw
        checkpoint["state_dict"] = {**raw, **average}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if self.average is None:
            return
        weights = {n.removeprefix("model."): v for n, v in checkpoint["state_dict"].items() if n.startswith("model.")}
        cast(nn.Module, self.average.module).load_state_dict(weights)
        pl_module.load_state_dict(checkpoint.get(RAW, checkpoint["state_dict"]))

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The fitted module holds the average; later than on_train_end, where a checkpoint may still be written."""
        if stage == "fit" and self.average is not None:
            cast(Any, pl_module.model).load_state_dict(self.average.module.state_dict())

    @property
    def _average(self) -> ModelEmaV3:
        if self.average is None:
            raise UserError("EMA: there is an average only while fitting")
        return self.average

    def _put_back(self, pl_module: pl.LightningModule) -> None:
        if self.raw is not None:
            cast(nn.Module, pl_module.model).load_state_dict(self.raw)
            self.raw = None


def refuse_sharded(strategy: Any) -> None:
    """Raises SettingError where a strategy shards the weights."""
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise SettingError("ema.decay: no average of sharded weights (fsdp2); set it to 0, or trainer.strategy to ddp")
