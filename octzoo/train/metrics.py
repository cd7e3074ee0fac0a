"""The figures of a run: logs/<attempt>/metrics.csv, one part for each time it was started or resumed, and their union.

Lightning's CSVLogger deletes the file that it finds, so each attempt has a folder of its own, and RUN/metrics.csv is
made from the parts.
"""

import csv
import io
from pathlib import Path

from octzoo.train.pictures import replace_text

METRICS = "metrics.csv"
Row = dict[str, str]  # a cell that is not there is ""
Series = list[tuple[int, float]]  # (epoch, value), in order of the epochs


def attempts(run_dir: Path) -> list[Path]:
    """The attempts' folders, logs/0, logs/1 ..., in their order."""
    return sorted((p for p in (run_dir / "logs").glob("*") if p.name.isdigit()), key=lambda p: int(p.name))


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSVLogger's file; a last line that a kill cut short is left out, no file is no rows."""
    if not path.is_file():
        return []
    whole, end, _ = path.read_text(encoding="utf-8").rpartition("\n")
    rows = csv.DictReader(io.StringIO(whole + end, newline=""), restval="")
    return [row for row in rows if row.get("step", "").isdigit()]


def merge(parts: list[list[Row]]) -> list[Row]:
    """The rows of a run from those of its attempts: what a later attempt did again counts as it was done last.

    An earlier part's rows from the later part's first step on are dropped.
    """
    merged: list[Row] = []
    for part in filter(None, parts):
        first = min(int(row["step"]) for row in part)
        merged = [row for row in merged if int(row["step"]) < first] + part
    return merged


def run_rows(run_dir: Path) -> list[Row]:
    """The rows of a run as they are on the disk now, finished or not."""
    if parts := attempts(run_dir):
        return merge([read_rows(part / METRICS) for part in parts])
    return read_rows(run_dir / METRICS)


def merge_metrics(run_dir: Path) -> list[Row]:
    """Writes RUN/metrics.csv from the attempts' files, whole or not at all; its rows."""
    rows = run_rows(run_dir)
    if rows and attempts(run_dir):
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, sorted(set().union(*rows)), restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        replace_text(run_dir / METRICS, text.getvalue())
    return rows


def by_epoch(rows: list[Row]) -> dict[str, Series]:
    """Each column by epoch, empty cells left out; the last value where an epoch has several."""
    series: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if value and name not in ("epoch", "step") and row.get("epoch"):
                series.setdefault(name, {})[int(float(row["epoch"]))] = float(value)
    return {name: sorted(values.items()) for name, values in series.items()}


def read_metrics(path: Path) -> dict[str, Series]:
    """Each column of a metrics.csv by epoch."""
    return by_epoch(read_rows(path))
