"""`octzoo fit|validate|test|predict`: arranges the arguments for LightningCLI and turns failures into one line."""

import logging
import sys
import warnings
from itertools import pairwise
from pathlib import Path

from octzoo.cli.errors import report


def main(arguments: list[str]) -> int:
    """Runs LightningCLI on `arguments`, verb first; returns the exit code."""
    debug = "--debug" in arguments
    return report(lambda: run([a for a in arguments if a != "--debug"]), debug)


def run(arguments: list[str]) -> None:
    """As main, but exceptions come through."""
    quiet()
    from jsonargparse import set_parsing_settings

    from octzoo.train.cli import OctzooCLI

    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # ${data.batch_size} works in any file
    sys.argv = [sys.argv[0], *with_config_of_run(configs_first(arguments))]
    OctzooCLI()


def quiet() -> None:
    """Silences advice, and warnings about what this command does on purpose."""
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(lambda record: "Tip:" not in record.getMessage() and "TPU available" not in record.getMessage())
    for text in (
        "LeafSpec",  # torch's own use of something that it deprecates
        "does not have many workers",
        "Checkpoint directory .* exists and is not empty",  # the run's config.yaml is there already
        "module.s. in eval mode at the start of training",  # a frozen backbone's batch norms
        "Please add the following callbacks: ..ModelCheckpoint[^]]*].$",  # only fit writes checkpoints
    ):
        warnings.filterwarnings("ignore", message=f".*{text}")


def configs_first(arguments: list[str]) -> list[str]:
    """--config before all else: jsonargparse would let a later file win over an earlier flag."""
    verb, rest = arguments[:1], arguments[1:]
    configs, others = [], []
    while rest:
        word = rest.pop(0)
        if word in ("--config", "-c") and rest:
            configs += [word, rest.pop(0)]
        elif word.startswith("--config="):
            configs.append(word)
        else:
            others.append(word)
    return verb + configs + others


def with_config_of_run(arguments: list[str]) -> list[str]:
    """Without --config, the config beside the checkpoint that --ckpt_path means."""
    from octzoo.data import SettingError
    from octzoo.train.runs import CONFIG, find_checkpoint

    if any(a in ("--config", "-c") or a.startswith("--config=") for a in arguments):
        return arguments
    joined = [a.split("=", 1)[1] for a in arguments if a.startswith("--ckpt_path=")]
    given = joined + [b for a, b in pairwise(arguments) if a == "--ckpt_path"]
    if not given:
        return arguments
    config = find_checkpoint(Path(given[-1])).parent / CONFIG
    if not config.is_file():  # without it the pictures would be prepared otherwise than in training
        raise SettingError(f"ckpt_path: no {CONFIG} beside {given[-1]}; give the run's with --config")
    return [arguments[0], "--config", str(config), *arguments[1:]]
