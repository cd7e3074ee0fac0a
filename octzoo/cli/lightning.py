"""`octzoo fit|validate|test|predict`: arranges the arguments for LightningCLI and turns failures into one line."""

import logging
import sys
import warnings
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from octzoo.cli.errors import INTERRUPTED, TERMINATED, report


def main(arguments: list[str]) -> int:
    """Runs LightningCLI on `arguments`, verb first; returns the exit code."""
    debug = "--debug" in arguments
    try:
        return report(lambda: run([a for a in arguments if a != "--debug"]), debug)
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # a second Ctrl-C, of which Lightning makes exit code 1
            return INTERRUPTED
        raise


def run(arguments: list[str]) -> Any:
    """As main, but exceptions come through; gives the LightningCLI with all that it made."""
    quiet()
    from jsonargparse import set_parsing_settings
    from lightning.pytorch.utilities import rank_zero_only
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from octzoo.data.loading import reader_died
    from octzoo.errors import RunError
    from octzoo.train.bad_steps import BadStep
    from octzoo.train.cli import OctzooCLI
    from octzoo.train.stopping import Stopped

    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # ${data.batch_size} works in any file
    sys.argv = [sys.argv[0], *with_config_of_run(configs_first(measured_first(arguments)))]
    try:
        return OctzooCLI()
    except BadStep:  # of every process at the same step; see below
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            raise
    except SIGTERMException:  # before training began
        sys.exit(TERMINATED)
    except RuntimeError as problem:
        if "DataLoader worker" in str(problem):  # torch says it wherever the process is at that moment
            raise reader_died(problem) from problem
        if not any(word in str(problem) for word in ("gloo", "NCCL", "Timed out waiting", "pair closure")):
            raise
        text = f"another process of this run ended or does not answer (its own output says why): {problem}"
        raise RunError(text) from problem
    except Stopped as stop:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # a launcher would kill it if another's code was not 0
            print(stop, file=sys.stderr)
            sys.exit(stop.exit_code)


def quiet() -> None:
    """Silences advice, and warnings about what this command does on purpose."""
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    noise = ("Tip:", "TPU available", "`Trainer.fit` stopped", "was configured so 100%")
    tips.addFilter(lambda record: not any(text in record.getMessage() for text in noise))
    for text in (
        "ended before the epoch ended and your dataloader is not resumable",  # ours is, without a state
        "Your `IterableDataset` has `__len__` defined",  # and counts the workers
        "LeafSpec",  # torch's own use of something that it deprecates
        "does not have many workers",
        "Checkpoint directory .* exists and is not empty",  # the run's config.yaml is there already
        "module.s. in eval mode at the start of training",  # a frozen backbone's batch norms
        "Please add the following callbacks:",  # measuring has none of a fit's
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


def measured_first(arguments: list[str]) -> list[str]:
    """`validate RUN_OR_NAME [DATA]` as flags: what is measured, and on which pictures (`predict`: which it labels)."""
    from octzoo.data.pictures import aliases

    verb, rest = arguments[0], arguments[1:]
    words = list(takewhile(lambda word: not word.startswith("-"), rest))
    if verb == "fit" or not words:
        return arguments
    what, *data = words
    flags = ["--ckpt_path", what] if Path(what).exists() else ["--model.name", what, "--model.pretrained", "true"]
    if data and verb == "predict":
        flags += ["--data.pictures", data[0]]
    elif data:
        flags += ["--data.source", "folder", "--data.root", data[0]]
        if not any((Path(data[0]) / name).is_dir() for name in aliases("validation")):
            flags += ["--data.splits.val", "train"]  # all of it
    return [verb, *flags, *data[1:], *rest[len(words) :]]


def given(arguments: list[str], flag: str) -> str | None:
    """The last value of a flag, in either spelling."""
    joined = [a.split("=", 1)[1] for a in arguments if a.startswith(f"{flag}=")]
    found = joined + [b for a, b in pairwise(arguments) if a == flag]
    return found[-1] if found else None


def with_config_of_run(arguments: list[str]) -> list[str]:
    """Without --config, that of the run that --run_dir resumes, or that lies beside what --ckpt_path means."""
    from octzoo.data import SettingError
    from octzoo.train.runs import CONFIG, RESUME, find_checkpoint

    checkpoint, run_dir = given(arguments, "--ckpt_path"), given(arguments, "--run_dir")
    if given(arguments, "--config") or given(arguments, "-c") or checkpoint is None:
        return arguments
    if checkpoint in RESUME:
        config = Path(run_dir or "") / CONFIG
        if run_dir is None:  # what there is to say of it is said where both are looked at
            return arguments
        if not config.is_file():
            new = "; give --config to start it" if checkpoint == "auto" else ""
            raise SettingError(f"ckpt_path: nothing to resume in {run_dir}: no {CONFIG}{new}")
    else:
        config = find_checkpoint(Path(checkpoint)).parent / CONFIG
    if not config.is_file():  # without it the pictures would be prepared otherwise than in training
        raise SettingError(f"ckpt_path: no {CONFIG} beside {checkpoint}; give the run's with --config")
    return [arguments[0], "--config", str(config), *arguments[1:]]
