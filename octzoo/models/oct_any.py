"""``oct_any``: any network of timm, made octave with a plan of its own. What ``octzoo.adapt`` makes loads by it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import timm
from timm.models import generate_default_cfgs, register_model
from torch import nn

from octzoo.models._register import DEFAULT_ALPHA, PREPARATION, Network, build_octave, check_alpha
from octzoo.plan import Row
from octzoo.weights.names import ANY

NAME = ANY
default_cfgs = generate_default_cfgs({NAME: {}})


@register_model
def oct_any(
    pretrained: bool = False,
    network: str = "resnet50",
    alpha: float = DEFAULT_ALPHA,
    plan: Sequence[Sequence[Any]] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """timm's ``network`` with octaves: ``octavize(timm.create_model(network), alpha, plan)``.

    Args:
        pretrained: only from a folder (``local-dir:``) or a repository (``hf-hub:``), which hold the other arguments.
        network: timm's name of it.
        alpha: the low share of the channels.
        plan: rows as of ``octzoo.plan.Row``; None for the default plan.
        kwargs: timm's.
    """
    check_alpha(NAME, alpha)
    plain = cast(Any, timm.create_model(network, device="meta"))
    rows = None if plan is None else tuple(Row(*row) for row in plan)
    table = Network(partial(timm.create_model, network), {}, len(plain.feature_info), (), rows)
    if not kwargs.get("pretrained_cfg"):  # not where its weights are: those are not an octave network's
        kept = {key: plain.pretrained_cfg[key] for key in PREPARATION if key in plain.pretrained_cfg}
        kwargs["pretrained_cfg"] = {**kept, "architecture": NAME}
    model = build_octave(NAME, table, pretrained, alpha, **kwargs)
    arguments = {"network": network} if rows is None else {"network": network, "plan": [list(row) for row in rows]}
    cast(Any, model)._model_args |= arguments
    return model
