"""An octave convolution as what it is to a regression: numbers that its outputs are a linear function of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from octzoo.geometry import Geometry, Size2, StrideMode, pair
from octzoo.layers import OctConv2d
from octzoo.octave import Octave, low_channels, pool, resplit, upsample

SMALLEST = 0.01  # scale of a batch norm, of its largest one, by which what it gives is mended


class Source(NamedTuple):
    """What one path of a convolution reads, to one output part.

    Attributes:
        columns: of the weight that the path multiplies it by.
        map: [B, n, H, W], what is convolved.
        geometry: how.
        upsampled: whether what comes out is upsampled then.
    """

    columns: slice
    map: Tensor
    geometry: Geometry
    upsampled: bool = False


class Part(NamedTuple):
    """One output part of a convolution.

    Attributes:
        rows: of the weight.
        size: (H, W) of the output.
        sources: of the paths that lead there.
        groups: in which its channels come.
    """

    rows: slice
    size: Size2
    sources: tuple[Source, ...]
    groups: int


class Residual(NamedTuple):
    """A trunk that is added to what a convolution and the batch norm behind it give.

    Attributes:
        plain: [B, C, H, W], in the plain network, channels as the octave network's.
        octave: in the octave network.
        scale: [C], what the norm multiplies by.
    """

    plain: Tensor
    octave: Tensor | Octave
    scale: Tensor

    def of(self, part: Part) -> Tensor:
        """The octave trunk's part that is added to ``part``."""
        if isinstance(self.octave, Tensor):
            return self.octave
        return self.octave.low if part.rows.start else self.octave.high

    def fits(self, parts: Sequence[Part]) -> bool:
        """Whether the trunk has the parts that the convolution gives."""
        return all(self.of(p).shape[1:] == (p.rows.stop - p.rows.start, *p.size) for p in parts)


def parts_of(conv: nn.Conv2d, x: Tensor | Octave) -> list[Part]:
    """The output parts of a convolution, octave or plain, for an input: the paths of ``octave.convolve``."""
    padding = "same" if isinstance(conv, Conv2dSame) else conv.padding
    padding = padding if isinstance(padding, str) else pair(padding)
    g = Geometry(pair(conv.kernel_size), pair(conv.stride), padding, pair(conv.dilation), conv.padding_mode)
    mode: StrideMode = "conv"
    low_out, h2l, l2h = 0, True, True
    if isinstance(conv, OctConv2d):
        low_out, mode, h2l, l2h = conv.low_out, conv.stride_mode, conv.h2l, conv.l2h
    if conv.groups == conv.in_channels > 1:
        return _depthwise(conv, resplit(x, low_out * conv.groups // conv.out_channels), low_out, g, mode)
    c, n = low_channels(x), conv.in_channels // conv.groups
    high, low = (x.high, x.low) if isinstance(x, Octave) else (x, None)
    size = g.out_size(high.shape[-2:])
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    of_high, of_low = slice(0, n - c // conv.groups), slice(n - c // conv.groups, n)
    to_high, to_low = [], []
    pooled, strided = _how(g, mode)
    if pooled:
        g = replace(g, stride=(1, 1))
        high = pool(high)
    if high.shape[1]:
        to_high.append(Source(of_high, g.reach(high, size) if strided else high, g))
        to_low.append(Source(of_high, g.reach(pool(high), half) if strided else pool(high), g))
    if low is not None:
        again = g.reach(upsample(low, high.shape[-2:]), size) if strided else low
        to_high.append(Source(of_low, again, g, upsampled=not (pooled or strided)))
        to_low.append(Source(of_low, g.reach(low, half) if strided else pool(low) if pooled else low, g))
    if not h2l:
        to_low = [s for s in to_low if s.columns is of_low]
    if not l2h:
        to_high = [s for s in to_high if s.columns is of_high]
    return _present(conv.out_channels, low_out, (size, half), (to_high, to_low), (conv.groups, conv.groups))


def _depthwise(conv: nn.Conv2d, x: Tensor | Octave, low_out: int, g: Geometry, mode: StrideMode) -> list[Part]:
    """A channel stays where it is: one path to each part."""
    high, low = (x.high, x.low) if isinstance(x, Octave) else (x, x[:, :0])
    size = g.out_size(high.shape[-2:])
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    pooled, strided = _how(g, mode)
    if pooled:
        g = replace(g, stride=(1, 1))
        high, low = (pool(part) if part.shape[1] else part for part in (high, low))
    elif strided:
        high, low = (g.reach(p, s) if p.shape[1] else p for p, s in ((high, size), (low, half)))
    sources = tuple([Source(slice(0, 1), part, g)] for part in (high, low))
    return _present(conv.out_channels, low_out, (size, half), sources, (high.shape[1], low.shape[1]))


def _how(g: Geometry, mode: StrideMode) -> tuple[bool, bool]:
    """Whether the inputs are pooled, and whether each part is strided."""
    return g.stride == (2, 2) and mode == "pool", g.stride == (2, 2) and mode == "conv"


def _present(rows: int, low: int, sizes: tuple, sources: tuple, groups: tuple) -> list[Part]:
    both = (slice(0, rows - low), slice(rows - low, rows))
    found = [Part(r, s, tuple(f), g) for r, s, f, g in zip(both, sizes, sources, groups)]
    return [part for part in found if part.rows.stop > part.rows.start]


def features(part: Part, positions: Tensor) -> Tensor:
    """[groups, B * P, F]: what the outputs at P positions are made of; F columns as of ``weights``.

    Args:
        part: of a convolution.
        positions: [P], of pixels of the output, row by row.
    """
    rows, columns = positions // part.size[1], positions % part.size[1]
    found = []
    for source in part.sources:
        r, c = (rows // 2, columns // 2) if source.upsampled else (rows, columns)
        patches = _patches(source.map, source.geometry, r, c)  # [B, n, P, taps]
        b, n, p, taps = patches.shape
        grouped = patches.view(b, part.groups, n // part.groups, p, taps).permute(1, 0, 3, 2, 4)
        found.append(grouped.reshape(part.groups, b * p, n // part.groups * taps))
    return torch.cat(found, 2)


def targets(part: Part, y: Tensor, positions: Tensor) -> Tensor:
    """[groups, B * P, O]: the part's rows of the plain output ``y`` [B, C, H, W] there, pooled for the low part."""
    own = y[:, part.rows]
    return _picked(part, own if own.shape[-2:] == part.size else pool(own), positions)


def mended(part: Part, found: Tensor, residual: Residual, positions: Tensor) -> Tensor:
    """``found``, of ``targets``, so that the sum behind the residual connection becomes the plain network's.

    What is missing in the trunk is added, divided by what the batch norm multiplies it by; the norm's channels that
    give next to nothing stay as they are.
    """
    scale = residual.scale[part.rows]
    gain = torch.where(scale.abs() > SMALLEST * scale.abs().max(), 1 / scale, 0.0)
    missing = targets(part, residual.plain, positions) - _picked(part, residual.of(part), positions)
    return found + missing * gain.view(part.groups, 1, -1)


def _picked(part: Part, own: Tensor, positions: Tensor) -> Tensor:
    b, n = own.shape[:2]
    picked = own.flatten(2)[:, :, positions].view(b, part.groups, n // part.groups, len(positions))
    return picked.permute(1, 0, 3, 2).reshape(part.groups, b * len(positions), n // part.groups)


def weights(part: Part, weight: Tensor) -> Tensor:
    """[groups, F, O]: the part's block of a convolution's weight, to multiply ``features`` by."""
    rows = weight[part.rows]
    blocks = [rows[:, s.columns].reshape(part.groups, len(rows) // part.groups, -1) for s in part.sources]
    return torch.cat(blocks, 2).transpose(1, 2)


def put_weights(part: Part, weight: Tensor, new: Tensor) -> None:
    """The inverse of ``weights``: write ``new`` [groups, F, O] into the part's block of ``weight``, in place."""
    rows = weight[part.rows]
    start = 0
    for source in part.sources:
        block = rows[:, source.columns]
        width = block[0].numel()
        block.copy_(new[:, start : start + width].transpose(1, 2).reshape(block.shape))
        start += width


def _patches(x: Tensor, g: Geometry, rows: Tensor, columns: Tensor) -> Tensor:
    """[B, n, P, taps]: what a kernel lies on at each position of its output."""
    (top, bottom), (left, right) = g.pads(x.shape[-2:])
    if any((top, bottom, left, right)):
        x = F.pad(x, (left, right, top, bottom), "constant" if g.padding_mode == "zeros" else g.padding_mode)
    (k, m), (s, t), (d, e) = g.kernel, g.stride, g.dilation
    i = rows[:, None] * s + torch.arange(k) * d  # [P, k]
    j = columns[:, None] * t + torch.arange(m) * e
    index = (i[:, :, None] * x.shape[-1] + j[:, None, :]).flatten()
    return x.flatten(2)[:, :, index].view(*x.shape[:2], len(rows), k * m)
