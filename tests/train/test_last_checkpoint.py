"""last.ckpt is of the last epoch, also where the best one was long ago."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from octzoo.train.cli import CHECKPOINTS, last_checkpoint


class Worsening(BoringModel):
    def on_validation_epoch_end(self) -> None:
        self.log("val/top1", 1.0 / (1 + self.current_epoch))


def test_the_last_checkpoint_is_of_the_last_epoch_however_bad(tmp_path: Path) -> None:
    options: dict = {"limit_train_batches": 2, "limit_val_batches": 1, "logger": False, "accelerator": "cpu"}
    saving = [ModelCheckpoint(str(tmp_path), **CHECKPOINTS), last_checkpoint(str(tmp_path))]
    pl.Trainer(max_epochs=4, callbacks=saving, enable_progress_bar=False, **options).fit(Worsening())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=000-top1=1.000.ckpt", "last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 3
