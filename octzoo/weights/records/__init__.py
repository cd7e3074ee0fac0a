"""One record a published weight file: where it is, whose it is, how good it is and who measured that.

The JSON files beside this one hold the records of what others published, one file a tag; those of what octzoo trained
are read from its checkpoint folders. Tables in README, docs and cards are made from them, and timm's pretrained cfgs
too, so that every number is typed once, or by no one.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

_logger = logging.getLogger(__name__)

CONFIG, METRICS = "config.json", "metrics.json"  # of a checkpoint folder
CHECKSUM = "model_sha256"  # in config.json, beside what timm and transformers read of it
OUR_SOURCE = "octzoo"
# what of a folder's pretrained_cfg belongs to the weights; the rest is the network's
_CFG = (
    "input_size",
    "pool_size",
    "mean",
    "std",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "num_classes",
    "label_names",
)

PUBLISHED = ("fb_in1k", "dli14_in1k")  # by others
OURS = ("oz_cifar10_jpeg", "oz_digits")
# In this order: the first that a name has is its default tag. Once published it stays that, so append only.
DEFAULTS = (*PUBLISHED, "oz_cifar10_jpeg")


@dataclass(frozen=True)
class Accuracy:
    """Accuracy in percent, as ``measured_by`` reports it, and how."""

    top1: float
    top5: float
    measured_by: str
    how: str


@dataclass(frozen=True)
class Record:
    """One published set of weights.

    Attributes:
        name: timm's name without the tag, "oct_resnet50_a0.25".
        tag: who trained it on what, "fb_in1k".
        url: the published file; None where it can only be fetched by hand.
        sha256: of that file, where known.
        size: of that file in bytes, where known.
        cfg: fields of timm's pretrained cfg: how pictures are prepared, and for ours the input size and classes.
        source, owner, licence, dataset: whose it is, under which licence (as the Hub spells it), trained on what.
        by_hand: how to get the file without us.
        accuracy: as reported by whoever trained it.
        remeasured: by somebody else, where known.
        model_sha256: of our model.safetensors, where we wrote it.
        cost: (height and width in pixels, MACs, MACs of the plain network) where not the network's usual ones.
    """

    name: str
    tag: str
    url: str | None
    sha256: str | None
    size: int | None
    cfg: Mapping[str, Any]
    source: str
    owner: str
    licence: str
    dataset: str
    by_hand: str
    accuracy: Accuracy
    remeasured: Accuracy | None
    model_sha256: str | None = None
    cost: tuple[int, int, int] | None = None

    @property
    def full_name(self) -> str:
        """The name with its tag: "oct_resnet50_a0.25.fb_in1k"."""
        return f"{self.name}.{self.tag}"

    @property
    def alpha(self) -> float:
        """The low share of the channels, which the name says."""
        return float(self.name.rpartition("_a")[2])

    @property
    def hub_id(self) -> str:
        """The repository on the Hugging Face Hub."""
        return f"octzoo/{self.full_name}"

    @property
    def file_name(self) -> str | None:
        """The published file's own name."""
        return self.url.rsplit("/", 1)[-1] if self.url else None


def packed_folder() -> Path:
    """The checkpoint folders that come with octzoo: packed with it, or those of a source checkout."""
    package = Path(__file__).parents[2]
    packed = package / "checkpoints"
    return packed if packed.is_dir() else package.parent / "checkpoints"


@functools.cache
def records() -> tuple[Record, ...]:
    """Every record, by tag."""
    return (*(record for tag in PUBLISHED for record in _published(tag)), *_ours())


def _published(tag: str) -> list[Record]:
    """What others published under a tag."""
    content = _read(f"{tag}.json")
    common = {key: content[key] for key in ("source", "owner", "licence", "dataset")}
    found = []
    for row in content["weights"]:
        again, full_name = None, f"{row['name']}.{tag}"
        if "remeasured_top1" in row:
            by, how = content["remeasured_by"], content["remeasured_how"]
            again = Accuracy(row["remeasured_top1"], row["remeasured_top5"], by, how)
        found.append(
            Record(
                name=row["name"],
                tag=content["tag"],
                url=row["url"],
                sha256=row.get("sha256"),
                size=row.get("bytes"),
                cfg=evaluation(row["evaluation"]),
                by_hand=f"{content['by_hand']}, then `octzoo import FILE --name {full_name} --out DIR`",
                accuracy=Accuracy(row["top1"], row["top5"], content["measured_by"], content["measured_how"]),
                remeasured=again,
                **common,
            )
        )
    return found


def _ours() -> list[Record]:
    """What octzoo trained: the folders that come with it."""
    found = []
    for tag in OURS:
        for folder in sorted(packed_folder().glob(f"*.{tag}")):
            try:
                found.append(_of_folder(folder))
            except (OSError, ValueError, KeyError, TypeError) as problem:  # the other networks are of use without it
                what = f"{type(problem).__name__}: {problem}"
                _logger.warning("%s is damaged, and left out (%s): remove it, or install octzoo anew", folder, what)
    return found


def _of_folder(folder: Path) -> Record:
    config, metrics = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (CONFIG, METRICS))
    cfg = {key: value for key, value in config["pretrained_cfg"].items() if key in _CFG}
    measured = f"octzoo pack, {metrics['split']} split, {metrics['pictures']:,} pictures"
    return Record(
        name=f"{metrics['network']}_a{metrics['alpha']}",
        tag=metrics["tag"],
        url=None,
        sha256=None,
        size=None,
        cfg={key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()},
        source=OUR_SOURCE,
        owner=metrics["owner"],
        licence=metrics["licence"],
        dataset=metrics["dataset"],
        by_hand=f"`octzoo pull {folder.name} --out DIR`",
        accuracy=Accuracy(100 * metrics["top1"], 100 * metrics["top5"], "octzoo", measured),
        remeasured=None,
        model_sha256=config[CHECKSUM],
        cost=(metrics["image_size"], metrics["macs"], metrics["plain_macs"]),
    )


@functools.cache
def unreleased() -> dict[str, Accuracy]:
    """Full name -> accuracy of plain networks reported beside the octave ones, their weights not published."""
    contents = [_read(f"{tag}.json") for tag in PUBLISHED]
    return {
        f"{row['name']}.{c['tag']}": Accuracy(row["top1"], row["top5"], c["measured_by"], c["measured_how"])
        for c in contents
        for row in c["unreleased"]
    }


def find(name: str) -> Record | None:
    """The record of "oct_resnet50_a0.25.fb_in1k", or of the default tag of "oct_resnet50_a0.25"; None without one."""
    return published(name) or next((r for r in records() if r.name == name and r.tag in DEFAULTS), None)


def published(full_name: str) -> Record | None:
    """The record of exactly this name and tag; None without one."""
    return next((record for record in records() if record.full_name == full_name), None)


def evaluation(kind: str) -> dict[str, Any]:
    """How pictures are prepared, as fields of timm's pretrained cfg: mean and std for 0 to 1, interpolation, crop.

    ``kind`` is a row of evaluation.json: "symbol" or "gluon" (the authors' two code bases), "torchvision" (d-li14).
    """
    row = _read("evaluation.json")[kind]
    std = row.get("rgb_std") or [1 / row["scale"]] * 3
    return {
        "mean": tuple(round(v / 255, 10) for v in row["rgb_mean"]),
        "std": tuple(round(v / 255, 10) for v in std),
        "interpolation": row["interpolation"],
        "crop_pct": row["crop_pct"],
    }


@functools.cache
def _read(name: str) -> dict[str, Any]:
    return json.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))
