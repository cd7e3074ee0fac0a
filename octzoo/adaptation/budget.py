"""Which layers pay for their octaves: from a budget of multiply-accumulates to a plan."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octzoo.channels import Group, channel_groups
from octzoo.errors import UserError
from octzoo.layers import OctConv2d
from octzoo.octave import split_channels
from octzoo.plan import Row, default_plan, picture_channels, picture_size
from octzoo.surgery import octavize

ALPHAS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)


class Choice(NamedTuple):
    """A plan for a budget.

    Attributes:
        alpha: the low share of the channels.
        plan: the rows, for ``octavize``.
        macs: of the octave network, as a share of the plain one's.
        cost: what the plan is expected to cost: the shares of variance that convolutions lose, added up.
        octave: how many groups of layers that share channels are octave, and of how many.
    """

    alpha: float
    plan: tuple[Row, ...]
    macs: float
    cost: float
    octave: tuple[int, int]


def plain_strides(plan: Sequence[Row]) -> tuple[Row, ...]:
    """The plan with strides as plain weights expect them."""
    return tuple(row._replace(stride_mode="conv") if row.kind in ("octave", "zero") else row for row in plan)


def choose_plan(model: nn.Module, macs: float, costs: Mapping[str, Tensor], alphas: Sequence[float] = ALPHAS) -> Choice:
    """The plan that costs least of those that fit into a budget, over several alphas.

    From the plan with all octaves, the groups of layers that share channels (a stage's residual trunk, a block's
    inside) lose theirs: first those that cost most for the multiply-accumulates that they save, as many as the budget
    allows.

    Args:
        model: a plain network.
        macs: the largest share of its multiply-accumulates that is allowed.
        costs: of ``pooling_costs``.
        alphas: to choose from.

    Raises:
        UserError: nothing saves so much.
    """
    plain = copy.deepcopy(model).to("meta")
    whole, rows = count(plain), plain_strides(default_plan(plain))
    least = {alpha: count(octave_of(plain, alpha, rows)) / whole for alpha in alphas}
    found = [_at(plain, whole, rows, macs, costs, alpha, share) for alpha, share in least.items() if share <= macs]
    if not found:
        all_of_them = min(least.values())
        raise UserError(f"no plan takes {macs:.0%} of the multiply-accumulates; the least is {all_of_them:.1%}")
    return min(found, key=lambda choice: choice.cost)


def octave_of(model: nn.Module, alpha: float, plan: Sequence[Row]) -> nn.Module:
    """A copy of a plain network on the meta device, octavized."""
    return octavize(copy.deepcopy(model).to("meta"), alpha, plan)


def measure(model: nn.Module, octave: nn.Module) -> float:
    """The multiply-accumulates of an octave network, as a share of the plain one's."""
    return count(octave) / count(model)


def count(model: nn.Module) -> int:
    """Multiply-accumulates of convolutions and linear layers for one picture."""
    counter = FlopCounterMode(display=False)
    x = torch.zeros(1, picture_channels(model), *picture_size(model), device="meta")
    network = copy.deepcopy(model).to("meta").eval()
    with counter, torch.no_grad():
        network(x)
    return counter.get_total_flops() // 2


def _at(
    plain: nn.Module,
    whole: int,
    rows: tuple[Row, ...],
    macs: float,
    costs: Mapping[str, Tensor],
    alpha: float,
    share: float,
) -> Choice:
    """The plan at one alpha; ``whole``: of the plain network, ``share``: of it, with all octaves, which is enough."""
    octave = octave_of(plain, alpha, rows)
    layers = [name for name, m in octave.named_modules() if isinstance(m, OctConv2d) and m.low_out]
    groups = [group for group in channel_groups(octave, costs) if group.layers and set(group.layers) <= set(layers)]
    price = [_price(group, alpha) for group in groups]

    def plan_without(off: Sequence[int]) -> tuple[Row, ...]:
        return (*(Row(name, "zero", 1, "conv") for i in off for name in groups[i].layers), *rows)

    def share_without(off: Sequence[int]) -> float:
        return count(octave_of(plain, alpha, plan_without(off))) / whole

    saved = [share_without([i]) - share for i in range(len(groups))]
    dear = sorted(range(len(groups)), key=lambda i: price[i] / max(saved[i], 1e-9), reverse=True)
    dropped = bisect_right(range(1, len(dear)), macs, key=lambda n: share_without(dear[:n]))
    off, on = dear[:dropped], dear[dropped:]
    cost = sum(price[i] for i in on)
    return Choice(alpha, plan_without(off), share_without(off), cost, (len(on), len(groups)))


def _price(group: Group, alpha: float) -> float:
    """What the cheapest channels of a group cost together."""
    costs = cast(Any, group.costs)
    if costs is None:
        return 0.0
    return float(costs.sort().values[: split_channels(len(costs), alpha)].sum())
