"""Tar files read as a map-style data set: indexed once, nothing is unpacked.

The index (where each picture's bytes are, and what it is labelled) lies beside the tars, or in torch's cache folder
where that cannot be written. It holds the size and time of each tar, and is made anew when these changed or it is
damaged.
"""

import hashlib
import io
import logging
import os
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from octzoo.data.pictures import PICTURE_SUFFIXES, SettingError
from octzoo.errors import some

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A picture in a tar: its member's name, where its bytes are, and what it is labelled."""

    name: str
    offset: int
    size: int
    label: str


class Index(NamedTuple):
    """The N pictures of some tars, in order; arrays, so that reading processes share their memory.

    shard: [N], number of the tar
    offset, size: [N], bytes
    name, label: [N], UTF-8
    """

    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    name: np.ndarray
    label: np.ndarray

    def take(self, chosen: np.ndarray) -> "Index":
        """Some of the pictures."""
        return Index(*(column[chosen] for column in self))


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files in a tar but hidden ones; forgets what was seen, where tarfile would keep a kilobyte for each."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if member.isreg() and not member.name.rpartition("/")[2].startswith("."):
            yield member


def index_of(shards: Sequence[Path], entries: Callable[[tarfile.TarFile], Iterator[Entry]]) -> Index:
    """The index of `shards`; `entries` finds the pictures of one.

    Raises:
        SettingError: a shard is damaged, packed, or not a tar
    """
    stamps = np.array([(s.stat().st_size, s.stat().st_mtime_ns) for s in shards])
    for place in (places := _places(shards, entries.__name__)):
        if (found := _load(place, stamps)) is not None:
            return found
    log.info("indexing %d tar files, first %s", len(shards), shards[0])
    rows: list[tuple[int, Entry]] = []
    for number, shard in enumerate(shards):
        try:
            _refuse_cut(shard)
            with tarfile.open(shard, "r:") as tar:
                rows += ((number, entry) for entry in entries(tar))
        except SettingError as problem:
            raise SettingError(f"{problem} in {shard}") from problem
        except (tarfile.TarError, EOFError) as problem:
            raise SettingError(
                f"data.root: {shard} is no whole, unpacked tar file ({problem}); fetch or make it anew"
            ) from problem
    if not rows:
        raise SettingError(f"data.root: no pictures ({', '.join(PICTURE_SUFFIXES)}) in {some(map(str, shards))}")
    index = Index(
        np.array([number for number, _ in rows], np.int32),
        *(np.array([getattr(entry, field) for _, entry in rows], np.int64) for field in ("offset", "size")),
        *(np.array([getattr(entry, field).encode() for _, entry in rows], np.bytes_) for field in ("name", "label")),
    )
    _save(places, stamps, index)
    return index


class Members:
    """The pictures of an index: item i is (file in memory, class index). Goes to other processes, by fork or spawn."""

    def __init__(self, shards: Sequence[Path], index: Index, targets: np.ndarray) -> None:
        self.shards, self.index, self.targets = list(shards), index, targets
        self.files: dict[int, IO[bytes]] = {}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[IO[bytes], int]:
        shard, offset, size = (int(column[i]) for column in self.index[:3])
        if shard not in self.files:
            self.files[shard] = open(self.shards[shard], "rb")  # noqa: SIM115 (stays open)
        # pread has no place in the file, so processes that a fork gave the same open file do not disturb each other
        return io.BytesIO(os.pread(self.files[shard].fileno(), size, offset)), int(self.targets[i])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"files": {}}

    def name(self, i: int) -> str:
        """Shard and member."""
        return f"{self.shards[self.index.shard[i]]}/{self.index.name[i].decode()}"


def _refuse_cut(shard: Path) -> None:
    """tarfile takes a tar that was cut between two pictures, or in a header, for a shorter one."""
    with open(shard, "rb") as file:
        file.seek(-min(512, shard.stat().st_size), os.SEEK_END)
        if file.read() != bytes(512):
            raise tarfile.ReadError("it does not end as a tar file does")


def _places(shards: Sequence[Path], kind: str) -> list[Path]:
    """Where the index may lie, best first."""
    names = ["\n".join([kind, *names]) for names in ([s.name for s in shards], [str(s.resolve()) for s in shards])]
    beside, cached = (f".octzoo-{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz" for name in names)
    return [shards[0].parent / beside, Path(torch.hub.get_dir()) / "octzoo" / cached]


def _load(path: Path, stamps: np.ndarray) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not np.array_equal(file["stamps"], stamps):
                return None
            return Index(*(file[field] for field in Index._fields))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
        log.warning("%s is damaged (%s): the tar files are indexed anew", path, problem)
        return None


def _save(places: Sequence[Path], stamps: np.ndarray, index: Index) -> None:
    for place in places:
        temporary = place.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.savez(file, stamps=stamps, **index._asdict())
            os.replace(temporary, place)
            return
        except OSError as problem:
            temporary.unlink(missing_ok=True)
            log.info("no index in %s: %s", place.parent, problem)
