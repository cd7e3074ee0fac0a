"""An adaptation as a picture: each layer's error before and after, and the agreement step by step."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octzoo.adaptation.report import Report

BEFORE, AFTER, LOSS = "#D55E00", "#0072B2", "#009E73"


def draw(report: Report, name: str) -> bytes:
    """A PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle(f"{name}, alpha {report.alpha:g}: {report.macs:.1%} of the multiply-accumulates", parse_math=False)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.3, 1))
    layers = figure.add_subplot(grid[0, :])
    numbers = range(len(report.layers))
    for values, color, label in (
        ([row.before for row in report.layers], BEFORE, "with the plain weights"),
        ([row.after for row in report.layers], AFTER, "refitted"),
    ):
        layers.plot(numbers, [max(v, 1e-4) for v in values], "o-", ms=3, lw=1, color=color, label=label)
    layers.set_yscale("log")
    layers.set_xlabel("output parts of the layers, in order of execution")
    layers.set_ylabel("missed share of the variance\nof what it is to give")
    layers.legend(frameon=False)
    steps = figure.add_subplot(grid[1, 0])
    bars = steps.bar(
        list(report.agreement), [100 * share for share in report.agreement.values()], color=AFTER, width=0.5
    )
    steps.bar_label(bars, fmt="%.1f %%")
    steps.set_ylim(0, 110)
    steps.set_ylabel(f"same class as plain,\n% of {report.pictures[1]} pictures")
    losses = figure.add_subplot(grid[1, 1])
    losses.plot(range(1, len(report.losses) + 1), report.losses, color=LOSS)
    losses.set_xlabel("epoch of distillation")
    losses.set_ylabel("loss")
    for axes in (layers, steps, losses):
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()
