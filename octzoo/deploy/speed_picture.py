"""Time against arithmetic as a picture, both beside the peer: who saves what the multiply-accumulates promise."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octzoo.deploy.speed import Comparison
from octzoo.weights.folder import replace_file

# Colours that colour-blind readers tell apart (Okabe and Ito), and marks for those who print in grey.
STYLES = {
    "eager": dict(color="#D55E00", marker="o"),
    "fused": dict(color="#E69F00", marker="s"),
    "compile": dict(color="#009E73", marker="^"),
    "onnx": dict(color="#56B4E9", marker="D"),
    "openvino": dict(color="#0072B2", marker="v"),
}
GREY = "#555555"


def points(comparisons: Sequence[Comparison]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """What the picture shows: panel -> engine -> network -> [MACs, time, its quartiles], of the peer's; ends at it."""
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    for c in comparisons:
        m = c.measured
        what = "training step" if m.train else "inference"
        panel = f"{what}, batch {m.batch}, {m.size[1]}x{m.size[2]}; peer: {m.peer}"
        values = [c.macs, c.time.median, c.time.low, c.time.high]
        panels.setdefault(panel, {}).setdefault(m.mode, {})[m.network] = [round(value, 4) for value in values]
    return panels


def draw(comparisons: Sequence[Comparison], path: Path, title: str) -> None:
    """A PNG with one panel a peer, batch size and task, one line an engine; what it shows stands in it as JSON."""
    from matplotlib.figure import Figure

    panels = points(comparisons)
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.6 * columns + 1.2, 4.9 * lines + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10.5, parse_math=False)
    found = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, (panel, engines) in zip(found, panels.items()):
        _draw_panel(axes, panel, engines)
    for axes in found[len(panels) :]:
        axes.axis("off")
    handles = {label: h for axes in found for h, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8.5, frameon=False)
    content = io.BytesIO()
    description = {"Description": json.dumps(panels), "Software": None}
    figure.savefig(content, format="png", dpi=110, metadata=description)
    replace_file(path, content.getvalue())


def _draw_panel(axes: Any, panel: str, engines: dict[str, dict[str, list[float]]]) -> None:
    every = [values for networks in engines.values() for values in networks.values()]
    left, right = min(macs for macs, *_ in every) - 0.05, max(macs for macs, *_ in every) + 0.05
    bottom = min(left, *(below for _, _, below, _ in every)) - 0.03
    top = max(right, *(above for *_, above in every)) + 0.03
    axes.plot([left, right], [left, right], "--", color=GREY, linewidth=1.2, label="as the arithmetic")
    axes.axhline(1, color=GREY, linewidth=0.8)
    for i, (mode, networks) in enumerate(engines.items()):
        x, y, below, above = zip(*sorted(networks.values()))
        bars = [[at - b for at, b in zip(y, below)], [a - at for at, a in zip(y, above)]]
        aside = (i - (len(engines) - 1) / 2) * 0.007 * (right - left)  # or the bars would hide each other
        axes.errorbar(
            [at + aside for at in x],
            y,
            bars,
            capsize=2,
            elinewidth=1,
            markersize=5,
            linewidth=1.2,
            label=mode,
            **STYLES[mode],
        )
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_xlabel("multiply-accumulates, of the peer's")
    axes.set_ylabel("time, of the peer's: median and quartiles")
    axes.set_title(panel, fontsize=9.5, parse_math=False)
    axes.grid(alpha=0.25)
    macs = {network: values[0] for networks in engines.values() for network, values in networks.items()}
    names = axes.secondary_xaxis("top")
    names.set_xticks(list(macs.values()), list(macs), rotation=20, ha="left", fontsize=7.5, color=GREY)
    for at in macs.values():
        axes.axvline(at, color=GREY, linewidth=0.5, linestyle=":")
