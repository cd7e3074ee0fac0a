"""Batches from a stream: which a process and its workers make, and how a resumed run passes over the used ones."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from octzoo.data.loading import MOST_IN_A_ROW, UNREADABLE, Broken, Item, note
from octzoo.data.normalize import split_transform
from octzoo.data.order import seed_everywhere
from octzoo.data.pictures import SettingError
from octzoo.data.streams import Lazy, Part, Stream


class StreamBatches(IterableDataset):
    """The batches of one process from a stream, each a list of `Item`s; for a `Loader` with batch_size=None.

    What is left to do to a batch's images is `normalize`.

    Every process makes the same number of batches. In training (`seed` given) they are full, and a sample's random
    numbers are those of its (seed, epoch, part and place in it). In evaluation they differ in size by one, and may be
    empty.

    `epoch` and `start` (batches of the epoch that a resumed run has had) are set before each pass over the loader;
    workers that live on see them. The loader's first worker goes on with the part whose turn it is, so batches come in
    the order of an unbroken run with as many processes and workers.

    Args:
        stream: the split
        class_names: the classes as the network numbers them
        transform: RGB picture -> float [3, H, W]
        batch_size: samples a batch
        seed: of a training split; None for evaluation
        rank: of this process ...
        world: ... of so many
        workers: the loader's num_workers
        broken: as in Prepared: fail, replace (training: by the next of the part that decodes), skip (evaluation)
    """

    def __init__(
        self,
        stream: Stream,
        class_names: Sequence[str],
        transform: Callable,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        broken: Literal["fail", "replace", "skip"] = "fail",
    ) -> None:
        self.stream, self.batch_size, self.seed = stream, batch_size, seed
        self.transform, self.normalize = split_transform(transform)
        self.rank, self.world, self.workers, self.broken = rank, world, max(workers, 1), broken
        self.renumber = [class_names.index(name) for name in stream.class_names]
        self._shared = torch.zeros(2, dtype=torch.long).share_memory_()

    @property
    def epoch(self) -> int:
        """Which epoch comes next."""
        return int(self._shared[0])

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._shared[0] = value

    @property
    def start(self) -> int:
        """How many of this process's batches of the epoch are left out."""
        return int(self._shared[1])

    @start.setter
    def start(self, value: int) -> None:
        self._shared[1] = value

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever `start`."""
        return self.workers * self._each

    @property
    def _each(self) -> int:
        """Batches a worker."""
        parts = self.world * self.workers
        if self.seed is not None:
            return self.stream.count // (parts * self.batch_size)
        return -(-self.stream.count // (parts * self.batch_size))

    def __iter__(self) -> Iterator[list[Item]]:
        info = get_worker_info()
        worker = ((info.id if info else 0) + self.start) % self.workers
        part = Part(self.seed, self.epoch, self.rank, self.world, worker, self.workers)
        used = len(range(worker, self.start, self.workers))
        size = self.batch_size * self._each if self.seed is not None else self.stream.size(part)
        edges = [size * i // self._each for i in range(used, self._each + 1)] if self._each else []
        items = self._items(part, edges[0], edges[-1]) if edges else iter(())
        for first, last in zip(edges, edges[1:]):
            yield list(islice(items, last - first))

    def _items(self, part: Part, first: int, last: int) -> Iterator[Item]:
        """Items first .. last of a part; the samples before are read but not decoded."""
        if first == last:
            return
        # over and over: replacements for the part's last samples are its first ones
        samples = islice(chain.from_iterable(map(self.stream.part, repeat(part))), first, None)
        ahead: deque[Lazy] = deque()
        for place in range(first, last):
            yield self._item(part, place, samples, ahead)

    def _item(self, part: Part, place: int, samples: Iterator[Lazy], ahead: deque[Lazy]) -> Item:
        """The item at a place; a replacement comes at its own place too, so that places do not depend on what decodes.

        `ahead` holds the samples from this place on that were already taken from `samples`.
        """
        position = place * part.parts + part.number
        found: list[Broken] = []
        for attempt in range(1, MOST_IN_A_ROW + 1):
            if len(ahead) < attempt:
                ahead.append(next(samples))
            sample = ahead[attempt - 1]
            try:
                image = sample.decode()
                break
            except UNREADABLE as problem:
                found.append(note(problem, part.epoch, position, sample.name, attempt, self.broken))
                if found[-1].fatal or self.broken == "skip":
                    ahead.popleft()
                    return Item(None, -1, tuple(found))
        ahead.popleft()
        if sample.target < 0:
            raise SettingError(f"data.splits: {sample.name} has no class (-1): not to be trained on or measured")
        if self.seed is not None:
            seed_everywhere(self.seed, part.epoch, position)
        return Item(self.transform(image), self.renumber[sample.target], tuple(found))
