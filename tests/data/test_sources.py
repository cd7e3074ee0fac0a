"""Every source gives RGB pictures, class indices and names, and says what does not decode instead of hiding it."""

import pickle
from pathlib import Path

import pytest
from PIL import Image

from octzoo.data import open_split
from octzoo.data.pictures import Pictures, decode
from tests.packed import parquet, png, shards, tar_of


def folder(root: Path) -> tuple[str, str]:
    for name, value, broken in (("ant", 1, False), ("ant", 2, True), ("bee", 3, False)):
        (root / name).mkdir(exist_ok=True)
        (root / name / f"{value}.png").write_bytes(png(value, broken))
    return "folder", str(root)


def tar(root: Path) -> tuple[str, str]:
    tar_of(root / "1.tar", {"ant/1.png": png(1), "ant/2.png": png(2, broken=True), "bee/3.png": png(3)})
    return "tar", str(root)


def wds(root: Path) -> tuple[str, str]:
    files = {"1.png": png(1), "1.txt": b"ant", "2.png": png(2, broken=True), "2.txt": b"ant"}
    tar_of(root / "1.tar", files | {"3.png": png(3), "3.txt": b"bee"})
    return "wds", str(root)


def hfds(root: Path) -> tuple[str, str]:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])})
    rows = [{"bytes": png(v, broken=v == 2), "path": f"{v}.png"} for v in (1, 2, 3)]
    (root / "set").mkdir()
    dataset = datasets.Dataset.from_dict({"img": rows, "kind": [0, 0, 1]}, features=features)
    dataset.to_parquet(root / "set" / "train.parquet")
    return "hfds", str(root / "set")


@pytest.fixture(params=[folder, tar, wds, hfds], ids=lambda make: make.__name__)
def pictures(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pictures:
    """Two ants, of which the second does not decode, and a bee."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    found = open_split(*request.param(tmp_path), "train")
    assert found is not None
    return found


def test_pictures_and_classes(pictures: Pictures) -> None:
    assert pictures.class_names == ["ant", "bee"]
    assert list(pictures.targets()) == [0, 0, 1]
    assert len(pictures.dataset) == 3
    for i, grey, target in ((0, 1, 0), (2, 3, 1)):
        image, found = pictures.dataset[i]
        assert (image.mode, image.size, image.getpixel((0, 0)), found) == ("RGB", (6, 5), (grey,) * 3, target)


def test_a_picture_that_does_not_decode_raises_and_is_not_replaced(pictures: Pictures) -> None:
    with pytest.raises(OSError, match="(?i)truncated|broken"):
        pictures.dataset[1]


def test_names_tell_which(pictures: Pictures) -> None:
    for i, number in enumerate("123"):
        assert number in pictures.name(i).rpartition("/")[2]
    assert len({pictures.name(i) for i in range(3)}) == 3


def test_they_go_to_spawned_processes(pictures: Pictures) -> None:
    copy = pickle.loads(pickle.dumps(pictures))
    assert copy.dataset[2][0].getpixel((0, 0)) == (3, 3, 3)
    assert copy.name(2) == pictures.name(2)
    assert list(copy.targets()) == [0, 0, 1]


def test_digits_and_torchvision_sets_go_to_spawned_processes() -> None:
    digits = open_split("digits", None, "train")
    assert pickle.loads(pickle.dumps(digits)).targets()[:3] == [0, 1, 2]


def test_a_file_is_closed_and_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    Image.new("L", (64, 64), 9).save(path)
    file = path.open("rb")
    assert decode(file).mode == "RGB"
    assert file.closed
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(OSError, match="(?i)truncated"):
        decode(path.open("rb"))


def test_a_set_of_the_hub_is_only_fetched_when_asked_to(tmp_path: Path) -> None:
    from octzoo.data import SettingError

    with pytest.raises(SettingError, match=r"no such folder: owner/name \(a set of the Hub: --data.download true\)"):
        open_split("hfds", "owner/name", "train")


def test_all_parquet_shards_of_a_split_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = open_split("hfds", str(parquet(tmp_path / "set", {"train-0": 3, "train-1": 2})), "train")
    assert found is not None
    assert [found.dataset[i][0].getpixel((0, 0))[0] for i in range(5)] == list(range(5))  # type: ignore[index]


def test_as_many_shards_as_one_likes(tmp_path: Path) -> None:
    found = open_split("wds", str(shards(tmp_path, [1] * 30)), "train")
    assert found is not None
    assert len(found.dataset) == 30
