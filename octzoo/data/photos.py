"""Two photographs that come with scikit-learn, cut into many: real pictures where there are no other ones."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch.utils.data import Dataset


class Photos(Dataset):
    """``count`` square pieces of a Chinese temple and of a flower, 160 to 400 pixels wide; the same ones every time."""

    def __init__(self, count: int = 32):
        from sklearn.datasets import load_sample_images

        photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 x 427
        rng = np.random.default_rng(0)
        self.pieces = [_piece(photos[i % len(photos)], rng) for i in range(count)]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> Image.Image:
        return self.pieces[index]


def _piece(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(rng.integers(160, 400))
    left, top = (int(rng.integers(0, size - side)) for size in photo.size)
    return photo.crop((left, top, left + side, top + side))
