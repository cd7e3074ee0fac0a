"""`octzoo compare`: several runs in one table and one picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

if TYPE_CHECKING:
    from octzoo.train.summary import Summary

COLUMNS = ["run", "network", "state", "epochs", "best top-1 %", "in epoch", "final %", "images/s", "wall time"]


def main(arguments: list[str]) -> int:
    """Prints the table and draws the picture; returns the exit code."""
    parser = Parser(
        "compare",
        "Runs side by side, finished or not: epochs, best and final top-1 of the validation pictures, training images\n"
        "a second, wall time of all attempts; and one picture of loss and top-1 over the epochs.",
        "octzoo compare runs/digits/0 runs/digits/1 --out compare.png",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a folder that octzoo fit made")
    parser.add_argument("--out", type=Path, default=Path("compare.png"), metavar="FILE", help="default: compare.png")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="default: table")
    options = parser.parse_args(arguments[1:])
    return report(lambda: show(options.runs, options.out, options.format), options.debug)


def show(runs: list[Path], out: Path, form: str) -> None:
    """Prints the table, as such or as JSON, and writes the picture. Raises UserError for a folder that is no run."""
    check(runs, out)
    from octzoo.cli.tables import print_table
    from octzoo.train.compare import draw_comparison, labels
    from octzoo.train.summary import summarize

    summaries = [summarize(run) for run in runs]
    draw_comparison(runs, out)
    if form == "json":
        print(json.dumps([as_dict(summary) for summary in summaries], indent=1))
    else:
        print_table(COLUMNS, [cells(label, summary) for label, summary in zip(labels(runs), summaries)])
        print(f"\npicture   {out}")


def check(runs: Sequence[Path], out: Path) -> None:
    """Raises UserError for a folder that is no run, or a picture that cannot be written."""
    from octzoo.errors import UserError, some
    from octzoo.train.summary import is_run

    for run in runs:
        if not run.is_dir():
            raise UserError(f"no such run folder: {run}")
        if not is_run(run):
            inside = sorted((str(p) for p in run.iterdir() if p.is_dir() and is_run(p)), key=lambda p: (len(p), p))
            hint = f"its runs are {some(inside)}" if inside else "octzoo fit makes them: runs/<config>/<number>"
            raise UserError(f"{run} is not the folder of one run; {hint}")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the picture is a PNG; give a name that ends in .png")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")


def cells(label: str, summary: Summary) -> list[str]:
    """One row of the table; what a run does not have (yet) is empty."""
    from octzoo.train.summary import duration

    of = f"/{summary.max_epochs}" if summary.max_epochs and summary.max_epochs > 0 else ""
    return [
        label,
        summary.network or "",
        summary.state or "",
        f"{summary.epochs}{of}",
        "" if summary.best_top1 is None else f"{100 * summary.best_top1:.2f}",
        "" if summary.best_epoch is None else str(summary.best_epoch),
        "" if summary.final_top1 is None else f"{100 * summary.final_top1:.2f}",
        f"{summary.images_per_second:,.0f}" if summary.images_per_second else "",
        "" if summary.seconds is None else duration(summary.seconds),
    ]


def as_dict(summary: Summary) -> dict:
    """One run as JSON has it: what is measured."""
    from dataclasses import asdict

    hidden = ("best_checkpoint", "last_checkpoint", "next")
    return {key: value for key, value in asdict(summary).items() if key not in hidden}
