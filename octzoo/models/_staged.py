"""What the paper's networks have in common: stem, pool, stages, tail, head, with timm's whole model interface."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, ClassifierHead, get_device_dtype
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn


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


class StagedNet(nn.Module):
    """[B, in_chans, H, W] -> [B, num_classes]: head(tail(stages(pool(stem(x))))). A family builds the parts.

    Args:
        stem: the first convolutions.
        pool: what stands between stem and stages.
        stages: each a sequence of blocks.
        tail: what the last feature map goes through.
        feature_info: the maps to show, as timm describes them (num_chs, reduction, module); "stem" or stages.
        num_features: channels of the tail's output.
        in_chans, num_classes, global_pool, drop_rate, device, dtype: timm's.
    """

    def __init__(
        self,
        stem: nn.Module,
        pool: nn.Module,
        stages: Iterable[nn.Module],
        tail: nn.Module,
        feature_info: Sequence[Mapping[str, Any]],
        num_features: int,
        *,
        in_chans: int,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.feature_info: Any = list(feature_info)
        self.stem, self.pool, self.stages, self.tail = stem, pool, nn.Sequential(*stages), tail
        self.num_features = num_features
        dd: Any = dict(device=device, dtype=dtype)
        self.head = ClassifierHead(num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        self.init_weights()

    def init_weights(self) -> None:
        """He et al.'s, by what leaves a convolution's group; the classifier small."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> the last feature map, [B, num_features, H', W']."""
        return self.tail(self.stages(self.pool(self.stem(x))))

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
        final = self.tail(x) if whole else x
        if whole and norm and isinstance(self.tail, BatchNormAct2d):
            maps[names[-1]] = final
        intermediates = [maps[names[i]] for i in taken]
        return intermediates if intermediates_only else (final, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the feature maps at ``indices`` do not need."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        cut = last < len(self.feature_info) - 1
        name, width = self.feature_info[last]["module"], self.num_features
        if cut or prune_norm:
            self.tail = nn.Identity()
            self.num_features = self.feature_info[last]["num_chs"]
        self.stages = self.stages[: 0 if name == "stem" else int(name.split(".")[1]) + 1]
        if name == "stem":
            self.pool = nn.Identity()
        if cut or prune_head or self.num_features != width:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            cast(Any, stage).grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^tail", (99999,))]
        return dict(stem=r"^(?:stem|pool)", blocks=blocks)
