"""The same batches in every epoch, for a test of whether a network can learn them by heart."""

from typing import Any

import lightning.pytorch as pl


class SameBatches(pl.Callback):
    """Holds the loader's order, and with it the augmentation, at the first epoch's (trainer.overfit_batches only stops
    an epoch early: the next one would have other pictures)."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loader: Any = trainer.train_dataloader
        samplers: list[Any] = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(0)
