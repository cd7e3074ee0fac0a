"""From a place in the order to a batch: reading, preparing, and what becomes of a picture that does not decode."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from multiprocessing.synchronize import Event
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from octzoo.data.normalize import split_transform, unchanged
from octzoo.data.order import Sample, epoch_order, seed_everywhere
from octzoo.data.pictures import Pictures, SettingError
from octzoo.errors import RunError, UserError

UNREADABLE = (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError)  # what Pillow raises
MOST_IN_A_ROW = 100  # pictures that do not decode: then it is not the pictures


class Broken(NamedTuple):
    """A picture that did not decode: where it stood, which it was, why, and whether that ends the run."""

    epoch: int
    position: int
    name: str
    error: str
    fatal: bool = False


class Item(NamedTuple):
    """What a reading process makes of one sample; without an image it is left out of the batch."""

    image: Tensor | None
    target: int
    broken: tuple[Broken, ...] = ()


class Prepared(Dataset):
    """Some of a split's pictures, transformed, their classes renumbered: `dataset[sample]` is an `Item`.

    In training (`seed` given) a sample's random numbers are those of its (seed, epoch, position), and a picture that
    does not decode is replaced by that of the next position in the epoch's order that does.

    Args:
        pictures: the split
        indices: which of its pictures, in order
        class_names: the classes as the network numbers them
        transform: RGB picture -> float [3, H, W]
        seed: of a training split; None for evaluation
        repeats: as in epoch_order
        broken: fail ends the run at a picture that does not decode; replace (training), skip (evaluation) go on
    """

    def __init__(
        self,
        pictures: Pictures,
        indices: Sequence[int],
        class_names: Sequence[str],
        transform: Callable,
        seed: int | None = None,
        repeats: int = 1,
        broken: Literal["fail", "replace", "skip"] = "fail",
    ) -> None:
        self.pictures, self.indices = pictures, indices
        self.transform, self.normalize = split_transform(transform)
        self.seed, self.repeats, self.broken = seed, repeats, broken
        self.renumber = [class_names.index(name) for name in pictures.class_names]
        self.order = lru_cache(maxsize=1)(epoch_order)

    def __len__(self) -> int:
        return len(self.indices)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.order = lru_cache(maxsize=1)(epoch_order)

    def name(self, index: int) -> str:
        """The path or shard member of the index-th picture."""
        return self.pictures.name(self.indices[index])

    def __getitem__(self, sample: Sample) -> Item:
        found: list[Broken] = []
        index = sample.index
        for attempt in range(1, MOST_IN_A_ROW + 1):
            try:
                image, target = self.pictures.dataset[self.indices[index]]
                image = image if image.mode == "RGB" else image.convert("RGB")
                break
            except UserError:
                raise
            except UNREADABLE as problem:
                found.append(note(problem, sample.epoch, sample.position, self.name(index), attempt, self.broken))
                if found[-1].fatal or self.broken == "skip":
                    return Item(None, -1, tuple(found))
                index = self._index_at(sample.epoch, sample.position + attempt)
        if self.seed is not None:
            seed_everywhere(self.seed, sample.epoch, sample.position)
        return Item(self.transform(image), self.renumber[target], tuple(found))

    def _index_at(self, epoch: int, position: int) -> int:
        order = self.order(len(self), self.seed or 0, epoch, self.repeats)
        return int(order[position % len(self)])


def note(problem: Exception, epoch: int, position: int, name: str, attempt: int, policy: str) -> Broken:
    """What there is to say of a picture that did not decode, the `attempt`-th in a row."""
    last = attempt == MOST_IN_A_ROW
    error = f"{type(problem).__name__}: {problem}"
    error += f"; {attempt} in a row: are the data still there?" if last else ""
    return Broken(epoch, position, name, error, fatal=last or policy == "fail")


def collate(
    items: Sequence[Item], normalize: Callable[[Tensor], Tensor] = unchanged
) -> tuple[Tensor, Tensor, list[Broken]]:
    """(images [B, 3, H, W], class indices [B], pictures that did not decode); B is 0 where none did.

    Args:
        items: of one batch
        normalize: what is done to all images at once
    """
    images = [item.image for item in items if item.image is not None]
    targets = torch.tensor([item.target for item in items if item.image is not None], dtype=torch.long)
    broken = [note for item in items for note in item.broken]
    return normalize(torch.stack(images)) if images else torch.empty(0, 3, 1, 1), targets, broken


class Loader(DataLoader):
    """A DataLoader of (images, class indices) that hands on what its processes found broken, and says who died.

    `broken` lists the broken pictures since it was last emptied.

    Args:
        dataset: of Items (or lists of them), with a `normalize` for what is done to a whole batch
        remedy: what is said with a broken picture that ends the run
        begin: called before each pass

    Raises:
        SettingError: a picture does not decode, and that is not allowed
        RunError: a reading process died
    """

    def __init__(self, dataset: Any, remedy: str, begin: Callable[[], None] = lambda: None, **settings: Any) -> None:
        leaving = multiprocessing.Event()
        atexit.register(leaving.set)
        super().__init__(
            dataset,
            collate_fn=partial(collate, normalize=dataset.normalize),
            worker_init_fn=partial(outlive_signals, leaving),
            **settings,
        )
        self.remedy, self.begin = remedy, begin
        self.broken: list[Broken] = []

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # DataLoader promises its own private class
        self.begin()
        try:
            for images, targets, broken in super().__iter__():
                self.broken += broken
                for note in broken:
                    if note.fatal:
                        raise SettingError(f"{note.name} does not decode ({note.error}); {self.remedy}")
                yield images, targets
        except UserError as problem:
            if not str(problem).startswith("Caught "):  # from a reading process it comes with a traceback around it
                raise
            raise type(problem)(str(problem).strip().splitlines()[-1].split("Error: ", 1)[1]) from problem
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as problem:
            if "DataLoader worker" not in str(problem) and (isinstance(problem, RuntimeError) or not self.num_workers):
                raise
            raise reader_died(problem) from problem


def reader_died(problem: BaseException) -> RunError:
    """What a user is told of it."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    return RunError(
        f"a process that reads pictures died ({text}); often memory ran out: lower data.num_workers or "
        "data.batch_size; the run continues from its last checkpoint with --ckpt_path last"
    )


def outlive_signals(leaving: Event, worker: int) -> None:
    """A reading process leaves Ctrl-C and SIGTERM, which a terminal or scheduler sends to all, to the one it reads for.

    That one stops between two batches, and sets `leaving` before it asks its reading processes to end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if leaving.is_set() else None)
