"""Samples that come one after the other: who takes which, and in what order.

An epoch's shards, in an order that every process knows, are one long row of samples; each part (a worker of a rank)
takes an equal, contiguous piece of it. So no sample is lost or comes twice, parts differ by one sample at most, and a
part opens only the shards that its piece lies in. What comes when is a function of the `Part` alone.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

from octzoo.data.order import mix
from octzoo.errors import RunError

BUFFER = 1000  # samples, undecoded, that a part mixes: it draws the next one from so many
PAUSES = (1.0, 4.0, 16.0)  # seconds before a shard that broke off is opened again


class Lazy(NamedTuple):
    """A sample that is not decoded yet."""

    decode: Callable[[], Image.Image]
    target: int
    name: str


class Shard(NamedTuple):
    """A piece of a stream; `read()` gives its `length` samples, always in the same order."""

    name: str
    length: int
    read: Callable[[], Iterator[Lazy]]


class Part(NamedTuple):
    """Worker `worker` of `workers` of process `rank` of `world`, in an epoch; without a seed, in the files' order."""

    seed: int | None
    epoch: int
    rank: int
    world: int
    worker: int
    workers: int

    @property
    def number(self) -> int:
        """Which of all parts this is."""
        return self.rank * self.workers + self.worker

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return self.world * self.workers


@dataclass(frozen=True)
class Stream:
    """One split of a data set that is read in order. Goes to other processes if its shards' `read` do."""

    shards: Sequence[Shard]
    class_names: list[str]

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(shard.length for shard in self.shards)

    def size(self, part: Part) -> int:
        """How many samples a part has."""
        return self._edge(part.number + 1, part) - self._edge(part.number, part)

    def part(self, part: Part) -> Iterator[Lazy]:
        """The samples of a part."""
        order: Sequence[int] = range(len(self.shards))
        if part.seed is not None:
            order = np.random.default_rng([part.seed, part.epoch]).permutation(len(self.shards)).tolist()
        samples = self._between(order, self._edge(part.number, part), self._edge(part.number + 1, part))
        if part.seed is None:
            return samples
        return shuffled(samples, BUFFER, random.Random(mix(part.seed, part.epoch, part.number)))

    def _edge(self, number: int, part: Part) -> int:
        return self.count * number // part.parts

    def _between(self, order: Sequence[int], first: int, last: int) -> Iterator[Lazy]:
        start = 0
        for shard in (self.shards[i] for i in order):
            begin, end = max(first - start, 0), min(last - start, shard.length)
            start += shard.length
            if begin < end:
                yield from steadily(shard, begin, end)


def steadily(shard: Shard, begin: int, end: int) -> Iterator[Lazy]:
    """Samples begin .. end of a shard; one that breaks off is opened again, and goes on where it broke off."""
    for pause in (*PAUSES, None):
        problem: Exception | None = None
        try:
            for sample in islice(shard.read(), begin, end):
                yield sample
                begin += 1
        except OSError as error:
            problem = error
        if begin == end:
            return
        if pause is not None:
            time.sleep(pause)
    raise RunError(
        f"{shard.name} broke off after {begin} of {shard.length} samples ({problem or 'it ended'}), {len(PAUSES) + 1} "
        "times; the run continues from its last checkpoint with --ckpt_path last"
    )


def shuffled(samples: Iterator[Lazy], size: int, rng: random.Random) -> Iterator[Lazy]:
    """All samples; each time a random one of the next `size`."""
    buffer: list[Lazy] = []
    for sample in samples:
        buffer.append(sample)
        if len(buffer) >= size:
            chosen = rng.randrange(len(buffer))
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer
