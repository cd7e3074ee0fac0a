"""A published file of weights -> a checkpoint folder of ours, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn

from octzoo.errors import UserError
from octzoo.models.describe import family, plan_table
from octzoo.splits import splits
from octzoo.weights.card import make_card
from octzoo.weights.folder import make_config, write_folder
from octzoo.weights.foreign import read_foreign
from octzoo.weights.golden import GOLDEN, golden_logits
from octzoo.weights.names import FullName, parse
from octzoo.weights.official import EPSILON, TABLES, NamesError, Rules, choose_rules, says_part
from octzoo.weights.parts import to_ours, whole_shapes
from octzoo.weights.records import PUBLISHED, published, records


class Imported(NamedTuple):
    """What a published file holds, as ``write_folder`` takes it; ``arrays`` is how many it was stored in."""

    arrays: int
    state: dict[str, Tensor]
    config: dict[str, Any]
    card: str


def read_published(full_name: str, file: Path) -> Imported:
    """Read a published file as the weights of ``full_name``, "oct_resnet50_a0.25.fb_in1k".

    Raises:
        UserError: the file is damaged, holds another network or alpha (the text says which), or numbers that are not
            finite; or the name is none of ours.
    """
    parts = read_name(full_name)
    name, alpha, tag = parts.untagged, parts.alpha, f"{parts.digits}.{parts.tag}"
    record = published(full_name)
    model: Any = timm.create_model(full_name if record else name, device="meta")
    foreign = read_foreign(file)
    state = model.state_dict()
    shapes = {key: tuple(t.shape) for key, t in state.items()}
    try:
        rules = choose_rules(foreign, shapes)
        if not _same_norms(model, rules):
            raise NamesError("its batch norms add another epsilon to the variance")
        arrays = to_ours(foreign, shapes, splits(model), rules)
    except NamesError as problem:
        found = _network_in(foreign)
        reason = f"it holds {found}" if found not in (None, name) else problem
        raise UserError(f"{file} does not hold {name}: {reason}") from problem
    if not alpha and any(map(says_part, foreign)):
        raise UserError(
            f"{file} holds octave layers of alpha 0, which pool where {name}, the ordinary network, strides: it would "
            "compute something else"
        )
    state = {key: _tensor(file, key, arrays) if key in arrays else torch.zeros((), dtype=torch.int64) for key in state}
    config = make_config(model, alpha, tag, record)
    fresh: Any = timm.create_model(full_name if record else name)
    fresh.load_state_dict(state)
    config[GOLDEN] = golden_logits(fresh, config["pretrained_cfg"]["input_size"])
    card = make_card(full_name, alpha, record, config=config, plan=plan_table(model), family=family(full_name, None))
    return Imported(len(foreign), state, config, card)


def convert(full_name: str, file: Path, folder: Path) -> None:
    """``read_published``, written as a checkpoint folder."""
    found = read_published(full_name, file)
    write_folder(folder, found.state, found.config, found.card)


def read_name(full_name: str) -> FullName:
    """The parts of a full name; UserError if it is none, or there is no such network or no such published weights."""
    name = parse(full_name)
    if not timm.is_model(f"{name.network}_a0"):
        raise UserError(f"there is no network {name.network!r}; `octzoo list` has them all")
    if name.tag in PUBLISHED and not published(full_name):
        alphas = f"{name.network}_a0."
        tagged = [r.full_name for r in records() if r.tag == name.tag and r.name.startswith(alphas)]
        there = f"there are {', '.join(tagged)}" if tagged else "nor for another alpha"
        own = f"give a tag of your own, such as {name.untagged}.mine"
        raise UserError(f"{name.tag} has no weights of {name.untagged} ({there}): {own}")
    return name


def _tensor(file: Path, key: str, arrays: Mapping[str, np.ndarray]) -> Tensor:
    """One tensor in float32; UserError unless all of it is finite."""
    value = torch.from_numpy(np.asarray(arrays[key], dtype=np.float32))
    if not value.isfinite().all():
        raise UserError(f"{file}: {key} holds numbers that are not finite: the file is damaged")
    return value


def _network_in(foreign: Mapping[str, np.ndarray]) -> str | None:
    """Which of our networks a file holds, judged by its names and whole shapes alone; None if none fits."""
    given = {name: array.shape for name, array in foreign.items()}
    for rules in TABLES:
        try:
            shapes, alpha = whole_shapes(given, rules)
        except NamesError:
            continue
        for entry in timm.list_models("oct_*_a0"):
            model = timm.create_model(f"{entry}.0", device="meta")
            state = model.state_dict()
            ours = {key: tuple(t.shape) for key, t in state.items() if not key.endswith("num_batches_tracked")}
            if not _same_norms(model, rules):
                continue
            if ours.keys() == shapes.keys() and all(_same(ours[key], shapes[key]) for key in ours):
                return f"{entry}.{f'{alpha:g}'.partition('.')[2] or '0'}"
    return None


def _same_norms(model: nn.Module, rules: Rules) -> bool:
    """Whether a network's batch norms are those of the code that a table of names belongs to."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return {norm.eps for norm in norms} == {EPSILON.get(rules, 1e-5)}


def _same(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Equal but for trailing ones: a linear weight and a 1x1 convolution."""
    short, long = sorted((a, b), key=len)
    return long[: len(short)] == short and set(long[len(short) :]) <= {1}
