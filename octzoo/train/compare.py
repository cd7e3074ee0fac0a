"""Several runs in one picture."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from octzoo.train.curves import label_panels, line, percent
from octzoo.train.metrics import by_epoch, run_rows
from octzoo.train.pictures import replace_picture


def labels(runs: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart, two parts at least: digits/0, digits/1."""
    parts = [run.resolve().parts for run in runs]
    for length in range(2, max(map(len, parts), default=2)):
        ends = ["/".join(p[-length:]) for p in parts]
        if len(set(ends)) == len(set(parts)):
            return ends
    return [str(run) for run in runs]


def draw_comparison(runs: list[Path], path: Path) -> None:
    """Loss (validation's; training's thin and dotted) and top-1 over the epochs, a colour for each run, as a PNG."""
    figure = Figure(figsize=(11, 4.4 + 0.22 * math.ceil((len(runs) + 1) / 3)), layout="constrained")
    loss, top1 = figure.subplots(1, 2)
    for i, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        metrics, colour = by_epoch(run_rows(run)), f"C{i % 10}"
        style = ("-", "--", "-.")[i // 10 % 3]
        line(loss, metrics.get("train/loss", []), color=colour, linestyle=":", linewidth=1, marker=None)
        line(loss, metrics.get("val/loss", []), color=colour, linestyle=style)
        line(top1, percent(metrics.get("val/top1", [])), color=colour, linestyle=style)
        loss.plot([], [], color=colour, linestyle=style, label=label)
    loss.plot([], [], color="grey", linestyle=":", linewidth=1, label="training loss of the same colour")
    label_panels(loss, top1)
    handles, names = loss.get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    replace_picture(path, figure)
