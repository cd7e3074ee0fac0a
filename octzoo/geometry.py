"""How a convolution moves over its input, and which moves both parts of an Octave can follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from octzoo.errors import UserError

StrideMode = Literal["pool", "conv"]
Size2 = tuple[int, int]


class OctaveError(UserError):
    """Something that octaves cannot do; the text says what came, where, and what to do instead."""


class OctaveAttributeError(OctaveError, AttributeError):
    """A tensor attribute that an Octave does not have."""


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its input; what ``nn.Conv2d`` calls kernel, stride, padding and dilation."""

    kernel: Size2
    stride: Size2
    padding: str | int | Size2
    dilation: Size2
    padding_mode: str

    def spans(self) -> Size2:
        """Pixels from a kernel's first tap to its last, for height and width."""
        return self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1)

    def pads(self, size: Sequence[int]) -> tuple[Size2, Size2]:
        """(before, after) for height and width, on an input of ``size``."""
        if self.padding == "same":
            total = [max((-(-n // s) - 1) * s + k + 1 - n, 0) for n, s, k in zip(size, self.stride, self.spans())]
            return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
        h, w = (0, 0) if isinstance(self.padding, str) else pair(self.padding)
        return (h, h), (w, w)

    def out_size(self, size: Sequence[int]) -> Size2:
        """(H, W) after the convolution."""
        pads = self.pads(size)
        h, w = ((n + sum(p) - k - 1) // s + 1 for n, p, k, s in zip(size, pads, self.spans(), self.stride))
        return h, w

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """The ordinary convolution. ``nn.Conv2d`` pads itself where the mode is not zeros, and so does this."""
        if self.padding_mode == "zeros" and (self.padding != "same" or self.stride == (1, 1)):
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)
        (top, bottom), (left, right) = self.pads(x.shape[-2:])
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = F.pad(x, (left, right, top, bottom), mode)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, groups)

    def reach(self, x: Tensor, size: Size2) -> Tensor:
        """``x`` with its last row and column repeated where it is too small to give ``size``."""
        (top, bottom), (left, right) = self.pads(x.shape[-2:])
        (h, w), (s, t), (k, m) = size, self.stride, self.spans()
        rows = (h - 1) * s + k + 1 - x.shape[-2] - top - bottom
        columns = (w - 1) * t + m + 1 - x.shape[-1] - left - right
        return F.pad(x, (0, max(columns, 0), 0, max(rows, 0)), "replicate") if max(rows, columns) > 0 else x


def check_groups(groups: int, c_in: int, c_out: int, low_out: int, low_in: int = 0) -> None:
    """Raise unless ``groups`` divides each part of the input and of the output. Depthwise needs whole multiples."""
    if groups == c_in > 1:
        if low_out * groups % c_out:
            raise OctaveError(f"{low_out} low outputs of a depthwise convolution are not whole channels of {c_in}")
        return
    parts = {"high in": c_in - low_in, "low in": low_in, "high out": c_out - low_out, "low out": low_out}
    if bad := [f"{n} {part}" for part, n in parts.items() if n % groups]:
        raise OctaveError(
            f"{groups} groups do not divide the parts ({', '.join(bad)}): choose an alpha whose low channels are a "
            f"multiple of {groups}, or leave this layer plain"
        )


def check_geometry(
    kernel: Size2, stride: Size2, padding: str | int | Size2, dilation: Size2, octave: bool, stride_mode: str
) -> None:
    """Raise unless the convolution keeps a size that both resolutions can have (``octave``: it meets a low part)."""
    if stride not in ((1, 1), (2, 2)):
        raise OctaveError(f"stride {stride} is not 1 or 2: leave this layer plain")
    if (stride == (1, 1) and not octave) or (stride == (2, 2) and stride_mode == "conv" and not octave):
        return
    spans = [d * (k - 1) for d, k in zip(dilation, kernel)]
    pads = spans if padding == "same" else [0, 0] if isinstance(padding, str) else [2 * p for p in pair(padding)]
    short = [k - p for k, p in zip(spans, pads)]
    what = f"kernel {kernel}, padding {padding}, dilation {dilation}"
    if stride == (2, 2) and stride_mode == "pool" and (any(short) or any(k % 2 for k in spans)):
        raise OctaveError(
            f"{what} at stride 2 does not keep its size behind pooling (an odd kernel with padding k//2 does): "
            "use stride_mode='conv', or leave this layer plain"
        )
    if (stride == (1, 1) and any(short)) or not all(0 <= n <= 1 for n in short):
        raise OctaveError(f"{what} at stride {stride[0]} does not keep the sizes of both parts: leave this layer plain")


def pair(x: int | Sequence[int]) -> Size2:
    return (x, x) if isinstance(x, int) else (x[0], x[1])
