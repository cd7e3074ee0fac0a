"""`octzoo pack`: a run becomes a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

if TYPE_CHECKING:
    from octzoo.train.pack import About, Measured

# A folder is measured as whoever loads it computes: one process, single precision, every picture.
PLAIN = [
    *("--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"),
    *("--trainer.precision", "32-true", "--model.compile", "false", "--trainer.fast_dev_run", "false"),
    *("--trainer.limit_val_batches", "1.0", "--trainer.overfit_batches", "0.0"),
]


def main(arguments: list[str]) -> int:
    """Packs one run; returns the exit code."""
    parser = Parser(
        "pack",
        "Makes a checkpoint folder of a run: weights (the average where the run kept one), config.json, model card,\n"
        "recipe and log. The network is measured again on the run's validation pictures, and only what is measured\n"
        "is written. Options of `octzoo validate` are passed on, where the pictures lie elsewhere for instance.",
        "octzoo pack runs/cifar10/0 --name oct_cifar_resnet20_a0.25.mine --data.root PATH/TO/cifar10",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--name", required=True, metavar="NAME.TAG", help="network, alpha and a tag of yours")
    parser.add_argument("--last", action="store_true", help="the last epoch's weights instead of the best's")
    parser.add_argument(
        "--repeats",
        nargs="+",
        default=[],
        metavar="RUN",
        type=Path,
        help="the same with other seeds, for their figures",
    )
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints")
    for name, text in (
        ("dataset", "what the pictures are called; default: their source or folder"),
        ("dataset-url", "where they are from"),
        ("owner", "whose weights these are"),
        ("licence", "of the weights, as the Hub spells it: apache-2.0, mit, cc-by-4.0 ..."),
        ("limits", "what the card should warn of"),
    ):
        parser.add_argument(f"--{name}", metavar="TEXT", help=text)
    options, others = parser.parse_known_args(arguments[1:])
    if wrong := [word for word in others if word.startswith("-") and not word.startswith(("--data.", "--trainer."))]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")

    def action() -> None:
        from octzoo.train.pack import About

        about = About(options.dataset, options.dataset_url, options.owner, options.licence, options.limits)
        command = ["octzoo", *arguments]
        pack_run(options.run, options.repeats, options.name, options.last, options.out, about, others, command)

    return report(action, options.debug)


def pack_run(
    run: Path,
    repeats: list[Path],
    name: str,
    last: bool,
    out: Path,
    about: About,
    others: list[str],
    command: list[str],
) -> None:
    """Measures, writes OUT/NAME.TAG and says what it holds."""
    from octzoo.train.checkpoints import network_weights
    from octzoo.train.pack import check_repeats, check_run, pack, read_settings
    from octzoo.weights.folder import check_new

    check_run(name, read_settings(run))
    check_repeats([run, *repeats])
    check_new(out / name)
    measured, *again = (measure(found, last, others, command) for found in (run, *repeats))
    folder = pack(name, measured, again, network_weights(measured.checkpoint), about, out)
    print(f"{folder}: top-1 {100 * measured.top1:.2f} % of {measured.pictures:,} pictures, measured now")
    print(f"next   octzoo publish {folder} --org YOURS")


def measure(run: Path, last: bool, others: list[str], command: list[str]) -> Measured:
    """One run's network on its validation pictures."""
    import torch

    from octzoo.cli.lightning import run as run_lightning
    from octzoo.train.pack import Measured
    from octzoo.train.runs import find_checkpoint

    checkpoint = find_checkpoint(run, prefer_last=last)
    cli = run_lightning(["validate", str(checkpoint), *others, *PLAIN])
    data, metrics = cli.datamodule, {key: float(value) for key, value in cli.trainer.callback_metrics.items()}
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    epoch = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["epoch"]
    return Measured(
        run=run,
        checkpoint=checkpoint,
        epoch=epoch,
        model=cli.model.model.cpu(),
        data_config=data.preprocess.resolve(cli.model.pretrained_cfg),
        class_names=data.class_names,
        split=data.validation_split,
        pictures=data.validation_count - int(metrics.get("val/broken", 0)),
        top1=metrics["val/top1"],
        top5=metrics["val/top5"],
        loss=metrics["val/loss"],
        command=command,
    )
