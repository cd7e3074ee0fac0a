"""One split of labelled pictures, and what becomes of a file: an RGB picture, or the error that says why not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from PIL import Image
from torch.utils.data import Dataset

from octzoo.errors import UserError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "eval"), "test": ("test",)}


class SettingError(UserError):
    """A setting that cannot work. The message names the setting, what was found, and the remedy."""


class LabelledPictures(Protocol):
    """A map-style data set: item i is (PIL picture, class index); what does not decode raises."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


@dataclass(frozen=True)
class Pictures:
    """One split of a data set.

    dataset: opens the pictures
    class_names: the name of each class index
    targets: gives the class index of every item without opening a picture
    name: what a message calls item i: its path, or its shard and member
    """

    dataset: LabelledPictures
    class_names: list[str]
    targets: Callable[[], Sequence[int]]
    name: Callable[[int], str] = "picture {}".format


class Decoded(Dataset):
    """The pictures of a reader (timm's, or one of our own): `reader[i]` is (open file, class index).

    timm's own ImageDataset replaces a picture that does not decode by the next one; here it raises.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, target = self.reader[index]
        return decode(file), -1 if target is None else int(target)


def decode(file: IO[bytes]) -> Image.Image:
    """The RGB picture in `file`, read to its end; closes the file."""
    with file, Image.open(file) as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")


def aliases(split: str) -> tuple[str, ...]:
    """The names that folders and shards of a split go by."""
    return SPLITS.get(split, (split,))
