"""`octzoo weights`: a checkpoint's weights as one file that any framework reads."""

from __future__ import annotations

from pathlib import Path

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report


def main(arguments: list[str]) -> int:
    """Writes the file; returns the exit code."""
    parser = Parser(
        "weights",
        "Writes the network's weights of a checkpoint, or of a run's best, as one safetensors file: the average where\n"
        "the run kept one (EMA), put together where they are sharded (FSDP2). timm loads it by checkpoint_path.",
        "octzoo weights runs/r50/0 --out model.safetensors",
    )
    parser.add_argument("checkpoint", metavar="FILE_OR_RUN", type=Path, help="a checkpoint or a run folder")
    parser.add_argument("--last", action="store_true", help="of a run, its last checkpoint instead of its best")
    parser.add_argument("--out", type=Path, default=Path("model.safetensors"), help="default: model.safetensors")
    options = parser.parse_args(arguments[1:])
    return report(lambda: write(options.checkpoint, options.last, options.out), options.debug)


def write(checkpoint: Path, last: bool, out: Path) -> None:
    """Writes `out`, whole or not at all. Raises UserError if it is there already, or there is no checkpoint."""
    from safetensors.torch import save_file

    from octzoo.errors import UserError
    from octzoo.train.checkpoints import network_weights, replacing
    from octzoo.train.runs import find_checkpoint

    if out.exists():
        raise UserError(f"{out} is there already; give another --out, or remove it")
    found = find_checkpoint(checkpoint, prefer_last=last)
    weights = network_weights(found)
    with replacing(out) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    print(f"{out}: {len(weights)} tensors of {found}")
