"""Streams: every sample once however many read, an order that is a function of the part, and skipping as slicing."""

import pickle
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader

from octzoo.data import streams
from octzoo.data.loading import Loader
from octzoo.data.pictures import SettingError
from octzoo.data.stream_batches import StreamBatches
from octzoo.data.stream_sources import open_stream
from octzoo.data.streams import Lazy, Part, Shard, Stream, shuffled, steadily
from octzoo.data.webdataset import write_info
from octzoo.errors import RunError
from tests.fileserver import FileServer
from tests.packed import info_file, parquet, shards, tar_of

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
COUNTS = st.integers(1, 4)
decoded: list[int] = []


def decode(value: int, broken: frozenset[int] = frozenset()) -> Image.Image:
    decoded.append(value)
    if value in broken:
        raise OSError("image file is truncated")
    return Image.new("RGB", (4, 4), (value % 256,) * 3)


def read(first: int, length: int, broken: frozenset[int]) -> Iterator[Lazy]:
    for value in range(first, first + length):
        yield Lazy(partial(decode, value, broken), value % 3, f"picture {value}")


def stream(lengths: list[int], broken: frozenset[int] = frozenset()) -> Stream:
    """Sample i has grey level i and class i modulo 3."""
    firsts = np.cumsum([0, *lengths]).tolist()
    return Stream(
        [Shard(f"shard {i}", n, partial(read, firsts[i], n, broken)) for i, n in enumerate(lengths)], ["a", "b", "c"]
    )


def names(samples: Iterator[Lazy]) -> list[str]:
    return [sample.name for sample in samples]


def parts(seed: int | None, epoch: int, world: int, workers: int) -> list[Part]:
    return [Part(seed, epoch, rank, world, worker, workers) for rank in range(world) for worker in range(workers)]


class TestParts:
    @given(LENGTHS, st.one_of(st.none(), st.integers(0, 9)), st.integers(0, 3), COUNTS, COUNTS)
    def test_all_parts_together_have_every_sample_once_and_differ_by_one_at_most(
        self, lengths: list[int], seed: int | None, epoch: int, world: int, workers: int
    ) -> None:
        whole = stream(lengths)
        pieces = [names(whole.part(part)) for part in parts(seed, epoch, world, workers)]
        assert sorted(chain(*pieces)) == sorted(f"picture {i}" for i in range(sum(lengths)))
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
        assert [len(piece) for piece in pieces] == [whole.size(part) for part in parts(seed, epoch, world, workers)]

    def test_without_a_seed_the_files_order(self) -> None:
        pieces = [names(stream([5, 3, 4]).part(part)) for part in parts(None, 2, 2, 2)]
        assert [*chain(*pieces)] == [f"picture {i}" for i in range(12)]

    def test_the_order_is_a_function_of_the_part_and_of_nothing_else(self) -> None:
        first = [names(stream([40, 30, 50]).part(part)) for part in parts(1, 5, 2, 2)]
        torch.manual_seed(9)
        np.random.seed(9)
        assert [names(stream([40, 30, 50]).part(part)) for part in parts(1, 5, 2, 2)] == first
        for other in ((2, 5, 2, 2), (1, 6, 2, 2)):
            assert [names(stream([40, 30, 50]).part(part)) for part in parts(*other)] != first

    def test_a_part_opens_only_the_shards_that_its_piece_lies_in(self) -> None:
        opened = []
        whole = stream([10] * 8)
        watched = [
            shard._replace(read=lambda shard=shard: (opened.append(shard.name), shard.read())[1])
            for shard in whole.shards
        ]
        for part in parts(3, 0, 2, 2):
            opened.clear()
            list(Stream(watched, ["a", "b", "c"]).part(part))
            assert len(opened) == 2

    @given(st.integers(0, 300), st.integers(1, 50))
    def test_mixing_loses_nothing_and_takes_from_the_next_few(self, count: int, size: int) -> None:
        import random

        mixed = list(shuffled(iter(range(count)), size, random.Random(1)))  # type: ignore[arg-type, type-var]
        assert sorted(mixed) == list(range(count))  # type: ignore[type-var]
        assert all(value < place + size for place, value in enumerate(mixed))  # type: ignore[operator]


class TestShardsThatBreakOff:
    def shard(self, breaks: list[int], length: int = 6) -> Shard:
        def reading() -> Iterator[Lazy]:
            last = breaks.pop(0) if breaks else length
            yield from islice(read(0, length, frozenset()), last)
            if last < 0 or last == 3:
                raise OSError("gone")

        return Shard("s.tar", length, reading)

    @pytest.mark.parametrize("breaks", [[3], [2], [0, 3], [5, 5, 5]])  # 3 raises, the others end early
    def test_it_is_opened_again_and_nothing_comes_twice(self, breaks, monkeypatch) -> None:
        monkeypatch.setattr(streams, "PAUSES", (0.0,) * 3)
        assert names(steadily(self.shard(breaks), 1, 6)) == [f"picture {i}" for i in range(1, 6)]

    def test_in_the_end_it_is_named(self, monkeypatch) -> None:
        monkeypatch.setattr(streams, "PAUSES", (0.0,) * 3)
        with pytest.raises(RunError, match=r"s.tar broke off after 3 of 6 samples \(gone\), 4 times"):
            list(steadily(self.shard([3] * 9), 0, 6))
        with pytest.raises(RunError, match=r"s.tar broke off after 2 of 6 samples \(it ended\)"):
            list(steadily(self.shard([2] * 9), 0, 6))


def grey(image: Image.Image) -> torch.Tensor:
    """The grey level and a random number."""
    return torch.tensor([float(image.getpixel((0, 0))[0]), torch.rand(()).item()]).view(2, 1, 1)  # type: ignore[index]


def batches(source: Stream, **settings: Any) -> StreamBatches:
    return StreamBatches(source, source.class_names, grey, **{"batch_size": 3, **settings})


def taken(dataset: StreamBatches, workers: int = 0, epoch: int = 0, start: int = 0) -> list[list[list[float]]]:
    """For each batch its samples: [grey level, random number, class]."""
    dataset.epoch, dataset.start = epoch, start
    loader = Loader(dataset, "", batch_size=None, num_workers=workers)
    return [[[*x.flatten().tolist(), int(y)] for x, y in zip(images, targets)] for images, targets in loader]


def levels(batches: list[list[list[float]]]) -> list[int]:
    return [int(sample[0]) for batch in batches for sample in batch]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
class TestBatches:
    @given(LENGTHS, COUNTS, COUNTS, st.integers(1, 4))
    def test_in_training_each_process_makes_equally_many_full_batches_and_nothing_comes_twice(
        self, lengths: list[int], world: int, workers: int, size: int
    ) -> None:
        seen: list[int] = []
        for rank in range(world):
            dataset = batches(stream(lengths), seed=1, batch_size=size, rank=rank, world=world, workers=workers)
            each = [self.of_worker(dataset, worker) for worker in range(workers)]
            assert [len(b) for part in each for b in part] == [size] * len(dataset)
            seen += [int(item.image[0]) for part in each for batch in part for item in batch]
        assert len(dataset) == sum(lengths) // (world * workers * size) * workers
        assert len(set(seen)) == len(seen)

    @given(LENGTHS, COUNTS, COUNTS, st.integers(1, 4))
    def test_in_evaluation_every_sample_once_in_equally_many_batches(
        self, lengths: list[int], world: int, workers: int, size: int
    ) -> None:
        seen: list[int] = []
        for rank in range(world):
            dataset = batches(stream(lengths), batch_size=size, rank=rank, world=world, workers=workers)
            each = [self.of_worker(dataset, worker) for worker in range(workers)]
            assert {len(part) * workers for part in each} == {len(dataset)}
            assert all(len(batch) <= size for part in each for batch in part)
            seen += [int(item.image[0]) for part in each for batch in part for item in batch]
        assert sorted(seen) == list(range(sum(lengths)))

    def of_worker(self, dataset: StreamBatches, worker: int) -> list[list[Any]]:
        """What `dataset` gives in a worker: number 0 after a start of `worker` batches has that worker's turn."""
        plain = batches(
            dataset.stream,
            seed=dataset.seed,
            batch_size=dataset.batch_size,
            rank=dataset.rank,
            world=dataset.world,
            workers=dataset.workers,
        )
        plain.start = worker
        return list(plain)

    @pytest.mark.parametrize("workers", [0, 1, 2, 3])
    def test_a_resumed_pass_is_the_rest_of_an_unbroken_one(self, workers: int) -> None:
        dataset = batches(stream([20, 30, 15]), seed=4, rank=1, world=2, workers=workers)
        whole = taken(dataset, workers, epoch=2)
        assert len(whole) == len(dataset) > 6
        for start in range(len(whole) + 1):
            assert taken(dataset, workers, epoch=2, start=start) == whole[start:]

    def test_used_samples_are_not_decoded(self) -> None:
        dataset = batches(stream([40]), seed=1)
        decoded.clear()
        rest = taken(dataset, start=10)
        assert sorted(decoded) == sorted(levels(rest))

    def test_epochs_differ_also_for_workers_that_live_on(self) -> None:
        dataset = batches(stream([40, 40]), seed=1, workers=2)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
        passes = []
        for epoch in (0, 1, 0):
            dataset.epoch = epoch
            passes.append([int(item.image[0]) for batch in loader for item in batch])
        assert passes[0] == passes[2] != passes[1]

    def test_random_numbers_differ_between_all_samples_and_are_the_same_each_time(self) -> None:
        ranks = [batches(stream([40, 40]), seed=1, rank=r, world=2, workers=2) for r in range(2)]
        drawn = [sample[1] for dataset in ranks for batch in taken(dataset, 2) for sample in batch]
        assert len(set(drawn)) == len(drawn) > 70
        assert drawn == [sample[1] for dataset in ranks for batch in taken(dataset, 2) for sample in batch]

    def test_evaluation_leaves_random_numbers_alone(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(6).tolist()
        torch.manual_seed(3)
        assert [float(item.image[1]) for batch in batches(stream([6])) for item in batch] == expected

    def test_classes_are_numbered_as_the_network_does(self) -> None:
        dataset = StreamBatches(stream([6]), ["c", "b", "a"], grey, batch_size=6)
        assert [int(sample[2]) for sample in taken(dataset)[0]] == [2, 1, 0, 2, 1, 0]

    def test_pictures_are_transformed_and_their_batch_normalised(self) -> None:
        whole = create_transform((3, 4, 4))
        dataset = StreamBatches(stream([5]), ["a", "b", "c"], whole, batch_size=5)
        (batch,) = dataset
        images = dataset.normalize(torch.stack([item.image for item in batch if item.image is not None]))
        assert torch.equal(images, torch.stack([whole(decode(value)) for value in range(5)]))

    def test_it_goes_to_spawned_processes(self) -> None:
        dataset = batches(stream([12]), seed=1)
        copy = pickle.loads(pickle.dumps(dataset))
        assert taken(copy) == taken(dataset)


class TestPicturesThatDoNotDecode:
    @pytest.mark.parametrize("broken", [{7}, {7, 8}, {0, 1, 2, 20, 39}, set(range(0, 40, 2))])
    def test_in_training_the_next_that_decodes_stands_in_and_the_others_stay_where_they_are(self, broken) -> None:
        good = taken(batches(stream([40]), seed=1, batch_size=4))
        dataset = batches(stream([40], frozenset(broken)), seed=1, batch_size=4, broken="replace")
        found = taken(dataset)
        order = levels(good)
        following = [next(v for v in (order * 2)[i:] if v not in broken) for i in range(len(order))]
        assert levels(found) == following
        assert [sample[1] for batch in found for sample in batch] == [sample[1] for batch in good for sample in batch]
        for start in range(len(found)):
            assert taken(dataset, start=start) == found[start:]

    def test_each_is_named_and_counted_by_the_loader(self) -> None:
        dataset = batches(stream([9], frozenset({4})), seed=1, broken="replace")
        loader = Loader(dataset, "", batch_size=None)
        list(loader)
        assert [(note.name, note.error) for note in loader.broken] == [
            ("picture 4", "OSError: image file is truncated")
        ]

    def test_each_is_told_of_at_its_own_place(self) -> None:
        order = levels(taken(batches(stream([40]), seed=1, batch_size=4)))
        broken = frozenset(order[5:8])  # three in a row
        loader = Loader(batches(stream([40], broken), seed=1, batch_size=4, broken="replace"), "", batch_size=None)
        list(loader)
        told = {(note.position, note.name) for note in loader.broken}
        assert told >= {(place, f"picture {order[place]}") for place in (5, 6, 7)}
        assert {name for _, name in told} == {f"picture {value}" for value in broken}

    def test_fatal_by_choice_and_when_nothing_decodes(self) -> None:
        with pytest.raises(SettingError, match="picture 4 does not decode"):
            taken(batches(stream([9], frozenset({4})), seed=1))
        with pytest.raises(SettingError, match="100 in a row: are the data still there"):
            taken(batches(stream([9], frozenset(range(9))), seed=1, broken="replace"))

    def test_in_evaluation_left_out_if_allowed(self) -> None:
        assert levels(taken(batches(stream([9], frozenset({4})), broken="skip"))) == [0, 1, 2, 3, 5, 6, 7, 8]
        with pytest.raises(SettingError, match="picture 4 does not decode"):
            taken(batches(stream([9], frozenset({4}))))


def everything(source: Stream, world: int, workers: int, seed: int | None = None) -> list[tuple[int, int]]:
    """(grey level, class) of all samples that all processes and workers read, in real workers."""
    found = []
    for rank in range(world):
        dataset = batches(source, batch_size=1, rank=rank, world=world, workers=workers, seed=seed)
        found += [(int(s[0]), int(s[2])) for batch in taken(dataset, workers) for s in batch]
    return sorted(found)


class TestWebDatasetStream:
    @pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 2), (3, 1)])
    def test_every_sample_once_in_real_workers(self, tmp_path: Path, world: int, workers: int) -> None:
        source = open_stream("wds-stream", str(shards(tmp_path, [4, 1, 6])), "train")
        assert source is not None
        assert source.class_names == ["0", "1", "2"]
        assert everything(source, world, workers) == [(i, i % 3) for i in range(11)]
        assert open_stream("wds-stream", str(tmp_path), "validation") is None

    def remote(self, root: Path, faults: tuple = ()) -> FileServer:
        import threading

        server = FileServer({f"/d/{path.name}": path.read_bytes() for path in root.iterdir()}, faults)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def test_by_http_with_what_write_info_says(self, tmp_path: Path) -> None:
        write_info(str(shards(shards(tmp_path, [4, 3]), [2], "val")))
        server = self.remote(tmp_path)
        source = open_stream("wds-stream", f"{server.url}/d", "train")
        assert source is not None
        assert source.class_names == ["0", "1", "2"]
        assert everything(source, 2, 1) == [(i, i % 3) for i in range(7)]
        validation = open_stream("wds-stream", f"{server.url}/d/", "validation")
        assert validation is not None
        assert validation.count == 2
        assert open_stream("wds-stream", f"{server.url}/d/", "test") is None

    @pytest.mark.parametrize("fault", [("drop", n) for n in (1, 700, 1024, 1300, 1700, 2600, 4096, 6500)] + [503])
    def test_a_connection_that_breaks_is_made_again(self, tmp_path: Path, fault, monkeypatch) -> None:
        monkeypatch.setattr(streams, "PAUSES", (0.0,) * 3)
        write_info(str(shards(tmp_path, [4])))
        server = self.remote(tmp_path, (None, fault))
        source = open_stream("wds-stream", f"{server.url}/d", "train")
        assert source is not None
        assert everything(source, 1, 0) == [(i, i % 3) for i in range(4)]
        assert len(server.gets("/d/train-0000.tar")) == 2

    def test_without_its_info_it_says_how_to_make_it(self, tmp_path: Path) -> None:
        server = self.remote(shards(tmp_path, [4]))
        with pytest.raises(SettingError, match=r"/d/_info.json does not come \(.*404.*\); .*write_info"):
            open_stream("wds-stream", f"{server.url}/d", "train")
        info_file(tmp_path, {"splits": {"train": {"filenames": ["train-0000.tar"], "shard_lengths": [4]}}})
        with pytest.raises(SettingError, match="must say class_names, and filenames and shard_lengths"):
            open_stream("wds-stream", f"{self.remote(tmp_path).url}/d", "train")

    def test_a_sample_without_a_class_is_not_trained_on(self, tmp_path: Path) -> None:
        from tests.packed import png

        tar_of(tmp_path / "1.tar", {"a.png": png(1), "a.cls": b"-1", "b.png": png(2), "b.cls": b"0"})
        source = open_stream("wds-stream", str(tmp_path), "train")
        assert source is not None
        with pytest.raises(SettingError, match="1.tar/a has no class"):
            taken(batches(source))


class TestHuggingFaceStream:
    @pytest.fixture(autouse=True)
    def _offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    @pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 2)])
    def test_every_sample_once_in_real_workers(self, tmp_path: Path, world: int, workers: int) -> None:
        root = parquet(tmp_path / "set", {"train-0": 5, "train-1": 7, "test-0": 3}, group=3)
        source = open_stream("hfds-stream", str(root), "train")
        assert source is not None
        assert source.class_names == ["ant", "bee"]
        assert [shard.length for shard in source.shards] == [5, 7]
        assert everything(source, world, workers) == [(i, i % 2) for i in range(12)]
        assert everything(source, world, workers, seed=1) == [(i, i % 2) for i in range(12)]
        assert open_stream("hfds-stream", str(root), "validation") is None

    def test_one_that_does_not_say_how_many_it_has_is_refused(self, tmp_path: Path) -> None:
        for name in ("ant", "bee"):
            (tmp_path / "set" / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "set" / name / "1.png")
        with pytest.raises(SettingError, match="does not say how many pictures it has.*take hfds, or folder"):
            open_stream("hfds-stream", str(tmp_path / "set"), "train")
