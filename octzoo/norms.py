"""Norms without statistics of their own: group, layer and RMS norm, each part of an Octave over its own channels.

Batch norm, which keeps statistics, is in ``octzoo/layers.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from timm.layers import GroupNormAct, LayerNorm2d, LayerNormAct2d, RmsNorm2d, RmsNormAct2d
from timm.layers.fast_norm import rms_norm2d
from timm.layers.norm_act import GroupNorm1Act
from timm.models import register_notrace_module
from torch import Tensor, nn

from octzoo.geometry import OctaveError
from octzoo.octave import Octave


def per_part(x: Octave, function: Callable[[Tensor, slice], Tensor]) -> Octave:
    """``function(part, channels)`` of each part that is not empty; ``channels`` is its slice of a [C] parameter."""
    n = x.high.shape[1]
    parts = ((x.high, slice(0, n)), (x.low, slice(n, None)))
    return Octave(*(function(p, channels) if p.shape[1] else p for p, channels in parts))


def cut(parameter: Tensor | None, channels: slice) -> Tensor | None:
    """The channels of a [C] parameter or buffer, if there is one."""
    return None if parameter is None else parameter[channels]


class _GroupNorm(nn.GroupNorm):
    name: str = ""  # where in the network, for errors

    def normalise(self, x: Octave) -> Octave:
        width = self.num_channels // self.num_groups

        def norm(part: Tensor, c: slice) -> Tensor:
            groups = 1 if self.num_groups == 1 else part.shape[1] // width
            if self.num_groups > 1 and part.shape[1] % width:
                raise OctaveError(
                    f"{self.name or self}: a part of {part.shape[1]} channels is not made of groups of {width}: choose "
                    f"an alpha whose low channels are a multiple of {width}, or leave this layer plain"
                )
            return F.group_norm(part, groups, cut(self.weight, c), cut(self.bias, c), self.eps)

        return per_part(x, norm)


@register_notrace_module
class OctGroupNorm(_GroupNorm):
    """Group norm with groups as wide as the plain one's inside each part; a single group is one for each part."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        return self.normalise(x) if isinstance(x, Octave) else super().forward(x)


@register_notrace_module
class OctGroupNormAct(_GroupNorm, GroupNormAct):
    """timm's ``GroupNormAct`` (norm, dropout, activation), as ``OctGroupNorm``."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        return self.act(self.drop(self.normalise(x))) if isinstance(x, Octave) else GroupNormAct.forward(self, x)


@register_notrace_module
class OctGroupNorm1Act(_GroupNorm, GroupNorm1Act):
    """timm's ``GroupNorm1Act``, as ``OctGroupNorm``."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        return self.act(self.drop(self.normalise(x))) if isinstance(x, Octave) else GroupNorm1Act.forward(self, x)


def layer_norm(x: Octave, weight: Tensor | None, bias: Tensor | None, eps: float) -> Octave:
    """Over the channels of each pixel, each part over its own."""

    def norm(part: Tensor, c: slice) -> Tensor:
        last = F.layer_norm(part.permute(0, 2, 3, 1), part.shape[1:2], cut(weight, c), cut(bias, c), eps)
        return last.permute(0, 3, 1, 2)

    return per_part(x, norm)


@register_notrace_module
class OctLayerNorm2d(LayerNorm2d):
    """timm's ``LayerNorm2d`` (over the channels of each pixel), each part over its own channels."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        return layer_norm(x, self.weight, self.bias, self.eps) if isinstance(x, Octave) else super().forward(x)


@register_notrace_module
class OctLayerNormAct2d(LayerNormAct2d):
    """timm's ``LayerNormAct2d`` (norm, dropout, activation), as ``OctLayerNorm2d``."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        if not isinstance(x, Octave):
            return super().forward(x)
        return self.act(self.drop(layer_norm(x, self.weight, self.bias, self.eps)))


def rms_norm(x: Octave, weight: Tensor | None, eps: float) -> Octave:
    """By the root mean square over the channels of each pixel, each part over its own."""
    return per_part(x, lambda part, c: rms_norm2d(part, [part.shape[1]], cut(weight, c), eps))


@register_notrace_module
class OctRmsNorm2d(RmsNorm2d):
    """timm's ``RmsNorm2d``, each part over its own channels."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        return rms_norm(x, self.weight, self.eps) if isinstance(x, Octave) else super().forward(x)


@register_notrace_module
class OctRmsNormAct2d(RmsNormAct2d):
    """timm's ``RmsNormAct2d`` (norm, dropout, activation), as ``OctRmsNorm2d``."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        if not isinstance(x, Octave):
            return super().forward(x)
        return self.act(self.drop(rms_norm(x, self.weight, self.eps)))
