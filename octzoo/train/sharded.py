"""Weights sharded over the processes: FSDP2, as Lightning's ModelParallelStrategy, with checkpoints that are whole."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from octzoo.train.checkpoints import TEMPORARY, sync


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards each block of a network, then the rest (torch's fully_shard). A second call changes nothing.

    A block is a member of a sequence of modules (a stage's blocks, a stem's layers) that has parameters.
    """
    if isinstance(model, FSDPModule):
        return
    sequences = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    for sequence in reversed(sequences):  # the innermost first
        for block in sequence:
            if any(True for _ in block.parameters()) and not isinstance(block, FSDPModule | nn.ModuleList):
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes. A checkpoint is a folder that every process writes its part of.

    It is written under a temporary name, synced by every process, and renamed by the first after all are done.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        path = Path(self.broadcast(str(filepath)))
        temporary = path.with_name(f"{TEMPORARY}{path.name}")
        if self.is_global_zero and temporary.exists():
            shutil.rmtree(temporary)
        self.barrier()
        super().save_checkpoint(checkpoint, temporary, storage_options)
        for file in temporary.glob(f"__{self.global_rank}_*" if self.global_rank else "*"):
            sync(file)
        self.barrier()
        if self.is_global_zero:
            replace_folder(temporary, path)
        self.barrier()


def replace_folder(temporary: Path, path: Path) -> None:
    """Puts a finished folder in the place of an older one, which is there until the new one is."""
    sync(temporary)
    old = path.with_name(f"{TEMPORARY}old-{path.name}")
    if path.exists():
        remove(old)  # of a replacement that was cut off
        os.replace(path, old)
    os.replace(temporary, path)
    sync(path.parent)
    remove(old)


def remove(path: Path) -> None:
    """Removes a checkpoint, file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class BuffersOfFirst(pl.Callback):
    """Before validation, every process takes the first one's batch-norm statistics, as DDP does at every step."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for buffer in pl_module.buffers():
            dist.broadcast(buffer, src=0)
