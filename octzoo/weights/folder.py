"""The checkpoint folder, one layout for disk, cache and Hub: model.safetensors, config.json, README.md.

timm (``local-dir:``, ``hf-hub:``) and transformers both read it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models import filter_pretrained_cfg
from torch import Tensor

from octzoo.errors import UserError
from octzoo.weights.download import sha256_of
from octzoo.weights.records import Record

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
CHECKSUM = "model_sha256"  # beside what timm and transformers read of config.json
_WHOSE = ("license", "origin_url", "paper_ids")


def make_config(model: Any, alpha: float, tag: str, record: Record | None) -> dict[str, Any]:
    """What config.json says of ``model``, so that timm and transformers build it again, alpha included.

    ``model_args`` holds alpha and nothing else: transformers passes num_classes itself, and fails if it is there too.
    Without a record nobody knows whose the weights are.
    """
    cfg = filter_pretrained_cfg(dict(model.pretrained_cfg, tag=tag), remove_source=True)
    architecture = cfg.pop("architecture")
    if record is None:
        cfg = {key: value for key, value in cfg.items() if key not in _WHOSE}
    return {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": {"alpha": alpha},
        "pretrained_cfg": {**cfg, "num_classes": model.num_classes},
    }


def write_folder(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], card: str) -> None:
    """Write a checkpoint folder, wholly or not at all.

    Everything is written beside ``folder`` and renamed, so that a kill or a full disk leaves nothing half-written.
    config.json gets the weights' SHA-256 too.

    Raises:
        UserError: ``folder`` exists already, or its place cannot be written.
        OSError: the disk is full.
    """
    check_new(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=_draft(folder), dir=folder.parent))
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            raise
        raise UserError(f"{folder.parent} cannot be written: {problem.strerror}") from problem
    try:
        weights = save({key: t.contiguous() for key, t in state.items()}, {"format": "pt"})
        _write(draft / MODEL, weights)
        config = {**config, CHECKSUM: hashlib.sha256(weights).hexdigest()}
        _write(draft / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        _write(draft / CARD, card.encode())
        draft.chmod(0o755)  # mkdtemp's is for its maker alone
        check_new(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def check_new(folder: Path) -> None:
    """Raise UserError if there is something where a folder is to be written."""
    if folder.exists():
        raise UserError(f"{folder} exists already: remove it, or choose another place")


def drafts_of(folder: Path) -> list[Path]:
    """What processes that were killed while they wrote ``folder`` left beside it."""
    return list(folder.parent.glob(f"{_draft(folder)}*"))


def checked(folder: Path, record: Record) -> Path | None:
    """The model.safetensors of a folder; None if there is none.

    Raises UserError if the folder is not what ``record`` says: another network, alpha or tag in its config.json, a file
    that is not whole, or another SHA-256 than config.json has (one that octzoo did not write may have none).
    """
    path = folder / MODEL
    if not path.is_file():
        return None
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        alpha, tag = config["model_args"]["alpha"], config["pretrained_cfg"]["tag"]
        name = f"{config['architecture']}.{tag}"
        with safe_open(path, "np"):
            pass
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
        raise UserError(f"{folder} is damaged ({type(problem).__name__}: {problem}): remove or replace it") from problem
    if (name, alpha) != (record.full_name, record.alpha):
        raise UserError(f"{folder} holds {name}, alpha {alpha}: its name is not what is in it")
    if CHECKSUM in config and sha256_of(path) != config[CHECKSUM]:
        raise UserError(f"{path} is damaged: its SHA-256 is not that in {CONFIG}; remove or replace the folder")
    return path


def _draft(folder: Path) -> str:
    return f"{folder.name}.tmp"


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
