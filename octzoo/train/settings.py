"""What `octzoo fit` can be told beside the task, the data and the trainer, and the strategy that comes of it."""

import os
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf

from octzoo.data import SettingError
from octzoo.train.sharded import Sharded

ENVIRONMENT_REFERENCE = "${oc.env:"


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
    if trainer.strategy == "ddp" or (trainer.strategy == "auto" and processes > 1):
        return DDPStrategy(timeout=timeout)
    return trainer.strategy


def count_processes(trainer: Any) -> int:
    """How many processes the trainer's settings come to, on all machines."""
    devices = trainer.devices
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    elif devices in ("auto", -1):
        here = torch.cuda.device_count() if trainer.accelerator in ("auto", "gpu", "cuda") else 1
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or max(here, 1)
    return int(devices) * trainer.num_nodes


def environment_references(configs: list[str], arguments: list[str]) -> dict[str, str]:
    """Where configs (YAML texts) and command-line arguments take a value from the environment: {dotted key: text}."""
    found: dict[str, str] = {}
    for text in configs:
        found |= {key: value for key, value in _leaves(yaml.safe_load(text)) if ENVIRONMENT_REFERENCE in str(value)}
    words = [part for word in arguments for part in word.split("=", 1)] if arguments else []
    for name, value in zip(words, words[1:]):
        if name.startswith("--"):
            found.pop(name[2:], None)
            if ENVIRONMENT_REFERENCE in value:
                found[name[2:]] = value
    return found


def with_references(content: dict[str, Any], references: dict[str, str]) -> dict[str, Any]:
    """A resolved config with the references in place of what they gave, so that it holds no environment's value."""
    content = deepcopy(content)
    for key, text in references.items():
        *groups, last = key.split(".")
        place: Any = content
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if isinstance(place, dict) and str(place.get(last)) == str(OmegaConf.create({"v": text}).v):
            place[last] = text
    return content


def _leaves(content: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(content, dict):
        return [(prefix, content)]
    dot = f"{prefix}." if prefix else ""
    return [leaf for key, value in content.items() for leaf in _leaves(value, f"{dot}{key}")]
