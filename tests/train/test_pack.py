"""`octzoo pack`: a run becomes a checkpoint folder, and only what was measured is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

import octzoo_cli
from octzoo.data import ImageData
from octzoo.errors import UserError
from octzoo.models.convert import read_name
from octzoo.train.checkpoints import network_weights
from octzoo.train.pack import check_loads, default_dataset, recipe
from octzoo.weights.golden import GOLDEN, golden_logits

REPOSITORY = Path(octzoo_cli.__file__).parent
NAME = "oct_cifar_resnet20_a0.25.mine"
FIT = ["fit", "--config", str(REPOSITORY / "configs/digits.yaml"), "--trainer.max_epochs", "2", "--ema.decay", "0.9"]


def octzoo(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "octzoo_cli.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one recipe that differ in their seed, runs/0 and runs/1."""
    place = tmp_path_factory.mktemp("pack")
    for seed in "01":
        done = octzoo(*FIT, "--seed_everything", seed, "--run_dir", f"runs/{seed}", folder=place)
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    """What the command makes of them."""
    whose = ("--owner", "me", "--licence", "mit", "--limits", "Only digits.")
    less = ("--trainer.limit_val_batches", "1", "--trainer.precision", "bf16-mixed")  # is not to be had
    done = octzoo("pack", "runs/0", "--name", NAME, "--repeats", "runs/1", "--out", "out", *whose, *less, folder=place)
    assert done.returncode == 0, done.stderr
    assert f"next   octzoo publish out/{NAME} --org" in done.stdout
    return place / "out" / NAME


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def top1_of(model: torch.nn.Module, cfg: dict) -> float:
    """By a loop of our own: the held-out digits, prepared as the folder says."""
    data = ImageData("digits", batch_size=400)
    for key in ("mean", "std", "interpolation", "crop_pct"):
        setattr(data.preprocess, key, cfg[key])
    data.preprocess.image_size = cfg["input_size"][1]
    with torch.inference_mode():
        right = [(model(images).argmax(1) == targets) for images, targets in data.val_dataloader()]
    return torch.cat(right).float().mean().item()


def test_the_folder_holds_the_average_and_what_it_scores(folder: Path, place: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["model.safetensors", "config.json", "README.md", "metrics.json", "recipe.yaml", "log.csv"]
    )
    best = next((place / "runs/0").glob("epoch=*.ckpt"))
    ours, theirs = load_file(folder / "model.safetensors"), network_weights(best)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.octave_alpha == 0.25
    said = metrics(folder)
    assert said["top1"] == pytest.approx(top1_of(model, model.pretrained_cfg), abs=1e-6)
    assert (said["pictures"], said["split"], said["ema"]) == (359, "20 % held out of train", True)
    assert said["measured"]["command"].startswith("octzoo pack runs/0 --name")
    assert list(model.pretrained_cfg["label_names"]) == list("0123456789")
    assert tuple(model.pretrained_cfg["pool_size"]) == (4, 4)  # of pictures of 16x16


def test_other_seeds_give_their_figures_alone(folder: Path) -> None:
    (other,) = metrics(folder)["repeats"]
    assert other["seed"] == 1
    assert 0 < other["top1"] < 1
    assert other["loss"] != metrics(folder)["loss"]


def test_recipe_and_log_are_the_runs_and_name_no_path_of_this_machine(folder: Path, place: Path) -> None:
    assert (folder / "log.csv").read_text() == (place / "runs/0/metrics.csv").read_text()
    text = (folder / "recipe.yaml").read_text()
    assert str(place) not in text
    again = yaml.safe_load(text)
    assert (again["model"]["name"], again["trainer"]["max_epochs"]) == ("oct_cifar_resnet20_a0.25", 2)
    shown = octzoo("fit", "--config", str(folder / "recipe.yaml"), "--print_config", folder=place)
    assert shown.returncode == 0, shown.stderr


def test_verify_finds_it_good_and_a_changed_weight_bad(folder: Path, place: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "octzoo_cli.py"), "verify", NAME],
        env={"OCTZOO_CHECKPOINTS": str(folder.parent), "TORCH_HOME": str(place), "HF_HOME": str(place), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["local", f"{NAME}:", "good"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["runs/0", "--name", "oct_cifar_resnet20_a0.5.mine"], "the run trained oct_cifar_resnet20 at alpha 0.25"),
        (["runs/0", "--name", "../mine"], "'../mine' is not NETWORK_a0.ALPHA.TAG"),
        (["runs/0", "--name", NAME, "--repeats", "runs/0"], "has the same seed"),
        (["nowhere", "--name", NAME], "nowhere is no run folder: it has no config.yaml"),
        (["runs/0", "--name", NAME, "--model.compile", "true"], "unrecognized arguments: --model.compile"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    monkeypatch.chdir(place)
    try:
        code = octzoo_cli.main(["pack", *arguments, "--out", "new"])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert text in capsys.readouterr().err
    assert not (place / "new").exists()


def test_without_its_pictures_nothing_is_claimed_and_nothing_written(place: Path) -> None:
    elsewhere = ("--data.source", "folder", "--data.root", "nowhere")
    done = octzoo("pack", "runs/0", "--name", NAME, "--out", "new", *elsewhere, folder=place)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: data.root: no such folder: nowhere"
    assert not (place / "new").exists()


def test_a_network_that_its_name_does_not_build_is_refused() -> None:
    """Its shapes are the same; its answers are not."""
    trained = timm.create_model("oct_cifar_resnet20_a0.5", num_classes=10)
    config = {"num_classes": 10, "pretrained_cfg": {"input_size": (3, 32, 32)}}
    config[GOLDEN] = golden_logits(trained, (3, 32, 32))
    check_loads(read_name("oct_cifar_resnet20_a0.5.mine"), config, trained.state_dict())
    with pytest.raises(UserError, match="is another network than the run's"):
        check_loads(read_name(NAME), config, trained.state_dict())


def test_a_recipe_keeps_of_a_path_its_last_part() -> None:
    settings = {"data": {"root": "/home/me/cifar10"}, "trainer": {"default_root_dir": "/home/me/runs"}, "run_dir": "/x"}
    assert recipe(settings) == {"data": {"root": "cifar10"}, "trainer": {}}


def test_pictures_are_called_by_their_source_or_folder() -> None:
    assert default_dataset({"source": "digits", "root": None}) == "scikit-learn digits"
    assert default_dataset({"source": "torch/cifar10", "root": "/data"}) == "cifar10"
    assert default_dataset({"source": "folder", "root": "/data/birds"}) == "birds"
