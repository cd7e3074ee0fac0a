"""Made pictures for `octzoo bench data`: JPEG files with shapes and noise, so that they decode about as photos do."""

from __future__ import annotations

from pathlib import Path

CLASSES = 4


def make_pictures(root: Path, count: int = 400, side: int = 256) -> Path:
    """root/<class>/<number>.jpg: `count` pictures of side x side pixels, the same at every call."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)).resize((side, side))
        draw = ImageDraw.Draw(image)
        for _ in range(8):
            x, y, width, height = rng.integers(0, side // 2, 4).tolist()
            draw.ellipse((x, y, x + width, y + height), fill=tuple(rng.integers(0, 256, 3).tolist()))
        noise = rng.normal(0, 12, (side, side, 3))
        pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        path = root / f"class{number % CLASSES}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return root
