"""Predictions as files: one CSV and one JSON."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import timm
from lightning.pytorch.callbacks import BasePredictionWriter
from timm.data import ImageNetInfo, infer_imagenet_subset

from octzoo.data import SettingError
from octzoo.train.task import ClassificationTask


class PredictionWriter(BasePredictionWriter):
    """Writes <out>.csv row by row as batches come, and <out>.json at the end.

    A row: path, label_1, probability_1, ... likeliest first, error. A broken picture has only path and error.

    Args:
        out: path of both files without their endings; files that exist are replaced
    """

    def __init__(self, out: str = "predictions") -> None:
        super().__init__("batch")
        self.out = Path(out)
        self.rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.rows = []
        self.names = cast(ClassificationTask, pl_module).class_names or []
        self.width = min(5, len(self.names))
        columns = [f"{kind}_{i}" for i in range(1, self.width + 1) for kind in ("label", "probability")]
        self.file = self._path("csv").open("w", newline="", encoding="utf-8")
        self.csv = csv.writer(self.file)
        self.csv.writerow(["path", *columns, "error"])

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        probabilities, indices = (t.tolist() for t in prediction)
        for path, error, p, k in zip(batch["path"], batch["error"], probabilities, indices, strict=True):
            best = [{"label": self.names[i], "probability": round(v, 6)} for v, i in zip(p, k, strict=True)]
            top = [] if error else best
            self.rows.append({"path": path, "top": top, "error": error or None})
            cells = [cell for entry in top for cell in entry.values()] or [""] * (2 * self.width)
            self.csv.writerow([path, *cells, error])
        self.file.flush()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.file.close()
        self._path("json").write_text(json.dumps(self.rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        broken = [row for row in self.rows if row["error"]]
        for row in broken[:10]:
            print(f"not a readable picture: {row['path']}: {row['error']}", file=sys.stderr)
        counts = f"{len(self.rows) - len(broken)} pictures labelled, {len(broken)} not readable"
        print(f"{counts}: {self._path('csv')}, {self._path('json')}")

    def _path(self, ending: str) -> Path:
        return self.out.with_name(f"{self.out.name}.{ending}")


def published_names(name: str, readable: bool) -> list[str]:
    """The names of a published network's classes: its own, else ImageNet's (synsets, or readable words), else numbers.

    Raises:
        SettingError: timm has no such network.
    """
    if not timm.is_model(name):
        raise SettingError(f"no such file, run folder or network: {name}")
    cfg = timm.get_pretrained_cfg(name)
    count = cfg.num_classes if cfg is not None else 1000
    if cfg is not None and cfg.label_names:
        return list(cfg.label_names)
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return [str(i) for i in range(count)]
    info = ImageNetInfo(subset)
    synsets = info.label_names()
    return [f"{info.index_to_description(i)} ({s})" for i, s in enumerate(synsets)] if readable else synsets
