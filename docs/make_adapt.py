"""Write what octavizing was measured to cost: ``python docs/make_adapt.py``

Reads docs/adapt/*.json, which docs/measure_adapt.py and docs/measure_adapt_cifar.py wrote; writes the parts between the
markers of docs/adapt.md, and a picture of each. ``--check`` writes nothing and fails if one of these is not what the
files say. ``--docs DIR`` takes the place of docs/.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from generated import between, shown_by
from matplotlib.figure import Figure

from octzoo.weights.card import markdown

END = "<!-- end -->"
STEPS = {"as it is": "as it is", "refitted": "refitted", "distilled": "refitted and distilled"}
ONE_BY_ONE = {
    "default plan, as it is": "as it is",
    "the same, norms measured again": "batch norms' statistics measured again",
    "the same, smooth channels low": "as it is, the channels low that lose least",
    "plain order, refitted": "refitted, the channels low that come last",
    "the same, refitted": "refitted, those low that lose least",
    "the same, residual connections regarded": "the same, residual connections regarded",
}
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8C564B", "#9467BD"]
MARKS = "os^Dvp*Xh"
TIMES = (
    "The last columns are times of one batch, of the plain network's (above 1 is slower), medians of rounds measured "
    "in turns: arithmetic saved is not yet time saved."
)
Facts = dict[str, Any]
Lines = dict[str, list[list[float]]]  # what a picture shows: a line's name -> its points


# ---- a real pretrained network -------------------------------------------------------------------------------------


def curves(facts: Facts) -> Lines:
    """Top-1 in % against the share of the multiply-accumulates."""
    found: Lines = {}
    for point in sorted(facts["points"], key=lambda p: p["macs"]):
        method = point["method"]
        label = f"planned: {STEPS[method]}" if method in STEPS else f"one alpha: {ONE_BY_ONE[method]}"
        found.setdefault(label, []).append([round(point["macs"], 4), round(100 * point["top1"], 2)])
    order = [*(f"planned: {s}" for s in reversed(STEPS.values())), *(f"one alpha: {s}" for s in ONE_BY_ONE.values())]
    whole = [1.0, round(100 * facts["plain"], 2)]
    return {label: [*found[label], whole] for label in order if label in found}


def pretrained(facts: Facts) -> str:
    """The table of budgets, that of the steps, and the picture."""
    learnt, measured = facts["pictures"]
    return "\n\n".join(
        [
            f"`{facts['network']}` with its published weights has {facts['plain']:.1%} top-1 on {measured} pictures of "
            f"ImageNet's classes. It was octavized on {learnt} others, without their labels, with "
            f"`--macs R --epochs {facts['epochs']}`:",
            budgets(facts),
            *([TIMES] if "milliseconds" in facts else []),
            f"![Top-1 against multiply-accumulates](img/adapt_{facts['network']}.png)",
            *one_by_one(facts),
            f"Ours, on {facts['cpu']}, {facts['cpus']} cores, {facts['threads']} threads, torch "
            f"{facts['packages']['torch']}, timm {facts['packages']['timm']}; `{facts['command']}`. The pictures are "
            "drawn from ImageNet's training set, so these figures compare networks; they are no ImageNet accuracy.",
        ]
    )


def budgets(facts: Facts) -> str:
    """One row a budget: top-1 after each step, what it took, the time beside the plain network's."""
    points = {(p["method"], p["key"]): p for p in facts["points"] if p["method"] in STEPS}
    times = facts.get("milliseconds", {})
    rows = []
    for budget in sorted({key for _, key in points}, reverse=True):
        last = points.get(("distilled", budget))
        if last is None:
            continue
        top1 = [f"{100 * points[step, budget]['top1']:.1f}" for step in STEPS]
        minutes = sum(last["seconds"].values()) / 60
        speed = [f"{beside(found, budget):.2f}" for found in times.values()]
        alpha = f"{last['alpha']:g}"
        rows.append(
            [f"{last['macs']:.3f}", alpha, *top1[:-1], f"**{top1[-1]}**", f"{100 * last['agreement']:.1f}"]
            + [f"{minutes:.0f}", *speed]
        )
    head = ["MACs", "alpha", *STEPS.values(), "agrees with plain, %", "minutes", *times]
    return markdown(head, ["--:"] * len(head), rows)


def beside(found: dict[str, list[float]], budget: float) -> float:
    """The time of the adapted network, of the plain one's, round by round."""
    return median(a / b for a, b in zip(found[f"{budget:g}"], found["plain"]))


def one_by_one(facts: Facts) -> list[str]:
    """What each step is worth where one alpha is in all octave layers, if that was measured."""
    points = {(p["method"], p["key"]): p for p in facts["points"] if p["method"] in ONE_BY_ONE}
    if not points:
        return []
    alphas = sorted({key for _, key in points})
    macs = {key: f"{p['macs']:.3f}" for (_, key), p in points.items()}
    rows = [["multiply-accumulates", *(macs[alpha] for alpha in alphas)]]
    for method, label in ONE_BY_ONE.items():
        found = [points.get((method, alpha)) for alpha in alphas]
        if not any(found):
            continue
        rows.append([label, *(f"{100 * p['top1']:.1f}" if p else "" for p in found)])
    table = markdown(["", *(f"alpha {alpha:g}" for alpha in alphas)], ["---", *["--:"] * len(alphas)], rows)
    return ["The steps one by one, with the default plan and one alpha in all octave layers; top-1, %:", table]


def draw_curves(lines: Lines) -> Figure:
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.subplots()
    for (label, points), colour, mark in zip(lines.items(), cycle(COLOURS), cycle(MARKS)):
        style = "-" if label.startswith("planned") else "--"
        axes.plot(*zip(*points), style, marker=mark, color=colour, label=label, markersize=5, linewidth=1.4)
    axes.set_xlabel("multiply-accumulates, of the plain network's")
    axes.set_ylabel("top-1, %")
    axes.invert_xaxis()
    finish(figure, axes)
    return figure


# ---- CIFAR-10, where training is possible --------------------------------------------------------------------------


def courses(facts: Facts) -> Lines:
    """Top-1 in % against epochs of training."""
    found: Lines = {}
    for run in sorted(facts["runs"], key=lambda r: (r["alpha"], r["method"], r["epochs"])):
        label = f"alpha {run['alpha']:g}, {run['method']}"
        found.setdefault(label, []).append([run["epochs"], round(100 * run["top1"], 2)])
    return {
        **found,
        f"plain: {facts['network']}": [[0, round(100 * facts["plain"], 2)], [15, round(100 * facts["plain"], 2)]],
    }


def cifar10(facts: Facts) -> str:
    """The table and the picture."""
    epochs = sorted({run["epochs"] for run in facts["runs"]})
    rows = []
    for alpha, method in dict.fromkeys((run["alpha"], run["method"]) for run in facts["runs"]):
        found = {r["epochs"]: r for r in facts["runs"] if (r["alpha"], r["method"]) == (alpha, method)}
        rows.append([f"{alpha:g}", method, *(f"{100 * found[k]['top1']:.2f}" if k in found else "" for k in epochs)])
    minutes = [f"{run['seconds'] / 60:.1f}" for run in facts["runs"] if run["epochs"] == 0]
    head = ["alpha", "", *(f"{k} epoch{'' if k == 1 else 's'}" for k in epochs)]
    return "\n\n".join(
        [
            f"`{facts['network']}` has {facts['plain']:.2%} top-1 on JPEG copies of CIFAR-10's test pictures. "
            f"Octavized on {facts['pictures']:,} pictures without labels (`--epochs {facts['distilled']}`, "
            f"{' and '.join(minutes)} minutes) and fine-tuned with `configs/cifar10.yaml` at lr {facts['rate']:g}, "
            "against the octave network trained from scratch with that recipe, its cosine as long "
            "as the training; top-1, %:",
            markdown(head, ["--:", "---", *["--:"] * len(epochs)], rows),
            "![Top-1 against epochs](img/adapt_cifar10.png)",
            f"Ours, one seed each, on {facts['cpu']}, {facts['cpus']} cores; `{facts['command']}`. The figures of "
            f"{epochs[-1]} epochs are those of the [networks trained here](zoo.md).",
        ]
    )


def draw_courses(lines: Lines) -> Figure:
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for (label, points), colour, mark in zip(lines.items(), cycle(COLOURS), cycle(MARKS)):
        plain = label.startswith("plain")
        style = dict(linestyle=":", color="#555555") if plain else dict(marker=mark, color=colour, markersize=5)
        axes.plot(*zip(*points), linewidth=1.4, label=label, **style)
    axes.set_xlabel("epochs of training with labels (the plain network's own, before it, not counted)")
    axes.set_ylabel("top-1, %")
    finish(figure, axes)
    return figure


def finish(figure: Figure, axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8.5, frameon=False)


# ---- all of it -----------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[Facts], str], Callable[[Facts], Lines], Callable[[Lines], Figure]]] = {
    "tf_efficientnet_lite0": (pretrained, curves, draw_curves),
    "cifar10": (cifar10, courses, draw_courses),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(arguments)
    page, stale = options.docs / "adapt.md", []
    text = page.read_text()
    for name, (part, lines, draw) in PARTS.items():
        start = f"<!-- {name}: made by docs/make_adapt.py -->"
        measured = options.docs / "adapt" / f"{name}.json"
        if not measured.is_file():
            text = between(text, start, END, "\nNot measured yet.\n")
            continue
        facts = json.loads(measured.read_text())
        text = between(text, start, END, f"\n{part(facts)}\n")
        picture, shown = options.docs / "img" / f"adapt_{name}.png", json.dumps(lines(facts))
        if shown_by(picture) != shown:
            stale.append(picture)
            if not options.check:
                content = io.BytesIO()
                metadata = {"Description": shown, "Software": None}
                draw(lines(facts)).savefig(content, format="png", dpi=110, metadata=metadata)
                picture.write_bytes(content.getvalue())
    if text != page.read_text():
        stale.append(page)
        if not options.check:
            page.write_text(text)
    if options.check and stale:
        print("\n".join(f"{path} is not what the files in docs/adapt say: run docs/make_adapt.py" for path in stale))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
