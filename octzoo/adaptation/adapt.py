"""A pretrained plain network becomes an octave network, on unlabelled pictures."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from octzoo.adaptation.budget import check_budget, choose_plan, measure, plain_strides
from octzoo.adaptation.cost import pooling_costs
from octzoo.adaptation.distil import Distillation, Schedule
from octzoo.adaptation.norms import settle
from octzoo.adaptation.refit import layers_of, refit_layer
from octzoo.adaptation.report import Report
from octzoo.adaptation.residuals import residual_blocks
from octzoo.adaptation.state import State
from octzoo.channels import channel_order, reorder
from octzoo.errors import UserError
from octzoo.plan import Plan, Row, default_plan, read_plan
from octzoo.surgery import octavize

HELD_OUT = 10  # one batch of so many is not learnt from, and tells what came of it
LONGEST = 200  # epochs
PLANNED = 6  # batches that a plan is chosen by
Say = Callable[[str], None]
After = Callable[[str, nn.Module], object]


def adapt(
    model: nn.Module,
    pictures: Iterable[Tensor],
    alpha: float = 0.25,
    plan: Plan | None = None,
    *,
    macs: float | None = None,
    epochs: int | None = None,
    minutes: float = 10.0,
    seed: int = 0,
    state: Path | None = None,
    say: Say = lambda text: None,
    after: After = lambda step, octave: None,
) -> tuple[nn.Module, Report]:
    """Make an octave network of a trained plain one: a copy that answers alike, to be used or fine-tuned.

    The low channels are those that lose least; each layer is fitted to what the plain network gives there, in closed
    form; then the whole network learns the plain one's answers (distillation). No labels are needed.

    Args:
        model: a trained plain network of timm, on the CPU.
        pictures: batches, [B, C, H, W], as the network takes them; they are gone through many times, in the same order
            each time (a list, or a DataLoader that does not shuffle), and only one at a time is kept. One batch of ten
            is kept back to measure on.
        alpha: the low share of the channels; with ``macs`` it is chosen.
        plan: which layers become octave layers, see ``octavize``; None: the default plan, or what fits ``macs``. All
            strides are "conv", for that is what plain weights expect.
        macs: the share of the plain network's multiply-accumulates that may remain, 0 to 1.
        epochs: of distillation; None: as many as the minutes allow, so that the result depends on the machine's speed.
        minutes: for everything, about; refitting is not cut short.
        seed: with the same one, and the same number of epochs, the result is the same.
        state: a file to go on from, and to keep what is done in; it is removed at the end.
        say: is told how far it has come.
        after: is given each step's name ("as it is", "refitted", "distilled") and the octave network as it is then, in
            eval mode, for figures of your own.

    Returns:
        The octave network, in eval mode, and the report.

    Raises:
        UserError: too few pictures, other ones each time, a plan and a budget, a budget that no plan meets, or a state
            of another call.
        OctaveError: of ``octavize`` or ``channel_order``.
    """
    if macs is not None and plan is not None:
        raise UserError("adapt: macs chooses the plan; give one of the two")
    if macs is not None:
        check_budget(model, macs)
    plain: Any = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    learn, check = _Some(pictures, False), _Some(pictures, True)
    seen = _seen(pictures)
    measured = sum(n for i, (n, _) in enumerate(seen) if _kept_back(i))
    learnt = sum(n for n, _ in seen) - measured
    wanted: list[list[Any]] | None = None if plan is None else [[*row] for row in plan]
    asked = {"alpha": alpha, "plan": wanted, "macs": macs, "epochs": epochs, "seed": seed, "pictures": seen}
    saved = State(state, {**asked, "network": _sum(plain.state_dict().values())})
    report = _begin(plain, learn, (learnt, measured), alpha, plan, macs, seed, saved, say)
    octave = octavize(copy.deepcopy(plain), report.alpha, report.plan)
    order = channel_order(octave, saved.costs)
    octave.load_state_dict(saved.model or reorder(plain.state_dict(), order))

    def done(step: str) -> None:
        if step not in report.agreement:
            report.agreement[step] = agreement(octave, plain, check)
            after(step, octave)

    done("as it is")
    _refit(octave, plain, learn, order, learnt, saved, say)
    done("refitted")
    saved.keep(octave)
    left = 60 * minutes - sum(report.seconds.values())
    _distil(octave, plain, learn, epochs, left, saved, say)
    settle(octave, learn)
    if report.losses:
        done("distilled")
    saved.remove()
    return octave.requires_grad_(True), report


def _begin(
    plain: nn.Module,
    learn: _Some,
    pictures: tuple[int, int],
    alpha: float,
    plan: Plan | None,
    macs: float | None,
    seed: int,
    saved: State,
    say: Say,
) -> Report:
    """What the channels cost and which plan it is to be, unless that is known already."""
    start = time.monotonic()
    if saved.costs is None:
        say("which channels vary least in space")
        saved.costs = pooling_costs(plain, learn)
        saved.save()
    if saved.report is None:
        alpha, rows = _plan(plain, learn, alpha, plan, macs, saved.costs, say)
        octave = octavize(copy.deepcopy(plain), alpha, rows)
        saved.report = Report(alpha, rows, measure(plain, octave), pictures, seed)
        saved.report.seconds["choosing"] = time.monotonic() - start
    return saved.report


def _plan(
    plain: nn.Module, learn: _Some, alpha: float, plan: Plan | None, macs: float | None, costs: Any, say: Say
) -> tuple[float, tuple[Row, ...]]:
    """The alpha and the rows."""
    if macs is None:
        rows = default_plan(plain) if plan is None else read_plan(plan)
        return alpha, plain_strides(rows)
    say(f"a plan for {macs:.0%} of the multiply-accumulates")
    choice = choose_plan(plain, macs, costs, list(islice(learn, PLANNED)), say=say)
    return choice.alpha, choice.plan


def _refit(octave: Any, plain: Any, learn: Any, order: Any, pictures: int, saved: State, say: Say) -> None:
    """All layers that have not been refitted yet."""
    report = cast(Report, saved.report)
    done = {row.name for row in report.layers}
    layers, blocks = layers_of(octave), residual_blocks(plain)
    for number, (name, norm) in enumerate(layers.items(), 1):
        if name in done:
            continue
        start = time.monotonic()
        rows = refit_layer(name, norm, octave, plain, learn, order, pictures, report.seed, blocks.get(name))
        report.layers += rows
        report.seconds["refitting"] = report.seconds.get("refitting", 0.0) + time.monotonic() - start
        errors = ", ".join(f"{row.part} {row.before:.3f} -> {row.after:.3f}" for row in rows)
        say(f"layer {number} of {len(layers)}, {name}: {errors}")
        saved.keep(octave)


def _distil(octave: Any, plain: Any, learn: _Some, epochs: int | None, seconds: float, saved: State, say: Say) -> None:
    """As many epochs as are asked for, or as fit into the seconds."""
    report = cast(Report, saved.report)
    steps = sum(1 for _ in learn)
    if saved.epochs is None:
        saved.epochs = epochs if epochs is not None else _fitting(octave, plain, learn, steps, seconds)
    work = Distillation(octave, plain, steps, Schedule(saved.epochs), report.seed)
    work.load(saved.distillation)
    while work.epochs < saved.epochs:
        start = time.monotonic()
        report.losses.append(work.epoch(learn))
        report.seconds["distillation"] = report.seconds.get("distillation", 0.0) + time.monotonic() - start
        say(f"epoch {work.epochs} of {saved.epochs}: loss {report.losses[-1]:.4f}")
        saved.distillation = work.state()
        saved.keep(octave)


def _fitting(octave: nn.Module, plain: nn.Module, learn: _Some, steps: int, seconds: float) -> int:
    """How many epochs fit, from the time that two steps take; they are taken on a copy."""
    work = Distillation(copy.deepcopy(octave), plain, steps, Schedule(1))
    batches = [batch for batch, _ in zip(learn, range(2))]
    work.epoch(batches[:1])
    start = time.monotonic()
    work.epoch(batches[1:])
    return max(0, min(LONGEST, int(seconds / ((time.monotonic() - start) * steps))))


def agreement(octave: nn.Module, plain: nn.Module, batches: Iterable[Tensor]) -> float:
    """The share of pictures that two networks, in eval mode, think of the same class."""
    with torch.inference_mode():
        same = [(octave(x).argmax(1) == plain(x).argmax(1)).float() for x in batches]
    return float(torch.cat(same).mean())


class _Some:
    """The batches that are learnt from, or those that are kept back."""

    def __init__(self, pictures: Iterable[Tensor], kept_back: bool):
        self.pictures, self.kept_back = pictures, kept_back

    def __iter__(self) -> Iterator[Tensor]:
        chosen = (x for i, x in enumerate(self.pictures) if _kept_back(i) == self.kept_back)
        return (x.contiguous(memory_format=torch.channels_last) for x in chosen)  # twice as fast on a CPU


def _kept_back(number: int) -> bool:
    return number % HELD_OUT == HELD_OUT // 2


def _seen(pictures: Iterable[Tensor]) -> list[tuple[int, float]]:
    """Of each batch how many pictures it has, and their sum, by which it is known again."""
    first, second = ([(len(x), _sum([x])) for x in pictures] for _ in range(2))
    if len(first) <= HELD_OUT // 2 or first != second:
        raise UserError(
            f"adapt: pictures gave {len(first)} batches; it takes more than {HELD_OUT // 2}, and the same ones each "
            "time (a list or a DataLoader that does not shuffle, not an iterator)"
        )
    return first


def _sum(tensors: Iterable[Tensor]) -> float:
    return float(sum(t.double().sum() for t in tensors))
