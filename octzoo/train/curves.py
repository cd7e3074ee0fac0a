"""The course of a run, from its metrics.csv: the curves' picture and the best epoch."""

import csv
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Series = list[tuple[int, float]]  # (epoch, value), in order of the epochs


def read_metrics(path: Path) -> dict[str, Series]:
    """Each column of a CSVLogger's file by epoch, empty cells left out; the last value where an epoch has several."""
    series: dict[str, dict[int, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value not in ("", None) and name not in ("epoch", "step") and row["epoch"]:
                    series.setdefault(name, {})[int(row["epoch"])] = float(value)
    return {name: sorted(values.items()) for name, values in series.items()}


def draw_curves(metrics: dict[str, Series], title: str, path: Path) -> None:
    """Loss and top-1 over the epochs, side by side, as a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    loss, top1 = figure.subplots(1, 2)
    _panel(loss, metrics, {"train/loss": "training", "val/loss": "validation"}, "loss (cross-entropy)")
    percent = {"val/top1": [(epoch, 100 * value) for epoch, value in metrics.get("val/top1", [])]}
    _panel(top1, percent, {"val/top1": "validation"}, "validation top-1 (%)")
    figure.savefig(path, dpi=120)


def _panel(axes, metrics: dict[str, Series], names: dict[str, str], label: str) -> None:
    for name, legend in names.items():
        if metrics.get(name):
            epochs, values = zip(*metrics[name], strict=True)
            axes.plot(epochs, values, marker="o", markersize=3, label=legend)
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend()
