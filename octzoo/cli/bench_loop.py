"""`octzoo bench loop`: what `octzoo fit` costs a step beside the arithmetic, against a bare PyTorch loop."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import chdir
from pathlib import Path
from typing import Any

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

NETWORK = "test_resnet.r160_in1k"  # timm's own for tests, 0.4 M parameters
FIRST = 20  # steps before the clock starts


def main(arguments: list[str]) -> int:
    """Measures, prints and writes a file; returns the exit code."""
    parser = Parser(
        "bench loop",
        "Milliseconds a training step of `octzoo fit` (bar where this is a terminal, CSV and TensorBoard, all of its\n"
        "callbacks) and of a bare PyTorch loop (forward, backward, step) over the same loader, network\n"
        f"({NETWORK}) and pictures (the digits, 32x32), in turns; medians, lowest and highest.",
        "octzoo bench loop --rounds 10",
    )
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="of a run; default: 200")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument(
        "--json", type=Path, default=Path("bench_loop.json"), metavar="FILE", help="default: %(default)s"
    )
    options = parser.parse_args(arguments[1:])
    return report(lambda: run(options), options.debug)


def run(options: Namespace) -> None:
    """Measures in turns; prints the result and writes the file."""
    from octzoo.errors import UserError
    from octzoo.train.environment import environment

    most = len(data(options).train_dataloader()) - FIRST
    if options.steps > most:
        raise UserError(
            f"--steps {options.steps}: the digits have {most} batches of {options.batch_size}, less {FIRST}"
        )
    out = options.json.absolute()
    found: dict[str, list[float]] = {"bare": [], "fit": []}
    with tempfile.TemporaryDirectory() as place, chdir(place):
        for _ in range(options.rounds):
            found["bare"].append(bare(options))
            found["fit"].append(fitted(options))
    added = [a - b for a, b in zip(found["fit"], found["bare"])]
    facts = {"milliseconds a step": found, "added": added, "bar": sys.stdout.isatty(), "steps": options.steps}
    out.write_text(json.dumps({**facts, "batch_size": options.batch_size, **environment()}, indent=1) + "\n")
    for name, values in (*found.items(), ("added by fit", added)):
        low, high = min(values), max(values)
        print(f"{name:<13} {statistics.median(values):6.2f} ms a step ({low:.2f} to {high:.2f})")
    print(f"{options.rounds} rounds of {options.steps} steps in turns; bar {'on' if facts['bar'] else 'off'}; {out}")


def data(options: Namespace) -> Any:
    """The pictures of both."""
    from octzoo.data import Augment, ImageData, Preprocess

    return ImageData(
        batch_size=options.batch_size,
        num_workers=0,
        preprocess=Preprocess(image_size=32),
        augment=Augment(color_jitter=None),
    )


def bare(options: Namespace) -> float:
    """Milliseconds a step of the bare loop."""
    import timm
    import torch
    from torch.nn import functional as F

    model: Any = timm.create_model(NETWORK, num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    loader, step, since = data(options).train_dataloader(), 0, 0.0
    while True:
        loader.batch_sampler.set_epoch(step)
        for images, targets in loader:
            if step == FIRST:
                since = time.perf_counter()
            loss = F.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == FIRST + options.steps:
                return 1000 * (time.perf_counter() - since) / options.steps


def fitted(options: Namespace) -> float:
    """Milliseconds a step of `octzoo fit`, of an epoch's first steps to its last ones."""
    from octzoo.cli import lightning
    from octzoo.train.step_clock import StepClock

    flags = {
        "model.name": NETWORK,
        "model.optimizer.lr": "0.01",
        "data.batch_size": str(options.batch_size),
        "data.num_workers": "0",
        "data.preprocess.image_size": "32",
        "data.augment.color_jitter": "null",
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": "1",
        "trainer.limit_train_batches": str(FIRST + options.steps),
        "trainer.limit_val_batches": "1",
        "trainer.callbacks": "octzoo.train.step_clock.StepClock",
        "trainer.callbacks.first": str(FIRST),
    }
    code = lightning.main(["fit", *(word for key, value in flags.items() for word in (f"--{key}", value))])
    if code:
        raise RuntimeError(f"octzoo fit ended with {code}")
    return 1000 * StepClock.seconds / options.steps
