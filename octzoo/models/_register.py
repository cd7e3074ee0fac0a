"""From a table of networks to timm's names: ``oct_<arch>`` with ``alpha=``, and ``oct_<arch>_a0.25`` and the like.

timm splits a name at its first dot: "oct_resnet50_a0.25" is the architecture "oct_resnet50_a0" with the tag "25". So
each network registers twice: "oct_resnet50" takes ``alpha=``, "oct_resnet50_a0" owns one tag an alpha.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from octzoo.models.convert import convert
from octzoo.plan import Plan
from octzoo.surgery import octavize
from octzoo.weights.records import Record, find, records
from octzoo.weights.resolve import weights_file

ALPHAS = (0.0, 0.125, 0.25, 0.5, 0.75)
DEFAULT_ALPHA = 0.25
# What an octave network keeps of the pretrained cfg of the plain one: all but where its weights are.
PREPARATION = ("input_size", "pool_size", "crop_pct", "interpolation", "mean", "std", "first_conv", "classifier")


@dataclass(frozen=True)
class Network:
    """One row of a family's table.

    Attributes:
        build: the plain network, from timm's keyword arguments (num_classes, in_chans, drop_rate, device, ...).
        cfg: fields of timm's pretrained cfg: input_size, pool_size, mean, std, first_conv, classifier, ...
        levels: how many feature maps ``features_only`` gives.
        alphas: the alphas that get a name.
        plan: which layers become octave layers; None for the default plan.
    """

    build: Callable[..., nn.Module]
    cfg: Mapping[str, Any] = field(default_factory=dict)
    levels: int = 5
    alphas: Sequence[float] = ALPHAS
    plan: Plan | None = None


def register(module: str, networks: Mapping[str, Network]) -> None:
    """Register every network of a family's module (its ``__name__``) with timm."""
    home = sys.modules[module]
    cfgs: dict[str, Any] = {}
    for name, network in networks.items():
        cfgs[name] = dict(network.cfg)
        for alpha in network.alphas:
            tagged = f"{name}_a0.{_digits(alpha)}"
            published = [record for record in records() if record.name == tagged]
            cfgs[tagged] = _cfg(network, find(tagged))  # without a tag: the default's weights and preprocessing
            cfgs |= {record.full_name: _cfg(network, record) for record in published}
    setattr(home, "default_cfgs", generate_default_cfgs(cfgs))  # noqa: B010 (timm looks it up in the module)
    for name, network in networks.items():
        for entry in (_by_alpha(name, network), _by_tag(f"{name}_a0", network)):
            entry.__module__, entry.__qualname__ = module, entry.__name__
            setattr(home, entry.__name__, register_model(entry))


def check_alpha(name: str, alpha: Any) -> None:
    """Raise ValueError unless ``alpha`` is a number from 0 to below 1."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha < 1:
        raise ValueError(f"{name}: alpha={alpha!r} is not a number from 0 to below 1")


def _cfg(network: Network, record: Record | None) -> dict[str, Any]:
    """Fields of timm's pretrained cfg: the network's, and those of published weights."""
    if record is None:
        return dict(network.cfg)
    return {
        **network.cfg,
        **record.cfg,
        "hf_hub_id": record.hub_id,
        "license": record.licence,
        "origin_url": record.source,
        "paper_ids": "arXiv:1904.05049",
    }


def _by_alpha(name: str, network: Network) -> Callable[..., nn.Module]:
    """The entry point of "oct_resnet50": alpha is an argument."""

    def entry(pretrained: bool = False, alpha: float | None = None, **kwargs: Any) -> nn.Module:
        cfg = kwargs.get("pretrained_cfg")
        named = _alpha_of(cfg)
        alpha = named if alpha is None else alpha
        if alpha is None and isinstance(cfg, Mapping) and cfg.get("source"):
            raise ValueError(f"{name}: its config.json says no alpha, neither in model_args nor in its tag")
        alpha = DEFAULT_ALPHA if alpha is None else alpha
        check_alpha(name, alpha)
        _check_named(name, alpha, cfg)
        if pretrained and not kwargs.get("pretrained_cfg") and find(f"{name}_a0.{_digits(alpha)}"):
            kwargs["pretrained_cfg"] = _digits(alpha)  # weights belong to the names that say alpha
            return build_octave(f"{name}_a0", network, pretrained, alpha, **kwargs)
        return build_octave(name, network, pretrained, alpha, **kwargs)

    entry.__name__ = name
    entry.__doc__ = f"{name} at any ``alpha``, the low share of the channels (0 is the plain network)."
    return entry


def _by_tag(name: str, network: Network) -> Callable[..., nn.Module]:
    """The entry point of "oct_resnet50_a0": the tag says alpha."""
    known = {_digits(alpha) for alpha in network.alphas}
    tags = known | {r.full_name.removeprefix(f"{name}.") for r in records() if r.name.startswith(f"{name}.")}

    def entry(pretrained: bool = False, alpha: float | None = None, **kwargs: Any) -> nn.Module:
        cfg = kwargs.get("pretrained_cfg")
        if not cfg and alpha is None:
            cfg = kwargs["pretrained_cfg"] = _digits(DEFAULT_ALPHA)  # timm's own default tag changes with the weights
        named = _alpha_of(cfg)
        if isinstance(cfg, str) and cfg not in tags and not cfg.isdigit():
            raise RuntimeError(f"Invalid pretrained tag ({cfg}) for {name}.")
        alpha = named if alpha is None else alpha
        if alpha is None:
            raise ValueError(f"{name}: neither a tag nor alpha= says which alpha")
        check_alpha(name, alpha)
        _check_named(name, alpha, cfg)
        if not cfg or isinstance(cfg, str):  # a dict came with weights of its own (hf-hub:, local-dir:) and stays
            tag = cfg if cfg in tags else _digits(alpha)
            kwargs["pretrained_cfg"] = tag if tag in tags else dict(network.cfg, architecture=name, tag=tag)
        return build_octave(name, network, pretrained, alpha, **kwargs)

    entry.__name__ = name
    entry.__doc__ = f"{name}.<tag>: the digits after the dot are those of alpha, {name}.25 is alpha 0.25."
    return entry


def build_octave(name: str, network: Network, pretrained: bool, alpha: float, **kwargs: Any) -> nn.Module:
    """A network at an alpha, with timm's keyword arguments, as its entry points give it."""

    def octave(**arguments: Any) -> nn.Module:
        plain = network.build(**arguments)
        return octavize(plain, alpha, network.plan) if alpha else plain

    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    if pretrained and not _has_weights(kwargs):
        overlay["file"] = str(weights_file(*_published(name, alpha, kwargs), kwargs.get("cache_dir")))
    elif overlay.get("url"):
        overlay.setdefault("hf_hub_id", None)  # timm would rather ask the Hub for our weights
    kwargs["pretrained_cfg_overlay"] = overlay
    features = dict(out_indices=tuple(range(network.levels)), feature_cls="getter")  # others would return half a pair
    model = build_model_with_cfg(octave, name, pretrained, feature_cfg=features, **kwargs)
    cast(Any, model)._model_args = {
        **getattr(model, "_model_args", {}),
        "alpha": alpha,
    }  # timm writes it to config.json
    return model


def _published(name: str, alpha: float, kwargs: Mapping[str, Any]) -> tuple[Record, Callable[..., Any]]:
    """The record that a name and its cfg mean, and what makes a checkpoint folder of its file."""
    tag = _tag_of(kwargs.get("pretrained_cfg")) or _digits(alpha)
    record = find(f"{name}.{tag}")
    if record is None:
        network = name.removesuffix("_a0")
        others = [r.full_name for r in records() if r.name.startswith(f"{network}_a0.")]
        raise RuntimeError(
            f"{network} has no published weights for alpha {alpha:g}"
            + (f" (there are {', '.join(others)})" if others else "")
            + ": use pretrained=False, or give a file with pretrained_cfg_overlay=dict(file=...)"
        )
    return record, partial(convert, record.full_name)


def _has_weights(kwargs: Mapping[str, Any]) -> bool:
    """Whether the caller says where the weights are; our own names' are found by ``weights_file``."""
    given = [kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")]
    cfgs = [cfg if isinstance(cfg, Mapping) else getattr(cfg, "__dict__", {}) for cfg in given]
    ours = {record.hub_id for record in records()}
    named = any(cfg.get(source) for cfg in cfgs for source in ("url", "file", "state_dict", "source"))
    return named or any(cfg.get("hf_hub_id") not in ours | {None} for cfg in cfgs)


def _digits(alpha: float) -> str:
    """0.25 -> "25": what stands behind the dot."""
    return f"{alpha:.10f}".split(".")[1].rstrip("0") or "0"


def _alpha_of(cfg: Any) -> float | None:
    """The alpha that a tag, or the tag of a cfg, says."""
    digits = (_tag_of(cfg) or "").split(".")[0]
    return float(f"0.{digits}") if digits.isdigit() else None


def _check_named(name: str, alpha: float, cfg: Any) -> None:
    """ValueError where a tag, or the architecture that a folder's config.json names, says another alpha."""
    architecture = cfg.get("architecture") if isinstance(cfg, Mapping) else getattr(cfg, "architecture", None)
    of_architecture = _alpha_of((architecture or "").partition(".")[2])
    for named in (_alpha_of(cfg), of_architecture):
        if named is not None and named != alpha:
            raise ValueError(f"{name}: alpha={alpha}, but the name says {named}")


def _tag_of(cfg: Any) -> str | None:
    """The tag that a name or a cfg has."""
    return cfg if isinstance(cfg, str) else cfg.get("tag") if isinstance(cfg, dict) else getattr(cfg, "tag", None)
