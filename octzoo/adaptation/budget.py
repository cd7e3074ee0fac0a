"""Which layers pay for their octaves: from a budget of multiply-accumulates to a plan."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octzoo.adaptation.distil import Answers, answers, difference
from octzoo.channels import channel_groups, channel_order, reorder
from octzoo.errors import UserError
from octzoo.layers import OctConv2d
from octzoo.plan import Row, default_plan, picture_channels, picture_size
from octzoo.surgery import octavize

Say = Callable[[str], None]
Wanted = list[tuple[Tensor, Answers]]  # pictures, and what the plain network makes of them

ALPHAS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)


class Choice(NamedTuple):
    """A plan for a budget.

    Attributes:
        alpha: the low share of the channels.
        plan: the rows, for ``octavize``.
        macs: of the octave network, as a share of the plain one's.
        cost: what the plan is expected to cost: how far the answers are off by each group of layers alone, added up.
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


def choose_plan(
    model: nn.Module,
    macs: float,
    costs: Mapping[str, Tensor],
    pictures: Sequence[Tensor],
    alphas: Sequence[float] = ALPHAS,
    say: Say = lambda text: None,
) -> Choice:
    """The plan that costs least of those that fit into a budget, over several alphas.

    From the plan with all octaves, the groups of layers that share channels (a stage's residual trunk, a block's
    inside) lose theirs: first those that cost most for the multiply-accumulates that they save, as many as the budget
    allows.

    Args:
        model: a plain network of timm.
        macs: the largest share of its multiply-accumulates that is allowed.
        costs: of ``pooling_costs``.
        pictures: batches, [B, C, H, W], to see on how far the answers are off; a few dozen pictures.
        alphas: to choose from.
        say: is told how far it has come.

    Raises:
        UserError: nothing saves so much.
    """
    plain = copy.deepcopy(model).to("meta")
    whole, rows = count(plain), plain_strides(default_plan(plain))
    least = {alpha: count(octave_of(plain, alpha, rows)) / whole for alpha in alphas}
    if not any(share <= macs for share in least.values()):
        all_of_them = min(least.values())
        raise UserError(f"no plan takes {macs:.0%} of the multiply-accumulates; the least is {all_of_them:.1%}")
    wanted = _answers_to(model, pictures)
    found = []
    for alpha, share in least.items():
        if share <= macs:
            found.append(_at(model, wanted, whole, rows, macs, costs, alpha, share))
            say(f"alpha {alpha:g}: {found[-1].octave[0]} groups of {found[-1].octave[1]}, cost {found[-1].cost:.3g}")
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
    model: nn.Module,
    wanted: Wanted,
    whole: int,
    rows: tuple[Row, ...],
    macs: float,
    costs: Mapping[str, Tensor],
    alpha: float,
    share: float,
) -> Choice:
    """The plan at one alpha; ``whole``: of the plain network, ``share``: of it, with all octaves, which is enough."""
    plain = copy.deepcopy(model).to("meta")
    octave = octave_of(plain, alpha, rows)
    layers = [name for name, m in octave.named_modules() if isinstance(m, OctConv2d) and m.low_out]
    groups = [
        group.layers for group in channel_groups(octave, costs) if group.layers and set(group.layers) <= set(layers)
    ]

    def plan_without(off: Iterable[int]) -> tuple[Row, ...]:
        return (*(Row(name, "zero", 1, "conv") for i in off for name in groups[i]), *rows)

    def share_without(off: Iterable[int]) -> float:
        return count(octave_of(plain, alpha, plan_without(off))) / whole

    saved = [share_without([i]) - share for i in range(len(groups))]
    price = [
        _price(model, alpha, plan_without(j for j in range(len(groups)) if j != i), costs, wanted)
        for i in range(len(groups))
    ]
    dear = sorted(range(len(groups)), key=lambda i: price[i] / max(saved[i], 1e-9), reverse=True)
    dropped = bisect_right(range(1, len(dear)), macs, key=lambda n: share_without(dear[:n]))
    off, on = dear[:dropped], dear[dropped:]
    cost = sum(price[i] for i in on)
    return Choice(alpha, plan_without(off), share_without(off), cost, (len(on), len(groups)))


def _answers_to(model: nn.Module, pictures: Iterable[Tensor]) -> Wanted:
    with torch.inference_mode():
        return [(x, answers(model.eval(), x)) for x in pictures]


def _price(model: nn.Module, alpha: float, plan: Sequence[Row], costs: Mapping[str, Tensor], wanted: Wanted) -> float:
    """How far the answers are off with a plan, if no layer is refitted."""
    octave = octavize(copy.deepcopy(model), alpha, plan).eval()
    octave.load_state_dict(reorder(model.state_dict(), channel_order(octave, costs)))
    with torch.inference_mode():
        return sum(float(difference(answers(octave, x), y)) for x, y in wanted) / len(wanted)
