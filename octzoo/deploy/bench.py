"""Speed of networks measured in turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from octzoo.deploy.engines import RUNTIMES, Ready, Run, Setting, engine
from octzoo.deploy.memory import peak_bytes
from octzoo.deploy.speed import Measured
from octzoo.errors import RunError, UserError
from octzoo.models.named import build, plain_name
from octzoo.summary import stages

WARM_UP, ROUNDS = 2, 10
TURN = 0.05  # seconds that a turn fills at least, where one batch is quicker
Clock = Callable[[Run, int], float]  # seconds of so many runs


class Entry(NamedTuple):
    """A network to be measured.

    Attributes:
        name: of it.
        peer: of the network that it is compared with.
        size: of a picture, (C, H, W).
        macs: multiply-accumulates for one picture.
    """

    name: str
    peer: str
    size: tuple[int, int, int]
    macs: int


def entries(names: Sequence[str], vs: str | None = None, image_size: int | None = None) -> list[Entry]:
    """The networks and their peers, each once, peers before those that are compared with them.

    Args:
        names: as ``octzoo.models.named.build`` takes them.
        vs: the peer of all; None: each network's own without octaves.
        image_size: height and width of a picture; None: the network's own.

    Raises:
        UserError: no such network, one that does not take such pictures, or whose pictures are not its peer's.
    """
    peers: dict[str, str] = {}
    for name in names:
        peer = vs or plain_name(name)
        peers.setdefault(peer, peer)
        peers.setdefault(name, peer)
    found = {name: _entry(name, peer, image_size) for name, peer in peers.items()}
    for one in found.values():
        other = found[one.peer]
        if one.size != other.size:
            sizes = ["x".join(map(str, e.size[1:])) for e in (one, other)]
            raise UserError(
                f"{one.name} takes pictures of {sizes[0]} and {other.name} of {sizes[1]}: give both --image-size"
            )
    return list(found.values())


def _entry(name: str, peer: str, image_size: int | None) -> Entry:
    model: Any = build(name, device="meta")
    channels, height, width = model.pretrained_cfg["input_size"]
    size = (channels, image_size or height, image_size or width)
    try:
        return Entry(name, peer, size, sum(stage.macs for stage in stages(model, image_size)))
    except (RuntimeError, ValueError, AssertionError) as problem:  # timm asserts that a size fits
        raise UserError(f"{name} does not take pictures of {size[1]}x{size[2]}: {problem}") from problem


def measure(
    networks: Sequence[Entry],
    mode: str,
    train: bool,
    setting: Mapping[str, Any],
    rounds: int = ROUNDS,
    pretrained: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Measured]:
    """All networks in one engine at one batch size, in turns.

    Args:
        networks: from ``entries``.
        mode: the engine's name.
        train: whether to measure training steps.
        setting: the fields of ``Setting`` but the picture's size: batch, threads, device, ...
        rounds: how many times each network has its turn, after WARM_UP more.
        pretrained: with published weights; otherwise random ones.
        say: is told how far it has come.

    Raises:
        UserError: no such engine, or it cannot run here. RunError: it cannot run one of the networks.
    """
    make = engine(mode, train, setting.get("device", "cpu"), setting.get("precision", "float32"))
    settings = {one.name: Setting(size=one.size, **setting) for one in networks}
    how = f"{mode}{', training' if train else ''}"
    task = f"{how}, batch {setting['batch']}"
    torch.compiler.reset()
    gc.collect()  # what the last engine had
    threads = torch.get_num_threads()
    torch.set_num_threads(setting["threads"])
    ready: dict[str, Ready] = {}
    try:
        for one in networks:
            say(f"{task}: {one.name}")
            model = build(one.name, pretrained=pretrained) if pretrained else random_network(one.name, one.size)
            try:
                ready[one.name] = make(model, settings[one.name])
            except UserError:
                raise
            except Exception as problem:  # whatever an engine raises that cannot run a network
                raise RunError(f"mode {how}: {one.name} does not run: {problem}") from problem
        say(f"{task}: {WARM_UP} + {rounds} rounds")
        runs = {name: r.run for name, r in ready.items()}
        seconds = in_turns(runs, rounds, clock=on_cuda if setting.get("device") == "cuda" else on_cpu)
        peaks = {name: _peak(mode, run, settings[name]) for name, run in runs.items()}
        return [
            Measured(
                *(one.name, one.peer, mode, train, setting["batch"], one.size, one.macs),
                *(tuple(seconds[one.name]), ready[one.name].seconds, ready[one.name].held, peaks[one.name]),
            )
            for one in networks
        ]
    finally:
        torch.set_num_threads(threads)


def random_network(name: str, size: tuple[int, int, int]) -> nn.Module:
    """A network with random weights, the same every time, whose norms are as training leaves them.

    As timm makes them, many norms have the scale 0, and all the statistics 0 and 1: whole branches would give zeros.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build(name)
        norms: list[Any] = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.5  # half of the statistics of two pictures; of few pixels they alone may be near 0
            if norm.weight is not None:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.uniform_(norm.bias, -0.1, 0.1)
        model.train()(torch.randn(2, *size))
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        return model


# ---- turns and clocks ----------------------------------------------------------------------------------------------


def on_cpu(run: Run, times: int) -> float:
    """Seconds of so many runs."""
    start = time.perf_counter()
    for _ in range(times):
        run()
    return time.perf_counter() - start


def on_cuda(run: Run, times: int) -> float:
    """Seconds of so many runs, by the GPU's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def in_turns(
    runs: Mapping[str, Run], rounds: int = ROUNDS, warm_up: int = WARM_UP, clock: Clock = on_cpu
) -> dict[str, list[float]]:
    """Seconds of one run, by name, one value a round.

    In a round everyone has one turn, and another one begins each time. A turn is one run, or as many as fill TURN.
    """
    names = list(runs)
    before = [{name: clock(run, 1) for name, run in runs.items()} for _ in range(warm_up)]
    quickest = {name: min((turn[name] for turn in before), default=TURN) for name in names}
    times = {name: max(1, math.ceil(TURN / max(seconds, 1e-6))) for name, seconds in quickest.items()}
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(clock(runs[name], times[name]) / times[name])
    return found


def milliseconds(
    networks: Mapping[str, nn.Module],
    size: tuple[int, int, int],
    modes: Sequence[str],
    batches: Sequence[int] = (1, 8),
    rounds: int = ROUNDS,
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of one batch on the CPU: "fused, batch 8" -> name of a network -> one value a round, in turns.

    Args:
        networks: that are there already, by any names.
        size: of a picture, (C, H, W).
        modes: the engines' names; those whose packages are not installed are left out.
        batches: pictures in one.
        rounds: how many times each network has its turn.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for mode in modes:
        with suppress(UserError):
            make = engine(mode, False)
            for batch in batches:
                setting = Setting(batch, size, torch.get_num_threads())
                seconds = in_turns({name: make(model, setting).run for name, model in networks.items()}, rounds)
                found[f"{mode}, batch {batch}"] = {k: [1000 * value for value in v] for k, v in seconds.items()}
    return found


def _peak(mode: str, run: Run, setting: Setting) -> int | None:
    """None of engines that PyTorch does not see into."""
    return None if mode in RUNTIMES else peak_bytes(run, setting.device)
