"""Every recipe in configs/: its header's claims, its overlays' base, and two steps of training."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from PIL import Image

import octzoo
import octzoo_cli
from octzoo.adaptation.budget import plain_strides
from octzoo.adaptation.folder import write
from octzoo.adaptation.report import Report
from octzoo.plan import default_plan
from octzoo.train.recipes import base_of, missing_base
from octzoo.train.task import ClassificationTask
from octzoo.weights.records import records

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
OVERLAYS = [path for path in RECIPES if base_of(path)]


def with_base(recipe: Path) -> list[Path]:
    """What --config is given for it."""
    base = base_of(recipe)
    return [ROOT / base, recipe] if base else [recipe]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight pictures to train on and two to validate."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (72, 72, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


def octavized(recipe: Path) -> list[str]:
    """Writes the folder that a recipe's network is in, if it is in one: a small network, which is the teacher too."""
    name = yaml.safe_load(recipe.read_text())["model"]["name"]
    folder = name.removeprefix("local-dir:")
    if folder == name:
        return []
    plan = plain_strides(default_plan(timm.create_model("resnet18")))
    octave = octzoo.octavize(timm.create_model("resnet18", num_classes=2), 0.25, plan)
    write(Path(folder), octave.eval(), "resnet18", Report(0.25, plan, 0.8, (9, 1), 0), {}, {})
    return [folder]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_two_steps_of_it(recipe: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, on a CPU, four pictures of 64x64 a step; everything else is the recipe's."""
    monkeypatch.chdir(tmp_path)
    folder = octavized(recipe)
    step, losses = ClassificationTask.training_step, []

    def watched(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        assert batch[0].shape == (4, 3, 64, 64)
        losses.append(step(self, batch, batch_idx))
        return losses[-1]

    monkeypatch.setattr(ClassificationTask, "training_step", watched)
    settings = {
        "trainer.accelerator": "cpu",
        "trainer.devices": "1",
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "trainer.fast_dev_run": "2",
        "model.pretrained": "false",
        **({"model.teacher.name": "null", "model.teacher.checkpoint": folder[0]} if folder else {}),
        "data.source": "folder",
        "data.root": str(pictures),
        "data.splits.val": "null",
        "data.batch_size": "4",
        "data.num_workers": "0",
        "data.preprocess.image_size": "64",
    }
    configs = [word for path in with_base(recipe) for word in ("--config", str(path))]
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    assert octzoo_cli.main(["fit", *configs, *flags]) == 0
    assert len(losses) == 2
    assert all(math.isfinite(loss.item()) for loss in losses)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.iterdir()] == folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_its_header_has_source_expectation_hardware_and_the_whole_command(recipe: Path) -> None:
    header = recipe.read_text().split("\n\n")[0]
    assert {"source", "expected", "hardware", "command"} <= set(re.findall(r"^# (\w+)  +\S", header, re.MULTILINE))
    command = re.search(r"^# command +(.*)$", header, re.MULTILINE)[1]  # type: ignore[index]
    configs = " ".join(f"--config {path.relative_to(ROOT)}" for path in with_base(recipe))
    assert re.sub(r" --data.root \S+", "", command) == f"octzoo fit {configs}"


def test_every_network_of_the_paper_has_one_that_expects_the_authors_figure() -> None:
    theirs = {record.name: record.accuracy.top1 for record in records() if record.tag == "fb_in1k"}
    recipes = {yaml.safe_load(path.read_text())["model"]["name"]: path.read_text() for path in RECIPES}
    assert {name.rsplit("_a", 1)[0] for name in theirs} == {n.rsplit("_a", 1)[0] for n in recipes if n in theirs}
    for name in theirs.keys() & recipes.keys():
        assert f"# expected   {theirs[name]} % top-1 (the authors' network)" in recipes[name]


class TestOverlays:
    def test_with_its_base_before_it_all_is_well(self) -> None:
        assert len(OVERLAYS) == 13
        assert all(missing_base(with_base(path)) is None for path in RECIPES)

    @pytest.mark.parametrize("before", [[], ["digits.yaml"]])
    def test_alone_or_on_another_it_is_refused_in_one_line(self, before: list[str]) -> None:
        configs = [ROOT / "configs" / name for name in [*before, "r101.yaml"]]
        given = ROOT / "configs" / "r101.yaml"
        expected = f"{given} is an overlay: give its base before it, --config configs/r50.yaml --config {given}"
        assert missing_base(configs) == expected

    def test_after_it_is_too_late(self) -> None:
        assert missing_base([ROOT / "configs" / "r101.yaml", ROOT / "configs" / "r50.yaml"]) is not None

    def test_a_copy_of_the_base_and_a_runs_config_will_do(self, tmp_path: Path) -> None:
        for name in ("r50.yaml", "config.yaml"):
            (tmp_path / name).write_text("model: {name: x}\n")
            assert missing_base([tmp_path / name, ROOT / "configs" / "r101.yaml"]) is None

    def test_it_is_short_and_changes_something(self) -> None:
        for path in OVERLAYS:
            assert len(path.read_text().splitlines()) <= 22, path
            base = yaml.safe_load((ROOT / base_of(path)).read_text())  # type: ignore[operator]
            assert yaml.safe_load(path.read_text())["model"]["name"] != base["model"]["name"]
