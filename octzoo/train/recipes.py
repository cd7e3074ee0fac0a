"""Recipes that are short overlays on another: each says in its header which, and is refused without it."""

import re
from pathlib import Path

CONFIG = "config.yaml"  # a run's own, complete
_BASE = re.compile(r"^# base +(\S+)", re.MULTILINE)


def base_of(config: Path) -> Path | None:
    """The recipe that `config` is an overlay on, by its header (`# base  configs/r50.yaml`); None for a whole one."""
    found = _BASE.search(config.read_text(encoding="utf-8")) if config.is_file() else None
    return Path(found[1]) if found else None


def missing_base(configs: list[Path]) -> str | None:
    """One line for the user where an overlay's base is not given before it; None where all is well.

    A base is known by its file's name; the config.yaml of a run is complete and serves as one.
    """
    for place, config in enumerate(configs):
        base = base_of(config)
        if base is not None and not {base.name, CONFIG} & {given.name for given in configs[:place]}:
            return f"{config} is an overlay: give its base before it, --config {base} --config {config}"
    return None
