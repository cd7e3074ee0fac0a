"""`octzoo bench data`: both loaders are given the same work, and what is printed is what is written."""

import json
import re
import tarfile
from pathlib import Path

import pytest
import torch

import octzoo_cli
from octzoo.cli import bench_data
from octzoo.cli.bench_pictures import make_pictures

FEW = ["--pictures", "8", "--rounds", "2", "--batch-size", "4", "--image-size", "32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("made") / "photos", 12, 48)


def bench(arguments: list[str], folder: Path) -> dict:
    """What `octzoo bench data` writes."""
    assert octzoo_cli.main(["bench", "data", *arguments, *FEW, "--json", str(folder / "out.json")]) == 0
    return json.loads((folder / "out.json").read_text())


def test_ours_and_timms_over_made_pictures_without_any_argument(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(make_pictures, "__defaults__", (12, 48))  # fewer and smaller
    found = bench([], tmp_path)
    assert {name: len(rates) for name, rates in found["rates"].items()} == {
        "octzoo": 2,
        "timm": 2,
        "timm, prefetcher": 2,
    }
    assert found["ratios"]["timm"] == [a / b for a, b in zip(found["rates"]["octzoo"], found["rates"]["timm"])]
    assert found["environment"]["cpus"] >= 1
    assert found["settings"]["pictures"] == "8"
    printed = capsys.readouterr().out
    for name, rates in found["rates"].items():
        assert re.search(rf"^{name} +{(rates[0] + rates[1]) / 2:.1f} ", printed, re.MULTILINE)


def test_all_loaders_have_the_same_pictures_transforms_and_shapes(photos: Path, monkeypatch) -> None:
    import argparse

    options = argparse.Namespace(batch_size=4, workers=0, image_size=32)
    found = bench_data.loaders("folder", str(photos), options)
    ours, plain, prefetcher = found.values()
    assert [len(list(loader)) for loader in found.values()] == [3, 3, 3]
    for images, targets in (next(iter(loader)) for loader in found.values()):
        assert (images.shape, images.dtype, targets.shape) == ((4, 3, 32, 32), torch.float32, (4,))
        assert 1 < images.abs().max() < 3  # normalised
    # ours may do the last two steps to the batch
    steps = [str(step) for step in ours.dataset.transform.transforms]
    theirs = [str(step) for step in plain.dataset.transform.transforms]
    assert steps[:3] == theirs[:3]
    assert [str(step) for step in prefetcher.loader.dataset.transform.transforms][:3] == theirs[:3]
    assert plain.dataset.reader is prefetcher.loader.dataset.reader is ours.dataset.pictures.dataset.reader


@pytest.mark.parametrize("arguments", [["--workers", "1"], ["--source", "tar"]])
def test_other_sources_and_workers(photos: Path, tmp_path: Path, arguments: list[str]) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, arcname=".")
    root = tmp_path if "tar" in arguments else photos
    assert len(bench([str(root), *arguments], tmp_path)["rates"]["octzoo"]) == 2


def test_skipping_is_measured_for_both_streams(photos: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    rates = bench([str(photos), "--skip"], tmp_path)["rates"]
    assert {(s, w): len(v) for s, kinds in rates.items() for w, v in kinds.items()} == {
        (source, what): 2 for source in ("wds-stream", "hfds-stream") for what in ("skipped", "decoded")
    }
    assert "hfds-stream decoded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "--rounds", "0"], "error: --rounds 0 is less than 1"),
        (["data", "--json", "no/such/x.json"], "error: --json no/such/x.json: no such folder"),
        (["data", "--source", "tar"], "error: --source tar: say where the pictures are: octzoo bench data DIR"),
        (["data", "nowhere"], "error: data.root: no such folder: nowhere"),
        (["data", "x", "--source", "digits"], "error: --source digits has no files that timm's loader could read"),
        (["date"], "error: nothing to measure called 'date'; did you mean 'data'?"),
        ([], "usage: octzoo bench WHAT"),
    ],
)
def test_mistakes(arguments: list[str], said: str, capsys) -> None:
    assert octzoo_cli.main(["bench", *arguments]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_help(capsys) -> None:
    assert octzoo_cli.main(["bench", "--help"]) == 0
    assert "data   pictures a second and core" in capsys.readouterr().out


def test_made_pictures_are_the_same_each_time(photos: Path, tmp_path: Path) -> None:
    again = make_pictures(tmp_path, 12, 48)
    files = sorted(path.relative_to(again) for path in again.rglob("*.jpg"))
    assert len(files) == 12
    assert all((photos / file).read_bytes() == (again / file).read_bytes() for file in files)
