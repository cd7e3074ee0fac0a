"""What tables and cards tell of a network: its stages beside the ordinary network's, and its other alphas."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from octzoo.errors import UserError
from octzoo.models.catalogue import catalogue
from octzoo.summary import Stage, stages
from octzoo.weights.card import Sibling, sibling
from octzoo.weights.folder import METRICS
from octzoo.weights.names import parse
from octzoo.weights.records import Record, published, unreleased

PICTURES = ("dataset", "split", "pictures", "image_size")  # of metrics.json: what figures are to be compared on
COLUMNS = ["stage", "convs", "octave", "high", "low", "params M", "MACs M", "ratio", "acts M", "ratio"]


def network_of(config: Mapping[str, Any]) -> Any:
    """The network that a config.json describes, without weights, on the meta device."""
    size, classes = config["pretrained_cfg"]["input_size"], config["num_classes"]
    return _on_meta(config["architecture"], size, classes, config["model_args"]["alpha"])


def plan_table(model: Any, image_size: int | None = None) -> list[list[str]]:
    """A network stage by stage, as `octzoo info` prints it: the head, one row a stage, and the sums.

    Args:
        model: a timm network made with ``device="meta"``; one without octaves is its own ordinary network.
        image_size: height and width of the picture; None: the network's own.
    """
    ours = theirs = stages(model, image_size)
    if hasattr(model, "octave_alpha"):
        network = model.pretrained_cfg["architecture"].removesuffix("_a0")
        theirs = stages(_on_meta(network, model.pretrained_cfg["input_size"], model.num_classes, 0.0), image_size)
    rows = []
    for a, b in zip(ours, theirs):
        shapes = ["x".join(map(str, a.high)), "x".join(map(str, a.low or ()))]
        rows.append([a.name, *(str(n) if n else "" for n in a.convolutions), *shapes, *_costs([a], [b])])
    convolutions = [str(sum(stage.convolutions[i] for stage in ours)) for i in (0, 1)]
    return [COLUMNS, *rows, ["all", *convolutions, "", "", *_costs(ours, theirs)]]


def family(
    full_name: str,
    folders: Path | None,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> list[Sibling]:
    """A network at every alpha that has a name, and at its own: with the accuracy of the same tag, where it is known.

    Args:
        full_name: "oct_resnet50_a0.25.fb_in1k".
        folders: where checkpoint folders are; their metrics.json are read.
        config: config.json of ``full_name``, where its pictures or classes are not the network's own: what
            multiply-accumulates are counted for.
        metrics: metrics.json of ``full_name``; figures on other pictures than these are left out.

    Raises:
        UserError: a metrics.json is damaged.
    """
    name = parse(full_name)
    network, tag = name.network, name.tag
    entries = [entry for entry in catalogue() if entry.network == network]
    usual = {e.alpha: (e.macs, e.plain_macs) for e in entries if not ((r := published(e.name)) and r.cost)}
    measured = {row.alpha: row for row in _measured(network, tag, folders, metrics)}
    shape = (tuple(config["pretrained_cfg"]["input_size"]), config["num_classes"]) if config else (None, None)

    def costs(alpha: float, record: Record | None) -> tuple[int, int]:
        if record and record.cost:
            return record.cost[1:]
        if config is None and alpha in usual:
            return usual[alpha]
        return _macs(network, *shape, alpha), _macs(network, *shape, 0.0)

    def row(alpha: float) -> Sibling:
        if alpha in measured:
            return measured[alpha]
        untagged = f"{network}_a{alpha}"
        tagged = f"{untagged}.{tag}"
        record = published(tagged)
        reported = record.accuracy if record else unreleased().get(tagged)
        known = (reported.top1, (), reported.measured_by) if reported else ()
        return Sibling(tagged if record or tagged == full_name else untagged, alpha, *costs(alpha, record), *known)

    return [row(alpha) for alpha in sorted({*(e.alpha for e in entries), *measured, name.alpha})]


def _measured(network: str, tag: str, folders: Path | None, like: Mapping[str, Any] | None) -> list[Sibling]:
    """What the folders' metrics say of a network with a tag, on the same pictures as ``like``."""
    found = []
    for path in sorted(folders.glob(f"{network}_a0.*.{tag}/{METRICS}")) if folders else []:
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            same = like is None or all(metrics[key] == like[key] for key in PICTURES)
            if same and (metrics["network"], metrics["tag"]) == (network, tag):
                found.append(sibling(metrics))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise UserError(
                f"{path} is damaged ({type(problem).__name__}: {problem}): remove or replace it"
            ) from problem
    return found


@functools.cache
def _macs(network: str, size: Sequence[int] | None, classes: int | None, alpha: float) -> int:
    return sum(stage.macs for stage in stages(_on_meta(network, size, classes, alpha)))


def _on_meta(name: str, size: Sequence[int] | None, classes: int | None, alpha: float) -> nn.Module:
    """A network, at its own size and classes where they are None."""
    other: dict[str, Any] = {} if classes is None else dict(num_classes=classes)
    if size is not None:
        other |= dict(in_chans=size[0], pretrained_cfg_overlay=dict(input_size=tuple(size)))
    return timm.create_model(name, alpha=alpha, device="meta", **other)


def _costs(ours: Sequence[Stage], theirs: Sequence[Stage]) -> list[str]:
    """Parameters, MACs and activations of some stages, the latter two also as a share of the ordinary network's."""
    macs, plain_macs = (sum(s.macs for s in found) for found in (ours, theirs))
    activations, plain_activations = (sum(s.activations for s in found) for found in (ours, theirs))
    return [
        f"{sum(s.parameters for s in ours) / 1e6:.3f}",
        f"{macs / 1e6:,.1f}",
        f"{macs / plain_macs:.2f}" if plain_macs else "",
        f"{activations / 1e6:.2f}",
        f"{activations / plain_activations:.2f}" if plain_activations else "",
    ]
