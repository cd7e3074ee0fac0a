"""The loggers that a user asks for by YAML, made to write into the run's folder."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.loggers import Logger

HERE = (None, ".")  # what a logger's save_dir is where nobody said otherwise


def make_loggers(wanted: Any, run_dir: Path) -> list[Logger]:
    """Instances of a parsed trainer.logger: one {class_path, init_args}, several, or true, false, null (none).

    A save_dir that was left at its default becomes the run's folder; `wanted` stays as it is, for the saved config.
    """
    if wanted is None or isinstance(wanted, bool):
        return []
    placed = [logger.clone() for logger in (wanted if isinstance(wanted, list) else [wanted])]
    for logger in placed:
        arguments = logger.get("init_args") or {}
        if "save_dir" in arguments and arguments["save_dir"] in HERE:
            arguments["save_dir"] = str(run_dir)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loggers", type=list[Logger])
    return parser.instantiate_classes(Namespace(loggers=placed)).loggers
