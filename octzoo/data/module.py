"""ImageData: the loaders that Lightning asks for."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, cast

import lightning.pytorch as pl
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Sampler

from octzoo.data.loading import Loader, Prepared
from octzoo.data.order import EvalBatches, Sample, TrainBatches, held_out, run_seed
from octzoo.data.pictures import Pictures, SettingError
from octzoo.data.settings import Augment, BrokenPictures, Preprocess, Splits
from octzoo.data.sources import open_split
from octzoo.data.stream_batches import StreamBatches
from octzoo.data.stream_sources import STREAMS, open_stream
from octzoo.data.streams import Stream
from octzoo.data.unlabelled import PictureFolder

REMEDIES = {  # what is said with a picture that does not decode, where it ends the run
    "train": "data.broken.train replace takes another picture instead",
    "val": "data.broken.val skip leaves it out",
}


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

    @property
    def validation_split(self) -> str:
        """What the validation pictures are, in words."""
        if self._streams or self._validation is not None:
            return self.splits.val or "validation"
        return f"{100 * self.splits.holdout:g} % held out of {self.splits.train}"

    @property
    def validation_count(self) -> int:
        """How many pictures the last validation read, those that did not decode among them."""
        dataset: Any = self.loaders["val"].dataset
        return dataset.stream.count if self._streams else len(dataset)

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
