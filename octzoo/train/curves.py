"""The course of a run as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from octzoo.train.metrics import Series, read_metrics
from octzoo.train.pictures import replace_picture

__all__ = ["draw_curves", "label_panels", "line", "percent", "read_metrics"]


def draw_curves(metrics: dict[str, Series], title: str, path: Path) -> None:
    """Loss and top-1 over the epochs, side by side, as a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title, parse_math=False)
    loss, top1 = figure.subplots(1, 2)
    for name, legend in {"train/loss": "training", "val/loss": "validation"}.items():
        line(loss, metrics.get(name, []), label=legend)
    line(top1, percent(metrics.get("val/top1", [])), label="validation")
    label_panels(loss, top1)
    if len(loss.lines) > 1:
        loss.legend()
    replace_picture(path, figure)


def percent(series: Series) -> Series:
    """The same in percent."""
    return [(epoch, 100 * value) for epoch, value in series]


def line(axes: Axes, series: Series, **style: Any) -> None:
    """One line; nothing where there are no values. Few points are marked, many would hide the line."""
    if series:
        epochs, values = zip(*series, strict=True)
        axes.plot(epochs, values, **{"marker": "o" if len(series) <= 40 else None, "markersize": 3, **style})


def label_panels(loss: Axes, top1: Axes) -> None:
    """What the two panels show."""
    for axes, label in ((loss, "loss"), (top1, "validation top-1 (%)")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
