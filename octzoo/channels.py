"""Which plain channel each channel of an octave network is, for whoever carries plain weights over.

Almost everywhere it is the same one. A concatenation joins the high parts before the low ones, a split takes a piece of
each, and so does a group of a grouped convolution: there the octave network has its channels in another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from octzoo.channel_flow import Flow, Order, numbers
from octzoo.plan import hooked, trial_run

ChannelOrder = dict[str, tuple[Tensor | None, Tensor | None]]


def channel_order(model: nn.Module, costs: Mapping[str, Tensor] | None = None) -> ChannelOrder:
    """The order in which an octave network holds the channels of its plain one, from one run on the meta device.

    Args:
        model: the octave network.
        costs: name of a convolution -> what it costs to have each of its input channels at half the resolution, [C_in].
            Where the order is free, the cheapest channels then come last, and so are the low ones; costs of layers
            that share channels (around residual connections) are added up. None: the plain order wherever it is free.

    Returns:
        State dict key -> (rows, columns): the plain indices, in the octave network's order, of dimension 0 and 1; None
        where they are the same. Tensors that do not differ are left out, so that most networks give ``{}``. With

            model.load_state_dict(reorder(plain.state_dict(), channel_order(model)))

        ``model`` computes what the plain network does, up to resampling. The order depends on alpha and on the plan.
        Feature maps between layers stand in the octave order as well; what a linear layer gives does not.

    Raises:
        OctaveError: no order suits a layer and what it shares its channels with; the text names the layer.
    """
    flow = _run(model)
    if costs is not None:
        for root, total in _totals(flow, costs).items():
            root.known = partial(torch.argsort, total, descending=True, stable=True)
    flow.check()
    state = model.state_dict()
    order = {key: (_moved(rows), _moved(columns)) for key, (rows, columns) in flow.axes.items() if key in state}
    return {key: axes for key, axes in order.items() if any(indices is not None for indices in axes)}


class Group(NamedTuple):
    """Convolutions whose outputs have the same channels: around residual connections, before and behind depthwise ones.

    Attributes:
        layers: their names, in order of execution.
        costs: of the channels, in the plain order, added up over all layers that read them; None if these are unknown.
    """

    layers: tuple[str, ...]
    costs: Tensor | None


def channel_groups(model: nn.Module, costs: Mapping[str, Tensor]) -> list[Group]:
    """The convolutions of an octave network in groups that share channels; ``costs`` as of ``channel_order``."""
    flow = _run(model)
    totals = _totals(flow, costs)
    groups: dict[Order, list[str]] = {}
    for key, (rows, _) in flow.axes.items():
        name = key.removesuffix(".weight")
        if rows and name != key and isinstance(model.get_submodule(name), nn.Conv2d):
            groups.setdefault(rows.root(), []).append(name)
    return [Group(tuple(names), totals.get(order)) for order, names in groups.items()]


def reorder(state_dict: Mapping[str, Tensor], order: ChannelOrder) -> dict[str, Tensor]:
    """A plain network's ``state_dict`` with rows and columns as ``channel_order`` says; other tensors are the same."""
    moved = dict(state_dict)
    for key in order.keys() & moved.keys():
        for dim, indices in enumerate(order[key]):
            if indices is not None:
                moved[key] = moved[key].index_select(dim, indices.to(moved[key].device))
    return moved


def _run(model: nn.Module) -> Flow:
    """On the meta device, without computing anything."""
    flow = Flow()
    with hooked(model, flow.enter, flow.leave), flow:
        trial_run(model)
    return flow


def _totals(flow: Flow, costs: Mapping[str, Tensor]) -> dict[Order, Tensor]:
    """The free orders of octaves, each with the costs of its channels in all layers that read them."""
    totals: dict[Order, Tensor] = {}
    for name, cost in costs.items():
        rows, columns = flow.axes.get(f"{name}.weight", (None, None))
        order = columns or rows  # the columns of a depthwise convolution are its rows
        for root, share in order.free(cost) if order and order.n == len(cost) else ():
            totals[root] = totals.get(root, 0) + share
    split = {order.root() for order in flow.split}
    return {order: total for order, total in totals.items() if order in split}


def _moved(order: Order | None) -> Tensor | None:
    """The indices, None if they move nothing."""
    indices = order.indices() if order else None
    return None if indices is None or torch.equal(indices, numbers(len(indices))) else indices
