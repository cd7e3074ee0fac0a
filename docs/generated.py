"""What the scripts share that write parts of pages, and pictures: where a part goes, and what a picture shows."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def between(page: str, start: str, end: str, part: str) -> str:
    """``page`` with ``part`` in lines of its own between the markers ``start`` and, behind it, ``end``."""
    before, rest = page.split(start)
    return f"{before}{start}\n{part}\n{rest[rest.index(end) :]}"


def shown_by(picture: Path) -> str | None:
    """What a picture shows, by the description that is kept inside it; None without one."""
    if not picture.is_file():
        return None
    with Image.open(picture) as opened:
        return opened.text.get("Description")
