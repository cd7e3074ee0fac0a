"""Which picture comes when, and with which random numbers: pure functions of (seed, epoch, position).

A position is a place in the epoch's order over all processes. Nothing here has a state that a resumed run would have to
restore, and nothing depends on how many processes or workers there are, so two processes see the pictures of one.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

_MASK = (1 << 64) - 1


class Sample(NamedTuple):
    """One picture to be prepared: epoch and position give its random numbers, index says which picture it is."""

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # tuple has a method of that name, which nobody needs of this one


def mix(*numbers: int) -> int:
    """A 64-bit hash of some integers (SplitMix64 over them, Steele et al. 2014): neighbours share nothing."""
    h = 0
    for n in numbers:
        h = (h + 0x9E3779B97F4A7C15 + n) & _MASK
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & _MASK
        h ^= h >> 31
    return h


def seed_everywhere(*numbers: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators (the CPU's) from ``mix(*numbers)``: 15 microseconds."""
    h = mix(*numbers)
    random.seed(h)
    np.random.seed(h & 0xFFFFFFFF)
    torch.default_generator.manual_seed(h)


def run_seed() -> int:
    """The number that Lightning's seed_everything was given; 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def epoch_order(count: int, seed: int, epoch: int, repeats: int = 1) -> np.ndarray:
    """The index at each of an epoch's `count` positions.

    With `repeats` > 1 every picture comes that often in a row, and the epoch ends after `count` positions all the same:
    repeated augmentation (Hoffer et al. 2020), with the length that timm's RepeatAugSampler gives an epoch.
    """
    shuffled = np.random.default_rng([seed, epoch]).permutation(count)
    return shuffled if repeats == 1 else shuffled[: -(-count // repeats)].repeat(repeats)[:count]


class TrainBatches(Sampler[list[Sample]]):
    """The training batches of one process: each global batch is dealt out to the processes position by position.

    Incomplete global batches are dropped. `done()` says how many batches of the epoch a resumed run has had; these are
    left out.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        self.count, self.batch_size, self.seed, self.repeats = count, batch_size, seed, repeats
        self.rank, self.world, self.done = rank, world, done
        self.epoch = 0

    @property
    def sampler(self) -> "TrainBatches":
        """Where Lightning looks for set_epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever a resumed run has had."""
        return self.count // (self.batch_size * self.world)

    def batch(self, epoch: int, number: int) -> list[Sample]:
        """The `number`-th batch of an epoch."""
        return self._cut(epoch_order(self.count, self.seed, epoch, self.repeats), epoch, number)

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch = self.epoch
        order = epoch_order(self.count, self.seed, epoch, self.repeats)
        for number in range(self.done(), len(self)):
            yield self._cut(order, epoch, number)

    def _cut(self, order: np.ndarray, epoch: int, number: int) -> list[Sample]:
        first = number * self.batch_size * self.world + self.rank
        positions = range(first, first + self.batch_size * self.world, self.world)
        return [Sample(epoch, p, int(order[p])) for p in positions]


class EvalBatches(Sampler[list[Sample]]):
    """The evaluation batches of one process: every picture once, and equally many batches in every process.

    Batches differ by one picture at most, so that no process waits for another's last one in a collective; where there
    are fewer pictures than processes, some get an empty batch.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        number = -(-count // (batch_size * world)) * world
        cuts: Sequence[np.ndarray] = np.array_split(np.arange(count), number) if number else []
        self.batches = [[Sample(0, int(i), int(i)) for i in cut] for cut in cuts[rank::world]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Sample]]:
        return iter(self.batches)


def held_out(targets: Sequence[int], part: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices of (the rest, the held-out `part` of each class), each in order; the same at every call.

    A class gives at least one picture, but never its last.
    """
    labels = np.asarray(targets)
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(len(members) - 1, max(1, round(part * len(members))))
        chosen[rng.permutation(members)[:count]] = True
    return np.flatnonzero(~chosen).tolist(), np.flatnonzero(chosen).tolist()
