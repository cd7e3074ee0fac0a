"""Times many calls one by one, on the CPU or on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


class Stopwatch:
    """Calls functions and notes how long each took: by the clock, on CUDA by events that are read when all is done.

    On CUDA a short operation's time includes the wait for its launch, as it does without the stopwatch.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[Any, Any]] = []

    def __call__(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        start = self._now()
        out = function(*args, **kwargs)
        self._marks.append((start, self._now()))
        return out

    def seconds(self) -> list[float]:
        """Of every call, in order."""
        if not self._cuda:
            return [end - start for start, end in self._marks]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in self._marks]

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
