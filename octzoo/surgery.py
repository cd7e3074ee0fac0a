"""Surgery: a plain network becomes an octave network in place, its parameters, keys and shapes unchanged."""

from __future__ import annotations

import functools
import weakref
from typing import Any, TypeVar, cast

import torch
from timm.layers import Conv2dSame, use_reentrant_ckpt
from torch import Tensor, nn

from octzoo.fused import fuse_
from octzoo.geometry import OctaveError, pair
from octzoo.layers import NETWORK_OF, OCTAVE_OF, OctConv2d, octave_form
from octzoo.octave import Octave, merge
from octzoo.plan import Plan, Row, default_plan, find_row, picture_channels, picture_size, read_plan, trial_octaves

M = TypeVar("M", bound=nn.Module)

torch.fx.wrap("merge")  # a node of its own in a traced graph: what reaches it is known only at run time


def octavize(model: M, alpha: float, plan: Plan | None = None, input_size: tuple[int, int, int] | None = None) -> M:
    """Turn ``model`` into an octave network, in place.

    Args:
        model: a network of timm, of torchvision, or of yours; on any device, "meta" too.
        alpha: the low share of the channels between octave layers, 0 to 1.
        plan: rows of (pattern of module names, "octave" | "zero" | "plain" | "whole"), the first that matches counts
            (see ``octzoo.plan.Row``). Convolutions that none matches stay plain; norms follow what reaches them. None:
            the stem stays plain, the last stage gets octave layers of alpha 0, all between is octave.
        input_size: of one picture, [C, H, W]. None: as the network's pretrained_cfg says, else 3 x 224 x 224.

    Returns:
        ``model``: same parameters, state dict keys and shapes. ``forward_features`` and ``forward_intermediates`` give
        ordinary tensors.

    Raises:
        OctaveError: what cannot be done, with the layer and the reason. ``model`` is then as it was.
    """
    if isinstance(model, OctaveNetwork):
        raise OctaveError(f"{type(model).__name__} is an octave network already: use set_alpha to change its alpha")
    before = [(module, module.__class__, dict(module.__dict__)) for module in model.modules()]
    try:
        if input_size is not None:
            cast(Any, model).octave_input_size = tuple(input_size)
        rows = default_plan(model) if plan is None else read_plan(plan, [name for name, _ in model.named_modules()])
        for name, module in model.named_modules():
            _replace(name, module, find_row(rows, name))
        cast(Any, model).__class__ = _octave_class(cast(Any, type(model)))
        network = cast(OctaveNetwork, model)
        network.octave_plan = rows
        network.octave_layers = tuple(n for n, m in model.named_modules() if type(m) in OCTAVE_OF.values())
        network.own_layers()
        return set_alpha(model, alpha)
    except BaseException:
        for module, plain, attributes in before:
            module.__class__ = plain
            module.__dict__.clear()
            module.__dict__.update(attributes)
        raise


def set_alpha(model: M, alpha: float) -> M:
    """Give the octave layers of an octavized ``model`` another alpha, in place; those of alpha 0 stay.

    The parameters stay as they are: their rows and columns are cut elsewhere. Raises OctaveError (and leaves ``model``
    as it was) if a layer cannot have this alpha.
    """
    if not isinstance(model, OctaveNetwork):
        raise OctaveError(f"{type(model).__name__} is not an octave network: octavize(model, alpha) makes it one")
    if model.octave_fused:
        raise OctaveError(f"{type(model).__name__} is fused: set_alpha needs the network that it was made from")
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, OctConv2d)]
    before = [(layer, layer.alpha) for _, layer in layers]
    try:
        for name, layer in layers:
            row = find_row(model.octave_plan, name)
            layer.alpha = alpha if row and row.kind == "octave" else 0.0
            layer.check()
        trial_octaves(model)
    except BaseException:
        for layer, old in before:
            layer.alpha = old
        raise
    model.octave_alpha = alpha
    if "alpha" in (arguments := getattr(model, "_model_args", {})):  # what timm saves with the weights must follow
        network = cast(Any, model)
        network._model_args = {**arguments, "alpha": alpha}
        network.pretrained_cfg = network.default_cfg = {**network.pretrained_cfg, "tag": None}
    return model


def _replace(name: str, module: nn.Module, row: Row | None) -> None:
    """Make one leaf an octave layer, as its row says, by changing its class."""
    kind = row.kind if row else "plain" if isinstance(module, nn.Conv2d) else "octave"
    plain = type(module)
    if kind == "whole":
        module.__class__ = _whole_class(cast(Any, plain))
    if kind in ("plain", "whole"):
        return
    octave = octave_form(plain)
    if octave is None:
        if isinstance(module, nn.Conv2d):
            raise OctaveError(f"{name}: {plain.__name__} has no octave form; give it a 'plain' row in the plan")
        return
    module.__class__ = octave
    if hasattr(module, "name"):
        cast(Any, module).name = name
    if row and isinstance(module, OctConv2d):
        if plain is Conv2dSame or getattr(module, "same_pad", False):
            module.padding = "same"
        module.multiple = row.multiple
        even = any(d * (k - 1) % 2 for k, d in zip(pair(module.kernel_size), pair(module.dilation)))
        module.stride_mode = row.stride_mode or ("conv" if even and pair(module.stride) == (2, 2) else "pool")


class Whole(nn.Module):
    """What a module of kind "whole" is, beside its own class: octaves are merged before it."""

    _plain_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty_whole, (self._plain_class,), self.__getstate__()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return cast(Any, super()).forward(*map(whole, args), **{key: whole(x) for key, x in kwargs.items()})


def whole(x: Any) -> Any:
    """``merge`` of an Octave; anything else as it is."""
    return merge(x) if isinstance(x, Octave) else x


torch.fx.wrap("whole")


class OctaveNetwork(nn.Module):
    """What every octavized network is, beside its own class: the pair never leaves it."""

    _plain_class: type[nn.Module]
    octave_plan: tuple[Row, ...]
    octave_layers: tuple[str, ...]  # the leaves that surgery made octave layers
    octave_alpha: float
    octave_fused: bool = False

    def fuse(self) -> OctaveNetwork:
        """Make this network one for inference, in place (``octzoo.deploy.fuse`` makes a copy); returns it."""
        return fuse_(self)

    def own_layers(self) -> None:
        """Tell the convolutions which network they belong to, for timm asks them alone to be fused."""
        NETWORK_OF.update((m, weakref.ref(self)) for m in self.modules() if isinstance(m, OctConv2d))

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.own_layers()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time; a pickle names the plain one.
        return _empty, (self._plain_class,), self.__getstate__()

    def __prepare_scriptable__(self) -> Any:
        if self.training:
            raise OctaveError(
                "torch.jit.script traces an octave network, which would freeze training mode: .eval() it first"
            )
        first = next(m for m in self.modules() if isinstance(m, nn.Conv2d))
        x = first.weight.new_zeros(1, picture_channels(self), *picture_size(self))
        # The check would trace once more and compare the graphs as text, the longest part by far in deep networks.
        return _Traced(torch.jit.trace(self, x, check_trace=False))

    def _explain(self, error: OctaveError) -> OctaveError:
        """Name the norms that a converter made plain, if that is what happened."""
        octave = tuple(OCTAVE_OF.values())
        lost = [n for n in self.octave_layers if type(self.get_submodule(n)) not in octave]
        if not lost:
            return error
        kind = type(self.get_submodule(lost[0])).__name__
        others = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        return OctaveError(
            f"{lost[0]}{others} is a plain {kind} where an octave layer was; convert with octzoo.sync_batchnorm"
        )


class _Explains(OctaveNetwork):
    """A network without ``forward_features``."""

    def forward(self, x: Tensor) -> Any:
        try:
            return cast(Any, super()).forward(x)
        except OctaveError as error:
            raise self._explain(error) from error


class _MergesFeatures(OctaveNetwork):
    def forward_features(self, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return merge(cast(Any, super()).forward_features(*args, **kwargs))
        except OctaveError as error:
            raise self._explain(error) from error


class _MergesIntermediates(OctaveNetwork):
    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        try:
            out = cast(Any, super()).forward_intermediates(*args, **kwargs)
        except OctaveError as error:
            raise self._explain(error) from error
        return _merge_all(out)


class _Checkpoints(OctaveNetwork):
    def set_grad_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> Any:
        if enable and use_reentrant_ckpt():
            raise OctaveError(
                "re-entrant checkpointing loses the gradients of octave networks: timm.layers.set_reentrant_ckpt(False)"
            )
        return cast(Any, super()).set_grad_checkpointing(enable, *args, **kwargs)


class _Traced(nn.Module):
    """What torch.jit.script gets to see: it takes a traced module inside another, not in place of one."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def _merge_all(out: Any) -> Any:
    """``merge`` inside the lists, tuples and dicts that ``forward_intermediates`` returns."""
    if isinstance(out, dict):
        return {key: _merge_all(value) for key, value in out.items()}
    return type(out)(_merge_all(value) for value in out) if isinstance(out, (list, tuple)) else merge(out)


@functools.cache
def _octave_class(plain: Any) -> Any:
    """The octave sibling of a network's class, made once."""
    methods = {"forward_features": _MergesFeatures, "forward_intermediates": _MergesIntermediates}
    mixins = [mixin for name, mixin in methods.items() if hasattr(plain, name)]
    mixins += [] if hasattr(plain, "forward_features") else [_Explains]
    mixins += [_Checkpoints] if hasattr(plain, "set_grad_checkpointing") else []
    bases: tuple[type, ...] = (*mixins, plain)
    return type(
        f"Oct{plain.__name__}", bases, {"__module__": __name__, "__doc__": plain.__doc__, "_plain_class": plain}
    )


@functools.cache
def _whole_class(plain: Any) -> Any:
    """The sibling of a module's class that is given whole maps, made once."""
    names = {"__module__": __name__, "__doc__": plain.__doc__, "_plain_class": plain}
    return type(f"Whole{plain.__name__}", (Whole, plain), names)


def _empty_whole(plain: type[nn.Module]) -> nn.Module:
    """As ``_empty``."""
    sibling = _whole_class(cast(Any, plain))
    return sibling.__new__(sibling)


def _empty(plain: type[nn.Module]) -> nn.Module:
    """An octave network without its state, for pickle and deepcopy."""
    sibling = _octave_class(cast(Any, plain))
    return sibling.__new__(sibling)
