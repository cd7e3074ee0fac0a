"""The paper's largest: ResNet-152 and SE-ResNet-152, post-activation, as the authors trained them (``utils/gluon``).

They differ from timm's in where a stage halves its maps (the last 1x1 convolution instead of the 3x3) and in the stems.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d, DropPath, SEModule, calculate_drop_path_rates
from torch import Tensor, nn

from octzoo.models._register import Network, register
from octzoo.models._staged import Stage, StagedNet
from octzoo.plan import Row
from octzoo.weights.records import evaluation


class Sizes(NamedTuple):
    """What the two networks differ in.

    Attributes:
        stem: (output channels, stride) of each 3x3 convolution.
        bottleneck_pool: a bottleneck of stride 2 instead of the max pool behind the stem.
        se: squeeze-excite behind each block's last convolution.
        pre_norm: a batch norm without activation in front of the first convolution and of the shortcut's. The authors,
            with whom SE did not converge without it, kept its scale at 1 and its shift at 0; here it learns them.
        depths: blocks a stage.
        widths: output channels a stage; the width of a bottleneck's middle is a quarter of them.
    """

    stem: tuple[tuple[int, int], ...]
    bottleneck_pool: bool = False
    se: bool = False
    pre_norm: bool = False
    depths: tuple[int, ...] = (3, 8, 36, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)


class Bottleneck(nn.Module):
    """relu(shortcut(x) + 1x1, 3x3, 1x1 convolutions of x): [B, in_chs, H, W] -> [B, out_chs, H/stride, W/stride].

    ``strided`` says which convolution (0, 1, 2) has the stride, ``stride`` != 1 or other channels that the shortcut is
    a convolution.
    """

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        stride: int,
        strided: int = 2,
        se: bool = False,
        pre_norm: bool = False,
        drop_path: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        conv: Any = partial(nn.Conv2d, bias=False, **dd)
        norm: Any = partial(BatchNormAct2d, **dd)
        plain_norm: Any = partial(norm, apply_act=False)
        strides = [stride if i == strided else 1 for i in range(3)]
        self.pre = plain_norm(in_chs) if pre_norm else nn.Identity()
        self.convs = nn.ModuleList(
            [
                conv(in_chs, mid_chs, 1, strides[0]),
                conv(mid_chs, mid_chs, 3, strides[1], 1),
                conv(mid_chs, out_chs, 1, strides[2]),
            ]
        )
        self.norms = nn.ModuleList([norm(mid_chs), norm(mid_chs), plain_norm(out_chs)])
        self.se = SEModule(out_chs, rd_channels=out_chs // 16, **dd) if se else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_chs != out_chs:
            pre = plain_norm(in_chs) if pre_norm else nn.Identity()
            self.shortcut = nn.Sequential(pre, conv(in_chs, out_chs, 1, stride), plain_norm(out_chs))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pre(x)
        for conv, norm in zip(self.convs, self.norms):
            y = norm(conv(y))
        return self.act(self.drop_path(self.se(y)) + self.shortcut(x))


class PostActResNet(StagedNet):
    """A residual network of ``Bottleneck``: [B, in_chans, H, W] -> [B, num_classes]."""

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
        stem, width = nn.Sequential(), in_chans
        for i, (out_chs, stride) in enumerate(sizes.stem, start=1):
            stem.add_module(f"conv{i}", nn.Conv2d(width, out_chs, 3, stride, 1, bias=False, **dd))
            stem.add_module(f"norm{i}", BatchNormAct2d(out_chs, **dd))
            width = out_chs
        pool: nn.Module = nn.MaxPool2d(3, 2, 1)
        if sizes.bottleneck_pool:
            pool = Bottleneck(width, width // 2, width, stride=2, strided=1, **dd)
        info = [dict(num_chs=width, reduction=2, module="stem")]
        stages = []
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(sizes.depths), stagewise=True)
        for i, out_chs in enumerate(sizes.widths):
            blocks = []
            for j, rate in enumerate(rates[i]):
                stride = 2 if i and not j else 1
                options: Any = dict(se=sizes.se, pre_norm=sizes.pre_norm, drop_path=rate, **dd)
                blocks.append(Bottleneck(width, out_chs // 4, out_chs, stride, **options))
                width = out_chs
            stages.append(Stage(*blocks))
            info.append(dict(num_chs=width, reduction=4 * 2**i, module=f"stages.{i}"))
        head: Any = dict(num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        super().__init__(stem, pool, stages, nn.Identity(), info, width, in_chans=in_chans, **head, **dd)


PLAN = (Row("*.se.*", "plain"), Row("stages.3.*", "zero"), Row("stages.*", "octave"))
V1F = Sizes(stem=((8, 1), (32, 2), (64, 1)), bottleneck_pool=True)
V1E = Sizes(stem=((32, 2), (32, 1), (64, 1)), se=True, pre_norm=True)
_CFG: dict[str, Any] = dict(
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    first_conv="stem.conv1",
    classifier="head.fc",
    **evaluation("gluon"),
)

register(
    __name__,
    {
        "oct_resnet152": Network(partial(PostActResNet, V1F), _CFG, plan=PLAN),
        "oct_seresnet152": Network(partial(PostActResNet, V1E), _CFG, plan=PLAN),
    },
)
