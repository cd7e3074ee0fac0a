"""From a record to a file of weights on this machine: the places that are asked, in their order.

    1. $OCTZOO_CHECKPOINTS, else the checkpoints that come with octzoo
    2. what was fetched before: the converted files, and the Hub's own cache
    3. the Hub, octzoo/<name.tag>
    4. the server of whoever published the weights, whose file is converted; $OCTZOO_MIRROR is asked in its place

A folder has to be what its name says (see ``folder.checked``); what the Hub gives is held to the Hub's SHA-256, and a
publisher's file to the record's, where that is known.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, is_offline_mode
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock

from octzoo.errors import UserError
from octzoo.weights.download import fetch, sha256_of
from octzoo.weights.folder import MODEL, checked, drafts_of
from octzoo.weights.records import Record

_logger = logging.getLogger(__name__)

HUB_TIMEOUT = 5.0  # seconds, for the one question whether the Hub has a file
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
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
    local, cache = local_folder(), cache_folder(cache_dir)
    places: tuple[tuple[str, Callable[[], Path]], ...] = (
        (f"the folder {local}", lambda: _local(local / record.full_name, record)),
        (f"the cache {cache}", lambda: _converted(cache / record.full_name, record)),
        (f"the Hub ({record.hub_id})", lambda: _hub(record, cache_dir)),
        (f"the publisher ({record.source})", lambda: _publisher(record, cache / record.full_name, convert)),
    )
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
        f"{record.full_name}: no weights found. By hand: {record.by_hand}, then `octzoo import FILE --name "
        f"{record.full_name} --out DIR` and set OCTZOO_CHECKPOINTS=DIR. Tried {'; '.join(tried)}"
    )


def local_folder() -> Path:
    """Where checkpoint folders are looked for: $OCTZOO_CHECKPOINTS, else those packed, or of a source checkout."""
    if given := os.environ.get("OCTZOO_CHECKPOINTS"):
        return Path(given)
    package = Path(__file__).parents[1]
    packed = package / "checkpoints"
    return packed if packed.is_dir() else package.parent / "checkpoints"


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


def _hub(record: Record, cache_dir: str | os.PathLike[str] | None) -> Path:
    """From the Hub or its cache."""
    ask = partial(hf_hub_download, record.hub_id, MODEL, cache_dir=cache_dir)
    damaged = False
    try:
        path = Path(ask(local_files_only=True))
        if _is_right(path):
            return path
        damaged = True
    except LocalEntryNotFoundError:
        pass
    if is_offline_mode():
        raise _MissingError(f"its cache has {'a damaged file' if damaged else 'none'}, and HF_HUB_OFFLINE is set")
    try:
        # One question with one answer. hf_hub_download would ask a silent or absent server for half a minute and more.
        get_hf_file_metadata(hf_hub_url(record.hub_id, MODEL), timeout=HUB_TIMEOUT)
        for force in (damaged, True):
            path = Path(ask(force_download=force))
            if _is_right(path):
                return path
    except Exception as problem:  # the client library's, its HTTP library's, or the system's: this place is out
        if isinstance(problem, OSError) and problem.errno in _FULL:
            raise
        raise _MissingError(_short(problem)) from problem
    path.resolve().unlink()
    raise _MissingError(f"its {MODEL} came twice with a SHA-256 that is not the Hub's")


def _is_right(path: Path) -> bool:
    """Whether a file in the Hub's cache has the SHA-256 that the Hub said, which is its name there."""
    name = path.resolve().name
    return not re.fullmatch(r"[0-9a-f]{64}", name) or sha256_of(path) == name


# ---- the publisher -------------------------------------------------------------------------------------------------


def _publisher(record: Record, folder: Path, convert: Convert) -> Path:
    """From the publisher's server; processes that ask at once wait for the first."""
    url = _url(record)
    if url is None or record.file_name is None:
        raise _MissingError("only to be fetched by hand")
    if is_offline_mode():
        raise _MissingError("HF_HUB_OFFLINE is set")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder.with_name(folder.name + ".lock")):
            return _fetch_and_convert(url, record, folder, convert)
    except OSError as problem:
        if problem.errno in _FULL:
            raise
        raise _MissingError(f"the cache {folder.parent} cannot be used ({problem}): set TORCH_HOME") from problem


def _fetch_and_convert(url: str, record: Record, folder: Path, convert: Convert) -> Path:
    """The folder's weights, made unless another process has made them meanwhile. Needs the lock."""
    try:
        return _converted(folder, record)
    except _MissingError:
        for rubbish in (folder, *drafts_of(folder)):  # damaged, or left by a process that was killed
            shutil.rmtree(rubbish, ignore_errors=True)
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
