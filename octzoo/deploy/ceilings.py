"""What a machine can do at best, measured: multiply-accumulates a second, and bytes a second by how many they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from octzoo.deploy.stopwatch import Stopwatch

BATCH = 8
CONVOLUTIONS = ((3, 64, 56), (3, 128, 28), (3, 256, 56), (3, 256, 14), (1, 256, 56), (1, 1024, 14))
SIZES = tuple(2**n for n in range(18, 30))  # from well inside the nearest cache to far outside the last one
TURNS, LONG, MOST = 5, 0.02, 200  # turns that each candidate has; seconds and calls of one


class Ceilings(NamedTuple):
    """The measured ceilings of a machine.

    Attributes:
        macs: multiply-accumulates a second of the fastest convolution.
        fastest: which that was.
        bandwidth: (bytes, bytes a second) of the fastest pass that reads and writes so many, small to large. A pass
            that fits a cache is faster than one that does not.
    """

    macs: float
    fastest: str
    bandwidth: tuple[tuple[int, float], ...]

    def seconds(self, macs: int, moved: int) -> float:
        """The least time for ``macs`` multiply-accumulates and ``moved`` bytes, if one hides behind the other."""
        return max(macs / self.macs, moved / self.rate(moved))

    def rate(self, moved: int) -> float:
        """Bytes a second of a pass of ``moved`` bytes: the best one that is as large as the next size below."""
        below = [size for size, _ in self.bandwidth if size <= moved] or [self.bandwidth[0][0]]
        return max(rate for size, rate in self.bandwidth if size >= below[-1])


def measure(
    device: torch.device,
    convolutions: Iterable[tuple[int, int, int]] = CONVOLUTIONS,
    sizes: Sequence[int] = SIZES,
) -> Ceilings:
    """The ceilings of ``device``, in float32 with the threads that torch has now.

    Args:
        device: the CPU or a GPU.
        convolutions: candidates, each (kernel, channels in and out, height and width), channels last.
        sizes: bytes that the passes over memory read and write, ascending.
    """
    counts: dict[str, int] = {}
    actions: dict[Any, Callable[[], object]] = {}
    for kernel, channels, size in convolutions:
        name = f"{kernel}x{kernel}, {channels} channels, {size}x{size}"
        x, weight = torch.randn(BATCH, channels, size, size), torch.randn(channels, channels, kernel, kernel)
        x, weight = (t.to(device, memory_format=torch.channels_last) for t in (x, weight))
        counts[name] = x.numel() * weight[0].numel()
        actions[name] = partial(F.conv2d, x, weight, padding=kernel // 2)
    memory = [torch.ones(max(sizes) // 8, device=device) for _ in range(3)]
    for size in sizes:
        actions |= {(size, i): action for i, action in enumerate(_passes(size, *memory))}
    best = _fastest(device, actions)
    rates = {name: count / best[name] for name, count in counts.items()}
    fastest = max(rates, key=lambda name: rates[name])
    bandwidth = tuple((size, size / min(best[size, i] for i in range(3))) for size in sizes)
    return Ceilings(rates[fastest], fastest, bandwidth)


def _passes(size: int, a: Tensor, b: Tensor, c: Tensor) -> list[Callable[[], object]]:
    """Three passes over memory, each of which reads and writes ``size`` bytes together."""
    n, m = size // 8, size // 12
    return [
        partial(b[:n].copy_, a[:n]),
        partial(torch.add, a[:m], b[:m], out=c[:m]),
        partial(a[:n].clamp_min_, 0),
    ]


def _fastest(device: torch.device, actions: Mapping[Any, Callable[[], object]]) -> dict[Any, float]:
    """Seconds of the fastest of many calls of each; in turns, so that a disturbance does not meet all of one's."""
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(TURNS):
        for name, action in actions.items():
            action()
            watch, end = Stopwatch(device), time.perf_counter() + LONG
            for _ in range(MOST):
                watch(action)
                if time.perf_counter() > end:
                    break
            best[name] = min([best[name], *watch.seconds()])
    return best
