"""`octzoo profile`: where a network's time goes, against its arithmetic and what this machine allows."""

from __future__ import annotations

import json
import re
import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octzoo.deploy.ceilings import Ceilings
    from octzoo.deploy.profile import Profile


def main(arguments: list[str]) -> int:
    """Measures, prints the tables and the sentences, writes the files; returns the exit code."""
    parser = Parser(
        "profile",
        "Why is it slow here? What a network's inference consists of, by kind of work (the four paths of its\n"
        "convolutions, norms, activations, ...), beside the plain network: calls, millions of multiply-accumulates\n"
        "and of parameters, megabytes that come out, megabytes read and written, milliseconds, shares in percent, and\n"
        "the least time that the ceilings of this machine allow, which it measures too. All of it for one batch.",
        "octzoo profile resnet50@0.25 --batch 8",
    )
    parser.add_argument("name", metavar="NAME", help="what timm.create_model takes, or resnet50@0.25: by surgery")
    parser.add_argument("--vs", metavar="NAME", help="the peer; default: the plain network")
    parser.add_argument("--fused", action="store_true", help="both as octzoo.fused.fuse makes them")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures; default: 8")
    parser.add_argument("--image-size", type=int, metavar="N", help="in pixels; default: the network's")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU; default: torch's")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="passes that are timed; default: 10")
    parser.add_argument("--layers", action="store_true", help="also one row for each layer and kind of work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write bars of arithmetic, bound and time, a PNG")
    options = parser.parse_args(arguments[1:])
    return report(lambda: run(options), options.debug)


def run(options: Namespace) -> None:
    """Measures, prints and writes. Raises UserError for what cannot be profiled or written."""
    check(options)
    import torch

    from octzoo.deploy import ceilings
    from octzoo.deploy.profile import profile
    from octzoo.deploy.profile_report import as_dict
    from octzoo.models.named import plain_name

    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    peer = options.vs or plain_name(options.name)
    models = {name: network(name, device, options.fused) for name in dict.fromkeys((options.name, peer))}
    x = batch(models[options.name], options.batch, options.image_size, device)
    limits = ceilings.measure(device)
    profiles = profile(models, x, limits, options.rounds)
    facts = {**setting(options, x), **as_dict(profiles, limits)}
    show(facts, profiles, limits, options.layers)
    write(options, facts, profiles)


def check(options: Namespace) -> None:
    """Raises UserError for options that cannot be."""
    from octzoo.errors import UserError

    for flag in ("batch", "image_size", "threads", "rounds"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value} is less than 1")
    for flag in ("json", "picture"):
        path = getattr(options, flag)
        if path and not path.parent.is_dir():
            raise UserError(f"--{flag} {path}: there is no folder {path.parent}")
    if options.picture and options.picture.suffix.lower() != ".png":
        raise UserError(f"--picture {options.picture}: the picture is a PNG; give a name that ends in .png")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch sees no GPU here; take --device cpu")


def network(name: str, device: Any, fused: bool) -> Any:
    """The network, ready to be measured."""
    import torch

    import octzoo  # noqa: F401 (registers the names)
    from octzoo.models.named import build

    model = build(name).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not fused:
        return model
    from octzoo.fused import fuse

    return fuse(model)


def batch(model: Any, pictures: int, image_size: int | None, device: Any) -> Any:
    """Random pictures, [B, C, H, W]."""
    import torch

    from octzoo.plan import picture_channels, picture_size

    size = (image_size, image_size) if image_size else picture_size(model)
    x = torch.randn(pictures, picture_channels(model), *size, device=device)
    return x.to(memory_format=torch.channels_last)


def setting(options: Namespace, x: Any) -> dict[str, Any]:
    """What was measured, on what; nothing that names this machine's folders."""
    from octzoo.train.environment import environment

    words = ["octzoo", "profile", options.name]
    for flag in ("vs", "batch", "image_size", "threads", "rounds"):
        value = getattr(options, flag)
        words += [f"--{flag.replace('_', '-')}", str(value)] if value is not None else []
    words += ["--fused"] if options.fused else []
    words += ["--device", options.device] if options.device != "cpu" else []
    return {
        **environment(),
        "command": shlex.join(words),
        "fused": options.fused,
        "device": options.device,
        "batch": list(x.shape),
        "rounds": options.rounds,
    }


def show(facts: Mapping[str, Any], profiles: Mapping[str, Profile], limits: Ceilings, layers: bool) -> None:
    """Prints the tables and the sentences."""
    from octzoo.cli.tables import print_table
    from octzoo.deploy.profile_report import by_kind_table, layer_table, measured, sentences, setup

    print(setup(facts))
    print(measured(limits))
    for name, found in profiles.items():
        for table in (layer_table, by_kind_table) if layers else (by_kind_table,):
            head, *rows, whole = table(found)
            low, high = min(found.passes), max(found.passes)
            print(f"\n{name}: a whole pass takes {low:.1f} to {high:.1f} ms")
            print_table(head, rows, whole)
    print()
    for sentence in sentences(profiles):
        print(sentence)


def write(options: Namespace, facts: Mapping[str, Any], profiles: Mapping[str, Profile]) -> None:
    """Writes the files that were asked for, and prints their names."""
    from octzoo.train.pictures import replace_picture, replace_text

    if options.json:
        replace_text(options.json, lines(facts))
        print(f"\nfigures   {options.json}")
    if options.picture:
        from octzoo.deploy.profile_picture import draw
        from octzoo.deploy.profile_report import setup

        replace_picture(options.picture, draw(profiles, setup(facts)))
        print(f"{'' if options.json else chr(10)}picture   {options.picture}")


def lines(facts: Mapping[str, Any]) -> str:
    """JSON with each list of plain values on one line."""
    text = json.dumps(facts, indent=1)
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda found: re.sub(r"\n *", " ", found[0]), text) + "\n"
