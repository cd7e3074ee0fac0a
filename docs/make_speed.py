"""Write what `octzoo bench model` measured: ``python docs/make_speed.py``

Reads docs/speed/*.json, files that the command wrote; writes the part between the markers of docs/speed.md and one
picture a file, docs/img/speed_<file>.png. ``--check`` writes nothing and fails if one of these is not what the files
say. ``--docs DIR`` takes the place of docs/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generated import between, shown_by

from octzoo.deploy.speed import COLUMNS, Comparison, Measured, compare, figures, read, rows
from octzoo.deploy.speed_picture import draw, points
from octzoo.errors import UserError
from octzoo.weights.card import markdown

START, END = "<!-- speed: made by docs/make_speed.py -->", "<!-- end of speed -->"
PREFIX = "speed_"  # of the pictures
File = tuple[str, dict[str, Any], list[Measured]]  # its name without suffix, where and how, the results


def files(docs: Path) -> list[File]:
    """Every file in order of its name. UserError for one that is damaged, or of a measurement that was cut off."""
    found = [(path.stem, *read(path)) for path in sorted((docs / "speed").glob("*.json"))]
    for name, facts, _ in found:
        if not facts["finished"]:
            raise UserError(f"docs/speed/{name}.json is not of a whole measurement: measure again, {facts['command']}")
    return found


def page(found: Sequence[File]) -> str:
    """What stands between the markers."""
    return "\n\n".join(section(*file) for file in found) if found else "Nothing was measured yet."


def section(name: str, facts: dict[str, Any], results: Sequence[Measured]) -> str:
    """One file: where, by which command, the ratios, the picture, all figures."""
    comparisons = compare(results)
    peers = list(dict.fromkeys(m.peer for m in results))
    what = "training steps" if any(m.train for m in results) else "inference"
    align = ["---", "--:", "---", *["--:"] * (len(COLUMNS) - 3)]
    return "\n\n".join(
        [
            f"### Against {', '.join(f'`{peer}`' for peer in peers)}: {what}",
            f"```bash\n{facts['command']}\n```",
            hardware(facts, results),
            *(ratios([c for c in comparisons if c.measured.peer == peer]) for peer in peers),
            f"![Time against multiply-accumulates](img/{PREFIX}{name}.png)",
            "All figures:",
            markdown(COLUMNS, align, [[*row[:2], f"`{row[2]}`", *row[3:]] for row in rows(comparisons)]),
        ]
    )


def hardware(facts: dict[str, Any], results: Sequence[Measured]) -> str:
    """On what, with what, how often."""
    settings, packages = facts["settings"], facts["packages"]
    place = ", ".join(facts["gpus"]) if settings["device"] == "cuda" else f"{facts['cpu']}, {facts['cpus']} cores"
    engines = ("torch", "timm", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {packages[name]}" for name in engines if packages.get(name))
    layout = settings["layout"].replace("_", " ")
    weights = "published" if settings["pretrained"] else "random"
    return (
        f"Measured on {place}, {settings['threads']} threads; {settings['precision']}, {layout}, {weights} weights; "
        f"{len(results[0].seconds)} rounds. {versions}, Python {facts['python']}."
    )


def ratios(comparisons: Sequence[Comparison]) -> str:
    """One row an engine and batch size: the peer's time, and everyone's beside it; what the arithmetic says on top."""
    peer = comparisons[0].measured.peer
    names = list(dict.fromkeys(c.measured.network for c in comparisons if c.measured.network != peer))
    macs = {c.measured.network: f"{c.macs:.2f}" for c in comparisons}
    lines = [["multiply-accumulates", "", "", *(macs[name] for name in names)]]
    keys = dict.fromkeys((c.measured.engine, c.measured.batch) for c in comparisons)
    for engine, batch in keys:
        cells = {c.measured.network: c for c in comparisons if (c.measured.engine, c.measured.batch) == (engine, batch)}
        times = [f"**{t.median:.2f}** ({t.low:.2f} to {t.high:.2f})" for t in (cells[name].time for name in names)]
        lines.append([engine, str(batch), figures(1000 * cells[peer].seconds.median), *times])
    head = ["engine", "batch", f"`{peer}`, ms", *(f"`{name}`" for name in names)]
    return markdown(head, ["---", *["--:"] * (len(head) - 1)], lines)


# ---- all of it -----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(arguments)
    found, stale = files(options.docs), []
    text = (options.docs / "speed.md").read_text()
    if (new := between(text, START, END, f"\n{page(found)}\n")) != text:
        stale.append(options.docs / "speed.md")
        if not options.check:
            (options.docs / "speed.md").write_text(new)
    pictures = options.docs / "img"
    left = set(pictures.glob(f"{PREFIX}*.png"))
    for name, facts, results in found:
        path, comparisons = pictures / f"{PREFIX}{name}.png", compare(results)
        left.discard(path)
        if shown_by(path) != json.dumps(points(comparisons)):
            stale.append(path)
            if not options.check:
                pictures.mkdir(exist_ok=True)
                settings = facts["settings"]
                place = ", ".join(facts["gpus"]) if settings["device"] == "cuda" else facts["cpu"]
                draw(comparisons, path, f"{place}, {settings['threads']} threads, {settings['precision']}")
    for path in sorted(left):  # its file is gone
        stale.append(path)
        if not options.check:
            path.unlink()
    if options.check and stale:
        print("\n".join(f"{path} is not what the files in docs/speed say: run docs/make_speed.py" for path in stale))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
