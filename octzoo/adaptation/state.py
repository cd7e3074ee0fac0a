"""What an adaptation keeps in a file, to go on after it was stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octzoo.adaptation.report import Report
from octzoo.errors import UserError


class State:
    """What is done so far.

    Args:
        path: of the file; None: nothing is kept.
        asked: what the adaptation was called with; a file of another call is refused.

    Attributes:
        costs: of the channels, None at first, as the others.
        report: as far as it has come.
        model: state dict of the octave network.
        epochs: of distillation, once they are known.
        distillation: its optimizer and how far it is.
    """

    def __init__(self, path: Path | None, asked: dict[str, Any]):
        self.path, self.asked = path, asked
        self.costs: dict[str, Tensor] | None = None
        self.report: Report | None = None
        self.model: dict[str, Tensor] | None = None
        self.epochs: int | None = None
        self.distillation: dict[str, Any] | None = None
        if path is not None and path.exists():
            found = torch.load(path, weights_only=True)
            if found.pop("asked") != asked:
                raise UserError(f"{path} is of an adaptation with other settings or pictures: remove it to start anew")
            report = found.pop("report")
            vars(self).update(found)
            self.report = report and Report.from_json(report)

    def keep(self, octave: nn.Module) -> None:
        """Keep the network and all else."""
        self.model = octave.state_dict()
        self.save()

    def save(self) -> None:
        if self.path is None:
            return
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        found = {key: value for key, value in vars(self).items() if key != "path"}
        found["report"] = self.report and self.report.as_json()
        torch.save(found, draft)
        os.replace(draft, self.path)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
