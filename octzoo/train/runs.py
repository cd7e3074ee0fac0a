"""Run folders: where a fit writes, and where a checkpoint of an earlier one is found."""

import re
from pathlib import Path

from octzoo.data import SettingError

CONFIG = "config.yaml"


def run_name(configs: list[Path], model: str) -> str:
    """What a run is called: its first config's stem; that of the run it repeats; without a config, the model's name."""
    if not configs:
        return re.sub(r"[^\w.-]", "_", model)
    first = configs[0]
    repeats = first.name == CONFIG and first.parent.name.isdigit()
    return first.resolve().parent.parent.name if repeats else first.stem


def new_run_folder(root: Path, name: str) -> Path:
    """Makes root/name/<number>, one above the highest there is. Two processes at once get two numbers."""
    place = root / name
    place.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in place.iterdir() if p.name.isdigit()), default=-1)
    while True:
        try:
            (place / str(number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            return place / str(number)


def _merit(checkpoint: Path) -> tuple[float, float]:
    """The figure in a checkpoint's name, then its epoch; files of other names come first."""
    numbers = re.search(r"epoch=(\d+)-.*?([\d.]+)$", checkpoint.stem)
    return (float(numbers[2]), float(numbers[1])) if numbers else (0.0, 0.0)


def find_checkpoint(path: Path, prefer_last: bool = False) -> Path:
    """The checkpoint that `path` means: itself, or a run folder's best, else its last (`prefer_last`: last, else best).

    Raises:
        SettingError: there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise SettingError(f"ckpt_path: no such file or run folder: {path}")
    last = [p for p in [path / "last.ckpt"] if p.is_file()]
    best = sorted(path.glob("epoch=*.ckpt"), key=_merit)[-1:]
    found = last + best if prefer_last else best + last
    if not found:
        raise SettingError(f"ckpt_path: no checkpoint in {path}")
    return found[0]
