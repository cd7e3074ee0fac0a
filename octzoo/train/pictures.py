"""Files that are replaced while a run goes on: written under a temporary name, then renamed, so all see whole ones."""

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SELDOM = 20.0  # seconds from one drawing to the next, so that pictures cost a long run nothing


def replace_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_picture(path: Path, figure: Figure, dpi: int = 120) -> None:
    """Writes a PNG whole or not at all. Characters that the font lacks become boxes, without a warning each."""
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(temporary, format="png", dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Seldom:
    """Runs an action when it must, or when the last time is `seconds` ago (longer for one that takes long: it gets a
    fiftieth of the time at most). A failure is one warning, never an error."""

    def __init__(self, action: Callable[..., object], seconds: float = SELDOM) -> None:
        self.action, self.seconds = action, seconds
        self.next, self.failed = -float("inf"), False

    def __call__(self, *arguments: Any, now: bool = False) -> None:
        start = time.monotonic()
        if not now and start < self.next:
            return
        try:
            self.action(*arguments)
        except Exception as problem:  # whatever it is, the training is worth more than a picture
            if not self.failed:
                warnings.warn(f"not written: {type(problem).__name__}: {problem}; training goes on", stacklevel=2)
            self.failed = True
        end = time.monotonic()
        self.next = end + max(self.seconds, 50 * (end - start)) if self.seconds else end
