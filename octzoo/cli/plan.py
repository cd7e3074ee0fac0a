"""`octzoo plan`: which layers of a plain network pay for their octaves, from a budget of arithmetic."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from octzoo.adaptation.budget import Choice

PICTURES, BATCH = 64, 8


def main(arguments: list[str]) -> int:
    """Prints the plan; returns the exit code."""
    parser = Parser(
        "plan",
        "From a budget of multiply-accumulates to a plan: alpha, and which groups of layers that share channels are\n"
        "octave, so that the least is lost. What a group costs is measured on pictures: how far the answers are off\n"
        "when it alone is octave, its smoothest channels low and no weight fitted.",
        "octzoo plan resnet50 --macs 0.8",
    )
    parser.add_argument("name", metavar="NAME", help="what timm.create_model takes")
    parser.add_argument("--macs", type=float, required=True, metavar="R", help="the share that may remain, 0 to 1")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, in place of the published ones")
    parser.add_argument("--no-pretrained", action="store_true", help="random weights: a plan of the arithmetic alone")
    places = "a folder, or SOURCE or SOURCE:ROOT as in octzoo fit; default: pieces of two photographs"
    parser.add_argument("--data", metavar="PICTURES", help=places)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there, for octzoo.octavize(plan=...)")
    options = parser.parse_args(arguments[1:])
    return report(lambda: run(options), options.debug)


def run(options: Namespace) -> None:
    """Prints the plan of what the options say. Raises UserError where there is none."""
    import octzoo  # noqa: F401 (registers the names)
    from octzoo.adaptation.budget import check_budget, choose_plan
    from octzoo.adaptation.cost import pooling_costs
    from octzoo.cli.octavize import network
    from octzoo.errors import UserError
    from octzoo.models.named import build

    if not 0 < options.macs < 1:
        raise UserError(f"--macs {options.macs:g} is not between 0 and 1")
    if options.checkpoint is not None and not options.checkpoint.is_file():
        raise UserError(f"--checkpoint {options.checkpoint}: no such file")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json {options.json}: no such folder")
    model: Any = build(options.name).eval() if options.no_pretrained else network(options.name, options.checkpoint)
    check_budget(model, options.macs)
    print("what each channel would lose", file=sys.stderr)
    batches = list(pictures(model, options.data))
    costs = pooling_costs(model, batches)
    print("plans for several alphas", file=sys.stderr)
    choice = choose_plan(model, options.macs, costs, batches, say=lambda text: print(text, file=sys.stderr))
    tell(options.name, choice)
    if options.json:
        facts = {"network": options.name, "alpha": choice.alpha, "macs": choice.macs, "plan": [*map(list, choice.plan)]}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


def pictures(model: Any, place: str | None) -> Iterable[Tensor]:
    """Batches as the network takes them."""
    import torch
    from timm.data import create_transform

    from octzoo.data.photos import Photos
    from octzoo.deploy.metadata import data_config_of
    from octzoo.deploy.samples import draw_samples

    transform: Any = create_transform(**data_config_of(model), is_training=False)
    if place is not None:
        return draw_samples(place, PICTURES).batches(transform, BATCH)
    photos = Photos()
    prepared = [transform(photos[i]) for i in range(len(photos))]
    return torch.stack(prepared).split(BATCH)


def tell(name: str, choice: Choice) -> None:
    """Prints what the plan costs, and its rows."""
    from octzoo.cli.tables import print_table

    on, of = choice.octave
    print(f"{name}: alpha {choice.alpha:g}, {choice.macs:.1%} of the multiply-accumulates")
    print(f"{on} of {of} groups of layers are octave; expected loss {choice.cost:.3g} (of each alone, added up)\n")
    print_table(["layers", "kind", "stride"], [[row.pattern, row.kind, row.stride_mode or ""] for row in choice.plan])
