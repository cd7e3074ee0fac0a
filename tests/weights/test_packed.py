"""The weights that come with octzoo: each is what its folder says, and a wheel carries them to another place."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import yaml

import octzoo  # noqa: F401 (registers the names)
from octzoo.weights import records
from octzoo.weights.folder import FILES, MODEL, PICTURE, REPORT, open_folder
from octzoo.weights.golden import GOLDEN
from octzoo.weights.records import OURS, packed_folder, published
from octzoo.weights.verify import Found, problem_of

REPOSITORY = Path(__file__).parents[2]
FOLDERS = sorted(path for path in packed_folder().glob("oct_*") if path.is_dir())
LOAD = """
import octzoo, sys, timm
from octzoo.weights.golden import differs
from octzoo.weights.folder import open_folder
from octzoo.weights.records import packed_folder
print(octzoo.__file__)
for name in sys.argv[1:]:
    model = timm.create_model(name, pretrained=True)
    print(name, model.octave_alpha if hasattr(model, "octave_alpha") else 0.0,
          differs(open_folder(packed_folder() / name).config, model))
"""


def test_there_are_digits_at_each_alpha_and_cifar_networks_with_their_control() -> None:
    names = {path.name for path in FOLDERS}
    assert {f"oct_cifar_resnet20_a{alpha}.oz_digits" for alpha in (0.0, 0.125, 0.25, 0.5, 0.75)} <= names
    assert {f"oct_cifar_resnet20_a{alpha}.oz_cifar10_jpeg" for alpha in (0.0, 0.25)} <= names
    assert {name.rpartition(".")[2] for name in names} == set(OURS)


def test_all_of_them_are_small_enough_to_come_with_the_package() -> None:
    assert sum(path.stat().st_size for folder in FOLDERS for path in folder.iterdir()) <= 12e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_folder_is_whole_and_found_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(set(FILES) - {REPORT, PICTURE})
    assert problem_of(Found("local", folder.name, folder, folder.name)) is None
    checkpoint, record = open_folder(folder), published(folder.name)
    assert record is not None
    assert (record.model_sha256, record.licence) == (checkpoint.sha256, "apache-2.0")
    assert len(checkpoint.config[GOLDEN]) == 10
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cfg = timm.get_pretrained_cfg(folder.name)
    assert list(cfg.input_size) == checkpoint.config["pretrained_cfg"]["input_size"]
    assert list(cfg.label_names) == checkpoint.config["label_names"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_figures_are_those_of_a_whole_run_and_name_no_path_of_a_machine(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert metrics["training"]["epochs"] == recipe["trainer"]["max_epochs"]
    assert metrics["seed"] == recipe["seed_everything"]
    assert metrics["weights"].startswith("of the last epoch")  # not chosen by what is measured
    for path in folder.iterdir():
        if path.name != MODEL:
            assert not {"/work", "/tmp", "/root", "/home"} & {f"/{word}" for word in path.read_text().split("/")}, path


def test_a_damaged_folder_is_named_and_costs_that_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in FOLDERS[:2]:
        shutil.copytree(folder, tmp_path / folder.name)
    (tmp_path / FOLDERS[0].name / "metrics.json").unlink()
    monkeypatch.setattr(records, "packed_folder", lambda: tmp_path)
    assert [record.full_name for record in records._ours()] == [FOLDERS[1].name]
    assert f"{tmp_path / FOLDERS[0].name} is damaged, and left out" in caplog.text


def test_a_wheel_installed_elsewhere_has_them_without_a_network(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for command in (
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(REPOSITORY)],
        [
            *pip,
            "install",
            "--no-deps",
            "--no-index",
            "--find-links",
            str(tmp_path),
            "--target",
            str(tmp_path / "site"),
            "octzoo",
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OCTZOO_")}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    names = [folder.name for folder in FOLDERS]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *names], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    where, *lines = done.stdout.splitlines()
    assert where.startswith(str(tmp_path / "site"))
    assert lines == [f"{name} {open_folder(packed_folder() / name).alpha} None" for name in names]
