"""`octzoo octavize`: a pretrained plain network becomes an octave network, on unlabelled pictures."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
PICTURES = 1000
MODES = ("fused", "openvino")  # whose time is told, if they are installed
FEWEST = 40  # what octzoo.adapt asks for, in batches


def main(arguments: list[str]) -> int:
    """Adapts, writes the folder, says what came of it; returns the exit code."""
    parser = Parser(
        "octavize",
        "Makes an octave network of a pretrained plain one: keeps the channels low that vary least, fits every layer\n"
        "to what the plain network gives there, and lets the whole learn its answers. Needs pictures like those that\n"
        "the network is for, a few hundred or more, without labels. What it writes loads by timm, as local-dir:DIR.\n"
        "Stopped, it goes on where it was when the same command is given again.",
        "octzoo octavize tf_efficientnet_lite0 --alpha 0.25 --data pictures/ --out lite0_octave",
    )
    parser.add_argument("name", metavar="NAME", help="what timm.create_model takes, with pretrained weights")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, in place of the published ones")
    parser.add_argument("--alpha", type=float, metavar="A", help="the low share of the channels; default: 0.25")
    parser.add_argument(
        "--macs", type=float, metavar="R", help="the share of the arithmetic that may remain; chooses alpha"
    )
    places = "a folder, or SOURCE or SOURCE:ROOT as in octzoo fit: digits, hfds:DIR"
    parser.add_argument("--data", required=True, metavar="PICTURES", help=places)
    parser.add_argument("--pictures", type=int, default=PICTURES, metavar="N", help="at most; default: 1000")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="about, for all of it; default: 10")
    parser.add_argument("--epochs", type=int, metavar="N", help="of distillation, in place of the minutes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    options = parser.parse_args(arguments[1:])
    return report(lambda: run(options), options.debug)


def run(options: Namespace) -> None:
    """Adapts what the options say. Raises UserError for what cannot be, before anything is computed."""
    check(options)
    import octzoo
    from octzoo.adaptation.budget import check_budget
    from octzoo.adaptation.folder import time_rows, write
    from octzoo.deploy.bench import milliseconds
    from octzoo.weights.folder import check_new

    check_new(options.out)
    model = network(options.name, options.checkpoint)
    if options.macs is not None:
        check_budget(model, options.macs)
    place = options.out.with_name(f"{options.out.name}.adapting")
    batches = Prepared(options.data, options.pictures, model, place)
    octave, found = octzoo.adapt(
        model,
        batches,
        0.25 if options.alpha is None else options.alpha,
        macs=options.macs,
        epochs=options.epochs,
        minutes=options.minutes,
        seed=options.seed,
        state=place / "state.pt",
        say=say,
    )
    say("speed, in turns")
    networks = {"plain": model, "octave": octave.eval()}
    times = milliseconds(networks, cast(Any, model).pretrained_cfg["input_size"], MODES)
    write(options.out, octave, options.name, found, times, facts(options))
    shutil.rmtree(place)
    for step, share in found.agreement.items():
        print(f"{step:<10} {share:6.1%} of {found.pictures[1]} pictures as {options.name} answers")
    for engine, plain, ours, ratio in time_rows(times):
        print(f"{engine:<18} {ours} ms, {ratio} times the {plain} ms of {options.name}")
    print(f"{options.out}: alpha {found.alpha:g}, {found.macs:.1%} of the multiply-accumulates")
    print(f'timm.create_model("local-dir:{options.out}", pretrained=True) loads it, after import octzoo')


def check(options: Namespace) -> None:
    """Raises UserError for options that cannot be."""
    from octzoo.errors import UserError

    if options.alpha is not None and options.macs is not None:
        raise UserError("--alpha and --macs: the budget chooses alpha; give one of the two")
    if options.alpha is not None and not 0 < options.alpha < 1:
        raise UserError(f"--alpha {options.alpha:g} is not between 0 and 1")
    if options.macs is not None and not 0 < options.macs < 1:
        raise UserError(f"--macs {options.macs:g} is not between 0 and 1")
    if options.pictures < 1:
        raise UserError(f"--pictures {options.pictures} is no number of pictures")
    if options.minutes <= 0:
        raise UserError(f"--minutes {options.minutes:g} is no time")
    if options.epochs is not None and options.epochs < 0:
        raise UserError(f"--epochs {options.epochs} is no number of epochs")
    if options.checkpoint is not None and not options.checkpoint.is_file():
        raise UserError(f"--checkpoint {options.checkpoint}: no such file")


def network(name: str, checkpoint: Path | None) -> Any:
    """The trained plain network. Raises UserError where there are no weights, or it is an octave network."""
    from timm.models import load_checkpoint

    from octzoo.errors import UserError
    from octzoo.models.named import build
    from octzoo.surgery import OctaveNetwork

    model: Any = build(name, pretrained=checkpoint is None).eval()
    if isinstance(model, OctaveNetwork):
        raise UserError(f"{name} is an octave network already; give a plain one")
    if checkpoint is not None:
        try:
            load_checkpoint(model, str(checkpoint))
        except Exception as problem:  # whatever torch and safetensors make of a file that is something else
            reason = str(problem).strip().partition("\n")[0].split(". ")[0]
            raise UserError(f"--checkpoint {checkpoint} does not hold weights of {name} ({reason})") from problem
    return model


class Prepared:
    """Batches of pictures as a network takes them, from a file of their pixels that is read again and again.

    Args:
        place: of the pictures.
        most: of them, drawn at random.
        model: that they are for.
        folder: where the file goes, uint8 [N, C, H, W]; one of the same pictures that is whole is taken as it is.
    """

    def __init__(self, place: str, most: int, model: Any, folder: Path):
        import hashlib

        import numpy as np
        from timm.data import create_transform

        from octzoo.data.normalize import split_transform
        from octzoo.deploy.metadata import data_config_of
        from octzoo.deploy.samples import draw_samples
        from octzoo.errors import UserError

        config = data_config_of(model)
        prepare, self.normalize = split_transform(create_transform(**config, is_training=False))
        samples = draw_samples(place, most)
        if len(samples) <= FEWEST:
            raise UserError(f"--data {place}, --pictures {most}: {len(samples)} pictures; it takes more than {FEWEST}")
        shape = (len(samples), *config["input_size"])
        names = [samples.pictures.name(index) for index in samples.indices]
        digest = hashlib.sha256(repr((place, names, sorted(config.items()))).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"pictures-{digest}.u8"
        if not file.is_file() or file.stat().st_size != int(np.prod(shape)):
            draft = file.with_suffix(".draft")
            pixels = np.memmap(draft, np.uint8, "w+", shape=shape)
            for start, batch in zip(range(0, len(samples), BATCH), samples.batches(prepare, BATCH)):
                pixels[start : start + len(batch)] = batch.numpy()
                say(f"picture {start + len(batch)} of {len(samples)}", end="\r")
            say("")
            pixels.flush()
            draft.rename(file)
        self.pixels = np.memmap(file, np.uint8, "r", shape=shape)

    def __iter__(self) -> Iterator[Tensor]:
        import torch

        for start in range(0, len(self.pixels), BATCH):
            yield self.normalize(torch.from_numpy(self.pixels[start : start + BATCH].copy()))


def facts(options: Namespace) -> dict[str, Any]:
    """Where and how it was made; no path of this machine."""
    from octzoo.train.environment import environment

    source, colon, _ = options.data.partition(":")
    data = "DIR" if Path(options.data).is_dir() else f"{source}:DIR" if colon else source
    given = {
        "--checkpoint": options.checkpoint and "FILE",
        "--alpha": None if options.macs else f"{0.25 if options.alpha is None else options.alpha:g}",
        "--macs": options.macs and f"{options.macs:g}",
        "--data": data,
        "--pictures": None if options.pictures == PICTURES else str(options.pictures),
        "--minutes": f"{options.minutes:g}" if options.epochs is None else None,
        "--epochs": None if options.epochs is None else str(options.epochs),
        "--seed": str(options.seed) if options.seed else None,
        "--out": "DIR",
    }
    words = [word for name, value in given.items() if value for word in (name, value)]
    return {**environment(), "command": " ".join(["octzoo octavize", options.name, *words])}


def say(text: str, end: str = "\n") -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, end=end, flush=True)
