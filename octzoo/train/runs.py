"""Run folders: where a fit writes, what it continues from, and where an earlier one's checkpoint is found."""

import re
from collections.abc import Callable
from pathlib import Path

from octzoo.data import SettingError
from octzoo.train.checkpoints import TEMPORARY, is_intact, newest_intact
from octzoo.train.recipes import CONFIG, base_of

LAST = "last.ckpt"
RESUME = ("last", "auto")  # what --ckpt_path takes beside a path


def find_resume(
    run_dir: str | None, ckpt_path: str | None, say: Callable[[str], None], first: bool = True
) -> Path | None:
    """The checkpoint that a fit continues from; None where it starts new. Writes nothing.

    Args:
        run_dir: the folder it will write to; None is a new one
        ckpt_path: last resumes run_dir; auto resumes it if there is something to resume; a file or run folder is
            continued from; None starts new
        say: takes one line for the user
        first: whether this is the process that makes the folder; the others may find it filled by then

    Raises:
        SettingError: run_dir holds a run already, or there is nothing to resume.
    """
    if ckpt_path in RESUME:
        if run_dir is None:
            raise SettingError(f"ckpt_path: {ckpt_path} needs --run_dir, the folder of the run to resume")
        place = Path(run_dir)
        checkpoint = newest_checkpoint(place, say)
        if checkpoint is None and ckpt_path == "last":
            raise SettingError(f"ckpt_path: nothing to resume in {place}: no checkpoint that loads")
        say(f"resuming {place} from {checkpoint.name}" if checkpoint else f"nothing to resume in {place}: starting new")
        return checkpoint
    if first and run_dir is not None and Path(run_dir).is_dir() and any(Path(run_dir).iterdir()):
        raise SettingError(
            f"run_dir: {run_dir} is not empty; resume the run in it with --ckpt_path last, or take another"
        )
    if ckpt_path is None:
        return None
    found = find_checkpoint(Path(ckpt_path), prefer_last=True)
    if found.name == LAST and found != Path(ckpt_path):
        found = newest_checkpoint(found.parent, say) or found
    if not is_intact(found):
        raise SettingError(f"ckpt_path: {found} is damaged, or no checkpoint")
    return found


def run_name(configs: list[Path], model: str) -> str:
    """What a run is called: its overlay's stem (see recipes), else its first config's; that of the run it repeats.

    Without a config it has the model's name.
    """
    if not configs:
        return re.sub(r"[^\w.-]", "_", model)
    first = next((path for path in reversed(configs) if base_of(path)), configs[0])
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


def newest_checkpoint(run_dir: Path, say: Callable[[str], None]) -> Path | None:
    """What to resume a run from: last.ckpt, or where that is damaged the newest checkpoint that is whole."""
    last = run_dir / LAST
    unfinished = re.compile(rf"{re.escape(TEMPORARY)}(?!old-)")
    others = [p for p in run_dir.glob("*.ckpt") if p != last and not unfinished.match(p.name)]
    if last.exists() and is_intact(last) and not any(p.name.startswith("hpc_ckpt") for p in others):
        return last
    found = newest_intact([p for p in [last, *others] if p.exists()], lambda text: say(f"warning: {text}"))
    if found is not None and found != last:
        say(f"taking the newest that is whole: {found}")
    return found


def _merit(checkpoint: Path) -> tuple[float, float]:
    """The figure in a checkpoint's name, then its epoch; files of other names come first."""
    numbers = re.search(r"epoch=(\d+)-.*?(\d+(?:\.\d+)?)(?:-v\d+)?$", checkpoint.stem)
    return (float(numbers[2]), float(numbers[1])) if numbers else (0.0, 0.0)


def find_checkpoint(path: Path, prefer_last: bool = False) -> Path:
    """The checkpoint that `path` means: itself, or a run folder's best, else its last (`prefer_last`: last, else best).

    A checkpoint is a file, or a folder where the weights were sharded.

    Raises:
        SettingError: there is none.
    """
    if path.is_file() or (path / ".metadata").is_file():
        return path
    if not path.is_dir():
        raise SettingError(f"ckpt_path: no such file or run folder: {path}")
    last = [p for p in [path / LAST] if p.exists()]
    best = sorted(path.glob("epoch=*.ckpt"), key=_merit)[-1:]
    found = last + best if prefer_last else best + last
    if not found:
        raise SettingError(f"ckpt_path: no checkpoint in {path}")
    return found[0]
