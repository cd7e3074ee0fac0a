"""timm's own networks, made octave by surgery. ``_v1`` where the paper's network has the plain name."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import get_pretrained_cfg, model_entrypoint
from torch import nn

from octzoo.models._register import Network, register


def _plain(arch: str, **kwargs: Any) -> nn.Module:
    return model_entrypoint(arch)(pretrained=False, **kwargs)


def _network(arch: str, levels: int = 5) -> Network:
    """timm's network ``arch`` with timm's own input, normalisation and classifier."""
    cfg = get_pretrained_cfg(arch)
    assert cfg is not None
    kept = ("input_size", "pool_size", "crop_pct", "interpolation", "mean", "std", "first_conv", "classifier")
    return Network(partial(_plain, arch), {key: getattr(cfg, key) for key in kept}, levels)


register(
    __name__,
    {
        "oct_resnet50_v1": _network("resnet50"),
        "oct_resnet50d": _network("resnet50d"),
    },
)
