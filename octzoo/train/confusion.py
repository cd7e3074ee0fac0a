"""Which class is taken for which: the counts of a validation, as a picture with names and as a table."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from octzoo.train.pictures import SELDOM, Seldom, replace_picture, replace_text

MATRIX_UP_TO = 50  # classes that a picture of the matrix can name
PAIRS = 30  # of the most confused, above that
MOST_CLASSES = 5000  # 200 MB of counts


class Confusion(pl.Callback):
    """After each validation (at most every `seconds`, and after the last): RUN/confusion.png and RUN/confusion.csv.

    Expects validation_step to return {"logits": [B, num_classes], "targets": [B]}.
    """

    def __init__(self, run_dir: Path, seconds: float = SELDOM) -> None:
        self.run_dir = run_dir
        self.counts: Tensor | None = None  # [num_classes, num_classes], of this process while a validation goes on
        self.shown: tuple[np.ndarray, list[str], str] | None = None  # of the last validation, where not yet written
        self.refresh = Seldom(self._write, seconds)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not trainer.sanity_checking and outputs["logits"].shape[1] <= MOST_CLASSES:
            logits, targets = outputs["logits"], outputs["targets"]
            if self.counts is None:
                self.counts = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.long, device=logits.device)
            count(self.counts, logits, targets)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.counts is None:  # in every process alike: the sanity check, or too many classes
            return
        total = trainer.strategy.reduce(self.counts, reduce_op="sum")
        if trainer.is_global_zero:
            names = getattr(pl_module, "class_names", None) or [str(i) for i in range(len(total))]
            self.shown = total.cpu().numpy(), names, f"validation of epoch {trainer.current_epoch}"
            self.refresh()
        self.counts = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.refresh(now=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.refresh(now=True)

    def _write(self) -> None:
        if self.shown:
            counts, names, title = self.shown
            self.shown = None
            replace_text(self.run_dir / "confusion.csv", as_csv(counts, names))
            draw_confusion(counts, names, title, self.run_dir / "confusion.png")


def count(counts: Tensor, logits: Tensor, targets: Tensor) -> None:
    """Adds a batch to counts[target, prediction], on its device and without waiting for it.

    torchmetrics' confusion matrix would wait: its bincount must know its largest number.
    """
    cells = targets * len(counts) + logits.argmax(dim=1)
    counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))


def as_csv(counts: np.ndarray, names: list[str]) -> str:
    """The full matrix: a row for each true class, a column for each prediction."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["true \\ predicted", *names])
    table.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return text.getvalue()


def most_confused(counts: np.ndarray, number: int = PAIRS) -> list[tuple[int, int, int]]:
    """(true class, prediction, pictures) of the most frequent mistakes, most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    cells = np.argsort(-wrong, axis=None, kind="stable")[:number]
    pairs = ((*divmod(int(cell), len(counts)), int(wrong.flat[cell])) for cell in cells)
    return [pair for pair in pairs if pair[2]]


def draw_confusion(counts: np.ndarray, names: list[str], title: str, path: Path) -> None:
    """The matrix, each row in percent of its true class; above 50 classes the 30 most confused pairs instead."""
    right, total = int(np.trace(counts)), int(counts.sum())
    names = [short(name) for name in names]
    figure = _matrix(counts, names) if len(names) <= MATRIX_UP_TO else _pairs(counts, names)
    figure.axes[0].set_title(f"{title}: {right} of {total} right ({100 * right / max(total, 1):.2f} %)")
    replace_picture(path, figure)


def short(name: str, most: int = 28) -> str:
    """A name that fits beside a picture."""
    name = " ".join(name.split())
    return name if len(name) <= most else name[: most - 1] + "…"


def _matrix(counts: np.ndarray, names: list[str]) -> Figure:
    n = len(names)
    side = max(4, n * min(0.45, max(0.25, 0.5 - 0.01 * n))) + 2.5  # inches; a cell keeps room for its two digits
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(n), names, rotation=90, fontsize=9, parse_math=False)
    axes.set_yticks(range(n), names, fontsize=9, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    for i, j in np.argwhere(counts):
        text = f"{percent[i, j]:.0f}" if percent[i, j] >= 0.5 else "<1"
        colour = "white" if percent[i, j] > 55 else "black"
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9 if n <= 20 else 7)
    figure.colorbar(picture, ax=axes, shrink=0.5, aspect=30, label="% of the true class's pictures")
    return figure


def _pairs(counts: np.ndarray, names: list[str]) -> Figure:
    pairs = most_confused(counts)
    figure = Figure(figsize=(10, 1.4 + 0.26 * max(len(pairs), 4)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(pairs)), [number for *_, number in pairs], color="tab:blue")
    axes.bar_label(bars, [f"{n} ({100 * n / counts[true].sum():.0f} %)" for true, _, n in pairs], padding=3, fontsize=8)
    labels = [f"{names[true]}  taken for  {names[predicted]}" for true, predicted, _ in pairs]
    axes.set_yticks(range(len(pairs)), labels, fontsize=8, parse_math=False)
    if pairs:
        axes.set(ylim=(len(pairs) - 0.4, -0.6), xlim=(0, 1.15 * pairs[0][2]))
    what = (
        f"the {len(pairs)} most confused pairs of {len(names)} classes" if pairs else "no class was taken for another"
    )
    axes.set_xlabel(f"{what}: pictures, and % of the true class's")
    return figure
