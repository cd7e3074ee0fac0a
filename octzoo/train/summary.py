"""What came out of a run: found in its folder, told in a few lines, kept in summary.json."""

import json
import shlex
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from octzoo.train.metrics import METRICS, Series, attempts, by_epoch, run_rows
from octzoo.train.pictures import replace_text

CLOCK = "clock.json"  # of an attempt: its seconds, and how it ended
SILENCE = 300.0  # seconds without a sign of a running attempt's clock: it was killed


@dataclass(frozen=True)
class Summary:
    """A run in numbers; None where a run has none (yet).

    Attributes:
        run: its folder
        network: model.name
        state: finished, running, stopped (Ctrl-C, SIGTERM), failed, killed (nothing was heard for a while)
        epochs: how many were trained to the end
        max_epochs: how many were to be
        best_epoch: the first with the highest top-1
        best_top1: of the validation pictures, 0..1
        final_top1: of the last validation
        images_per_second: training pictures by training time, over all epochs
        seconds: wall time of all attempts, start-up and validation included
        attempts: how often it was started or resumed
        best_checkpoint: where the best epoch's weights are
        last_checkpoint: where the latest are
        next: the commands that one may want now, likeliest first
    """

    run: str
    network: str | None
    state: str | None
    epochs: int
    max_epochs: int | None
    best_epoch: int | None
    best_top1: float | None
    final_top1: float | None
    images_per_second: float | None
    seconds: float | None
    attempts: int
    best_checkpoint: str | None
    last_checkpoint: str | None
    next: list[str]


def summarize(run_dir: Path, best: Path | None = None, last: Path | None = None) -> Summary:
    """The summary of a run, finished or not; best and last are its checkpoints, where it has any."""
    config = yaml.safe_load(text) if (text := _text(run_dir / "config.yaml")) else {}
    metrics = by_epoch(run_rows(run_dir))
    best_epoch, best_top1 = max(metrics.get("val/top1", []), key=lambda pair: pair[1], default=(None, None))
    speeds = [value for _, value in metrics.get("train/images_per_second", []) if value > 0]
    epochs, max_epochs = len(metrics.get("train/loss", [])), (config.get("trainer") or {}).get("max_epochs")
    seconds, state = run_time(run_dir)
    return Summary(
        run=str(run_dir),
        network=(config.get("model") or {}).get("name"),
        state=state,
        epochs=epochs,
        max_epochs=max_epochs,
        best_epoch=best_epoch,
        best_top1=best_top1,
        final_top1=last_value(metrics.get("val/top1", [])),
        images_per_second=statistics.harmonic_mean(speeds) if speeds else None,  # epochs have equally many pictures
        seconds=seconds,
        attempts=len(attempts(run_dir)),
        best_checkpoint=str(best) if best else None,
        last_checkpoint=str(last) if last else None,
        next=next_commands(run_dir, resumable=bool(last) and state != "finished", measurable=bool(best or last)),
    )


def next_commands(run_dir: Path, resumable: bool, measurable: bool) -> list[str]:
    """What one may want to do with a run."""
    run = shlex.quote(str(run_dir))
    commands = [f"octzoo fit --run_dir {run} --ckpt_path last"] if resumable else []
    if measurable:
        commands.append(f"octzoo test --ckpt_path {run}")
    return [*commands, f"octzoo compare {run} OTHER_RUN"]


def run_time(run_dir: Path) -> tuple[float | None, str | None]:
    """(Seconds of all attempts, state of the last one)."""
    seconds, state = None, None
    for attempt in attempts(run_dir):
        if not (text := _text(attempt / CLOCK)):
            continue
        clock = json.loads(text)
        seconds, state = (seconds or 0.0) + clock["seconds"], clock["state"]
        if state == "running" and time.time() - (attempt / CLOCK).stat().st_mtime > SILENCE:
            state = "killed"
    return seconds, state


def is_run(folder: Path) -> bool:
    """Whether a folder is one that `octzoo fit` made."""
    return (folder / "config.yaml").is_file() or (folder / METRICS).is_file() or bool(attempts(folder))


def last_value(series: Series) -> float | None:
    """The latest value."""
    return series[-1][1] if series else None


def duration(seconds: float) -> str:
    """As people say it."""
    hours, minutes = divmod(round(seconds) // 60, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {round(seconds) % 60:02} s" if minutes else f"{seconds:.0f} s"


def lines(summary: Summary) -> list[str]:
    """The summary as the terminal shows it."""
    rows = [("run folder", summary.run), ("network", summary.network)]
    if summary.best_top1 is not None:
        text = f"{100 * summary.best_top1:.2f} % in epoch {summary.best_epoch} ({summary.epochs} trained here)"
        rows.append(("best top-1", text))
    if summary.images_per_second:
        rows.append(("throughput", f"{summary.images_per_second:,.0f} images/s"))
    if summary.seconds is not None:
        several = f" in {summary.attempts} attempts" if summary.attempts > 1 else ""
        rows.append(("wall time", duration(summary.seconds) + several))
    rows += [("best", summary.best_checkpoint), ("last", summary.last_checkpoint), ("next", summary.next[0])]
    return [f"{label:<13}{value}" for label, value in rows if value]


def finish(run_dir: Path, best: Path | None, last: Path | None) -> None:
    """Writes summary.json and prints the summary."""
    summary = summarize(run_dir, best, last)
    replace_text(run_dir / "summary.json", json.dumps(asdict(summary), indent=2) + "\n")
    print("", *lines(summary), sep="\n", flush=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
