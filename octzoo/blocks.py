"""timm's blocks that stack maps in a fifth dimension, which an Octave has not, written over the maps one by one.

The parameters and what is computed are the plain blocks'; only ``forward`` is another.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from timm.layers import SelectiveKernel, SplitAttn
from torch import Tensor, nn

from octzoo.octave import Octave


def total(maps: list[Any]) -> Any:
    """The sum of tensors or octaves."""
    return functools.reduce(operator.add, maps)


def weighted_sum(maps: list[Any], weights: Tensor) -> Any:
    """Of n maps of C channels, with weights [B, n, C, 1, 1]."""
    return total([x * weights[:, i] for i, x in enumerate(maps)])


class OctSelectiveKernel(SelectiveKernel):
    """timm's ``SelectiveKernel``: several convolutions of one map, weighed by what they give together."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        n = len(self.paths)
        inputs = torch.split(x, self.in_channels // n, 1) if self.split_input else [x] * n  # type: ignore[arg-type]
        maps = [path(part) for path, part in zip(self.paths, inputs)]
        vector = total(maps).mean((2, 3), keepdim=True)
        chosen = self.attn.fc_select(self.attn.act(self.attn.bn(self.attn.fc_reduce(vector))))
        weights = torch.softmax(chosen.unflatten(1, (n, -1)), 1)  # [B, n, C, 1, 1]
        return weighted_sum(maps, weights)


class OctSplitAttn(SplitAttn):
    """timm's ``SplitAttn``: the pieces of a map's channels, weighed by what they hold together."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        x = self.act0(self.drop(self.bn0(self.conv(x))))
        maps: list[Any] = list(torch.chunk(x, self.radix, 1)) if self.radix > 1 else [x]  # type: ignore[arg-type]
        vector = total(maps).mean((2, 3), keepdim=True)
        chosen = self.fc2(self.act1(self.bn1(self.fc1(vector))))
        weights = self.rsoftmax(chosen).view(x.shape[0], self.radix, -1, 1, 1)  # [B, radix, C, 1, 1]
        return weighted_sum(maps, weights)


# What each plain block becomes.
BLOCK_OF: dict[type[nn.Module], type[nn.Module]] = {SelectiveKernel: OctSelectiveKernel, SplitAttn: OctSplitAttn}
