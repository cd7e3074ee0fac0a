"""The paper's MobileNets, V1 and V2, as the authors trained them (``utils/gluon``).

They differ from timm's in the widths of other multipliers (truncated, not rounded to 8: 1.125 gives 36, 18, 27, ...)
and, V2, in the first block, which keeps its 1x1 expansion although it does not expand.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d, DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from octzoo.models._register import Network, register
from octzoo.models._staged import Stage, StagedNet
from octzoo.plan import Row
from octzoo.weights.records import evaluation


class Blocks(NamedTuple):
    """A row of the papers' tables: blocks of one kind in a line.

    Attributes:
        width: output channels, before the multiplier.
        depth: how many.
        stride: of the first; the others have 1.
        expansion: what a V2 block multiplies its channels by before the depthwise convolution.
    """

    width: int
    depth: int
    stride: int
    expansion: int = 6


# A stage ends where the resolution does. Sandler et al. 2018, table 2; Howard et al. 2017, table 1.
V1 = (
    (Blocks(64, 1, 1),),
    (Blocks(128, 2, 2),),
    (Blocks(256, 2, 2),),
    (Blocks(512, 6, 2),),
    (Blocks(1024, 2, 2),),
)
V2 = (
    (Blocks(16, 1, 1, expansion=1),),
    (Blocks(24, 2, 2),),
    (Blocks(32, 3, 2),),
    (Blocks(64, 4, 2), Blocks(96, 3, 1)),
    (Blocks(160, 3, 2), Blocks(320, 1, 1)),
)
# V1: the pointwise convolution of the eleventh block converts back to an ordinary map, and the last stage is one.
PLAN_V1 = (
    Row("stages.0.0.convs.0", "plain"),
    Row("stages.3.5.convs.1", "zero"),
    Row("stages.4.*", "zero"),
    Row("stages.*", "octave"),
)
# V2: only the expanded channels inside a block are octaves; what goes from block to block is an ordinary map.
PLAN_V2 = (Row("*.convs.2", "zero"), Row("stages.4.*", "zero"), Row("stages.*", "octave"))


class DepthwiseSeparable(nn.Module):
    """V1: depthwise 3x3, then 1x1, each with batch norm and ReLU: [B, in_chs, H, W] -> [B, out_chs, ...]."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, expansion: int, drop_path: float, **dd: Any):
        super().__init__()
        conv: Any = partial(nn.Conv2d, bias=False, **dd)
        self.convs = nn.ModuleList([conv(in_chs, in_chs, 3, stride, 1, groups=in_chs), conv(in_chs, out_chs, 1)])
        self.norms = nn.ModuleList([BatchNormAct2d(in_chs, **dd), BatchNormAct2d(out_chs, **dd)])

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = norm(conv(x))
        return x


class InvertedResidual(nn.Module):
    """V2: 1x1 to ``mid`` channels, depthwise 3x3, 1x1 without activation: [B, in_chs, H, W] -> [B, out_chs, ...]."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, expansion: int, drop_path: float, **dd: Any):
        super().__init__()
        conv: Any = partial(nn.Conv2d, bias=False, **dd)
        norm: Any = partial(BatchNormAct2d, act_layer=nn.ReLU6, **dd)
        mid = in_chs * expansion
        depthwise = conv(mid, mid, 3, stride, 1, groups=mid)
        self.convs = nn.ModuleList([conv(in_chs, mid, 1), depthwise, conv(mid, out_chs, 1)])
        self.norms = nn.ModuleList([norm(mid), norm(mid), norm(out_chs, apply_act=False)])
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.residual = stride == 1 and in_chs == out_chs

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv, norm in zip(self.convs, self.norms):
            y = norm(conv(y))
        return self.drop_path(y) + x if self.residual else y


class Sizes(NamedTuple):
    """What the four networks differ in.

    Attributes:
        stages: a table as ``V1``.
        block: ``DepthwiseSeparable`` or ``InvertedResidual``.
        act: the activation of stem and tail.
        tail: channels of a last 1x1 convolution, which only grow with the multiplier; 0 for none.
        multiplier: of all widths, truncated.
    """

    stages: tuple[tuple[Blocks, ...], ...]
    block: type[nn.Module]
    act: type[nn.Module]
    tail: int = 0
    multiplier: float = 1.0


class MobileNet(StagedNet):
    """MobileNet V1 or V2: [B, in_chans, H, W] -> [B, num_classes]."""

    def __init__(
        self,
        sizes: Sizes,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd: dict[str, Any] = dict(device=device, dtype=dtype)

        def conv_norm(in_chs: int, out_chs: int, kernel: int, stride: int) -> nn.Sequential:
            layers = nn.Sequential()
            layers.add_module("conv", nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False, **dd))
            layers.add_module("norm", BatchNormAct2d(out_chs, act_layer=sizes.act, **dd))
            return layers

        width = int(sizes.multiplier * 32)
        stem = conv_norm(in_chans, width, 3, 2)
        depths = [sum(row.depth for row in rows) for rows in sizes.stages]
        rates = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        built, info = [], []
        for i, rows in enumerate(sizes.stages):
            blocks = []
            for row in rows:
                for stride in [row.stride] + [1] * (row.depth - 1):
                    out_chs = int(sizes.multiplier * row.width)
                    blocks.append(sizes.block(width, out_chs, stride, row.expansion, next(rates), **dd))
                    width = out_chs
            built.append(Stage(*blocks))
            info.append(dict(num_chs=width, reduction=2 ** (i + 1), module=f"stages.{i}"))
        features = int(max(sizes.multiplier, 1) * sizes.tail) or width
        last = conv_norm(width, features, 1, 1) if sizes.tail else nn.Identity()
        head: Any = dict(num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        super().__init__(stem, nn.Identity(), built, last, info, features, in_chans=in_chans, **head, **dd)


_CFG: dict[str, Any] = dict(
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    first_conv="stem.conv",
    classifier="head.fc",
    **evaluation("gluon"),
)
_ALPHAS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
_V1 = partial(Sizes, V1, DepthwiseSeparable, nn.ReLU)
_V2 = partial(Sizes, V2, InvertedResidual, nn.ReLU6, tail=1280)
_OPTIONS_V1: Any = dict(cfg=_CFG, alphas=_ALPHAS, plan=PLAN_V1)
_OPTIONS_V2: Any = dict(cfg=_CFG, alphas=_ALPHAS, plan=PLAN_V2)

register(
    __name__,
    {
        "oct_mobilenetv1_075": Network(partial(MobileNet, _V1(multiplier=0.75)), **_OPTIONS_V1),
        "oct_mobilenetv1_100": Network(partial(MobileNet, _V1()), **_OPTIONS_V1),
        "oct_mobilenetv2_100": Network(partial(MobileNet, _V2()), **_OPTIONS_V2),
        "oct_mobilenetv2_112": Network(partial(MobileNet, _V2(multiplier=1.125)), **_OPTIONS_V2),
    },
)
