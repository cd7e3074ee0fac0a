"""timm's own networks, made octave by surgery. ``_v1`` where the paper's network has the plain name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models import get_pretrained_cfg, model_entrypoint
from torch import nn

from octzoo.models._register import ALPHAS, PREPARATION, Network, register


def _plain(arch: str, **kwargs: Any) -> nn.Module:
    return model_entrypoint(arch)(pretrained=False, **kwargs)


def _network(arch: str, levels: int = 5, alphas: Sequence[float] = ALPHAS, **kwargs: Any) -> Network:
    """timm's network ``arch`` (with ``kwargs``) with timm's own input, normalisation and classifier."""
    cfg = get_pretrained_cfg(arch)
    assert cfg is not None
    return Network(partial(_plain, arch, **kwargs), {key: getattr(cfg, key) for key in PREPARATION}, levels, alphas)


register(
    __name__,
    {
        "oct_resnet50_v1": _network("resnet50"),
        "oct_resnet101_v1": _network("resnet101"),
        "oct_resnet152_v1": _network("resnet152"),
        "oct_resnet50d": _network("resnet50d"),
        "oct_wide_resnet50_2": _network("wide_resnet50_2"),
        "oct_seresnet50_v1": _network("seresnet50"),
        # 32 groups do not divide the 112 high channels of alpha 0.125
        "oct_resnext50_32x4d_v1": _network("resnext50_32x4d", alphas=(0.0, 0.25, 0.5, 0.75)),
        "oct_densenet121_v1": _network("densenet121"),
        "oct_regnety_040": _network("regnety_040"),
        "oct_mobilenetv3_large_100": _network("mobilenetv3_large_100"),
        "oct_efficientnet_b0": _network("efficientnet_b0"),
        "oct_tf_efficientnet_lite0": _network("tf_efficientnet_lite0"),
        # without conv_mlp timm's blocks put the channels last, which octaves do not know
        "oct_convnext_tiny": _network("convnext_tiny", levels=4, conv_mlp=True),
    },
)
