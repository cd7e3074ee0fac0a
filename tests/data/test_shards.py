"""Tar files as map-style sets: the pictures of each, their classes and splits, and an index that survives damage."""

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octzoo.data import open_split
from octzoo.data.pictures import Pictures, SettingError
from octzoo.data.webdataset import class_index, numbered
from tests.packed import classes_file, info_file, png, shards, tar_of


def opened(source: str, root: Path, split: str = "train") -> Pictures:
    pictures = open_split(source, str(root), split)
    assert pictures is not None
    return pictures


def greys(pictures: Pictures) -> list[int]:
    """The grey level of each picture."""
    return [pictures.dataset[i][0].getpixel((0, 0))[0] for i in range(len(pictures.dataset))]


def greys_of_some(pictures: Pictures, numbers: list[int]) -> list[int]:
    return [pictures.dataset[i][0].getpixel((0, 0))[0] for i in numbers]


class TestWebDataset:
    def test_each_picture_once_in_order_with_its_class_and_its_name(self, tmp_path: Path) -> None:
        found = opened("wds", shards(tmp_path, [4, 1, 3]))
        assert greys(found) == list(range(8))
        assert found.targets() == [found.dataset[i][1] for i in range(8)] == [i % 3 for i in range(8)]
        assert found.class_names == ["0", "1", "2"]
        assert found.name(4) == f"{tmp_path}/train-0001.tar/0004"

    def test_splits_by_name_by_folder_or_all_is_train(self, tmp_path: Path) -> None:
        by_name = shards(shards(tmp_path / "a", [3]), [2], split="imagenet-val")
        by_folder = shards(shards(tmp_path / "b" / "train", [3], "x"), [2], "x").parent
        shards(by_folder / "valid", [2], "x")
        for root in (by_name, by_folder):
            assert [len(opened("wds", root, split).dataset) for split in ("train", "validation")] == [
                3 if root == by_name else len(opened("wds", root).dataset),
                2,
            ]
            assert open_split("wds", str(root), "test") is None
        unnamed = shards(tmp_path / "c", [3, 2], "part")
        assert len(opened("wds", unnamed).dataset) == 5
        assert open_split("wds", str(unnamed), "validation") is None
        assert len(opened("wds", unnamed / "part-0001.tar").dataset) == 2

    @pytest.mark.parametrize("place", ["classes.txt", "_info.json"])
    def test_class_names_from_a_file_beside_the_shards(self, tmp_path: Path, place: str) -> None:
        names = ["ant", "bee", "cow"]
        classes_file(tmp_path, names) if place == "classes.txt" else info_file(tmp_path, {"class_names": names})
        found = opened("wds", shards(tmp_path, [4]))
        assert found.class_names == names
        assert found.targets() == [0, 1, 2, 0]

    def test_labels_in_json_and_text(self, tmp_path: Path) -> None:
        tar_of(
            tmp_path / "1.tar",
            {"a.png": png(1), "a.json": b'{"label": "dog", "w": 3}', "b.png": png(2), "b.txt": b"cat\n"},
        )
        found = opened("wds", tmp_path)
        assert found.class_names == ["cat", "dog"]
        assert found.targets() == [1, 0]

    @given(st.lists(st.integers(0, 30), min_size=1))
    def test_numbers_are_their_own_classes(self, labels: list[int]) -> None:
        names, targets = numbered(np.array([str(n).encode() for n in labels]), None, "")
        assert names == [str(i) for i in range(max(labels) + 1)]
        assert targets.tolist() == labels

    @given(st.lists(st.sampled_from(["cat", "dog10", "dog9", "1", "x"]), min_size=1).filter(lambda s: set(s) != {"1"}))
    def test_texts_keep_their_names(self, labels: list[str]) -> None:
        names, targets = numbered(np.array([label.encode() for label in labels]), None, "")
        assert [names[t] for t in targets] == labels

    def test_a_number_is_a_number_even_where_names_look_like_one(self) -> None:
        assert class_index("0", ["1", "0"], "") == 0
        assert class_index("cow", ["ant", "cow"], "") == 1
        assert class_index("-1", ["ant"], "") == -1

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({"a.png": png(1)}, "sample 'a' has no label"),
            ({"a.cls": b"1"}, "sample 'a' has no picture"),
            ({"a.png": png(1), "a.json": b"{"}, "a.json is no JSON"),
            ({"notes.md": b""}, "no pictures|has no picture"),
        ],
    )
    def test_what_is_no_sample_is_refused(self, tmp_path: Path, files: dict[str, bytes], said: str) -> None:
        tar_of(tmp_path / "1.tar", files)
        with pytest.raises(SettingError, match=said):
            open_split("wds", str(tmp_path), "train")

    def test_a_label_beyond_the_names_is_refused(self, tmp_path: Path) -> None:
        classes_file(tmp_path, ["ant", "bee"])
        with pytest.raises(SettingError, match="label '2' in .* is none of the 2 classes ant, bee"):
            open_split("wds", str(shards(tmp_path, [3])), "train")

    @pytest.mark.parametrize("damage", ["half", "header", "last", "empty", "packed", "text"])
    def test_a_shard_that_is_no_whole_tar_is_named(self, tmp_path: Path, damage: str) -> None:
        import gzip

        path = shards(tmp_path, [5]) / "train-0000.tar"
        whole = path.read_bytes()
        cuts = {"half": 3100, "header": 1200, "last": 5 * 2048, "empty": 0}
        other = {"packed": gzip.compress(whole), "text": b"hello" * 200}
        path.write_bytes(other.get(damage) or whole[: cuts[damage]])
        with pytest.raises(SettingError, match=f"{path} is no whole, unpacked tar file"):
            open_split("wds", str(tmp_path), "train")


FILES = {f"{c}/{i}.png": png(10 * k + i) for k, c in enumerate(["dog9", "dog10"]) for i in range(2)}


class TestTarsOfClassFolders:
    def test_one_tar_as_its_folder_would_be(self, tmp_path: Path) -> None:
        for name, data in FILES.items():
            (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "f" / name).write_bytes(data)
        tar_of(tmp_path / "1.tar", {f"./{name}": data for name, data in FILES.items()} | {"./readme": b"x"})
        a, b = opened("folder", tmp_path / "f"), opened("tar", tmp_path / "1.tar")
        assert a.class_names == b.class_names == ["dog9", "dog10"]
        assert sorted(zip(greys(a), a.targets())) == sorted(zip(greys(b), b.targets()))

    def test_splits_within_one_tar(self, tmp_path: Path) -> None:
        files = {f"top/{s}/{n}": d for s in ("train", "val") for n, d in FILES.items()}
        files.pop("top/val/dog10/1.png")
        root = tar_of(tmp_path / "1.tar", files)
        assert [len(opened("tar", root, s).dataset) for s in ("train", "validation")] == [4, 3]
        assert opened("tar", root).class_names == ["dog9", "dog10"]
        assert open_split("tar", str(root), "test") is None

    def test_one_tar_a_class(self, tmp_path: Path) -> None:
        for k, name in enumerate(["bee", "ant"]):
            tar_of(tmp_path / "train" / f"{name}.tar", {f"{i}.png": png(10 * k + i) for i in range(2)})
        found = opened("tar", tmp_path)
        assert found.class_names == ["ant", "bee"]
        assert sorted(zip(greys(found), found.targets())) == [(0, 1), (1, 1), (10, 0), (11, 0)]
        assert open_split("tar", str(tmp_path), "validation") is None

    def test_splits_by_the_names_of_the_tars(self, tmp_path: Path) -> None:
        tar_of(tmp_path / "train.tar", FILES)
        tar_of(tmp_path / "val.tar", {"dog10/0.png": png(77)})
        assert len(opened("tar", tmp_path).dataset) == 4
        assert greys(opened("tar", tmp_path, "validation")) == [77]
        assert opened("tar", tmp_path, "validation").class_names == ["dog10"]
        # alone, a tar is the training pictures, whatever it is called
        assert open_split("tar", str(tmp_path / "train.tar"), "validation") is None
        assert len(opened("tar", tmp_path / "val.tar").dataset) == 1

    @pytest.mark.parametrize("stray", ["preview.png", "cat/2020/a.png", ".thumb/a.png"])
    def test_pictures_outside_the_class_folders_are_refused(self, tmp_path: Path, stray: str) -> None:
        root = tar_of(tmp_path / "1.tar", {"cat/1.png": png(1), stray: png(2)})
        with pytest.raises(SettingError, match=f"pictures outside <class>/<picture> in {root}: {stray}"):
            open_split("tar", str(root), "train")

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="data.root: say where the tar files are"):
            open_split("tar", None, "train")
        with pytest.raises(SettingError, match="no such folder or tar file"):
            open_split("tar", str(tmp_path / "x"), "train")
        with pytest.raises(SettingError, match="no .tar files in"):
            open_split("wds", str(tmp_path), "train")


class TestIndex:
    def files(self, root: Path) -> list[Path]:
        return sorted(root.glob(".octzoo-*"))

    def times(self, root: Path) -> list[int]:
        return [path.stat().st_mtime_ns for path in self.files(root)]

    def test_made_once_beside_the_shards_and_nothing_else_is_left(self, tmp_path: Path) -> None:
        opened("wds", shards(tmp_path, [3, 3]))
        before = self.times(tmp_path)
        assert len(before) == 1
        opened("wds", tmp_path)
        assert self.times(tmp_path) == before

    def test_made_anew_when_a_shard_changed(self, tmp_path: Path) -> None:
        opened("wds", shards(tmp_path, [3, 3]))
        shards(tmp_path, [3, 5])
        assert greys(opened("wds", tmp_path)) == list(range(8))
        assert len(self.files(tmp_path)) == 1

    @pytest.mark.parametrize("damage", ["empty", "half", "byte", "text", "other"])
    def test_a_damaged_index_is_made_anew(self, tmp_path: Path, damage: str) -> None:
        whole = greys(opened("wds", shards(tmp_path, [3, 3])))
        (path,) = self.files(tmp_path)
        data = bytearray(path.read_bytes())
        place = data.index(b"0001") if damage == "byte" else 0  # a sample's name
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        path.write_bytes(
            {"empty": b"", "half": data[:700], "byte": flipped, "text": b"?" * 99, "other": data[:-30]}[damage]
        )
        found = opened("wds", tmp_path)
        assert greys(found) == whole
        assert [found.name(i)[-4:] for i in range(3)] == ["0000", "0001", "0002"]
        assert path.read_bytes() != flipped

    def test_of_shards_that_cannot_be_written_beside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from octzoo.data import tars

        monkeypatch.setattr(tars.torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        monkeypatch.setattr(tars.os, "replace", refuse_in(shards(tmp_path / "read-only", [3]), os.replace))
        assert greys(opened("wds", tmp_path / "read-only")) == [0, 1, 2]
        assert self.files(tmp_path / "read-only") == []
        assert len(before := self.times(tmp_path / "hub" / "octzoo")) == 1
        opened("wds", tmp_path / "read-only")
        assert self.times(tmp_path / "hub" / "octzoo") == before

    def test_the_files_go_to_other_processes_by_pickling_and_by_fork(self, tmp_path: Path) -> None:
        found = opened("wds", shards(tmp_path, [40, 40]))
        assert greys(found) == list(range(80))  # the files are open now
        assert greys(pickle.loads(pickle.dumps(found))) == list(range(80))
        numbers = [i % 80 for i in range(400)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            jobs = [pool.apply_async(greys_of_some, (found, numbers)) for _ in range(2)]
            assert [job.get(60) for job in jobs] == [numbers, numbers]


def refuse_in(folder: Path, replace):
    """os.replace for a folder where nothing can be written."""

    def refusing(source, target):
        if Path(target).parent == folder:
            raise OSError(30, "Read-only file system")
        replace(source, target)

    return refusing
