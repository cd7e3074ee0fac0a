"""Checkpoint files that are whole or not there, and the newest that loads."""

import errno
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from octzoo.errors import RunError, UserError

META = "meta.pt"  # beside the parts of a sharded checkpoint, by Lightning
TEMPORARY = ".writing-"  # what the name of an unfinished file or folder begins with


class AtomicIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written under a temporary name in the same folder, synced, then renamed.

    Lightning's own goes through $TMPDIR, which is a copy, not a rename, where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name to write to, beside `path`; renames it to `path` at the end, or removes it on an error.

    Raises:
        RunError: the system refuses to write (a full disk, a quota); what was at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as problem:
        temporary.unlink(missing_ok=True)
        if reason := unwritable(problem):
            kept = "; the former one is kept" if path.exists() else ""
            raise RunError(f"{path} cannot be written: {reason}{kept}") from problem
        raise


def unwritable(problem: BaseException | None) -> str:
    """The system's word for a full disk, quota or limit behind an error (torch puts its own in front); else ""."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return os.strerror(problem.errno)
        problem = problem.__cause__ or problem.__context__
    return ""


def sync(path: Path) -> None:
    """Makes what was written to a file, or renamed in a folder, last through a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_intact(path: Path) -> bool:
    """Whether a checkpoint's file can be read to the end (every record against its CRC-32), or its folder is whole."""
    try:
        if path.is_dir():
            return _has_all_parts(path)
        with zipfile.ZipFile(path) as file:
            whole = file.testzip() is None
        return whole and isinstance(torch.load(path, map_location="cpu", weights_only=True, mmap=True), dict)
    except Exception:  # a damaged file can raise anything
        return False


def _has_all_parts(folder: Path) -> bool:
    """Whether every part that a sharded checkpoint's index names is there, as long as the index says."""
    index = FileSystemReader(folder).read_metadata()
    parts = list((index.storage_data or {}).values())
    files = [(folder / part.relative_path, part.offset + part.length) for part in parts]
    return (folder / META).is_file() and all(file.is_file() and file.stat().st_size >= end for file, end in files)


def newest_intact(paths: list[Path], warn: Callable[[str], None]) -> Path | None:
    """The most recently written of `paths` that is intact; says of each newer one that it is damaged."""
    for path in sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True):
        if is_intact(path):
            return path
        warn(f"{path} is damaged")
    return None


def read_whole(path: Path) -> dict[str, Any]:
    """A checkpoint as Lightning saves it in one file, on the CPU; a sharded one is put together.

    Raises:
        UserError: it is none, or damaged.
    """
    if not is_intact(path):
        raise UserError(f"{path} is no checkpoint, or damaged")
    if not path.is_dir():
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "whole.pt"
        dcp_to_torch_save(path, file)
        sharded = torch.load(file, map_location="cpu", weights_only=True)
    return {**torch.load(path / META, map_location="cpu", weights_only=True), **sharded}


def network_weights(path: Path) -> dict[str, torch.Tensor]:
    """The network's state dict in a checkpoint of ours: the average where there is one.

    Raises:
        UserError: there is none.
    """
    weights, prefix = read_whole(path).get("state_dict", {}), "model."
    found = {n.removeprefix(prefix): value.contiguous() for n, value in weights.items() if n.startswith(prefix)}
    if not found:
        raise UserError(f"{path} holds no weights of a network (keys that begin with {prefix})")
    return found
