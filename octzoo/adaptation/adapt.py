"""A pretrained plain network becomes an octave network, on unlabelled pictures."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from octzoo.channels import ChannelOrder, channel_order, reorder
from octzoo.errors import UserError
from octzoo.plan import Plan, default_plan, read_plan
from octzoo.surgery import octavize

HELD_OUT = 10  # one batch of so many is not learnt from, and tells what came of it
LONGEST = 200  # epochs
PLANNED = 6  # batches that a plan is chosen by
Batch = Tensor | Sequence[Any]
Say = Callable[[str], None]
After = Callable[[str, nn.Module], object]


def adapt(
    model: nn.Module,
    pictures: Iterable[Batch],
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
        pictures: batches, [B, C, H, W], as the network takes them, or tuples that begin with these, whose labels are
            not looked at. They are gone through many times, in the same order each time (a list, or a DataLoader that
            does not shuffle), and only one at a time is kept. One batch of ten is kept back to measure on.
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
    work = _Adaptation(model, pictures, say)
    wanted: list[list[Any]] | None = None if plan is None else [[*row] for row in plan]
    asked = {"alpha": alpha, "plan": wanted, "macs": macs, "epochs": epochs, "seed": seed, "pictures": work.seen}
    saved = State(state, {**asked, "network": _sum(work.plain.state_dict().values())})
    report = work.choose(saved, alpha, plan, macs, seed)
    octave = octavize(copy.deepcopy(work.plain), report.alpha, report.plan)
    order = channel_order(octave, saved.costs)
    octave.load_state_dict(saved.model or reorder(work.plain.state_dict(), order))

    def done(step: str) -> None:
        if step not in report.agreement:
            report.agreement[step] = agreement(octave, work.plain, work.check)
            after(step, octave)

    done("as it is")
    work.refit(octave, order, saved)
    done("refitted")
    saved.keep(octave)
    if saved.epochs is None:
        left = 60 * minutes - sum(report.seconds.values())
        saved.epochs = work.fitting(octave, left) if epochs is None else epochs
    work.distil(octave, saved)
    settle(octave, work.learn)
    if report.losses:
        done("distilled")
    saved.remove()
    return octave.requires_grad_(True), report


class _Adaptation:
    """The plain network and the pictures, and the steps, each of which goes on where ``saved`` is."""

    def __init__(self, model: nn.Module, pictures: Iterable[Batch], say: Say):
        self.plain: Any = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.learn, self.check, self.say = _Some(pictures, False), _Some(pictures, True), say
        self.seen = _seen(pictures)

    def choose(self, saved: State, alpha: float, plan: Plan | None, macs: float | None, seed: int) -> Report:
        """What the channels cost, and which plan it is to be."""
        start = time.monotonic()
        if saved.costs is None:
            self.say("which channels vary least in space")
            saved.costs = pooling_costs(self.plain, self.learn)
            saved.save()
        if saved.report is None:
            if macs is None:
                rows = plain_strides(default_plan(self.plain) if plan is None else read_plan(plan))
            else:
                self.say(f"a plan for {macs:.0%} of the multiply-accumulates")
                batches = list(islice(self.learn, PLANNED))
                choice = choose_plan(self.plain, macs, saved.costs, batches, say=self.say)
                alpha, rows = choice.alpha, choice.plan
            share = measure(self.plain, octavize(copy.deepcopy(self.plain), alpha, rows))
            measured = sum(n for i, (n, _) in enumerate(self.seen) if _kept_back(i))
            learnt = sum(n for n, _ in self.seen) - measured
            saved.report = Report(alpha, rows, share, (learnt, measured), seed)
            saved.report.seconds["choosing"] = time.monotonic() - start
        return saved.report

    def refit(self, octave: nn.Module, order: ChannelOrder, saved: State) -> None:
        """All layers that have not been refitted yet."""
        report = cast(Report, saved.report)
        done = {row.name for row in report.layers}
        layers, blocks = layers_of(octave), residual_blocks(self.plain)
        pictures = report.pictures[0]
        for number, (name, norm) in enumerate(layers.items(), 1):
            if name in done:
                continue
            start, block = time.monotonic(), blocks.get(name)
            rows = refit_layer(name, norm, octave, self.plain, self.learn, order, pictures, report.seed, block)
            report.layers += rows
            report.took("refitting", start)
            errors = ", ".join(f"{row.part} {row.before:.3f} -> {row.after:.3f}" for row in rows)
            self.say(f"layer {number} of {len(layers)}, {name}: {errors}")
            saved.keep(octave)

    def distil(self, octave: nn.Module, saved: State) -> None:
        """The epochs that are left."""
        report, epochs = cast(Report, saved.report), cast(int, saved.epochs)
        work = Distillation(octave, self.plain, self.steps, Schedule(epochs), report.seed)
        work.load(saved.distillation)
        while work.epochs < epochs:
            start = time.monotonic()
            report.losses.append(work.epoch(self.learn))
            report.took("distillation", start)
            self.say(f"epoch {work.epochs} of {epochs}: loss {report.losses[-1]:.4f}")
            saved.distillation = work.state()
            saved.keep(octave)

    def fitting(self, octave: nn.Module, seconds: float) -> int:
        """How many epochs fit, from the time that two steps take; they are taken on a copy."""
        work = Distillation(copy.deepcopy(octave), self.plain, self.steps, Schedule(1))
        batches = list(islice(self.learn, 2))
        work.epoch(batches[:1])
        start = time.monotonic()
        work.epoch(batches[1:])
        return max(0, min(LONGEST, int(seconds / ((time.monotonic() - start) * self.steps))))

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return sum(not _kept_back(i) for i in range(len(self.seen)))


def agreement(octave: nn.Module, plain: nn.Module, batches: Iterable[Tensor]) -> float:
    """The share of pictures that two networks, in eval mode, think of the same class."""
    with torch.inference_mode():
        same = [(octave(x).argmax(1) == plain(x).argmax(1)).float() for x in batches]
    return float(torch.cat(same).mean())


class _Some:
    """The batches that are learnt from, or those that are kept back."""

    def __init__(self, pictures: Iterable[Batch], kept_back: bool):
        self.pictures, self.kept_back = pictures, kept_back

    def __iter__(self) -> Iterator[Tensor]:
        chosen = (_images(x) for i, x in enumerate(self.pictures) if _kept_back(i) == self.kept_back)
        return (x.contiguous(memory_format=torch.channels_last) for x in chosen)  # twice as fast on a CPU


def _kept_back(number: int) -> bool:
    return number % HELD_OUT == HELD_OUT // 2


def _images(batch: Batch) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]


def _seen(pictures: Iterable[Batch]) -> list[tuple[int, float]]:
    """Of each batch how many pictures it has, and their sum, by which it is known again."""
    first, second = ([(len(x), _sum([x])) for x in map(_images, pictures)] for _ in range(2))
    if len(first) <= HELD_OUT // 2 or first != second:
        raise UserError(
            f"adapt: pictures gave {len(first)} batches; it takes more than {HELD_OUT // 2}, and the same ones each "
            "time (a list or a DataLoader that does not shuffle, not an iterator)"
        )
    return first


def _sum(tensors: Iterable[Tensor]) -> float:
    return float(sum(t.double().sum() for t in tensors))
