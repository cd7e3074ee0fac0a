"""Local tar files that hold a split, and the source `tar`: tars of class folders."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from timm.utils.misc import natural_key

from octzoo.data.pictures import PICTURE_SUFFIXES, SPLITS, Decoded, Pictures, SettingError, aliases
from octzoo.data.tars import Entry, Index, Members, index_of, members


def tar(name: str, root: str | None, split: str, download: bool) -> Pictures | None:
    """Tars of class folders, or one tar a class; a split is some of the tars, or a folder in them above the classes."""
    found, named = shards_of(root, split)
    if not found:
        return None
    index = index_of(found, folder_entries)
    paths = [[part for part in name.decode().split("/") if part != "."] for name in index.name]
    if not named:
        inside = np.array([_split_within(parts) for parts in paths])
        chosen = np.flatnonzero(inside == (split if (inside != "").any() or split != "train" else ""))
        index, paths = index.take(chosen), [paths[i] for i in chosen]
    if not paths and not named:
        return None
    labels = index.label
    if all(len(parts) == 1 for parts in paths):
        labels = np.array([found[i].stem.encode() for i in index.shard], np.bytes_)  # one tar a class
    else:
        _refuse_strays(found, index, paths)
    names = sorted({label.decode() for label in np.unique(labels)}, key=natural_key)  # as timm numbers folders
    numbers = {name.encode(): number for number, name in enumerate(names)}
    return pictures_of(found, index, names, np.array([numbers[label] for label in labels.tolist()], np.int64))


def shards_of(root: str | None, split: str) -> tuple[list[Path], bool]:
    """The tars that may hold a split, and whether they are named for it.

    Named are those in root/<split>/, or in root with the split as a word of their name; where none is named for any
    split, it is all in root, or root itself.
    """
    if root is None:
        raise SettingError("data.root: say where the tar files are")
    base = Path(root)
    if not base.exists():
        raise SettingError(f"data.root: no such folder or tar file: {root}")
    if base.is_file():
        return [base], False
    for folder in (base / alias for alias in aliases(split)):
        if inside := sorted(folder.glob("*.tar")):
            return inside, True
    here = sorted(base.glob("*.tar"))
    every = {alias for names in SPLITS.values() for alias in names}
    if not here and not any(next(base.glob(f"{alias}/*.tar"), None) for alias in every):
        raise SettingError(f"data.root: no .tar files in {root}, or in a folder 'train' there")
    if chosen := [path for path in here if _words(path) & set(aliases(split))]:
        return chosen, True
    return ([], True) if any(_words(path) & every for path in here) else (here, False)


def pictures_of(shards: list[Path], index: Index, names: list[str], targets: np.ndarray) -> Pictures:
    """A split from the pictures of an index, with the class of each [N]."""
    reader = Members(shards, index, targets)
    return Pictures(Decoded(reader), names, targets.tolist, reader.name)


def folder_entries(shard: tarfile.TarFile) -> Iterator[Entry]:
    """The index entries of a tar of class folders."""
    for member in members(shard):
        if Path(member.name).suffix.lower() in PICTURE_SUFFIXES:
            yield Entry(member.name, member.offset_data, member.size, Path(member.name).parent.name)


def _words(path: Path) -> set[str]:
    return set(re.split(r"[-_.\d]+", path.stem))


def _split_within(parts: Sequence[str]) -> str:
    """The split that a folder above a picture's class folder names; "" without one."""
    return next((split for split, names in SPLITS.items() if set(names) & set(parts[:-2])), "")


def _refuse_strays(shards: Sequence[Path], index: Index, paths: Sequence[list[str]]) -> None:
    above: dict[int, list[str]] = {}
    for shard, parts in zip(index.shard.tolist(), paths):
        if len(parts) < 2 or parts[-2].startswith(".") or above.setdefault(shard, parts[:-2]) != parts[:-2]:
            raise SettingError(f"data.root: pictures outside <class>/<picture> in {shards[shard]}: {'/'.join(parts)}")
