"""octzoo.data: where pictures come from, which of them are held out, and what is said when they are not there."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from octzoo.data import Augment, ImageData, PictureFolder, Preprocess, SettingError, Splits, held_out, open_split


def picture(path: Path, value: int = 0, mode: str = "RGB") -> Path:
    """A 12x10 picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (12, 10), value).save(path)
    return path


def folder(root: Path, counts: dict[str, int]) -> Path:
    """root/<name>/0.png ... for each (name, number)."""
    for name, number in counts.items():
        for i in range(number):
            picture(root / name / f"{i}.png", value=10 * i)
    return root


def data(root: Path | None = None, **settings: object) -> ImageData:
    """ImageData that reads in this process, two pictures a batch."""
    chosen = {
        "source": "folder",
        "root": None if root is None else str(root),
        "batch_size": 2,
        "num_workers": 0,
        **settings,
    }
    return ImageData(**chosen)  # type: ignore[arg-type]


def labels(loader: torch.utils.data.DataLoader) -> list[int]:
    return torch.cat([targets for _, targets in loader]).tolist()


class TestHoldingOut:
    @given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.floats(0.05, 0.9))
    def test_rest_and_held_out_share_nothing_and_lose_nothing(self, targets: list[int], part: float) -> None:
        rest, out = held_out(targets, part)
        assert sorted(rest + out) == list(range(len(targets)))

    @given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.floats(0.05, 0.9))
    def test_every_class_gives_its_part_and_one_at_least_but_never_its_last(self, targets, part) -> None:
        chosen = Counter(targets[i] for i in held_out(targets, part)[1])
        assert chosen == {k: max(1, min(n - 1, round(part * n))) for k, n in Counter(targets).items() if n > 1}

    def test_the_same_pictures_whatever_the_random_state(self) -> None:
        first = held_out([0, 1] * 50, 0.2)
        np.random.seed(5)
        torch.manual_seed(5)
        assert held_out([0, 1] * 50, 0.2) == first

    def test_digits_hold_out_a_fifth_of_each_digit(self) -> None:
        digits = data(source="digits", batch_size=64)
        assert len(digits.val_dataloader().dataset) == 359
        assert len(digits.train_dataloader().dataset) == 1797 - 359
        per_class = Counter(labels(digits.val_dataloader()))
        assert digits.class_names == [str(d) for d in range(10)]
        assert set(per_class) == set(range(10))
        assert max(per_class.values()) - min(per_class.values()) <= 2


class TestFolders:
    def test_train_and_validation_folders_by_any_usual_name(self, tmp_path: Path) -> None:
        folder(tmp_path / "train", {"cat": 3, "dog": 2})
        folder(tmp_path / "valid", {"cat": 1, "dog": 1})
        found = data(tmp_path)
        assert found.class_names == ["cat", "dog"]
        assert sorted(labels(found.train_dataloader())) in ([0, 0, 0, 1], [0, 0, 1, 1])  # the odd one out is dropped
        assert labels(found.val_dataloader()) == [0, 1]

    def test_without_a_validation_folder_part_of_train_is_held_out_never_shown_twice(self, tmp_path: Path) -> None:
        found = data(folder(tmp_path, {"cat": 10, "dog": 5}), batch_size=1)
        assert Counter(labels(found.val_dataloader())) == {0: 2, 1: 1}
        assert Counter(labels(found.train_dataloader())) == {0: 8, 1: 4}

    def test_a_class_without_validation_pictures_does_not_shift_the_others(self, tmp_path: Path) -> None:
        folder(tmp_path / "train", {"ant": 2, "bee": 2, "cow": 2})
        folder(tmp_path / "val", {"cow": 1})
        assert labels(data(tmp_path).val_dataloader()) == [2]

    def test_a_validation_class_that_was_not_trained_is_refused(self, tmp_path: Path) -> None:
        folder(tmp_path / "train", {"ant": 2, "bee": 2})
        folder(tmp_path / "val", {"ant": 1, "yak": 1})
        with pytest.raises(SettingError, match="classes that the network was not given: yak"):
            data(tmp_path).val_dataloader()

    def test_given_class_names_fix_the_order_of_the_classes(self, tmp_path: Path) -> None:
        folder(tmp_path / "train", {"ant": 1, "bee": 1})
        folder(tmp_path / "val", {"ant": 1, "bee": 1})
        assert labels(data(tmp_path, class_names=["bee", "ant"]).val_dataloader()) == [1, 0]

    @pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp", "gif", "tiff"])
    def test_the_usual_formats_are_read(self, tmp_path: Path, suffix: str) -> None:
        for name in ("ant", "bee"):
            picture(tmp_path / name / f"1.{suffix}")
        assert len(open_split("folder", str(tmp_path), "train").dataset) == 2  # type: ignore[union-attr]

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
    def test_any_colour_mode_becomes_three_channels(self, tmp_path: Path, mode: str) -> None:
        for name in ("ant", "bee"):
            for i in range(2):
                picture(tmp_path / name / f"{i}.{'tiff' if mode == 'CMYK' else 'png'}", mode=mode, value=0)
        images, _ = next(iter(data(tmp_path, preprocess=Preprocess(image_size=8)).val_dataloader()))
        assert images.shape == (2, 3, 8, 8)


def test_torchvision_sets_come_with_their_names(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 3)):  # the format of Yann LeCun's page
        head = bytes([0, 0, 8, 3, *count.to_bytes(4, "big"), 0, 0, 0, 28, 0, 0, 0, 28])
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(count * 28 * 28))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, *count.to_bytes(4, "big"), *range(count)]))
    mnist = data(tmp_path, source="torch/mnist", splits=Splits(val="test"))
    assert mnist.num_classes == 10
    assert mnist.class_names[3] == "3 - three"
    assert labels(mnist.val_dataloader()) == [0, 1, 2]
    assert sorted(labels(mnist.train_dataloader())) == [0, 1, 2, 3, 4, 5]
    held = data(tmp_path, source="torch/mnist")
    assert len(held.val_dataloader().dataset) == 0  # not the test set; and a class never gives its only picture
    with pytest.raises(SettingError, match="'torch/mnist' at .* has no split 'tarin'"):
        data(tmp_path, source="torch/mnist", splits=Splits(val="tarin")).val_dataloader()


@pytest.mark.parametrize("stray", ["preview.png", "cat/2020/a.png", ".thumb/a.png"])
def test_pictures_outside_the_class_folders_are_refused(tmp_path: Path, stray: str) -> None:
    folder(tmp_path, {"cat": 2, "dog": 2})
    path = tmp_path / stray
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(path)
    with pytest.raises(SettingError, match=r"pictures outside .*/<class>/<picture>, such as .*"):
        _ = data(tmp_path).class_names


def test_class_names_twice_or_not_in_the_training_pictures_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, {"cat": 9, "dog": 9})
    with pytest.raises(SettingError, match="more than once: cat"):
        _ = data(tmp_path, class_names=["cat", "cat"]).class_names
    with pytest.raises(SettingError, match="the training pictures have no class cow"):
        data(tmp_path, class_names=["cat", "cow", "dog"]).train_dataloader()


def test_pictures_without_a_class_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octzoo.data import module as package

    folder(tmp_path, {"cat": 9, "dog": 9})
    unlabelled = open_split("folder", str(tmp_path), "train")
    assert unlabelled is not None
    blind = type(unlabelled)(unlabelled.dataset, unlabelled.class_names, lambda: [-1] * 18)
    whole = data(tmp_path, splits=Splits(test="test"))
    assert whole.class_names == ["cat", "dog"]
    monkeypatch.setattr(package, "open_split", lambda source, root, split, download: blind)
    with pytest.raises(SettingError, match=r"has pictures without a class \(-1\)"):
        whole.test_dataloader()


def parquet(root: Path, splits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local Hugging Face folder with columns img and fine_label: classes ant, bee by turns."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["ant", "bee"])})
    for split, count in splits.items():
        rows = {"img": [Image.new("RGB", (9, 9), 20 * i) for i in range(count)], "fine_label": [0, 1] * (count // 2)}
        path = root / "set" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return root / "set"


def test_a_local_hugging_face_folder_whatever_its_columns_are_called(tmp_path: Path, monkeypatch) -> None:
    found = data(
        parquet(tmp_path, {"train": 10, "test": 4}, monkeypatch), source="hfds", splits=Splits(val="test"), batch_size=4
    )
    assert found.class_names == ["ant", "bee"]
    assert labels(found.val_dataloader()) == [0, 1, 0, 1]
    assert len(found.train_dataloader().dataset) == 10


def test_a_hugging_face_folder_without_validation_holds_out_and_does_not_touch_test(tmp_path, monkeypatch) -> None:
    found = data(parquet(tmp_path, {"train": 10, "test": 4}, monkeypatch), source="hfds")
    assert len(found.val_dataloader().dataset) == 2
    assert len(found.train_dataloader().dataset) == 8


class TestPreparation:
    def test_values_given_win_over_the_networks_which_win_over_imagenets(self) -> None:
        network = {"input_size": (3, 96, 96), "mean": (0.1, 0.2, 0.3), "crop_pct": 0.5}
        settings = Preprocess(image_size=32, interpolation="nearest").resolve(network)
        assert settings["input_size"] == (3, 32, 32)
        assert settings["mean"] == (0.1, 0.2, 0.3)
        assert settings["crop_pct"] == 0.5
        assert settings["interpolation"] == "nearest"
        assert settings["std"] == (0.229, 0.224, 0.225)

    def test_a_validation_picture_is_normalised_and_not_augmented(self, tmp_path: Path) -> None:
        for name in ("ant", "bee"):
            for i in range(2):
                picture(tmp_path / name / f"{i}.png", value=0xFFFFFF)
        how = Preprocess(image_size=6, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
        images, _ = next(iter(data(tmp_path, preprocess=how).val_dataloader()))
        assert torch.equal(images, torch.full((2, 3, 6, 6), 2.0))

    def test_augmentation_is_what_is_asked_for(self, tmp_path: Path) -> None:
        half = Image.new("RGB", (8, 8))
        half.paste((255, 255, 255), (0, 0, 4, 8))  # white on the left
        for name in ("ant", "bee"):
            (tmp_path / name).mkdir()
            for i in range(2):
                half.save(tmp_path / name / f"{i}.png")
        how = Augment(scale=(1, 1), ratio=(1, 1), hflip=1.0, color_jitter=None, interpolation="nearest")
        found = data(tmp_path, augment=how, preprocess=Preprocess(image_size=8, mean=[0, 0, 0], std=[1, 1, 1]))
        for _ in range(5):
            images = torch.cat([batch for batch, _ in found.train_dataloader()])
            assert images[..., :4].max() == 0
            assert images[..., 4:].min() == 1


def test_pictures_to_label_at_any_depth_and_a_broken_one_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    picture(tmp_path / "deep" / "er" / "a.webp")
    (tmp_path / "deep" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not looked at")
    found = PictureFolder(str(tmp_path), lambda image: torch.zeros(3, 4, 4))
    assert [item["path"] for item in found] == ["b.png", "deep/broken.jpg", "deep/er/a.webp"]
    assert [bool(item["error"]) for item in found] == [False, True, False]
    assert "UnidentifiedImageError" in found[1]["error"]


class TestMistakes:
    """The exact text that a user sees."""

    def message(self, act) -> str:
        with pytest.raises(SettingError) as raised:
            act()
        return str(raised.value)

    def test_no_root(self) -> None:
        assert self.message(lambda: ImageData("folder").num_classes) == "data.root: say where the pictures are"

    def test_missing_root(self, tmp_path: Path) -> None:
        root = tmp_path / "nowhere"
        assert self.message(lambda: data(root).num_classes) == f"data.root: no such folder: {root}"

    def test_empty_class(self, tmp_path: Path) -> None:
        folder(tmp_path, {"ant": 2, "bee": 2})
        (tmp_path / "cow").mkdir()
        text = self.message(lambda: data(tmp_path).num_classes)
        assert text.startswith(f"data.root: class folder {tmp_path}/cow holds no pictures (.png, .jpg")

    def test_no_class_folders(self, tmp_path: Path) -> None:
        picture(tmp_path / "1.png")
        text = self.message(lambda: data(tmp_path).num_classes)
        assert text == f"data.root: no class folders with pictures in {tmp_path}; expected {tmp_path}/<class>/<picture>"

    def test_wrong_num_classes(self) -> None:
        text = self.message(lambda: ImageData("digits", num_classes=12).num_classes)
        assert text == "data.num_classes is 12, but there are 10 classes: 0, 1, 2, 3, 4 ..."

    def test_unknown_source(self) -> None:
        assert self.message(lambda: ImageData("foldr").num_classes) == (
            "data.source: no source 'foldr'; did you mean 'folder'?"
        )

    def test_unknown_torchvision_set(self, tmp_path: Path) -> None:
        text = self.message(lambda: data(tmp_path, source="torch/cifar11").num_classes)
        assert text == "data.source: Unknown torchvision dataset cifar11"

    def test_torchvision_set_that_is_not_there(self, tmp_path: Path) -> None:
        text = self.message(lambda: data(tmp_path, source="torch/mnist").num_classes)
        assert text.startswith("data.root: Dataset not found.")
        assert text.endswith(f"in {tmp_path} (here: --data.download true)")

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        folder(tmp_path, {"ant": 2, "bee": 2})
        text = self.message(lambda: data(tmp_path, splits=Splits(val="vall")).val_dataloader())
        assert text == f"data.splits: 'folder' at {tmp_path} has no split 'vall'"

    def test_fewer_pictures_than_a_batch(self, tmp_path: Path) -> None:
        folder(tmp_path, {"ant": 3, "bee": 3})
        text = self.message(lambda: data(tmp_path, batch_size=8).train_dataloader())
        assert text == "data.batch_size is 8, but there are 4 training pictures"

    def test_pictures_that_are_not_there(self, tmp_path: Path) -> None:
        assert self.message(lambda: data(pictures=str(tmp_path / "x")).predict_dataloader()) == (
            f"data.pictures: no such folder: {tmp_path}/x"
        )
        assert self.message(lambda: data(pictures=str(tmp_path)).predict_dataloader()).startswith(
            "data.pictures: no pictures (.png, "
        )
