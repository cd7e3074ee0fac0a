"""Measure fine-tuning of octavized networks against training: ``python docs/measure_adapt_cifar.py CIFAR10 WORK``

CIFAR10 is a folder as configs/cifar10.yaml takes it, WORK a folder for networks and runs. The trained plain network
that comes with octzoo is octavized, and fine-tuned for 1, 2 and 5 epochs; beside it the octave network is trained from
scratch for as long. Writes docs/adapt/cifar10.json, of which docs/make_adapt.py makes the page; stopped, it goes on
behind the last run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform

import octzoo  # noqa: F401 (registers the names)
from octzoo.data.sources import open_split
from octzoo.deploy.metadata import data_config_of
from octzoo.train.environment import environment
from octzoo.weights.folder import METRICS, replace_file

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "adapt" / "cifar10.json"
NETWORK, TAG = "oct_cifar_resnet20", "oz_cifar10_jpeg"
ALPHAS, EPOCHS = (0.25, 0.5), (1, 2, 5)
PICTURES, DISTILLED = 2000, 5
RATE = 0.02  # of fine-tuning; the recipe's own is for training from scratch


def octzoo_command(*words: Any) -> None:
    subprocess.run([sys.executable, "-m", "octzoo_cli", *map(str, words)], check=True)


def top1(name: str, root: Path) -> float:
    """On the split that the recipe validates on, in float32."""
    model: Any = timm.create_model(name, pretrained=True).eval()
    transform: Any = create_transform(**data_config_of(model), is_training=False)
    split = open_split("hfds", str(root), "test")
    assert split is not None
    targets, right = torch.tensor(split.targets()), 0
    with torch.inference_mode():
        for indices in torch.arange(len(targets)).split(500):
            pictures = torch.stack([transform(split.dataset[i][0]) for i in indices.tolist()])
            right += int((model(pictures).argmax(1) == targets[indices]).sum())
    return right / len(targets)


def fit(run: Path, root: Path, epochs: int, *settings: Any) -> dict[str, Any]:
    """`octzoo fit` with the recipe but for what is given; its summary."""
    if not (run / "summary.json").is_file():
        recipe = ["--config", ROOT / "configs" / "cifar10.yaml", "--data.root", root, "--run_dir", run]
        length = ["--trainer.max_epochs", epochs, "--model.schedule.warmup_epochs", 0]
        octzoo_command("fit", *recipe, *length, *settings)
    return json.loads((run / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("work", type=Path)
    options = parser.parse_args()
    root, work = options.cifar10.resolve(), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    plain = f"{NETWORK}_a0.0.{TAG}"
    command = "python docs/measure_adapt_cifar.py CIFAR10 WORK"
    found: dict[str, Any] = {**environment(), "command": command, "network": plain, "runs": []}
    found |= {"pictures": PICTURES, "distilled": DISTILLED, "rate": RATE, "plain": metrics(plain)["top1"]}

    def add(alpha: float, method: str, epochs: int, accuracy: float, seconds: float) -> None:
        row = {"alpha": alpha, "method": method, "epochs": epochs, "top1": accuracy, "seconds": seconds}
        print(row, flush=True)
        found["runs"].append(row)
        replace_file(OUT, (json.dumps(found, indent=1) + "\n").encode())

    for alpha in ALPHAS:
        name, folder = f"{NETWORK}_a{alpha:g}", work / f"octave{alpha:g}"
        if not folder.is_dir():
            given = ["--data", f"hfds:{root}", "--pictures", PICTURES, "--epochs", DISTILLED, "--out", folder]
            octzoo_command("octavize", plain, "--alpha", alpha, *given)
        report = json.loads((folder / "adaptation.json").read_text())
        converted = ["--model.name", f"local-dir:{folder}", "--model.pretrained", "true"]
        add(alpha, "octavized", 0, top1(f"local-dir:{folder}", root), sum(report["seconds"].values()))
        for epochs in EPOCHS:
            tuned = fit(work / f"tuned{alpha:g}-{epochs}", root, epochs, *converted, "--model.optimizer.lr", RATE)
            add(alpha, "octavized", epochs, tuned["final_top1"], tuned["seconds"])
            scratch = fit(work / f"scratch{alpha:g}-{epochs}", root, epochs, "--model.name", name)
            add(alpha, "from scratch", epochs, scratch["final_top1"], scratch["seconds"])
        whole = metrics(f"{name}.{TAG}")
        training = whole["training"]
        add(alpha, "from scratch", training["epochs"], whole["top1"], training["seconds"])


def metrics(name: str) -> dict[str, Any]:
    """Of weights that come with octzoo."""
    return json.loads((ROOT / "checkpoints" / name / METRICS).read_text())


if __name__ == "__main__":
    main()
