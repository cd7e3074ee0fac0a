"""Networks for inference: batch norms folded into the weights, octave weights cut once. Same calls, same outputs.

A fused network is not for training; the unfused one it was made from is.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from typing import Any, TypeVar, cast

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from octzoo.geometry import Geometry, OctaveError, pair
from octzoo.layers import OctBatchNorm2d, OctBatchNormAct2d, OctConv2d
from octzoo.octave import Octave, Path, Paths, convolve, cut_weight, describe, low_channels, resplit
from octzoo.plan import hooked, trial_run

M = TypeVar("M", bound=nn.Module)

NORMS = (nn.BatchNorm2d, OctBatchNorm2d, BatchNormAct2d, OctBatchNormAct2d)
PLAIN = (nn.Conv2d, Conv2dSame)  # convolutions that use their weight as it is


def fuse(model: M) -> M:
    """A copy of ``model`` for inference, in eval mode: same calls, the same outputs to 1e-5, faster.

    Batch norms that alone take what a convolution gives are folded into its weight, and the weights of octave
    convolutions are cut into their paths once, instead of at every call.

    Args:
        model: an octave network or a plain one, on any device.

    Raises:
        OctaveError: ``model`` does not run on pictures of its size.
    """
    return fuse_(copy.deepcopy(model))


def fuse_(model: M) -> M:
    """``fuse`` in place: convolutions and norms inside ``model`` are exchanged."""
    model.eval().requires_grad_(False)
    seen = Seen(model)
    modules = dict(model.named_modules())
    for name, conv in modules.items():
        if type(conv) not in PLAIN and not (isinstance(conv, OctConv2d) and len(seen.low_in[name]) == 1):
            continue
        follower = seen.norm_of(name)
        norm = modules[follower] if follower else None
        if isinstance(conv, OctConv2d):
            model.set_submodule(name, _fused(conv, norm, *seen.low_in[name]))
        elif norm is not None:
            model.set_submodule(name, fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(Any, norm)))
        if follower:
            act = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
            model.set_submodule(follower, act)
    for module in modules.values():
        if hasattr(module, "octave_fused"):
            cast(Any, module).octave_fused = True
    return model


def _fused(conv: OctConv2d, norm: Any, low_in: int) -> FusedConv2d:
    weight, bias = conv.kernel(), conv.bias
    if norm is not None:
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        weight, bias = fuse_conv_bn_weights(weight, bias, *statistics)
    return FusedConv2d(conv, weight, bias, low_in)


@register_notrace_module
class FusedConv2d(nn.Module):
    """An ``OctConv2d`` for one split of its input, with a parameter for each path instead of one weight.

    Args:
        conv: the layer.
        weight: [C_out, C_in / groups, k, k], the layer's own, or with a norm folded in.
        bias: [C_out] or None, likewise.
        low_in: the low channels of the input.
    """

    def __init__(self, conv: OctConv2d, weight: Tensor, bias: Tensor | None, low_in: int):
        super().__init__()
        self.name, self.stride_mode = conv.name, conv.stride_mode
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.low_in, self.low_out = low_in, conv.low_out
        kernel, stride, dilation = pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation)
        padding = conv.padding if isinstance(conv.padding, str) else pair(conv.padding)
        self.geometry = Geometry(kernel, stride, padding, dilation, conv.padding_mode)
        # A depthwise convolution splits its input as its output.
        self.split = self.low_out * conv.groups // self.out_channels if conv.groups == conv.in_channels > 1 else low_in
        high_in = self.in_channels - self.split
        paths = cut_weight(weight, bias, high_in, self.in_channels, self.low_out, conv.h2l, conv.l2h, stride)
        channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for name, path in paths._asdict().items():
            if isinstance(path, Path):
                self._hold(name, path.weight.detach().clone(memory_format=layout))
                self._hold(f"{name}_bias", None if path.bias is None else path.bias.detach().clone())

    def _hold(self, name: str, value: Tensor | None) -> None:
        self.register_parameter(name, None if value is None else nn.Parameter(value, requires_grad=False))

    @property
    def paths(self) -> Paths:
        """What ``convolve`` takes."""

        def held(name: str) -> Path | None:
            return Path(getattr(self, name), getattr(self, f"{name}_bias")) if hasattr(self, name) else None

        high_out = self.out_channels - self.low_out
        return Paths(held("h2h"), held("h2l"), held("l2h"), held("l2l"), held("l2b"), high_out)

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        if x.ndim != 4 or x.shape[1] != self.in_channels or low_channels(x) != self.low_in:
            raise OctaveError(
                f"{self.name}: fused for {self.in_channels} channels, {self.low_in} of them low, and got {describe(x)}"
            )
        return convolve(resplit(x, self.split), self.paths, self.geometry, self.stride_mode)

    def extra_repr(self) -> str:
        shapes = {name: list(p.shape) for name, p in self.named_parameters()}
        return ", ".join([*(f"{name}={shape}" for name, shape in shapes.items()), f"stride={self.geometry.stride}"])


class Seen(TorchFunctionMode):
    """What one pass shows of each convolution: how its input is split, and what uses its output.

    Attributes:
        low_in: name of a convolution -> the numbers of low channels it was given.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.low_in: defaultdict[str, set[int]] = defaultdict(set)
        self._norms = {name for name, module in model.named_modules() if type(module) in NORMS and _fixed(module)}
        self._users: defaultdict[str, set[str]] = defaultdict(set)  # convolution -> where its output is used
        self._inputs: defaultdict[str, set[str]] = defaultdict(set)  # norm -> the convolutions it is given
        self._calls: Counter[str] = Counter()
        self._made: dict[int, tuple[Any, str]] = {}  # id of an output or a part of one -> it, its convolution
        self._inside: list[str] = []
        with hooked(model, self._enter, self._leave), self:
            trial_run(model)

    def norm_of(self, conv: str) -> str | None:
        """The norm that takes all of what the convolution gives, and nothing else."""
        users = self._users[conv]
        norm = next(iter(users), "")
        alone = len(users) == 1 and self._inputs[norm] == {conv} and self._calls[conv] == self._calls[norm] == 1
        return norm if alone else None

    def _enter(self, name: str, module: nn.Module, x: Any) -> None:
        self._inside.append(name)
        self._calls[name] += 1
        if isinstance(module, nn.Conv2d):
            self.low_in[name].add(low_channels(x))
        if name in self._norms:
            self._inputs[name].add(self._made.get(id(x), (x, ""))[1])

    def _leave(self, name: str, module: nn.Module, y: Any) -> None:
        self._inside.pop()
        if isinstance(module, nn.Conv2d):
            parts = [part for part in (y.high, y.low) if part.shape[1]] if isinstance(y, Octave) else []
            self._made |= {id(value): (value, name) for value in (y, *parts)}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":  # to ask for a shape is not to use
            is_octave = lambda x: isinstance(x, Octave)  # noqa: E731
            for x in pytree.tree_leaves((args, kwargs), is_leaf=is_octave):
                if id(x) in self._made:
                    self._users[self._made[id(x)][1]].add(self._inside[-1] if self._inside else "")
        return func(*args, **(kwargs or {}))


def _fixed(norm: Any) -> bool:
    """Whether a norm's statistics are fixed outside of training."""
    return norm.running_mean is not None and norm.track_running_stats
