"""One record a published weight file: where it is, whose it is, how good it is and who measured that.

The JSON files beside this one hold the records, one file a tag. Tables in README, docs and cards are made from them,
and timm's pretrained cfgs too, so that every number is typed once.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

# In this order: the first that a name has is its default tag. Once published it stays that, so append only.
TAGS = ("fb_in1k", "dli14_in1k")


@dataclass(frozen=True)
class Accuracy:
    """ImageNet-1k accuracy in percent, as ``measured_by`` reports it, and how."""

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
        evaluation: which row of evaluation.json prepares the pictures.
        source, owner, licence, dataset: whose it is, under which licence (as the Hub spells it), trained on what.
        by_hand: how to get the file without us.
        accuracy: as reported by whoever trained it.
        remeasured: by somebody else, where known.
    """

    name: str
    tag: str
    url: str | None
    sha256: str | None
    size: int | None
    evaluation: str
    source: str
    owner: str
    licence: str
    dataset: str
    by_hand: str
    accuracy: Accuracy
    remeasured: Accuracy | None

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


@functools.cache
def records() -> tuple[Record, ...]:
    """Every record, by tag."""
    found = []
    for tag in TAGS:
        content = _read(f"{tag}.json")
        common = {key: content[key] for key in ("source", "owner", "licence", "dataset", "by_hand")}
        for row in content["weights"]:
            again = None
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
                    evaluation=row["evaluation"],
                    accuracy=Accuracy(row["top1"], row["top5"], content["measured_by"], content["measured_how"]),
                    remeasured=again,
                    **common,
                )
            )
    return tuple(found)


@functools.cache
def unreleased() -> dict[str, Accuracy]:
    """Full name -> accuracy of plain networks reported beside the octave ones, their weights not published."""
    contents = [_read(f"{tag}.json") for tag in TAGS]
    return {
        f"{row['name']}.{c['tag']}": Accuracy(row["top1"], row["top5"], c["measured_by"], c["measured_how"])
        for c in contents
        for row in c["unreleased"]
    }


def find(name: str) -> Record | None:
    """The record of "oct_resnet50_a0.25.fb_in1k", or of the default tag of "oct_resnet50_a0.25"; None without one."""
    return next((record for record in records() if name in (record.name, record.full_name)), None)


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
