"""From a record to a file of weights on this machine: the places that are asked, in their order.

    1. $OCTZOO_CHECKPOINTS, then the checkpoints that come with octzoo
    2. what was fetched before: our cache, and the Hub's own
    3. the Hub, octzoo/<name.tag>, into our cache
    4. the server of whoever published the weights, whose file is converted; $OCTZOO_MIRROR is asked in its place

A folder has to be what its name says (see ``folder.checked``); what the Hub gives is held to the Hub's hashes, and both
to the record's SHA-256 where it is known.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock

from octzoo.errors import UserError
from octzoo.weights.download import fetch, hash_like, sha256_of
from octzoo.weights.folder import MODEL, checked, drafts_of
from octzoo.weights.hub import FULL, pull
from octzoo.weights.records import Record, packed_folder

_logger = logging.getLogger(__name__)

Convert = Callable[[Path, Path], object]  # (a published file, the checkpoint folder to make of it)


class WeightsNotFoundError(UserError, RuntimeError):
    """No place has the weights; the text lists what was tried, and how to get them by hand."""


class _MissingError(Exception):
    """One place does not have them, and why."""


def weights_file(record: Record, convert: Convert, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The model.safetensors of ``record``, from the first place that has it; one log line says which.

    Args:
        record: whose weights.
        convert: makes a checkpoint folder of the published file.
        cache_dir: timm's, in place of torch's hub folder and of the Hub's cache.

    Raises:
        WeightsNotFoundError: no place has them; within half a minute if no server answers.
        UserError: a folder in $OCTZOO_CHECKPOINTS is not what its name says; $OCTZOO_MIRROR is no URL.
        OSError: the disk is full.
    """
    cache = cache_folder(cache_dir)
    places: tuple[tuple[str, Callable[[], Path]], ...] = (
        *((f"the folder {place}", partial(_local, place / record.full_name, record)) for place in local_folders()),
        (f"the cache {cache}", lambda: _converted(cache / record.full_name, record)),
        ("the Hub's cache", lambda: _hub_cache(record, cache_dir)),
        (f"the Hub ({record.hub_id})", lambda: _hub(record, cache / record.full_name)),
    )
    if record.model_sha256 is None:  # not ours
        publisher = f"the publisher ({record.source})"
        places += ((publisher, lambda: _publisher(record, cache / record.full_name, convert)),)
    tried = []
    for place, look in places:
        try:
            path = look()
        except _MissingError as problem:
            tried.append(f"{place}: {problem}")
        else:
            _logger.info("%s: weights from %s", record.full_name, place)
            return path
    raise WeightsNotFoundError(
        f"{record.full_name}: no weights found. By hand: {record.by_hand}, and set OCTZOO_CHECKPOINTS=DIR. "
        f"Tried {'; '.join(tried)}"
    )


def local_folders() -> list[Path]:
    """Where checkpoint folders are looked for: in $OCTZOO_CHECKPOINTS, then among those that come with octzoo."""
    given = os.environ.get("OCTZOO_CHECKPOINTS")
    return [*([Path(given)] if given else []), packed_folder()]


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where converted weights are kept: in ``cache_dir``, else beside what timm downloads ($TORCH_HOME/hub)."""
    return Path(cache_dir or torch.hub.get_dir()) / "octzoo"


def _local(folder: Path, record: Record) -> Path:
    path = checked(folder, record)
    if path is None:
        raise _MissingError(f"no {record.full_name} there")
    return path


def _converted(folder: Path, record: Record) -> Path:
    """As ``_local``; a damaged folder of ours is only as good as none, and is made anew when a server has the file."""
    try:
        return _local(folder, record)
    except UserError as problem:
        raise _MissingError(str(problem)) from problem


# ---- the Hub -------------------------------------------------------------------------------------------------------


def _hub_cache(record: Record, cache_dir: str | os.PathLike[str] | None) -> Path:
    """What other tools fetched from the Hub."""
    path = try_to_load_from_cache(record.hub_id, MODEL, cache_dir=Path(cache_dir) if cache_dir else None)
    if not isinstance(path, str):
        raise _MissingError("none there")
    if not named_by_content(Path(path)) or record.model_sha256 not in (None, sha256_of(Path(path))):
        raise _MissingError("damaged, or not what was published")
    return Path(path)


def named_by_content(path: Path) -> bool:
    """Whether a file in the Hub's cache has the hash that the Hub said, which is its name there."""
    name = path.resolve().name
    return not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) or hash_like(name, path) == name


def _hub(record: Record, folder: Path) -> Path:
    """From the Hub into our cache."""
    if is_offline_mode():
        raise _MissingError("HF_HUB_OFFLINE is set")
    with _cached(folder):
        try:
            return _converted(folder, record)  # another process made it meanwhile
        except _MissingError:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            pull(record.hub_id, folder, sha256=record.model_sha256)
        except UserError as problem:
            raise _MissingError(_short(problem)) from problem
    return folder / MODEL


# ---- the publisher -------------------------------------------------------------------------------------------------


def _publisher(record: Record, folder: Path, convert: Convert) -> Path:
    """From the publisher's server; processes that ask at once wait for the first."""
    url = _url(record)
    if url is None or record.file_name is None:
        raise _MissingError("only to be fetched by hand")
    if is_offline_mode():
        raise _MissingError("HF_HUB_OFFLINE is set")
    with _cached(folder):
        return _fetch_and_convert(url, record, folder, convert)


@contextmanager
def _cached(folder: Path) -> Iterator[None]:
    """One process at a time makes a folder of the cache."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder.with_name(folder.name + ".lock")):
            yield
    except OSError as problem:
        if problem.errno in FULL:
            raise
        raise _MissingError(f"the cache {folder.parent} cannot be used ({problem}): set TORCH_HOME") from problem


def _remove(folder: Path) -> None:
    """Take a damaged folder away, and what processes that were killed left of it."""
    for rubbish in (folder, *drafts_of(folder)):
        shutil.rmtree(rubbish, ignore_errors=True)


def _fetch_and_convert(url: str, record: Record, folder: Path, convert: Convert) -> Path:
    """The folder's weights, made unless another process has made them meanwhile. Needs the lock."""
    try:
        return _converted(folder, record)
    except _MissingError:
        _remove(folder)
    download = folder.with_name(record.file_name or folder.name)
    try:
        fetch(url, download, record.sha256, record.size)
        convert(download, folder)
    except UserError as problem:
        download.unlink(missing_ok=True)  # it would fail again
        raise _MissingError(_short(problem)) from problem
    download.unlink()
    return folder / MODEL


def _url(record: Record) -> str | None:
    """Where the published file is; $OCTZOO_MIRROR replaces the server and all folders but the last."""
    mirror = os.environ.get("OCTZOO_MIRROR")
    if not mirror or not record.url:
        return record.url
    parts = urlsplit(mirror)
    if "@" in parts.netloc:
        raise UserError("OCTZOO_MIRROR holds a name or a password, which octzoo would not send: take it out")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"OCTZOO_MIRROR={mirror} is not the http or https URL of a folder")
    return f"{mirror.rstrip('/')}/{record.file_name}"


def _short(problem: Exception) -> str:
    """What happened, without a library's advice."""
    return " ".join(str(problem).split())[:200] or type(problem).__name__
