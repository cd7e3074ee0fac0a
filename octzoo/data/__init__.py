"""Pictures for training: what is done to them, which are held out, and the loaders that Lightning asks for.

Sources open the data sets, timm's transforms prepare the pictures; the loaders are PyTorch's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.utils.data import DataLoader, Dataset, Sampler

from octzoo.data.loading import UNREADABLE, Loader, Prepared
from octzoo.data.order import EvalBatches, Sample, TrainBatches, run_seed
from octzoo.data.pictures import PICTURE_SUFFIXES, Pictures, SettingError
from octzoo.data.sources import open_split
from octzoo.data.stream_batches import StreamBatches
from octzoo.data.stream_sources import STREAMS, open_stream
from octzoo.data.streams import Stream

__all__ = [
    "Augment",
    "BrokenPictures",
    "ImageData",
    "PictureFolder",
    "Preprocess",
    "SettingError",
    "Splits",
    "held_out",
    "open_split",
]

REMEDIES = {  # what is said with a picture that does not decode, where it ends the run
    "train": "data.broken.train replace takes another picture instead",
    "val": "data.broken.val skip leaves it out",
}


@dataclass
class Splits:
    """Which split of the source serves what.

    Args:
        train: the split to train on
        val: the split to validate on; null takes the source's own, and where it has none `holdout` of train
        test: the split of `octzoo test`; null takes the validation pictures
        holdout: the part of each class of train that is held out (always the same pictures)
    """

    train: str = "train"
    val: str | None = None
    test: str | None = None
    holdout: float = 0.2


@dataclass
class Preprocess:
    """How a picture becomes the network's input. null takes the value of the network's own pretrained_cfg.

    Args:
        image_size: height and width in pixels
        mean: one value a channel, for pixels in 0..1
        std: one value a channel
        interpolation: bilinear, bicubic, nearest ... (a training picture has its own, see augment)
        crop_pct: the part of the resized picture's side that the centre crop keeps
        crop_mode: center, squash or border, as in timm
    """

    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None

    def resolve(self, pretrained_cfg: dict[str, Any] | None) -> dict[str, Any]:
        """timm's data config: these values, else the network's, else ImageNet's."""
        values = asdict(self)
        values["img_size"] = values.pop("image_size")
        return resolve_data_config(values, pretrained_cfg=pretrained_cfg)


@dataclass
class BrokenPictures:
    """What becomes of a picture that does not decode. Each is named, and counted every epoch.

    Args:
        train: replace takes the picture of the next position in the epoch's order that decodes; fail ends the run
        val: fail ends the run; skip leaves it out of validation and test
    """

    train: Literal["replace", "fail"] = "replace"
    val: Literal["fail", "skip"] = "fail"


@dataclass
class Augment:
    """What is done to a training picture: arguments of timm's create_transform, with timm's names and values.

    Args:
        scale: the crop's part of the picture's area, from .. to
        ratio: the crop's width by height, from .. to
        hflip: probability of a horizontal flip
        vflip: probability of a vertical flip
        color_jitter: strength of brightness, contrast and saturation jitter; null is off
        auto_augment: a policy such as rand-m9-mstd0.5-inc1
        re_prob: probability that a rectangle is erased
        train_crop_mode: rrc, rkrc or rkrr; null is rrc (random resized crop)
        interpolation: of the training crop; random draws bilinear or bicubic
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | None = 0.4
    auto_augment: str | None = None
    re_prob: float = 0.0
    train_crop_mode: str | None = None
    interpolation: str = "random"


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


class PictureFolder(Dataset):
    """Unlabelled pictures at any depth below `root` (or one picture file), in order of their paths.

    Item i is {"image": [3, H, W], "path": relative path, "error": ""}; a picture that does not open has a black image
    and the reason in "error".
    """

    def __init__(self, root: str, transform: Callable) -> None:
        self.root, self.transform = Path(root), transform
        if not self.root.exists():
            raise SettingError(f"data.pictures: no such folder: {root}")
        found = [self.root] if self.root.is_file() else self.root.rglob("*")
        self.paths = sorted(p for p in found if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        if not self.paths:
            raise SettingError(f"data.pictures: no pictures ({', '.join(PICTURE_SUFFIXES)}) in {root}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        name = path.name if path == self.root else str(path.relative_to(self.root))
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
            error = ""
        except UNREADABLE as problem:
            image, error = Image.new("RGB", (32, 32)), f"{type(problem).__name__}: {problem}"
        return {"image": self.transform(image), "path": name, "error": error}


class ImageData(pl.LightningDataModule):
    """Training, validation, test and prediction pictures of one classification task.

    Opening is lazy: nothing is read before a class name, a number of classes or a loader is asked for.

    Args:
        source: digits, folder, tar, wds, torch/<set>, hfds, or streamed wds-stream, hfds-stream (see docs/data.md)
        root: where the pictures are (not for digits)
        batch_size: pictures a step and process
        num_workers: processes that read pictures; 0 reads in the training process
        splits: which split serves what
        preprocess: size, mean, std ... where they are not to be the network's own
        augment: what is done to training pictures
        repeats: how often a training picture comes in a row, each time augmented anew (repeated augmentation)
        broken: what becomes of pictures that do not decode
        num_classes: null finds it; a number is checked against what is found
        class_names: null finds them; given, they fix the order of the classes, and training data must have them
        pictures: the folder (or file) that `octzoo predict` labels
        download: let a torchvision set download itself into root

    Raises:
        SettingError: on the first look at the data, when it is not what the settings say.
    """

    def __init__(
        self,
        source: str = "digits",
        root: str | None = None,
        batch_size: int = 64,
        num_workers: int = 2,
        splits: Splits = Splits(),  # noqa: B008  (a value that nobody changes; jsonargparse shows it in --help)
        preprocess: Preprocess = Preprocess(),  # noqa: B008
        augment: Augment = Augment(),  # noqa: B008
        repeats: int = 1,
        broken: BrokenPictures = BrokenPictures(),  # noqa: B008
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        pictures: str | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        self.source, self.root, self.download = source, root, download
        self.batch_size, self.num_workers = batch_size, num_workers
        self.splits, self.preprocess, self.augment = splits, preprocess, augment
        self.repeats, self.broken = repeats, broken
        self.loaders: dict[str, Loader] = {}  # the newest of train, val and test
        self.given_number, self.given_names, self.pictures = num_classes, class_names, pictures

    @cached_property
    def class_names(self) -> list[str]:
        """The name of each class index, as trained."""
        names = self.given_names or (self._stream(self.splits.train) if self._streams else self._train).class_names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SettingError(f"data.class_names: more than once: {', '.join(twice[:5])}")
        if self.given_number is not None and self.given_number != len(names):
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            raise SettingError(f"data.num_classes is {self.given_number}, but there are {len(names)} classes: {shown}")
        return names

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def transform(self, train: bool = False) -> Callable[[Image.Image], torch.Tensor]:
        """RGB picture -> float [3, H, W], as the trainer's network expects it (without a trainer: as ImageNet's do)."""
        cfg = getattr(self.trainer.lightning_module, "pretrained_cfg", None) if self.trainer else None
        settings = self.preprocess.resolve(cfg)
        if train:
            settings |= asdict(self.augment)
        return create_transform(**settings, is_training=train)

    def train_dataloader(self) -> DataLoader:
        """Shuffled; a function of seed and epoch, the same pictures however many processes share them.

        A stream's also depends on the number of processes and workers.
        """
        if self._streams:
            return self._streamed("train", self._stream(self.splits.train), train=True)
        indices = self._train_and_held_out[0]
        dataset = self._prepared(self._train, indices, train=True)
        rank, world = self._place
        if len(dataset) < self.batch_size * world:
            processes = f" in each of {world} processes" if world > 1 else ""
            raise SettingError(
                f"data.batch_size is {self.batch_size}{processes}, but there are {len(dataset)} training pictures"
            )
        batches = TrainBatches(len(dataset), self.batch_size, run_seed(), rank, world, self.repeats, self._done)
        return self._loader("train", dataset, batches)

    def val_dataloader(self) -> DataLoader:
        if self._streams:
            return self._streamed("val", self._stream(self.splits.val or "validation"))
        if self._validation is None:
            return self._evaluation("val", self._prepared(self._train, self._train_and_held_out[1]))
        return self._evaluation("val", self._prepared(self._validation))

    def test_dataloader(self) -> DataLoader:
        if self.splits.test is None:
            return self.val_dataloader()
        if self._streams:
            return self._streamed("test", self._stream(self.splits.test))
        return self._evaluation("test", self._prepared(self._open(self.splits.test)))

    def predict_dataloader(self) -> DataLoader:
        if self.pictures is None:
            raise SettingError("data.pictures: say which folder of pictures to label (--data.pictures FOLDER)")
        return DataLoader(PictureFolder(self.pictures, self.transform()), batch_size=self.batch_size, **self._reading)

    def names_of_batch(self, epoch: int, number: int) -> list[str]:
        """The names of the pictures in this process's `number`-th training batch of an epoch; of a stream, none."""
        if self._streams:
            return []
        loader = self.loaders["train"]
        batches, dataset = cast(TrainBatches, loader.batch_sampler), cast(Prepared, loader.dataset)
        return [dataset.name(sample.index) for sample in batches.batch(epoch, number)]

    @cached_property
    def _train(self) -> Pictures:
        return self._open(self.splits.train)

    @cached_property
    def _validation(self) -> Pictures | None:
        if self.splits.val is not None:
            return self._open(self.splits.val)
        return open_split(self.source, self.root, "validation", self.download)

    @cached_property
    def _train_and_held_out(self) -> tuple[Sequence[int], Sequence[int]]:
        if self._validation is not None:
            return range(len(self._train.dataset)), []
        return held_out(self._train.targets(), self.splits.holdout)

    def _open(self, split: str) -> Pictures:
        pictures = open_split(self.source, self.root, split, self.download)
        if pictures is None:
            where = f" at {self.root}" if self.root else ""
            raise SettingError(f"data.splits: '{self.source}'{where} has no split '{split}'")
        return pictures

    @property
    def _streams(self) -> bool:
        return self.source in STREAMS

    def _stream(self, split: str) -> Stream:
        stream = open_stream(self.source, self.root, split)
        if stream is None:
            raise SettingError(
                f"data.splits: '{self.source}' at {self.root} has no split '{split}'; none is held out of it"
            )
        return stream

    def _streamed(self, kind: str, stream: Stream, train: bool = False) -> DataLoader:
        if self.repeats > 1:
            raise SettingError(f"data.repeats is {self.repeats}, but a stream's pictures come once; take wds or hfds")
        self._check_names(stream.class_names, train)
        rank, world = self._place
        broken, seed = (self.broken.train, run_seed()) if train else (self.broken.val, None)
        batches = StreamBatches(
            *(stream, self.class_names, self.transform(train), self.batch_size, seed, rank, world),
            workers=self.num_workers,
            broken=broken,
        )
        if train and not len(batches):
            needed = self.batch_size * world * max(self.num_workers, 1)
            raise SettingError(
                f"data.batch_size: a batch of each process and worker is {needed}, there are {stream.count}"
            )

        def begin() -> None:
            progress: Any = self.trainer.fit_loop.epoch_progress if self.trainer else None
            batches.epoch = progress.current.processed if progress else 0
            batches.start = self._done() if train else 0

        remedy = REMEDIES["train" if train else "val"]
        self.loaders[kind] = Loader(batches, remedy, begin, batch_size=None, **self._reading)
        return self.loaders[kind]

    def _check_names(self, found: Sequence[str], train: bool) -> None:
        if strange := sorted(set(found) - set(self.class_names)):
            raise SettingError(f"data: classes that the network was not given: {', '.join(strange[:5])}")
        if train and (lacking := sorted(set(self.class_names) - set(found))):
            raise SettingError(f"data.class_names: the training pictures have no class {', '.join(lacking[:5])}")

    def _prepared(self, pictures: Pictures, indices: Sequence[int] | None = None, train: bool = False) -> Prepared:
        self._check_names(pictures.class_names, train)
        if min(pictures.targets(), default=0) < 0:
            raise SettingError(
                f"data.splits: '{self.source}' has pictures without a class (-1) there: not to be measured"
            )
        if indices is None:
            indices = range(len(pictures.dataset))
        broken, seed = (self.broken.train, run_seed()) if train else (self.broken.val, None)
        transform = self.transform(train)
        return Prepared(pictures, indices, self.class_names, transform, seed, self.repeats, broken)

    def _evaluation(self, kind: str, dataset: Prepared) -> DataLoader:
        batches = EvalBatches(len(dataset), self.batch_size, *self._place)
        return self._loader(kind, dataset, batches)

    def _loader(self, kind: str, dataset: Prepared, batches: Sampler[list[Sample]]) -> DataLoader:
        self.loaders[kind] = Loader(
            dataset, REMEDIES.get(kind, REMEDIES["val"]), batch_sampler=batches, **self._reading
        )
        return self.loaders[kind]

    @property
    def _reading(self) -> dict[str, Any]:
        """DataLoader's settings for reading."""
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    @property
    def _place(self) -> tuple[int, int]:
        """This process's number, and how many share the pictures."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _done(self) -> int:
        """How many batches of the epoch a resumed run has had; asked as an epoch begins: after a load."""
        if self.trainer is None:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        return 0 if progress.is_last_batch else progress.current.processed
