"""The paper's DenseNet-121: timm's own network with the authors' batch norms (``utils/symbol``)."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import BatchNormAct2d
from timm.models.densenet import DenseNet

from octzoo.models._register import Network, register
from octzoo.weights.records import evaluation

_NORM: Any = partial(BatchNormAct2d, eps=1e-4, momentum=0.08)
_CFG: dict[str, Any] = dict(
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    first_conv="features.conv0",
    classifier="classifier",
    **evaluation("symbol"),
)

register(
    __name__,
    {
        # The last transition, which belongs to the last stage, converts back and then pools an ordinary map.
        "oct_densenet121": Network(
            partial(DenseNet, growth_rate=32, block_config=(6, 12, 24, 16), norm_layer=_NORM), _CFG
        ),
    },
)
