"""An adapted network as a checkpoint folder: weights, config.json, card, the report and a picture of it."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from octzoo.adaptation.picture import draw
from octzoo.adaptation.report import Report
from octzoo.models.oct_any import NAME
from octzoo.weights.card import markdown
from octzoo.weights.folder import PICTURE, REPORT, make_config, write_folder
from octzoo.weights.golden import GOLDEN, golden_logits

Times = dict[str, dict[str, list[float]]]  # engine and batch -> "plain" or "octave" -> milliseconds, one a round


def write(
    folder: Path, octave: nn.Module, name: str, report: Report, milliseconds: Times, facts: dict[str, Any]
) -> None:
    """Write the folder, wholly or not at all.

    Args:
        folder: a new one.
        octave: the network.
        name: what timm.create_model takes, of the plain one.
        report: of ``adapt``.
        milliseconds: of one batch, of both networks measured in turns.
        facts: what else to keep with it: where and how it was made.
    """
    config = config_of(octave, name, report)
    found = {"network": name, **report.as_json(), "milliseconds": milliseconds, **facts}
    more: dict[str, str | bytes] = {REPORT: json.dumps(found, indent=1) + "\n", PICTURE: draw(report, name)}
    write_folder(folder, octave.state_dict(), config, card(folder.name, name, report, milliseconds), more)


def config_of(octave: Any, name: str, report: Report) -> dict[str, Any]:
    """config.json, by which timm builds the network again."""
    cfg = {**octave.pretrained_cfg, "architecture": NAME}
    described = SimpleNamespace(pretrained_cfg=cfg, num_classes=octave.num_classes, num_features=octave.num_features)
    digits = f"{report.alpha:.6f}".split(".")[1].rstrip("0")
    config = make_config(described, report.alpha, f"{digits}.{name}", None)
    plan = [list(row) for row in report.plan]
    config["architecture"] = NAME  # alone: it has no tags for alphas
    config["model_args"] = {"network": name, "alpha": report.alpha, "plan": plan}
    config[GOLDEN] = golden_logits(octave, config["pretrained_cfg"]["input_size"])
    return config


def time_rows(milliseconds: Times) -> list[list[str]]:
    """Engine and batch, medians of the plain and the octave network, and the median of one beside the other."""
    rows = []
    for engine, found in milliseconds.items():
        plain, octave = found["plain"], found["octave"]
        ratio = statistics.median(ours / theirs for ours, theirs in zip(octave, plain))
        rows.append([engine, f"{statistics.median(plain):.1f}", f"{statistics.median(octave):.1f}", f"{ratio:.2f}"])
    return rows


def card(title: str, name: str, report: Report, milliseconds: Times) -> str:
    """README.md."""
    learnt, measured = report.pictures
    rows = [[step, f"{share:.1%}"] for step, share in report.agreement.items()]
    return f"""---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, octzoo, octave-convolution]
---

# {title}

`{name}` with octave convolutions ([Drop an Octave](https://arxiv.org/abs/1904.05049)): {report.alpha:g} of the channels
of its octave layers are at half the resolution, which leaves {report.macs:.1%} of the multiply-accumulates. Made of the
trained plain network by `octzoo octavize`, on {learnt} pictures without labels.

```python
import octzoo, timm

model = timm.create_model("local-dir:.", pretrained=True)
```

How often its likeliest class is the plain network's, on {measured} other pictures of the same place:

{markdown(["after", "agrees"], ["---", "--:"], rows)}

![What each step left of the difference]({PICTURE})

Milliseconds of one batch on the machine where it was made, medians, measured in turns:

{markdown(["engine", "plain", "octave", "of plain"], ["---", "--:", "--:", "--:"], time_rows(milliseconds))}

All figures are in `{REPORT}`. The accuracy on labelled pictures was not measured. It may be fine-tuned like any network
of timm.
"""
