"""The paper's ResNets: pre-activation, as the authors trained them. And CIFAR and basic-block sizes of the same class.

Chen et al. 2019, table 2 and the code they released (``utils/symbol``). They differ from timm's ``resnetv2`` in the
stem (batch norm and ReLU before the max pool) and in the shortcuts (a batch norm and ReLU of their own).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from timm.layers import BatchNormAct2d, ClassifierHead, DropPath, SEModule, calculate_drop_path_rates, get_device_dtype
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from octzoo.models._register import Network, register


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


class Stage(nn.Sequential):
    """Blocks of one resolution."""

    def __init__(self, *blocks: nn.Module):
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self, x)
        for block in self:
            x = block(x)
        return x


class PreActResNet(nn.Module):
    """A pre-activation residual network [B, in_chans, H, W] -> [B, num_classes], with timm's whole model interface."""

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
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        norm: Any = partial(BatchNormAct2d, eps=sizes.eps, momentum=sizes.momentum, **dd)
        width = sizes.widths[0] if sizes.small_stem else 64
        self.feature_info: Any = []
        if sizes.small_stem:
            self.stem = nn.Sequential()
            self.stem.add_module("conv", nn.Conv2d(in_chans, width, 3, 1, 1, bias=False, **dd))
            self.pool: nn.Module = nn.Identity()
            reduction = 1
        else:
            self.stem = nn.Sequential()
            self.stem.add_module("conv", nn.Conv2d(in_chans, width, 7, 2, 3, bias=False, **dd))
            self.stem.add_module("norm", norm(width))
            self.pool = nn.MaxPool2d(3, 2, 1)
            reduction = 4
            self.feature_info = [dict(num_chs=width, reduction=2, module="stem")]

        self.stages = nn.Sequential()
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(sizes.depths), stagewise=True)
        for i, (depth, out_chs) in enumerate(zip(sizes.depths, sizes.widths)):
            strides = [2 if i else 1] + [1] * (depth - 1)
            blocks = []
            for stride, rate in zip(strides, rates[i]):
                blocks.append(PreActBlock(width, out_chs, stride, rate, sizes, **dd))
                width = out_chs
            self.stages.append(Stage(*blocks))
            reduction *= strides[0]
            self.feature_info.append(dict(num_chs=width, reduction=reduction, module=f"stages.{i}"))
        self.norm: nn.Module = norm(width)
        self.num_features = self.head_hidden_size = width
        self.head = ClassifierHead(width, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """He et al.'s, which MXNet calls MSRAPrelu; the classifier small."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> the normalised last feature map."""
        return self.norm(self.stages(self.pool(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps of ``feature_info`` (the last one normalised if ``norm``), and the final one."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: only 'NCHW'")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        names = [info["module"] for info in self.feature_info]
        maps, x = {}, self.stem(x)
        maps["stem"] = x
        x = self.pool(x)
        for i, stage in enumerate(self.stages):
            if stop_early and names.index(f"stages.{i}") > last:
                break
            x = maps[f"stages.{i}"] = stage(x)
        whole = len(self.stages) > 0 and names[-1] in maps
        final = self.norm(x) if whole else x
        if whole and norm:
            maps[names[-1]] = final
        intermediates = [maps[names[i]] for i in taken]
        return intermediates if intermediates_only else (final, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the feature maps at ``indices`` do not need."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        cut = last < len(self.feature_info) - 1
        name = self.feature_info[last]["module"]
        if cut or prune_norm:
            self.norm = nn.Identity()
        self.stages = self.stages[: 0 if name == "stem" else int(name.split(".")[1]) + 1]
        if name == "stem":
            self.pool = nn.Identity()
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if cut or prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            cast(Any, stage).grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^norm", (99999,))]
        return dict(stem=r"^stem", blocks=blocks)


# The authors' evaluation: (x - [124, 117, 104]) * 0.0167 on pixels of 0 to 255, shorter side 256, bicubic.
_PAPER: dict[str, Any] = dict(
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    crop_pct=0.875,
    interpolation="bicubic",
    mean=(124 / 255, 117 / 255, 104 / 255),
    std=(1 / (0.0167 * 255),) * 3,
    first_conv="stem.conv",
    classifier="head.fc",
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

register(
    __name__,
    {
        "oct_resnet18": Network(partial(PreActResNet, Sizes((2, 2, 2, 2), **_BASIC)), _PAPER),
        "oct_resnet34": Network(partial(PreActResNet, Sizes((3, 4, 6, 3), **_BASIC)), _PAPER),
        "oct_resnet26": Network(partial(PreActResNet, Sizes((2, 2, 2, 2))), _PAPER),
        "oct_resnet50": Network(partial(PreActResNet, Sizes((3, 4, 6, 3))), _PAPER),
        "oct_resnet101": Network(partial(PreActResNet, Sizes((3, 4, 23, 3))), _PAPER),
        "oct_resnet200": Network(partial(PreActResNet, Sizes((3, 24, 36, 3))), _PAPER),
        "oct_cifar_resnet20": Network(partial(PreActResNet, Sizes((3, 3, 3), **_SMALL)), _CIFAR, levels=3),
        "oct_cifar_resnet56": Network(partial(PreActResNet, Sizes((9, 9, 9), **_SMALL)), _CIFAR, levels=3),
    },
)
