"""From a name to a network, and to the name of its plain peer: what the verbs that measure and export take."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import nn

from octzoo.errors import UserError
from octzoo.surgery import OctaveNetwork, octavize


def build(name: str, **kwargs: Any) -> nn.Module:
    """The network that ``name`` means, in training mode, as timm gives it.

    Args:
        name: what ``timm.create_model`` takes ("resnet50", "oct_resnet50_a0.25.fb_in1k", "hf-hub:..."), or
            "resnet50@0.25", which is ``octavize(timm.create_model("resnet50"), 0.25)``.
        kwargs: for ``timm.create_model``: pretrained, num_classes, in_chans, device, ...

    Raises:
        UserError: no such network, one that cannot be built, an alpha that is none, or ``pretrained`` with surgery,
            for which nobody published weights.
    """
    base, alpha = _parts(name)
    if not _has_scheme(base) and not timm.is_model(base):
        raise UserError(f"no network {base!r}{_hint(base)}")
    if alpha is not None and kwargs.get("pretrained"):
        raise UserError(f"{name}: there are no weights of a network made by surgery; leave pretrained out")
    try:
        model = timm.create_model(base, **kwargs)
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError, OSError) as problem:  # timm asserts that a size fits
        raise UserError(f"{base}: {problem}") from problem
    if alpha is None:
        return model
    if isinstance(model, OctaveNetwork):
        raise UserError(f"{name}: {base} is an octave network already; give the plain network, or {base} alone")
    try:
        return octavize(model, alpha)
    except UserError as problem:
        raise UserError(f"{name}: {problem}") from problem


def plain_name(name: str) -> str:
    """The name of the network without octaves: "resnet50@0.25" -> "resnet50", "oct_resnet50_a0.25" -> alpha 0.0.

    A plain network's is its own. Nothing is built.
    """
    base, _ = _parts(name)
    if _has_scheme(base):
        return base
    network = base.partition(".")[0].removesuffix("_a0")
    return f"{network}_a0.0" if timm.is_model(f"{network}_a0") else base


def _parts(name: str) -> tuple[str, float | None]:
    """ "resnet50@0.25" -> ("resnet50", 0.25). Behind a scheme ("hf-hub:owner/name@revision") an @ is timm's own."""
    base, at, alpha = name.rpartition("@")
    if not at or _has_scheme(name):
        return name, None
    try:
        return base, float(alpha)
    except ValueError:
        raise UserError(f"{name!r}: {alpha!r} behind the @ is not alpha, a number from 0 to 1") from None


def _has_scheme(name: str) -> bool:
    return ":" in name


def _hint(name: str) -> str:
    """The nearest name there is, ours at their alphas too."""
    names = [*timm.list_models(), *timm.list_models("oct_*", include_tags=True)]
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; `octzoo list` has ours, timm.list_models() all"
