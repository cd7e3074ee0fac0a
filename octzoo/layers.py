"""Layers that store what ``octave.py`` computes with: the plain modules' parameters, names and shapes.

Each takes a Tensor or an Octave. On a Tensor the norms, and convolutions of alpha 0, do what their plain classes do;
but a convolution of stride 2 pools its input first, as the authors' do, unless ``stride_mode`` is "conv".
"""

from __future__ import annotations

import weakref
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.nn
import torch.nn.functional as F
from timm.layers import (
    BatchNormAct2d,
    BlurPool2d,
    Conv2dSame,
    GroupNorm,
    GroupNorm1,
    GroupNormAct,
    LayerNorm2d,
    LayerNormAct2d,
    RmsNorm2d,
    RmsNormAct2d,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)
from timm.layers.norm_act import GroupNorm1Act
from timm.models import register_notrace_module
from torch import Tensor, nn

from octzoo import (
    narrow,
    rules,  # noqa: F401 (fills the table of what an Octave answers)
)
from octzoo.blocks import BLOCK_OF
from octzoo.geometry import OctaveError, StrideMode, check_geometry, check_groups, pair
from octzoo.norms import (
    OctGroupNorm,
    OctGroupNorm1Act,
    OctGroupNormAct,
    OctLayerNorm2d,
    OctLayerNormAct2d,
    OctRmsNorm2d,
    OctRmsNormAct2d,
    cut,
    per_part,
)
from octzoo.octave import Octave, octave_conv2d, split_channels

# Octave convolution -> the network that surgery made it part of. Not in the modules, for it is no part of their state.
NETWORK_OF: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()


@register_notrace_module
class OctConv2d(nn.Conv2d):
    """The octave convolution as a layer; a drop-in for ``nn.Conv2d`` with the same parameters, keys and shapes.

    Takes a Tensor or an Octave of ``in_channels`` and returns an Octave whose low part has ``int(alpha *
    out_channels)`` channels, or a Tensor if that is 0. How the input is split shows at run time.

    Args:
        alpha: the low share of the output's channels, 0 to 1.
        multiple: the low channels are rounded down to a multiple of this, for networks that split them.
        stride_mode: "pool" (the authors') or "conv" (as plain weights expect), see ``octave_conv2d``.
        h2l: False switches the path from high to low off (the paper's Table 3).
        l2h: False switches the path from low to high off.

    All other arguments are those of ``nn.Conv2d``. Raises OctaveError for a stride above 2, groups that do not divide
    both parts, and a geometry that pooling does not keep.
    """

    # Defaults on the class, so that surgery turns a plain convolution into this one by changing its class.
    alpha: float = 0.0
    multiple: int = 1
    stride_mode: StrideMode = "pool"
    h2l: bool = True
    l2h: bool = True
    name: str = ""  # where in the network, for errors

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.25,
        multiple: int = 1,
        stride_mode: StrideMode = "pool",
        h2l: bool = True,
        l2h: bool = True,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.alpha, self.multiple, self.stride_mode, self.h2l, self.l2h = alpha, multiple, stride_mode, h2l, l2h
        self.check()

    @property
    def low_out(self) -> int:
        """The low channels of the output."""
        return split_channels(self.out_channels, self.alpha, self.multiple)

    def check(self) -> None:
        """Raise OctaveError for what no input could make right."""
        try:
            if not 0 <= self.alpha <= 1:
                raise OctaveError(f"alpha={self.alpha} is not between 0 and 1")
            if self.stride_mode not in ("pool", "conv"):
                raise OctaveError(f"stride_mode={self.stride_mode!r} is neither 'pool' nor 'conv'")
            check_groups(self.groups, self.in_channels, self.out_channels, self.low_out)
            padding = self.padding if isinstance(self.padding, str) else pair(self.padding)
            kernel, stride, dilation = pair(self.kernel_size), pair(self.stride), pair(self.dilation)
            check_geometry(kernel, stride, padding, dilation, bool(self.low_out), self.stride_mode)
        except OctaveError as error:
            raise self._located(error) from None

    def kernel(self) -> Tensor:
        """The weight to convolve with."""
        return self.weight

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        try:
            return octave_conv2d(
                x,
                self.kernel(),
                self.bias,
                pair(self.stride),
                self.padding if isinstance(self.padding, str) else pair(self.padding),
                pair(self.dilation),
                self.groups,
                low_out=self.low_out,
                stride_mode=self.stride_mode,
                padding_mode=self.padding_mode,
                h2l=self.h2l,
                l2h=self.l2h,
            )
        except OctaveError as error:
            raise self._located(error) from None

    def fuse(self) -> nn.Module:
        """What stands in this layer's place once its network is fused; ``timm.utils.reparameterize_model`` asks for it.

        Inside a network made by surgery the whole network is fused with the first layer that is asked. Elsewhere the
        layer stays.
        """
        home = NETWORK_OF.get(self)
        network = home() if home else None
        return cast(Any, network).fuse().get_submodule(self.name) if network is not None else self

    def _located(self, error: OctaveError) -> OctaveError:
        return OctaveError(f"{self.name or self}: {error}")

    def extra_repr(self) -> str:
        extra = [f"alpha={self.alpha:g}"]
        extra += [f"multiple={self.multiple}"] if self.multiple != 1 else []
        extra += [f"stride_mode={self.stride_mode!r}"] if self.stride_mode != "pool" else []
        extra += [f"{path}=False" for path in ("h2l", "l2h") if not getattr(self, path)]
        return ", ".join([super().extra_repr(), *extra])


def _standardised(weight: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """Each row, all of its inputs together, with mean 0 and variance 1, times its gain: [C_out, C_in/groups, k, k]."""
    rows = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(rows, None, None, gain, training=True, momentum=0.0, eps=eps).reshape_as(weight)


@register_notrace_module
class OctStdConv2d(OctConv2d):
    """timm's ``StdConv2d``: the ordinary weight is standardised, then cut. Made by surgery."""

    eps: float

    def kernel(self) -> Tensor:
        return _standardised(self.weight, None, self.eps)


@register_notrace_module
class OctScaledStdConv2d(OctConv2d):
    """timm's ``ScaledStdConv2d``, which has a gain for each row as well. Made by surgery."""

    eps: float
    scale: float
    gain: nn.Parameter

    def kernel(self) -> Tensor:
        return _standardised(self.weight, (self.gain * self.scale).view(-1), self.eps)


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm with statistics of its own for each part, inside one ordinary set of parameters and buffers.

    ``sync`` takes the batch of all processes; ``octzoo.sync_batchnorm`` sets it.
    """

    sync: bool = False

    def normalise(self, x: Tensor | Octave) -> Tensor | Octave:
        """[B, C, H, W] of either kind, normalised over pictures and space."""
        training = self.training or self.running_mean is None
        momentum = self._count_batch()
        if self.sync and training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return self._normalise_together(x, momentum)

        def norm(part: Tensor, c: slice) -> Tensor:
            update = not self.training or self.track_running_stats
            mean, var = (cut(b, c) if update else None for b in (self.running_mean, self.running_var))
            weight, bias = cut(self.weight, c), cut(self.bias, c)
            if training and weight is not None and bias is not None and narrow.is_narrow(part):
                return narrow.batch_norm(part, mean, var, weight, bias, momentum, self.eps)
            return F.batch_norm(part, mean, var, weight, bias, training, momentum, self.eps)

        return per_part(x, norm) if isinstance(x, Octave) else norm(x, slice(None))

    def _count_batch(self) -> float:
        """Note one more batch; returns how much of it the running statistics take."""
        if not (self.training and self.track_running_stats and self.num_batches_tracked is not None):
            return self.momentum or 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def _normalise_together(self, x: Tensor | Octave, momentum: float) -> Tensor | Octave:
        """One all-reduce for both parts. Sums are taken around the running mean, which loses no digits."""
        parts = [p for p in (x.high, x.low) if p.shape[1]] if isinstance(x, Octave) else [x]
        widths = [p.shape[1] for p in parts]
        exact = torch.promote_types(parts[0].dtype, torch.float32)
        shift = torch.zeros(sum(widths), device=parts[0].device, dtype=exact)
        if self.running_mean is not None:
            shift = self.running_mean.detach().to(exact, copy=True)
        centred = [p.to(exact) - s[:, None, None] for p, s in zip(parts, shift.split(widths))]
        counts = torch.cat([shift.new_full((n,), p.numel() / n) for p, n in zip(parts, widths)])
        first = torch.cat([d.sum((0, 2, 3)) for d in centred])
        second = torch.cat([d.square().sum((0, 2, 3)) for d in centred])
        first, second, counts = dist.nn.all_reduce(torch.stack([first, second, counts]))
        mean = first / counts
        var = (second / counts - mean.square()).clamp_min(0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_((mean + shift).to(self.running_mean.dtype), momentum)
                unbiased = var * (counts / (counts - 1).clamp_min(1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        scale = (var + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        offset = -mean * scale + (0 if self.bias is None else self.bias)
        rows = zip(centred, parts, scale.split(widths), offset.split(widths))
        done = [(d * s[:, None, None] + o[:, None, None]).to(p.dtype) for d, p, s, o in rows]
        if not isinstance(x, Octave):
            return done[0]
        return Octave(*(done if len(done) == 2 else [x.high, done[0]]))


@register_notrace_module
class OctBatchNorm2d(_BatchNorm):
    """``nn.BatchNorm2d`` of a Tensor or an Octave, with separate statistics for each part."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        return super().forward(x) if isinstance(x, Tensor) and not self.sync else self.normalise(x)


@register_notrace_module
class OctBatchNormAct2d(_BatchNorm, BatchNormAct2d):
    """timm's ``BatchNormAct2d`` (norm, dropout, activation) of a Tensor or an Octave."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        if isinstance(x, Tensor) and not self.sync:
            return BatchNormAct2d.forward(self, x)
        return self.act(self.drop(self.normalise(x)))


@register_notrace_module
class OctBlurPool2d(BlurPool2d):
    """timm's anti-aliasing ``BlurPool2d``: the same filter on each part."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        if isinstance(x, Tensor):
            return super().forward(x)

        def blur(part: Tensor) -> Tensor:
            n = part.shape[1]
            padded = F.pad(part, cast(list[int], self.padding), mode=self.pad_mode)
            filters = cast(Tensor, self.filt)[:1].expand(n, -1, -1, -1)
            return F.conv2d(padded, filters, stride=self.stride, groups=n)

        return x.map(blur)


@register_notrace_module
class OctHardswish(nn.Hardswish):
    """The compiler asks no value about ``F.hardswish``, so the parts are taken here."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        return x.map(super().forward) if isinstance(x, Octave) else super().forward(x)


@register_notrace_module
class OctHardsigmoid(nn.Hardsigmoid):
    """As ``OctHardswish``."""

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        return x.map(super().forward) if isinstance(x, Octave) else super().forward(x)


# What each plain leaf becomes. The octave class needs no attribute that the plain one does not have.
OCTAVE_OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: OctConv2d,
    Conv2dSame: OctConv2d,
    StdConv2d: OctStdConv2d,
    StdConv2dSame: OctStdConv2d,
    ScaledStdConv2d: OctScaledStdConv2d,
    ScaledStdConv2dSame: OctScaledStdConv2d,
    nn.BatchNorm2d: OctBatchNorm2d,
    BatchNormAct2d: OctBatchNormAct2d,
    nn.GroupNorm: OctGroupNorm,
    GroupNorm: OctGroupNorm,
    GroupNorm1: OctGroupNorm,
    GroupNormAct: OctGroupNormAct,
    GroupNorm1Act: OctGroupNorm1Act,
    LayerNorm2d: OctLayerNorm2d,
    LayerNormAct2d: OctLayerNormAct2d,
    RmsNorm2d: OctRmsNorm2d,
    RmsNormAct2d: OctRmsNormAct2d,
    BlurPool2d: OctBlurPool2d,
    nn.Hardswish: OctHardswish,
    nn.Hardsigmoid: OctHardsigmoid,
}


def octave_form(plain: type[nn.Module]) -> type[nn.Module] | None:
    """What a layer or block of class ``plain`` becomes, None for what has no octave form.

    A norm that differs from its base class in its constructor alone becomes what that becomes; a convolution does not,
    because code outside of ``forward`` may read its weight in its own way.
    """
    if plain in BLOCK_OF or plain in OCTAVE_OF or issubclass(plain, nn.Conv2d):
        return BLOCK_OF.get(plain) or OCTAVE_OF.get(plain)
    base = next((c for c in plain.__mro__ if c in OCTAVE_OF), None)
    return OCTAVE_OF[base] if base and plain.forward is base.forward else None


def sync_batchnorm(model: nn.Module, sync: bool = True) -> nn.Module:
    """Make every batch norm, octave or plain, take its statistics over all processes; in place. False undoes it.

    Use it instead of torch's and timm's converters, which put a plain norm where an octave one was. Works on the CPU
    (gloo) too. Outside ``torch.distributed``, or with one process, nothing changes in what is computed.
    """
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for name, module in norms:
        if not isinstance(module, _BatchNorm) and type(module) not in OCTAVE_OF:
            raise OctaveError(f"{name}: sync_batchnorm has no synchronised form of {type(module).__name__}")
    for _, module in norms:
        cast(Any, module).__class__ = OCTAVE_OF.get(type(module), type(module))
        cast(Any, module).sync = sync
    return model
