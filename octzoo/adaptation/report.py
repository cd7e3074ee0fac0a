"""What an adaptation did, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from octzoo.plan import Row


class Refitted(NamedTuple):
    """What became of one output part of a layer.

    Attributes:
        name: of the layer.
        part: "high" or "low".
        before: the share that it misses of the variance of what it is to give, on pictures that chose how strong the
            pull to the old weights is: of the plain output, with what the trunk has lost where a residual connection
            follows.
        after: the same, refitted.
    """

    name: str
    part: str
    before: float
    after: float


@dataclass
class Report:
    """What was done.

    Attributes:
        alpha: the low share of the channels.
        plan: which layers became octave layers.
        macs: multiply-accumulates, as a share of the plain network's.
        pictures: how many were learnt from, and how many the agreement was measured on.
        seed: of the pixels that were looked at, and of the crops.
        agreement: step -> the share of the latter whose likeliest class is the plain network's.
        layers: what refitting left of each layer's error.
        losses: of each epoch of distillation.
        seconds: step -> how long it took.
    """

    alpha: float
    plan: tuple[Row, ...]
    macs: float
    pictures: tuple[int, int]
    seed: int
    agreement: dict[str, float] = field(default_factory=dict)
    layers: list[Refitted] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def took(self, step: str, start: float) -> None:
        """Add the time since ``start``, of ``time.monotonic``, to that of a step."""
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - start

    def as_json(self) -> dict[str, Any]:
        """Of lists, numbers and texts."""
        plan, layers = [list(row) for row in self.plan], [list(row) for row in self.layers]
        return {**asdict(self), "plan": plan, "layers": layers, "pictures": list(self.pictures)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Report:
        """The inverse of ``as_json``."""
        learnt, measured = found["pictures"]
        plan, layers = tuple(Row(*row) for row in found["plan"]), [Refitted(*row) for row in found["layers"]]
        return cls(**{**found, "plan": plan, "layers": layers, "pictures": (learnt, measured)})
