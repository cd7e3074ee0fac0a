"""What was measured of networks that were run in turns, and what it says beside a peer and the arithmetic."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from octzoo.errors import UserError
from octzoo.weights.folder import replace_file

COLUMNS = [
    *["engine", "batch", "network", "ms", "quartiles", "pictures/s", "time/peer", "quartiles", "MACs/peer"],
    *["above MACs", "peak MiB", "peak/peer", "ready s", "ready/peer"],
]


@dataclass(frozen=True)
class Measured:
    """One network in one engine at one batch size, measured in turns with its peer.

    Attributes:
        network: its name.
        peer: the name of the network that it is compared with; its own if it is that.
        mode: the engine.
        train: whether a training step was measured, or inference.
        batch: pictures in one.
        size: of a picture, (C, H, W).
        macs: multiply-accumulates for one picture, forward.
        seconds: a batch, one value a round; round i was run within seconds of the peer's round i.
        ready_seconds: from the network as the engine gets it to its first batch.
        held_bytes: weights, and in training momentum; None where PyTorch cannot tell.
        peak_bytes: what one batch takes on top of them, at most; None likewise.
    """

    network: str
    peer: str
    mode: str
    train: bool
    batch: int
    size: tuple[int, int, int]
    macs: int
    seconds: tuple[float, ...]
    ready_seconds: float
    held_bytes: int | None
    peak_bytes: int | None

    @property
    def engine(self) -> str:
        """For a reader: "compile", "compile, training"."""
        return f"{self.mode}, training" if self.train else self.mode

    @property
    def memory(self) -> int | None:
        """Bytes of tensors at the peak, weights included."""
        return None if self.held_bytes is None or self.peak_bytes is None else self.held_bytes + self.peak_bytes


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A network beside its peer in the same engine at the same batch size.

    Attributes:
        measured: of the network.
        seconds: a batch.
        time: of the peer's, round by round.
        macs: of the peer's.
        memory: at the peak, of the peer's; None where it is not known.
        ready: time to the first batch, of the peer's.
    """

    measured: Measured
    seconds: Spread
    time: Spread
    macs: float
    memory: float | None
    ready: float

    @property
    def pictures_per_second(self) -> float:
        return self.measured.batch / self.seconds.median

    @property
    def above(self) -> float:
        """How far the time is above the arithmetic, both of the peer's: 0 is all that was saved."""
        return self.time.median - self.macs


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (between the values where they fall there); of one value thrice itself."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def compare(results: Sequence[Measured]) -> list[Comparison]:
    """Every network beside its peer, in the order measured; the peer itself has 1 everywhere."""
    found = {(m.network, m.mode, m.train, m.batch, m.size): m for m in results}
    return [beside(m, found[m.peer, m.mode, m.train, m.batch, m.size]) for m in results]


def beside(one: Measured, peer: Measured) -> Comparison:
    """One network beside one other."""
    time = spread([a / b for a, b in zip(one.seconds, peer.seconds)])
    memory = one.memory / peer.memory if one.memory is not None and peer.memory is not None else None
    ready = one.ready_seconds / peer.ready_seconds
    return Comparison(one, spread(one.seconds), time, one.macs / peer.macs, memory, ready)


def rows(comparisons: Iterable[Comparison]) -> list[list[str]]:
    """The cells of a table with COLUMNS."""
    return [_row(c) for c in comparisons]


def _row(c: Comparison) -> list[str]:
    m = c.measured
    beside_peer = m.network != m.peer
    ms = [1000 * value for value in c.seconds]
    return [
        *[m.engine, str(m.batch), m.network],
        *[figures(ms[0]), f"{figures(ms[1])} to {figures(ms[2])}", figures(c.pictures_per_second)],
        *([f"{c.time.median:.2f}", f"{c.time.low:.2f} to {c.time.high:.2f}"] if beside_peer else ["", ""]),
        *([f"{c.macs:.2f}", f"{c.above:+.2f}"] if beside_peer else ["", ""]),
        f"{m.memory / 2**20:.1f}" if m.memory is not None else "",
        f"{c.memory:.2f}" if beside_peer and c.memory is not None else "",
        f"{m.ready_seconds:.2f}",
        f"{c.ready:.2f}" if beside_peer else "",
    ]


def figures(value: float) -> str:
    """Three figures, or all before the point."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f}"


def write(path: Path, facts: Mapping[str, Any], results: Iterable[Measured]) -> None:
    """Write a file, wholly or not at all: ``facts`` (where, how, by which command), and the results."""
    content = {**facts, "results": [dataclasses.asdict(m) for m in results]}
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path) -> tuple[dict[str, Any], list[Measured]]:
    """What ``write`` wrote. UserError for another file."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = [{**m, "size": tuple(m["size"]), "seconds": tuple(m["seconds"])} for m in facts.pop("results")]
        return facts, [Measured(**m) for m in found]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UserError(
            f"{path} is not a file of `octzoo bench model` ({type(problem).__name__}: {problem}): measure again"
        ) from problem
