"""What a run ran on: versions, hardware, threads, command, commit."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("octzoo", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """All of it, ready for JSON. An unknown value is None."""
    return {
        "command": shlex.join(["octzoo", *sys.argv[1:]]),
        "folder_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def same_bits(processes: int) -> dict[str, Any]:
    """What the bits of a run's weights depend on beside its config and code."""
    return {
        "machine": f"{platform.machine()}, {cpu_name()}",
        "torch": str(torch.__version__),
        "versions": {name: package_version(name) for name in ("timm", "lightning", "numpy", "pillow", "torchvision")},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, one text each; a key that only one of them has says nothing."""
    return [f"{key} was {then[key]}, is {now[key]}" for key in now if key in then and then[key] != now[key]]


def package_version(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> dict[str, Any] | None:
    """The commit that the current folder is at, and whether files differ from it; None outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"hash": commit, "changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_name() -> str | None:
    """The processor's name, where the system tells."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    except OSError:
        return platform.processor() or None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
