"""Write what `octzoo export --int8` measured: ``python docs/make_int8.py``

Reads docs/int8/*.json, files that the command wrote; writes the part between the markers of docs/deploy.md. ``--check``
writes nothing and fails if it is not what the files say. ``--docs DIR`` takes the place of docs/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generated import between

from octzoo.weights.card import markdown

START, END = "<!-- int8: made by docs/make_int8.py -->", "<!-- end of int8 -->"
ENGINES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
COLUMNS = ["network", "engine", "same class", "right in float32", "in int8", "batch 1, ms", "of float32", "batch 8, ms"]


def page(found: Sequence[dict[str, Any]]) -> str:
    """What stands between the markers."""
    if not found:
        return "Nothing was measured yet."
    head = [*COLUMNS, "of float32", "MB"]
    return f"{markdown(head, ['---', '---', *['--:'] * (len(head) - 2)], [row(f) for f in found])}\n\n{setting(found)}"


def row(facts: dict[str, Any]) -> list[str]:
    right = [f"{100 * share:.2f} %" for share in facts["right in float32 and int8"] or ()] or ["", ""]
    return [
        f"`{facts['network']}`",
        ENGINES[facts["format"]],
        f"{100 * facts['same class']:.2f} %",
        *right,
        *(cell for batch in ("1", "8") for cell in speed(facts["milliseconds"][batch])),
        f"{facts['megabytes']:.1f}",
    ]


def speed(times: dict[str, list[float]]) -> tuple[str, str]:
    """Milliseconds in int8, and beside those in float32, round by round: medians."""
    ratio = statistics.median(now / was for was, now in zip(times["float32"], times["int8"]))
    return f"{statistics.median(times['int8']):.2f}", f"{ratio:.2f}"


def setting(found: Sequence[dict[str, Any]]) -> str:
    """On what, with what, of how many pictures."""
    facts = found[0]
    versions = ", ".join(f"{name} {facts['packages'][name]}" for name in ("onnxruntime", "openvino"))
    pictures = ", ".join(sorted({f"{f['pictures']:,}" for f in found}))
    return (
        f"Measured on {facts['cpu']}, {facts['cpus']} cores, {versions}, on {pictures} pictures that were not "
        f"calibrated on; times are medians, in turns with float32. Commands like `{facts['command']}`."
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(arguments)
    found = [json.loads(path.read_text()) for path in sorted((options.docs / "int8").glob("*.json"))]
    path = options.docs / "deploy.md"
    new = between(path.read_text(), START, END, f"\n{page(found)}\n")
    if options.check and new != path.read_text():
        print(f"{path} is not what the files in docs/int8 say: run docs/make_int8.py")
        return 1
    if not options.check:
        path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
