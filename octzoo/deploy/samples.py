"""Real pictures: to compare a file with, to calibrate it on, and to measure it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from octzoo.data import SettingError, Splits, held_out, open_split
from octzoo.data.loading import UNREADABLE
from octzoo.data.pictures import PICTURE_SUFFIXES, Pictures, decode
from octzoo.errors import UserError

Transform = Callable[[Image.Image], Tensor]
UNLABELLED = -1


@dataclass(frozen=True)
class Samples:
    """Some pictures of a place.

    Attributes:
        pictures: where they are.
        indices: which of them.
        targets: the class of each, as the network numbers them; None where that is not known.
    """

    pictures: Pictures
    indices: Sequence[int]
    targets: Sequence[int] | None

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, transform: Transform, size: int) -> Iterator[Tensor]:
        """[N, C, H, W] of up to ``size`` pictures at a time. Raises UserError that names one that is not readable."""
        for start in range(0, len(self), size):
            yield torch.stack([transform(self._read(index)) for index in self.indices[start : start + size]])

    def _read(self, index: int) -> Image.Image:
        try:
            return self.pictures.dataset[index][0].convert("RGB")
        except UNREADABLE as problem:
            raise UserError(f"{self.pictures.name(index)} is no readable picture ({problem}): take it out") from problem


class _Files(Dataset):
    """Picture files of no known class."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return decode(self.paths[index].open("rb")), UNLABELLED


def open_samples(place: str, labels: Sequence[str] | None = None, most: Sequence[int] = (1, 1)) -> list[Samples]:
    """[Pictures to calibrate on, other ones to measure on], drawn at random, the same ones every time.

    What a place has no other split for is held out of its training pictures, the same ones as in training.

    Args:
        place: a folder of pictures, best in folders that are called as the classes; or SOURCE or SOURCE:ROOT, as
            ``octzoo fit`` takes them for data.source and data.root ("digits", "hfds:cifar10").
        labels: the names of the network's classes.
        most: how many of each at most.

    Raises:
        UserError: there are none, or one alone.
    """
    source, _, root = place.partition(":")
    training, other = _folder(place) if Path(place).is_dir() else _splits(place, source, root or None)
    indices = [range(len(training.dataset)), range(len(other.dataset))] if other else _held_out(training)
    found = []
    for split, chosen, count in zip((training, other or training), indices, most):
        drawn = np.random.default_rng(0).permutation(chosen)[:count].tolist()
        if not drawn:
            raise UserError(f"pictures {place!r}: it takes at least two, one to calibrate on and one to measure on")
        found.append(Samples(split, drawn, _targets(split, drawn, labels)))
    return found


def draw_samples(place: str, most: int) -> Samples:
    """Up to ``most`` of a place's training pictures, at random, the same ones every time; ``place`` as above.

    Raises:
        UserError: there are none.
    """
    source, _, root = place.partition(":")
    training, _ = _folder(place) if Path(place).is_dir() else _splits(place, source, root or None)
    drawn = np.random.default_rng(0).permutation(len(training.dataset))[:most].tolist()
    if not drawn:
        raise UserError(f"pictures {place!r}: none there")
    return Samples(training, drawn, None)


def _splits(place: str, source: str, root: str | None) -> tuple[Pictures, Pictures | None]:
    """The training pictures of a source, and its other ones where it has any."""
    try:
        training, *others = (open_split(source, root, split) for split in ("train", "validation", "test"))
    except SettingError as problem:
        raise UserError(f"pictures {place!r}: no such folder, and as SOURCE:ROOT: {problem}") from problem
    if training is None:
        raise UserError(f"pictures {place!r}: it has no split 'train'")
    return training, next((other for other in others if other), None)


def _folder(place: str) -> tuple[Pictures, Pictures | None]:
    """The pictures of a folder, with their classes where each lies in a folder of its class."""
    try:
        return _splits(place, "folder", place)
    except UserError:
        paths = sorted(p for p in Path(place).rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        if not paths:
            raise UserError(f"pictures {place!r}: none there ({', '.join(PICTURE_SUFFIXES)})") from None
        unlabelled = [UNLABELLED] * len(paths)
        return Pictures(_Files(paths), [], lambda: unlabelled, lambda i: str(paths[i])), None


def _held_out(training: Pictures) -> Sequence[Sequence[int]]:
    return held_out(training.targets(), Splits().holdout)


def _targets(split: Pictures, indices: Sequence[int], labels: Sequence[str] | None) -> list[int] | None:
    """The network's classes of some pictures, if all of the place's classes are the network's."""
    names, targets = split.class_names, split.targets()
    if not names or labels is None or not set(names) <= set(labels):
        return None
    return [labels.index(names[targets[i]]) for i in indices]
