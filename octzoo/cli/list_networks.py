"""`octzoo list`: the table of networks."""

from __future__ import annotations

import json
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

if TYPE_CHECKING:
    from octzoo.models.catalogue import Entry

COLUMNS = ["name", "alpha", "size", "params M", "MACs M", "ratio", "top-1", "top-5"]
COLUMNS += ["on", "measured by", "weights from"]


def main(arguments: list[str]) -> int:
    """Prints the networks that the pattern means; returns the exit code."""
    parser = Parser(
        "list",
        "The networks: alpha, input size, millions of parameters and of multiply-accumulates, the ratio of these to\n"
        "the plain network's, accuracy in percent and on what, whose measurement that is, and where weights are from.",
        "octzoo list 'oct_resnet50_a*' --pretrained",
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", help="of names, with * and ?; oct_resnet50 is all its alphas"
    )
    parser.add_argument("--pretrained", action="store_true", help="only names with published weights")
    parser.add_argument("--format", choices=["table", "md", "json"], default="table", help="default: table")
    options = parser.parse_args(arguments[1:])
    return report(lambda: show(options.pattern, options.pretrained, options.format), options.debug)


def show(pattern: str, pretrained: bool, form: str) -> None:
    """Prints the table in one of its three forms. Raises UserError if no network has such a name."""
    from octzoo.cli.tables import print_table
    from octzoo.errors import UserError
    from octzoo.models.catalogue import catalogue

    def wanted(entry: Entry) -> bool:
        untagged = f"{entry.network}_a{entry.alpha}"
        named = any(fnmatchcase(name, pattern) for name in (entry.name, untagged, entry.network))
        return named and (entry.weights is not None or not pretrained)

    entries = [entry for entry in catalogue() if wanted(entry)]
    if not entries:
        raise UserError(
            f"no network{' with weights' if pretrained else ''} matches {pattern!r}; `octzoo list` has them all"
        )
    if form == "json":
        print(json.dumps([as_dict(entry) for entry in entries], indent=1))
    elif form == "md":
        print(markdown([COLUMNS, *map(cells, entries)]))
    else:
        print_table(COLUMNS, map(cells, entries))


def cells(entry: Entry) -> list[str]:
    """One row of the table."""
    accuracy = entry.accuracy
    return [
        entry.name,
        f"{entry.alpha:g}",
        f"{entry.size}x{entry.size}",
        f"{entry.parameters / 1e6:.2f}",
        f"{entry.macs / 1e6:,.0f}",
        f"{entry.macs / entry.plain_macs:.2f}",
        f"{accuracy.top1:.1f}" if accuracy else "",
        f"{accuracy.top5:.1f}" if accuracy else "",
        entry.dataset or "",
        accuracy.measured_by if accuracy else "",
        (entry.weights or "").removeprefix("https://"),
    ]


def as_dict(entry: Entry) -> dict[str, Any]:
    """One row as JSON has it."""
    return {**entry._asdict(), "accuracy": asdict(entry.accuracy) if entry.accuracy else None}


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
