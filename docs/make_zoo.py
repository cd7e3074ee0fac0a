"""Write what the networks trained here are and how good: ``python docs/make_zoo.py``

Reads checkpoints/*/metrics.json and config.json; writes checkpoints/README.md, the part between the markers of
docs/zoo.md, one picture a dataset docs/img/zoo_<tag>.png, and the card README.md of each folder, so that every card
knows the figures of its other alphas. A FOLDER given takes the place of checkpoints/, ``--docs DIR`` that of docs/.
``--check`` writes nothing and fails if one of these is not what the metrics say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from generated import between, shown_by

import octzoo  # noqa: F401 (registers the names)
from octzoo.models.describe import family, network_of, plan_table
from octzoo.weights.card import Sibling, accuracy, duration, make_card, markdown, repo_of, runs, sibling
from octzoo.weights.folder import CARD, CONFIG, METRICS
from octzoo.weights.records import packed_folder, published

ROOT = Path(__file__).parent.parent
START, END = "<!-- zoo: made by docs/make_zoo.py -->", "<!-- end of zoo -->"
PREFIX = "zoo_"  # of the pictures
Metrics = dict[str, Any]


def read(folder: Path) -> list[Metrics]:
    """Every metrics.json, by dataset, network and alpha."""
    found = [json.loads(path.read_text()) for path in folder.glob(f"*/{METRICS}")]
    return sorted(found, key=lambda m: (m["tag"], m["network"], m["alpha"]))


def by_tag(zoo: Sequence[Metrics]) -> list[list[Metrics]]:
    """Those of one tag together. Raises ValueError if they were not measured on the same pictures."""
    groups = [list(group) for _, group in groupby(zoo, lambda m: m["tag"])]
    for group in groups:
        for key in ("dataset", "dataset_url", "split", "pictures", "image_size"):
            if len(found := list(dict.fromkeys(m[key] for m in group))) > 1:
                raise ValueError(f"weights of the tag {group[0]['tag']} differ in {key}: {found}")
    return groups


# ---- words and tables ----------------------------------------------------------------------------------------------


def table(group: Sequence[Metrics], link: bool) -> str:
    """One row a network and alpha."""
    rows = []
    for m in group:
        name = f"[`{m['name']}`]({m['name']}/{CARD})" if link else f"`{m['name']}`"
        alpha = f"{m['alpha']:g}" if m["alpha"] else "0 (control)"
        costs = [f"{m['macs'] / 1e6:,.1f}", f"{m['macs'] / m['plain_macs']:.2f}"]
        rows.append([name, alpha, *costs, accuracy(sibling(m)), m["licence"] or "not stated"])
    head = ["weights", "alpha", "MACs, M", "of plain", "top-1, %: mean (range), seeds", "licence"]
    return markdown(head, ["---", "--:", "--:", "--:", "--:", "---"], rows)


def measurement(group: Sequence[Metrics]) -> str:
    """On which pictures, by whom, and what the training took."""
    m = group[0]
    dataset = f"[{m['dataset']}]({m['dataset_url']})" if m["dataset_url"] else m["dataset"]
    training = [m["training"] for m in group]
    facts = [f"in precision {_each(t['precision'] for t in training)}"]
    if epochs := _each(t["epochs"] for t in training):
        facts.insert(0, f"{epochs} epochs")
    seconds = [t["seconds"] for t in training if t["seconds"] is not None]
    if seconds:
        facts.append(" to ".join(dict.fromkeys([duration(min(seconds)), duration(max(seconds))])))
    if hardware := _each(t["hardware"] for t in training):
        facts.append(f"on {hardware}")
    return (
        f"Trained and measured by {_each(m['measured']['by'] for m in group)} on {dataset}, {m['image_size']}x"
        f"{m['image_size']}; top-1 on the {m['pictures']:,} pictures of its split {m['split']}. Each run: "
        f"{', '.join(facts)}. Weights {_each(m['weights'] for m in group)}. MACs: multiply-accumulates of "
        "convolutions and linear layers for one picture, counted."
    )


def outcome(group: Sequence[Metrics]) -> str:
    """Each alpha against the control: the difference of the means over seeds, and how many seeds each has."""
    texts = []
    for network, members in groupby(group, lambda m: m["network"]):
        rows = [sibling(m) for m in members]
        control, octaves = next((row for row in rows if not row.alpha), None), [row for row in rows if row.alpha]
        if control is None or not octaves:
            texts.append(
                f"`{network}`: no {'other alpha than' if control else 'control, that is'} 0, so no comparison."
            )
            continue
        lines = "\n".join(f"- {against(row, control)}" for row in octaves)
        texts.append(f"`{network}` against its control, the ordinary network: {sides(octaves, control)}.\n\n{lines}")
        spreads = {row.name: max(row.seeds) - min(row.seeds) for row in rows if len(row.seeds) > 1}
        if spreads:
            widest = max(spreads, key=lambda name: spreads[name])
            texts.append(
                f"Seeds alone differ by up to {spreads[widest]:.2f} points (`{widest}`); a smaller difference between "
                "two alphas may be chance."
            )
        else:
            texts.append("One seed each: how much seeds differ was not measured, and any difference may be chance.")
    return "\n\n".join(texts)


def difference(row: Sibling, control: Sibling) -> float:
    """Of the means over seeds, in points, as the tables round them."""
    return round(round(mean(row.seeds), 2) - round(mean(control.seeds), 2), 2)


def against(row: Sibling, control: Sibling) -> str:
    """One alpha beside the control, in one line."""
    points, n = difference(row, control), (len(row.seeds), len(control.seeds))
    verdict = f"{abs(points):.2f} points {'better' if points > 0 else 'worse'}" if points else "equal"
    seeds = f"n = {n[0]} against {n[1]}"
    if min(n) > 1:
        apart = max(min(row.seeds), min(control.seeds)) > min(max(row.seeds), max(control.seeds))
        seeds += f"; the ranges of the seeds {'do not overlap' if apart else 'overlap'}"
    return (
        f"alpha {row.alpha:g}: {verdict} ({mean(row.seeds):.2f} % against {mean(control.seeds):.2f} %) at "
        f"{row.macs / row.plain_macs:.2f} of the multiply-accumulates; {seeds}"
    )


def sides(octaves: Sequence[Sibling], control: Sibling) -> str:
    """At which alphas octave is worse, at which better, at which equal."""
    told = []
    for word, sign in (("worse", -1), ("better", 1), ("equal", 0)):
        alphas = [f"{row.alpha:g}" for row in octaves if (d := difference(row, control)) * sign > 0 or d == sign == 0]
        if alphas:
            told.append(f"{word} at {'every alpha' if len(alphas) == len(octaves) > 1 else f'alpha {_listed(alphas)}'}")
    return f"octave is {', '.join(told)}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _each(values: Iterable[Any]) -> str:
    """What all have, once; else all that there are. What is not known is left out."""
    return _listed(list(dict.fromkeys(str(value) for value in values if value is not None)))


def page(zoo: Sequence[Metrics]) -> str:
    """What stands between the markers of docs/zoo.md."""
    parts = ["None yet."] if not zoo else []
    for group in by_tag(zoo):
        dataset, tag = group[0]["dataset"], group[0]["tag"]
        picture = f"![Top-1 against multiply-accumulates: {dataset}](img/{PREFIX}{tag}.png)"
        parts += [f"## {dataset}", measurement(group), table(group, link=False), picture, outcome(group)]
        if limits := list(dict.fromkeys(m["limits"].strip() for m in group if m["limits"])):
            parts += ["Limits: " + " ".join(limits)]
    return "\n\n".join(parts)


def overview(zoo: Sequence[Metrics]) -> str:
    """checkpoints/README.md."""
    parts = [
        "# Checkpoints",
        "One folder a published set of weights, `<name.tag>/`, in the layout of the Hugging Face Hub: "
        "`timm.create_model(NAME, pretrained=True)` after `import octzoo` finds them here. This page is made by "
        "`docs/make_zoo.py` from each folder's `metrics.json`; `docs/zoo.md` has the pictures and what came out.",
    ]
    parts += [] if zoo else ["None yet."]
    for group in by_tag(zoo):
        parts += [f"## {group[0]['dataset']}", measurement(group), table(group, link=True)]
    return "\n\n".join(parts) + "\n"


def card(metrics: Metrics, folder: Path) -> str:
    """README.md of one checkpoint folder."""
    name = metrics["name"]
    config = json.loads((folder / name / CONFIG).read_text())
    others = family(name, folder, config)
    plan = plan_table(network_of(config))
    record = published(name) if folder.resolve() == packed_folder().resolve() else None  # found by its name
    written = folder / name / CARD
    repo = repo_of(written.read_text()) if written.is_file() else None
    return make_card(
        name, metrics["alpha"], record, config=config, metrics=metrics, plan=plan, family=others, repo=repo
    )


# ---- pictures ------------------------------------------------------------------------------------------------------


def points(group: Sequence[Metrics]) -> str:
    """What a picture shows, as text; it is kept inside the picture, for the check."""
    m = group[0]
    by = _each(m["measured"]["by"] for m in group)
    title = f"{m['dataset']}, {m['split']}, {m['pictures']:,} pictures; measured by {by}"
    lines = {
        network: [(m["alpha"], m["macs"], [100 * run["top1"] for run in runs(m)]) for m in members]
        for network, members in groupby(group, lambda m: m["network"])
    }
    return json.dumps({"title": title, "networks": lines})


def draw(shown: str, path: Path) -> None:
    """Top-1 against multiply-accumulates: a dot a seed, a line through the means, alpha at the points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    content = json.loads(shown)
    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    for i, (network, rows) in enumerate(content["networks"].items()):
        colour = f"C{i}"
        means = [(macs / 1e6, mean(seeds)) for _, macs, seeds in rows]
        axes.plot(*zip(*means), "-", color=colour, linewidth=1.2, label=f"{network}: mean over its seeds")
        for (alpha, macs, seeds), at in zip(rows, means):
            axes.plot(*at, "o" if alpha else "s", color=colour, markersize=10, markerfacecolor="white")
            axes.plot([macs / 1e6] * len(seeds), seeds, ".", color=colour, markersize=5)
            text = f"{f'alpha {alpha:g}' if alpha else 'control'}\nn = {len(seeds)}"
            below = dict(xytext=(0, -11), textcoords="offset points", ha="center", va="top")
            behind = dict(facecolor="white", edgecolor="none", alpha=0.75, pad=1)
            axes.annotate(text, (at[0], min(seeds)), fontsize=8.5, color=colour, bbox=behind, **below)
    axes.plot([], [], ".", color="#444444", markersize=5, label="one seed")
    axes.plot([], [], "s", color="#444444", markerfacecolor="white", label="the control: the ordinary network, alpha 0")
    axes.margins(x=0.08, y=0.2)
    axes.set(xlabel="multiply-accumulates for one picture, millions (counted)", ylabel="top-1, %")
    axes.set_title(content["title"], fontsize=10.5)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8.5, loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Description": shown, "Software": None})
    plt.close(figure)


# ---- all of it -----------------------------------------------------------------------------------------------------


def texts(folder: Path, docs: Path) -> dict[Path, str]:
    """Every page and what it should be."""
    zoo = read(folder)
    old = (docs / "zoo.md").read_text()
    pages = {docs / "zoo.md": between(old, START, END, page(zoo)), folder / CARD: overview(zoo)}
    return pages | {folder / m["name"] / CARD: card(m, folder) for m in zoo}


def pictures(folder: Path, docs: Path) -> dict[Path, str | None]:
    """Every picture and what it should show; None for one whose dataset is gone."""
    left = dict.fromkeys((docs / "img").glob(f"{PREFIX}*.png"))
    return left | {docs / "img" / f"{PREFIX}{group[0]['tag']}.png": points(group) for group in by_tag(read(folder))}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "checkpoints", metavar="FOLDER")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    stale = []
    for path, text in texts(options.folder, options.docs).items():
        if not path.is_file() or path.read_text() != text:
            stale.append(path)
            if not options.check:
                path.write_text(text)
    for path, shown in pictures(options.folder, options.docs).items():
        if shown_by(path) != shown:
            stale.append(path)
            if not options.check:
                path.unlink() if shown is None else draw(shown, path)
    if options.check:
        print("\n".join(f"{path} is not what the metrics say: run docs/make_zoo.py" for path in stale))
        return int(bool(stale))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
