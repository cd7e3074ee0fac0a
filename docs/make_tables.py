"""Count every network's parameters and multiply-accumulates, and write the tables: ``python docs/make_tables.py``

Writes octzoo/models/networks.json (the counts), the tables between the markers in README.md and docs/networks.md, and
docs/img/accuracy.png. ``--check`` writes nothing and fails if a table or the picture is not what the counts and the
records of published weights say.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import timm
import torch
from generated import between, shown_by
from torch.utils.flop_counter import FlopCounterMode

import octzoo
from octzoo.models.catalogue import Entry, catalogue
from octzoo.weights.records import PUBLISHED, records

HERE = Path(__file__).parent
COUNTS = Path(octzoo.__file__).parent / "models" / "networks.json"
README, NETWORKS, PICTURE = HERE.parent / "README.md", HERE / "networks.md", HERE / "img" / "accuracy.png"
ALPHAS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)


def count(name: str) -> dict:
    """Parameters, and multiply-accumulates of convolutions and linear layers at the network's own size, by alpha."""
    tags = [tagged.partition("_a0.")[2] for tagged in timm.list_models(f"{name}_a0.*", include_tags=True)]
    macs = {}
    for alpha in sorted(float(f"0.{tag}") for tag in tags if tag.isdigit()):
        model = timm.create_model(name, alpha=alpha, device="meta").eval()
        size = model.pretrained_cfg["input_size"]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, *size, device="meta"))
        macs[str(alpha)] = counter.get_total_flops() // 2
    return {"name": name, "size": size[1], "parameters": sum(p.numel() for p in model.parameters()), "macs": macs}


def markdown(head: list[str], align: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, align, *rows])


def costs() -> str:
    """Every network: parameters, and multiply-accumulates by alpha."""
    head = ["network", "input", "parameters, M", *(f"alpha {alpha:g}" for alpha in ALPHAS)]
    rows = []
    for counted in json.loads(COUNTS.read_text()):
        size, macs = counted["size"], {float(alpha): count for alpha, count in counted["macs"].items()}
        cells = [f"{macs[alpha] / 1e6:,.0f}" if alpha in macs else "" for alpha in ALPHAS]
        rows.append([f"`{counted['name']}`", f"{size}x{size}", f"{counted['parameters'] / 1e6:.2f}", *cells])
    return markdown(head, ["---"] * 2 + ["--:"] * (len(head) - 2), rows)


def weights() -> str:
    """Every set of weights that others published: accuracy and whose measurement, licence, how its file is checked."""
    head = ["weights", "top-1, %", "top-5, %", "reported by", "again, by others", "licence", "checksum known"]
    rows = []
    for r in (record for record in records() if record.tag in PUBLISHED):
        again = f"{r.remeasured.top1:.1f} / {r.remeasured.top5:.1f}" if r.remeasured else ""
        accuracy = [f"{r.accuracy.top1:.1f}", f"{r.accuracy.top5:.1f}", r.accuracy.measured_by]
        rows.append([f"`{r.full_name}`", *accuracy, again, r.licence.upper(), "yes" if r.sha256 else ""])
    return markdown(head, ["---", "--:", "--:", "---", "---", "---", "---"], rows)


def reported() -> dict[str, list[Entry]]:
    """Network -> what the authors report of it, by alpha."""
    known = [entry for entry in catalogue() if entry.accuracy and entry.accuracy.measured_by == "the authors"]
    return {network: list(entries) for network, entries in groupby(known, lambda entry: entry.network)}


def accuracies() -> str:
    """The authors' networks: top-1 as they report it, and multiply-accumulates, by alpha."""
    head = ["network", *("plain" if alpha == 0 else f"alpha {alpha:g}" for alpha in ALPHAS)]
    rows = []
    for network, entries in reported().items():
        by_alpha = {e.alpha: f"{e.accuracy.top1:.1f} ({e.macs / 1e9:.2f} G)" for e in entries}
        rows.append([f"`{network}`", *(by_alpha.get(alpha, "") for alpha in ALPHAS)])
    return markdown(head, ["---"] + ["--:"] * (len(head) - 1), rows)


def points() -> str:
    """What the picture shows, as text; it is kept inside the picture, for the check."""
    return json.dumps({n: [(e.alpha, e.macs, e.accuracy.top1) for e in entries] for n, entries in reported().items()})


def draw() -> None:
    """Top-1 against multiply-accumulates, one line a network, alpha at the points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
    lines = [network for network, entries in reported().items() if len(entries) > 1]
    for network, entries in reported().items():
        colour = f"C{lines.index(network)}" if network in lines else "#444444"
        label = network if network in lines else None  # one alpha only: the name stands at the point
        x, y = [e.macs / 1e9 for e in entries], [e.accuracy.top1 for e in entries]
        axes.plot(x, y, "o-", color=colour, label=label, markersize=5, linewidth=1.5)
        for entry, at in zip(entries, zip(x, y)):
            where: dict = dict(xytext=(0, 5), ha="center") if label else dict(xytext=(7, -3), ha="left")
            text = f"{entry.alpha:g}" if label else f"{network}, {entry.alpha:g}"
            axes.annotate(text, at, textcoords="offset points", fontsize=8, color=colour, **where)
    axes.set_xscale("log")
    ticks = (0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(0.17, 30)
    axes.minorticks_off()
    axes.set(xlabel="multiply-accumulates, G (counted by octzoo)", ylabel="ImageNet-1k top-1, %")
    axes.set_title("Accuracy as reported by the authors, not measured by octzoo. At the points: alpha", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower right")
    figure.savefig(PICTURE, dpi=110, metadata={"Description": points(), "Software": None})


def with_table(page: str, name: str, text: str) -> str:
    """``page`` with ``text`` between the markers of that name."""
    start, end = f"<!-- {name}: made by docs/make_tables.py -->", f"<!-- end of {name} -->"
    return between(page, start, end, text)


TABLES: list[tuple[Path, str, Callable[[], str]]] = [
    (README, "accuracies", accuracies),
    (NETWORKS, "networks", costs),
    (NETWORKS, "weights", weights),
]


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    if not check:
        names = [name for name in timm.list_models("oct_*") if not name.endswith("_a0")]
        COUNTS.write_text(json.dumps([count(name) for name in names], indent=1) + "\n")
    stale = []
    for page, name, table in TABLES:
        text = page.read_text()
        if (new := with_table(text, name, table())) != text:
            stale.append(page)
            if not check:
                page.write_text(new)
    if shown_by(PICTURE) != points():
        stale.append(PICTURE)
        if not check:
            draw()
    if check:
        print("\n".join(f"{path} is not what the counts and records say: run docs/make_tables.py" for path in stale))
        return int(bool(stale))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
