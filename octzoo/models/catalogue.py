"""Every registered network at every alpha as a table: its cost, its weights, how good they are and who says so.

networks.json beside this file holds the counts, which ``docs/make_tables.py`` makes; weights come from the records.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import NamedTuple

from octzoo.weights.records import Accuracy, records, unreleased


class Entry(NamedTuple):
    """One row.

    Attributes:
        name: what timm.create_model takes, with the tag where there are weights.
        network: the name without alpha.
        alpha: the low share of the channels.
        size: height and width of the pictures that it is for, in pixels.
        parameters: how many, the same at every alpha.
        macs: multiply-accumulates of convolutions and linear layers for one picture.
        plain_macs: those of the ordinary network.
        weights: where they come from; None where there are none.
        accuracy: on the dataset, and whose measurement; also of networks whose weights were not published.
        dataset: what the weights were trained on.
    """

    name: str
    network: str
    alpha: float
    size: int
    parameters: int
    macs: int
    plain_macs: int
    weights: str | None
    accuracy: Accuracy | None
    dataset: str | None


@functools.cache
def catalogue() -> tuple[Entry, ...]:
    """All rows, by network, alpha and tag."""
    entries: list[Entry] = []
    for counted in json.loads(files(__package__).joinpath("networks.json").read_text(encoding="utf-8")):
        network, macs = counted["name"], {float(alpha): n for alpha, n in counted["macs"].items()}
        for alpha, count in macs.items():
            name = f"{network}_a{alpha}"
            usual = (counted["size"], count, macs[0.0])
            published = [r for r in records() if r.name == name]
            for r in published:
                size, *cost = r.cost or usual
                row = [r.full_name, network, alpha, size, counted["parameters"], *cost, r.source, r.accuracy, r.dataset]
                entries.append(Entry._make(row))
            if not published:
                reported = [accuracy for full, accuracy in unreleased().items() if full.startswith(f"{name}.")]
                size, *cost = usual
                told = (reported[0], "imagenet-1k") if reported else (None, None)
                entries.append(Entry._make([name, network, alpha, size, counted["parameters"], *cost, None, *told]))
    return tuple(entries)
