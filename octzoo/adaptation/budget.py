"""Which layers pay for their octaves: from a budget of multiply-accumulates to a plan."""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octzoo.adaptation.distil import Answers, answers, difference
from octzoo.channels import channel_groups, channel_order, reorder
from octzoo.errors import UserError
from octzoo.geometry import OctaveError
from octzoo.layers import OctConv2d
from octzoo.plan import Row, default_plan, picture_channels, picture_size
from octzoo.surgery import octavize

Say = Callable[[str], None]

ALPHAS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
FINEST = 64  # parts of the channels
EQUAL = 0.1  # costs so near are equal: the smaller alpha then, of which refitting mends more


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
    """The plan that costs least of those that fit into a budget, over several alphas (of equals the smallest).

    The smallest alpha is the one with which all octaves just fit. From the plan with most octaves, the groups of layers
    that share channels (a stage's residual trunk, a block's inside) lose theirs: first those that cost most for the
    multiply-accumulates that they save, as many as the budget allows.

    Args:
        model: a plain network of timm, in eval mode.
        macs: the largest share of its multiply-accumulates that is allowed.
        costs: of ``pooling_costs``.
        pictures: batches, [B, C, H, W], to see on how far the answers are off; a few dozen pictures.
        alphas: to choose from, beside the smallest one.
        say: is told how far it has come.

    Raises:
        UserError: nothing saves so much.
    """
    check_budget(model, macs)
    with torch.inference_mode():
        wanted = [(x, answers(model, x)) for x in pictures]
    rows = most_octaves(model)
    plain = _Plain(model, rows, costs, wanted, count(model))
    smallest = bisect_left(range(1, FINEST), -macs, key=lambda n: -plain.share(n / FINEST, plain.rows)) + 1
    found = []
    for alpha in (smallest / FINEST, *(alpha for alpha in alphas if alpha > smallest / FINEST)):
        found.append(_at(plain, alpha, macs))
        say(f"alpha {alpha:g}: {found[-1].octave[0]} groups of {found[-1].octave[1]}, cost {found[-1].cost:.3g}")
    least_cost = min(choice.cost for choice in found)
    return next(choice for choice in found if choice.cost <= (1 + EQUAL) * least_cost)


def check_budget(model: nn.Module, macs: float) -> None:
    """Raise UserError if no plan of a plain network keeps to the share ``macs`` of its multiply-accumulates."""
    rows = most_octaves(model)
    least = count(octave_of(model, 1.0, rows)) / count(model)
    if least > macs:
        raise UserError(f"no plan takes {macs:.0%} of the multiply-accumulates; the least is {least:.1%}")


def most_octaves(model: nn.Module) -> tuple[Row, ...]:
    """The default plan of a plain network with octaves also where it has none though it could, as in the last stages.

    Convolutions of single pixels stay plain. Where they come behind such octaves, the plan is the default one.
    """
    default = plain_strides(default_plan(copy.deepcopy(model).to("meta")))
    most = tuple(row._replace(kind="octave") if row.kind == "zero" else row for row in default)
    try:
        octave_of(model, 0.5, most)
    except OctaveError:
        return default
    return most


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


class _Plain(NamedTuple):
    """The plain network and what is known of it.

    Attributes:
        model: the network.
        rows: the plan with all octaves.
        costs: of ``pooling_costs``.
        wanted: pictures, and what the network makes of them.
        macs: multiply-accumulates.
    """

    model: nn.Module
    rows: tuple[Row, ...]
    costs: Mapping[str, Tensor]
    wanted: Sequence[tuple[Tensor, Answers]]
    macs: int

    def share(self, alpha: float, plan: Sequence[Row]) -> float:
        """The multiply-accumulates with a plan, of these."""
        return count(octave_of(self.model, alpha, plan)) / self.macs

    def groups(self, alpha: float) -> list[tuple[str, ...]]:
        """The octave layers that share channels."""
        octave = octave_of(self.model, alpha, self.rows)
        layers = {name for name, m in octave.named_modules() if isinstance(m, OctConv2d) and m.low_out}
        groups = (group.layers for group in channel_groups(octave, self.costs))
        return [group for group in groups if group and layers.issuperset(group)]

    def error(self, alpha: float, plan: Sequence[Row]) -> float:
        """How far the answers are off with a plan, if no layer is refitted."""
        octave = octavize(copy.deepcopy(self.model), alpha, plan).eval()
        octave.load_state_dict(reorder(self.model.state_dict(), channel_order(octave, self.costs)))
        with torch.inference_mode():
            return sum(float(difference(answers(octave, x), y)) for x, y in self.wanted) / len(self.wanted)


def _at(plain: _Plain, alpha: float, macs: float) -> Choice:
    """The plan at one alpha, with which all octaves fit into the budget."""
    groups, share = plain.groups(alpha), plain.share(alpha, plain.rows)
    every = range(len(groups))

    def without(off: Iterable[int]) -> tuple[Row, ...]:
        return (*(Row(name, "zero", 1, "conv") for i in off for name in groups[i]), *plain.rows)

    saved = [plain.share(alpha, without([i])) - share for i in every]
    price = [plain.error(alpha, without(j for j in every if j != i)) for i in every]
    dear = sorted(every, key=lambda i: price[i] / max(saved[i], 1e-9), reverse=True)
    dropped = bisect_right(range(1, len(dear)), macs, key=lambda n: plain.share(alpha, without(dear[:n])))
    off, on = dear[:dropped], dear[dropped:]
    plan = without(off)
    return Choice(alpha, plan, plain.share(alpha, plan), sum(price[i] for i in on), (len(on), len(groups)))
