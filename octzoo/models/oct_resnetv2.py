"""The paper's ResNets: pre-activation, as the authors trained them. And CIFAR and basic-block sizes of the same class.

Chen et al. 2019, table 2 and the code they released (``utils/symbol``). They differ from timm's ``resnetv2`` in the
stem (batch norm and ReLU before the max pool) and in the shortcuts (a batch norm and ReLU of their own).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d, DropPath, SEModule, calculate_drop_path_rates
from torch import Tensor, nn

from octzoo.models._register import Network, register
from octzoo.models._staged import Stage, StagedNet
from octzoo.weights.records import evaluation


class Sizes(NamedTuple):
    """One column of the paper's tables.

    Attributes:
        depths: blocks a stage.
        widths: output channels a stage; the width of a bottleneck's middle is a quarter of them times ``middle``.
        bottleneck: 1x1, 3x3, 1x1; False: two 3x3.
        middle, groups: 2 and 32 make it a ResNeXt.
        se: squeeze-excite behind each block's last convolution.
        small_stem: one 3x3 convolution (CIFAR) instead of 7x7/2, norm, ReLU and a max pool.
        eps, momentum: of the batch norms; the authors' 0.0001 and 0.92 in MXNet's sense.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    bottleneck: bool = True
    middle: int = 1
    groups: int = 1
    se: bool = False
    small_stem: bool = False
    eps: float = 1e-4
    momentum: float = 0.08


class PreActBlock(nn.Module):
    """x + conv(norm(...)), every convolution behind a batch norm and ReLU: [B, in_chs, H, W] -> [B, out_chs, ...]."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, drop_path: float, sizes: Sizes, **dd: Any):
        super().__init__()
        norm: Any = partial(BatchNormAct2d, eps=sizes.eps, momentum=sizes.momentum, **dd)
        conv: Any = partial(nn.Conv2d, bias=False, **dd)
        mid = out_chs // 4 * sizes.middle
        if sizes.bottleneck:
            layers = [conv(in_chs, mid, 1), conv(mid, mid, 3, stride, 1, groups=sizes.groups), conv(mid, out_chs, 1)]
        else:
            layers = [conv(in_chs, out_chs, 3, stride, 1), conv(out_chs, out_chs, 3, 1, 1)]
        self.norms = nn.ModuleList(norm(layer.in_channels) for layer in layers)
        self.convs = nn.ModuleList(layers)
        self.se = SEModule(out_chs, rd_channels=out_chs // 16, **dd) if sizes.se else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        changes = stride != 1 or in_chs != out_chs
        self.shortcut = nn.Sequential(norm(in_chs), conv(in_chs, out_chs, 1, stride)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs):
            y = conv(norm(y))
        return self.drop_path(self.se(y)) + self.shortcut(x)


class PreActResNet(StagedNet):
    """A pre-activation residual network: [B, in_chans, H, W] -> [B, num_classes]."""

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
        norm: Any = partial(BatchNormAct2d, eps=sizes.eps, momentum=sizes.momentum, **dd)
        width = sizes.widths[0] if sizes.small_stem else 64
        stem, pool, info = nn.Sequential(), nn.Sequential(), []
        if sizes.small_stem:
            stem.add_module("conv", nn.Conv2d(in_chans, width, 3, 1, 1, bias=False, **dd))
            reduction = 1
        else:
            stem.add_module("conv", nn.Conv2d(in_chans, width, 7, 2, 3, bias=False, **dd))
            stem.add_module("norm", norm(width))
            pool.append(nn.MaxPool2d(3, 2, 1))
            reduction = 4
            info = [dict(num_chs=width, reduction=2, module="stem")]

        stages = []
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(sizes.depths), stagewise=True)
        for i, (depth, out_chs) in enumerate(zip(sizes.depths, sizes.widths)):
            strides = [2 if i else 1] + [1] * (depth - 1)
            blocks = []
            for stride, rate in zip(strides, rates[i]):
                blocks.append(PreActBlock(width, out_chs, stride, rate, sizes, **dd))
                width = out_chs
            stages.append(Stage(*blocks))
            reduction *= strides[0]
            info.append(dict(num_chs=width, reduction=reduction, module=f"stages.{i}"))
        head: Any = dict(num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        super().__init__(stem, pool, stages, norm(width), info, width, in_chans=in_chans, **head, **dd)


_PAPER: dict[str, Any] = dict(
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    first_conv="stem.conv",
    classifier="head.fc",
    **evaluation("symbol"),
)
_CIFAR: dict[str, Any] = dict(
    input_size=(3, 32, 32),
    pool_size=(8, 8),
    num_classes=10,
    crop_pct=1.0,
    interpolation="bilinear",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    first_conv="stem.conv",
    classifier="head.fc",
)
_BASIC: dict[str, Any] = dict(widths=(64, 128, 256, 512), bottleneck=False)
_SMALL: dict[str, Any] = dict(widths=(16, 32, 64), bottleneck=False, small_stem=True, eps=1e-5, momentum=0.1)

_GROUPS: dict[str, Any] = dict(middle=2, groups=32)
_GROUPED = (0.0, 0.25, 0.5, 0.75)  # 32 groups do not divide the 112 high channels of alpha 0.125

register(
    __name__,
    {
        "oct_resnet18": Network(partial(PreActResNet, Sizes((2, 2, 2, 2), **_BASIC)), _PAPER),
        "oct_resnet34": Network(partial(PreActResNet, Sizes((3, 4, 6, 3), **_BASIC)), _PAPER),
        "oct_resnet26": Network(partial(PreActResNet, Sizes((2, 2, 2, 2))), _PAPER),
        "oct_resnet50": Network(partial(PreActResNet, Sizes((3, 4, 6, 3))), _PAPER),
        "oct_resnet101": Network(partial(PreActResNet, Sizes((3, 4, 23, 3))), _PAPER),
        "oct_resnet200": Network(partial(PreActResNet, Sizes((3, 24, 36, 3))), _PAPER),
        "oct_seresnet50": Network(partial(PreActResNet, Sizes((3, 4, 6, 3), se=True)), _PAPER),
        "oct_resnext50_32x4d": Network(partial(PreActResNet, Sizes((3, 4, 6, 3), **_GROUPS)), _PAPER, alphas=_GROUPED),
        "oct_resnext101_32x4d": Network(
            partial(PreActResNet, Sizes((3, 4, 23, 3), **_GROUPS)), _PAPER, alphas=_GROUPED
        ),
        "oct_cifar_resnet20": Network(partial(PreActResNet, Sizes((3, 3, 3), **_SMALL)), _CIFAR, levels=3),
        "oct_cifar_resnet56": Network(partial(PreActResNet, Sizes((9, 9, 9), **_SMALL)), _CIFAR, levels=3),
        "oct_cifar_resnet110": Network(partial(PreActResNet, Sizes((18, 18, 18), **_SMALL)), _CIFAR, levels=3),
    },
)
