"""What `octzoo fit` can be told beside the task, the data and the trainer, and the strategy that comes of it."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy

from octzoo.data import SettingError
from octzoo.train.sharded import Sharded


@dataclass
class EmaArgs:
    """The moving average of the weights; it is what is validated and what a checkpoint gives.

    Args:
        decay: the part that stays at an update; 0 keeps no average
        warmup: begin with a smaller decay, 1 - (1 + updates)^(-2/3)
    """

    decay: float = 0.0
    warmup: bool = True


@dataclass
class LastArgs:
    """When last.ckpt is written beside each epoch's end, each validation's start and a request to stop.

    Args:
        every_n_steps: after so many updates; 0 does not count them
        every_minutes: after the first update when so much time went by; 0 looks at no clock
    """

    every_n_steps: int = 0
    every_minutes: float = 15.0


@dataclass
class BadStepArgs:
    """Steps whose loss or gradient norm is not finite, in any process.

    Args:
        action: stop ends the run, its last good checkpoint kept; skip leaves the weights as they are (more than ten
            in a row stop)
        abort_grad_norm: a larger gradient norm is bad too; null takes any finite one
    """

    action: Literal["stop", "skip"] = "stop"
    abort_grad_norm: float | None = None


def find_strategy(trainer: Any, group_timeout: float) -> Any:
    """What `trainer.strategy` means: fsdp2 and ddp with the time that a process waits for the others; else as it is.

    Args:
        trainer: the trainer's settings
        group_timeout: seconds after which processes that wait for a lost one end

    Raises:
        SettingError: fsdp2 on one device.
    """
    timeout, processes = timedelta(seconds=group_timeout), count_processes(trainer)
    if trainer.strategy == "fsdp2":
        if processes < 2:
            raise SettingError("trainer.strategy: fsdp2 shards over several devices; set trainer.devices, or take auto")
        return Sharded(data_parallel_size=processes, tensor_parallel_size=1, timeout=timeout)
    if trainer.strategy == "ddp_find_unused_parameters_true":
        return DDPStrategy(timeout=timeout, find_unused_parameters=True)
    if trainer.strategy == "ddp" or (trainer.strategy == "auto" and processes > 1):
        return DDPStrategy(timeout=timeout)
    return trainer.strategy


def count_processes(trainer: Any) -> int:
    """How many processes the trainer's settings come to, on all machines."""
    devices = trainer.devices
    if isinstance(devices, str) and "," in devices:
        devices = [word for word in devices.split(",") if word.strip()]
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    elif devices in ("auto", -1):
        here = torch.cuda.device_count() if trainer.accelerator in ("auto", "gpu", "cuda") else 1
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or max(here, 1)
    return int(devices) * trainer.num_nodes
