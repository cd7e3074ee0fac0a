"""`octzoo bench model`: how fast networks run, against their peers and against the arithmetic."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

if TYPE_CHECKING:
    from octzoo.deploy.speed import Measured

MODES = ["eager", "fused", "compile", "onnx", "openvino"]
TRAINING_MODES = ["eager", "compile"]
BUSY = 1.0  # processes at work in the last minute; the command itself is not yet one of them for long


def main(arguments: list[str]) -> int:
    """Measures, prints a table, writes a file and a picture; returns the exit code."""
    parser = Parser(
        "bench model",
        "Networks and their peers take turns in each engine: milliseconds a batch (median and quartiles), pictures a\n"
        "second, time beside the peer's round by round, multiply-accumulates beside the peer's and how far the time\n"
        "is above them, memory at the peak, seconds to the first batch. A table, a JSON file, and a picture of time\n"
        "against multiply-accumulates. On a machine that does nothing else; with one thread PyTorch convolves slowly.",
        "octzoo bench model resnet50@0.25 resnet50@0.5 --mode fused compile --batch 8 1",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="what timm.create_model takes, or resnet50@0.25: surgery on resnet50",
    )
    parser.add_argument("--vs", metavar="NAME", help="the peer of all; default: each network's own without octaves")
    engines = f"{', '.join(MODES)}; with --train {', '.join(TRAINING_MODES)}; default: eager"
    parser.add_argument("--mode", nargs="+", metavar="ENGINE", default=["eager"], help=engines)
    parser.add_argument("--train", action="store_true", help="training steps (SGD with momentum) instead of inference")
    parser.add_argument("--batch", nargs="+", type=int, default=[8], metavar="N", help="pictures in one; default: 8")
    parser.add_argument("--image-size", type=int, metavar="N", help="height and width; default: the network's")
    parser.add_argument("--threads", type=int, metavar="N", help="of the processor; default: PyTorch's")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument(
        "--layout", choices=["channels_last", "contiguous"], default="channels_last", help="of PyTorch's engines"
    )
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="default: float32")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--pretrained", action="store_true", help="published weights; default: random ones")
    for name, default in (("json", "bench_model.json"), ("picture", "bench_model.png")):
        parser.add_argument(f"--{name}", type=Path, default=Path(default), metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(arguments[1:])
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler tells stderr when it starts and ends
    return report(lambda: run(options, shlex.join(["octzoo", "bench", *arguments])), options.debug)


def run(options: Namespace, command: str) -> None:
    """Measures what the options say. Raises UserError for what cannot be measured, before anything is."""
    import octzoo  # noqa: F401 (registers the names)
    from octzoo.deploy.bench import entries, measure
    from octzoo.deploy.engines import engine
    from octzoo.errors import UserError

    check(options)
    modes, batches = dict.fromkeys(options.mode), dict.fromkeys(options.batch)
    for mode in modes:
        engine(mode, options.train, options.device, options.precision)
    networks = entries(options.names, options.vs, options.image_size)
    if all(one.name == one.peer for one in networks):
        raise UserError(f"{networks[0].name} has no octaves, so no peer: name one that has, or --vs NAME")
    results: list[Measured] = []
    facts = surroundings(options, command)
    if facts["load"] and facts["load"] > BUSY:
        say(f"this machine is busy (load {facts['load']:.1f}): the times will not be the networks' alone")
    try:
        for mode in modes:
            for batch in batches:
                setting = dict(
                    batch=batch,
                    threads=facts["settings"]["threads"],
                    device=options.device,
                    channels_last=options.layout == "channels_last",
                    precision=options.precision,
                )
                results += measure(networks, mode, options.train, setting, options.rounds, options.pretrained, say)
    finally:  # what was measured before Ctrl-C, or before an engine failed, is kept
        if results:
            finished = len(results) == len(modes) * len(batches) * len(networks)
            write_all(options, {**facts, "finished": finished}, results)


def check(options: Namespace) -> None:
    """Raises UserError for numbers and files that cannot be."""
    from octzoo.errors import UserError

    numbers = [("batch", n) for n in options.batch]
    numbers += [(name, getattr(options, name)) for name in ("image_size", "threads", "rounds")]
    for name, value in numbers:
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} is less than 1")
    for name in ("json", "picture"):
        path = getattr(options, name)
        if not path.absolute().parent.is_dir():
            raise UserError(f"--{name} {path}: no such folder")


def surroundings(options: Namespace, command: str) -> dict[str, Any]:
    """Where, how and by which command it is measured, ready for JSON."""
    import torch

    from octzoo.train.environment import environment, package_version

    found = environment()
    found["packages"] |= {name: package_version(name) for name in ("onnx", "onnxruntime", "openvino")}
    settings = {
        "threads": options.threads or torch.get_num_threads(),
        "device": options.device,
        "layout": options.layout,
        "precision": options.precision,
        "pretrained": options.pretrained,
        "waiting threads": os.environ.get("OMP_WAIT_POLICY", "as the library has it"),
    }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {**found, "load": load, "command": command, "threads": settings["threads"], "settings": settings}


def write_all(options: Namespace, facts: dict[str, Any], results: list[Measured]) -> None:
    """The file, the table, the picture."""
    from octzoo.cli.tables import print_table
    from octzoo.deploy.speed import COLUMNS, compare, rows, write
    from octzoo.deploy.speed_picture import draw

    comparisons = compare(results)
    write(options.json, facts, results)
    print_table(COLUMNS, rows(comparisons))
    draw(comparisons, options.picture, f"{facts['cpu']}, {facts['threads']} threads, {options.precision}")
    print(f"\nwritten   {options.json}\npicture   {options.picture}")


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)
