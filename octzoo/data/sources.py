"""Where pictures come from: a source is a row of `SOURCES`, a function that opens one split and says its class names.

timm's readers and torchvision's sets read the files; tar files are read by an index of ours (see tars.py).
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from timm.data.readers import create_reader
from torch.utils.data import Dataset

from octzoo.data import hf
from octzoo.data.pictures import PICTURE_SUFFIXES, Decoded, LabelledPictures, Pictures, SettingError, aliases
from octzoo.data.shards import tar
from octzoo.data.webdataset import webdataset

__all__ = ["PICTURE_SUFFIXES", "SOURCES", "LabelledPictures", "Pictures", "SettingError", "open_split"]

TORCHVISION_WITH_VALIDATION = ("imagenet", "places365")  # and without a labelled test set


class Digits(Dataset):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey levels 0..16, as pictures."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self.images = (bunch.images * (255 / 16)).round().astype(np.uint8)  # [1797, 8, 8]
        self.targets = bunch.target.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), self.targets[index]


def digits(name: str, root: str | None, split: str, download: bool) -> Pictures | None:
    """The digits come with scikit-learn; they have one split."""
    if split != "train":
        return None
    dataset = Digits()
    return Pictures(dataset, [str(d) for d in range(10)], dataset.targets.copy)


def folder(name: str, root: str | None, split: str, download: bool) -> Pictures | None:
    """root/<split>/<class>/picture, or root/<class>/picture for a root without a training folder."""
    base = _existing(root)
    place = next((base / n for n in aliases(split) if (base / n).is_dir()), base if split == "train" else None)
    if place is None:
        return None
    children = sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    for child in children:
        if not any(p.suffix.lower() in PICTURE_SUFFIXES for p in child.rglob("*")):
            raise SettingError(f"data.root: class folder {child} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    if not any(p.suffix.lower() in PICTURE_SUFFIXES for p in place.glob("*/**/*")):
        raise SettingError(f"data.root: no class folders with pictures in {place}; expected {place}/<class>/<picture>")
    reader: Any = create_reader("", root=str(place), input_key=";".join(PICTURE_SUFFIXES))
    # timm names a class after the folder that a picture lies in, however deep, hidden, or the root itself.
    if strays := sorted(set(reader.class_to_idx) ^ {child.name for child in children}):
        found = next(p for p, _ in reader.samples if Path(p).parent.parent != place or Path(p).parent.name in strays)
        raise SettingError(f"data.root: pictures outside {place}/<class>/<picture>, such as {found}")
    names = _by_index(reader.class_to_idx)
    targets = [target for _, target in reader.samples]
    return Pictures(Decoded(reader), names, targets.copy, partial(reader.filename, absolute=True))


def torchvision_set(name: str, root: str | None, split: str, download: bool) -> Pictures | None:
    """A torchvision data set by timm's name for it: torch/cifar10 ..., with the splits that it really has."""
    if split not in ("train", "test" if name not in TORCHVISION_WITH_VALIDATION else "validation"):
        return None
    if root is None:
        raise SettingError("data.root: say where the torchvision set is, or is to be downloaded to")
    try:
        dataset = create_dataset(f"torch/{name}", root=root, split=split, download=download)
    except AssertionError as problem:
        raise SettingError(f"data.source: {problem}") from problem
    except RuntimeError as problem:
        raise SettingError(f"data.root: {problem} in {root} (here: --data.download true)") from problem
    return Pictures(dataset, list(dataset.classes), [int(t) for t in dataset.targets].copy)


def hugging_face(name: str, root: str | None, split: str, download: bool) -> Pictures | None:
    """A local folder, such as one of parquet files, or a set of the Hub, that `datasets.load_dataset` reads."""
    builder = hf.builder(root, download)
    if not hf.has_split(builder, split):
        return None
    image, label = hf.columns(builder)
    reader: Any = create_reader(f"hfds/{root}", split=split, input_key=image, target_key=label)
    names = _by_index(reader.class_to_idx)
    return Pictures(Decoded(reader), names, partial(hf.column, reader.dataset, label), partial(hf.name, reader, split))


SOURCES: dict[str, Callable[[str, str | None, str, bool], Pictures | None]] = {
    "digits": digits,
    "folder": folder,
    "torch": torchvision_set,
    "hfds": hugging_face,
    "tar": tar,
    "wds": webdataset,
}


def open_split(source: str, root: str | None, split: str, download: bool = False) -> Pictures | None:
    """Opens one split of `source` ("row" or "row/name"); None where the data set has no such split.

    Raises:
        SettingError: the source, its root or its contents are not what is needed.
    """
    row, _, name = source.partition("/")
    if row not in SOURCES:
        near = get_close_matches(row, SOURCES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(SOURCES)}"
        raise SettingError(f"data.source: no source '{row}'; {hint}")
    return SOURCES[row](name, root, split, download)


def _existing(root: str | None) -> Path:
    if root is None:
        raise SettingError("data.root: say where the pictures are")
    if not Path(root).is_dir():
        raise SettingError(f"data.root: no such folder: {root}")
    return Path(root)


def _by_index(class_to_idx: dict[str, int]) -> list[str]:
    return sorted(class_to_idx, key=class_to_idx.__getitem__)
