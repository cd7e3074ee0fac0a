"""`octzoo info`: one network, stage by stage, beside the plain one."""

from __future__ import annotations

from typing import Any

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report


def main(arguments: list[str]) -> int:
    """Prints the network's stages; returns the exit code."""
    parser = Parser(
        "info",
        "A network stage by stage: its convolutions and how many of them meet an octave, what comes out of each part\n"
        "(channels x height x width), parameters, multiply-accumulates and activations (numbers that convolutions and\n"
        "linear layers give) for one picture, in millions, and the ratio to the plain network's.",
        "octzoo info oct_resnet50_a0.25 --image-size 320",
    )
    parser.add_argument("name", metavar="NAME", help="what timm.create_model takes")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="height and width in pixels; default: the network's"
    )
    options = parser.parse_args(arguments[1:])
    return report(lambda: show(options.name, options.image_size), options.debug)


def show(name: str, image_size: int | None) -> None:
    """Prints what there is to know of ``name``. Raises UserError for a name that timm does not know or cannot build."""
    import timm

    import octzoo  # noqa: F401 (registers the names)
    from octzoo.cli.tables import print_table
    from octzoo.errors import UserError
    from octzoo.models.describe import plan_table

    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size {image_size} is not a number of pixels")
    if not timm.is_model(name):
        raise UserError(f"timm knows no network {name!r}; `octzoo list` has ours")
    try:
        model: Any = timm.create_model(name, device="meta")
        head, *stages, total = plan_table(model, image_size)
    except (RuntimeError, ValueError, AssertionError) as problem:  # timm asserts that a size fits
        raise UserError(f"{name}: {problem}") from problem
    size = image_size or model.pretrained_cfg["input_size"][1]
    alpha = getattr(model, "octave_alpha", 0.0)
    print(f"{name}: alpha {alpha:g}, one picture of {size}x{size}\n")
    print_table(head, stages, total)
