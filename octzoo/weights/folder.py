"""The checkpoint folder, one layout for disk, cache and Hub: model.safetensors, config.json, README.md.

For what octzoo trained there are metrics.json, recipe.yaml and log.csv too; for what it octavized, adaptation.json and
adaptation.png. timm (``local-dir:``, ``hf-hub:``) and transformers both read it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models import filter_pretrained_cfg
from torch import Tensor

from octzoo.errors import UserError
from octzoo.weights.download import sha256_of
from octzoo.weights.golden import GOLDEN
from octzoo.weights.names import ANY
from octzoo.weights.records import CHECKSUM, CONFIG, METRICS, Record

MODEL, CARD = "model.safetensors", "README.md"
RECIPE, LOG = "recipe.yaml", "log.csv"  # of what octzoo trained, as METRICS is
REPORT, PICTURE = "adaptation.json", "adaptation.png"  # of what octzoo octavized
FILES = (MODEL, CONFIG, CARD, METRICS, RECIPE, LOG, REPORT, PICTURE)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WHOSE = ("license", "origin_url", "paper_ids")


def make_config(model: Any, alpha: float, tag: str, record: Record | None) -> dict[str, Any]:
    """What config.json says of ``model``, so that timm and transformers build it again, alpha included.

    Weights have the same shapes at every alpha, so alpha stands three times, and whoever builds the network compares
    two of them: timm the tag and ``model_args``, transformers, which does not look at the tag, the name and
    ``model_args``. These hold nothing else: transformers passes num_classes itself, and fails if it is there too.
    Without a record nobody knows whose the weights are.
    """
    cfg = filter_pretrained_cfg(dict(model.pretrained_cfg, tag=tag), remove_source=True)
    architecture = cfg.pop("architecture")
    if record is None:
        cfg = {key: value for key, value in cfg.items() if key not in _WHOSE}
    return {
        "architecture": f"{architecture}.{tag.split('.')[0]}",
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": {"alpha": alpha},
        "pretrained_cfg": {**cfg, "num_classes": model.num_classes},
    }


def write_folder(
    folder: Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    card: str,
    more: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write a checkpoint folder, wholly or not at all.

    Everything is written beside ``folder`` and renamed, so that a kill or a full disk leaves nothing half-written.
    config.json gets the weights' SHA-256 too; ``more`` are further files, name -> content.

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
        for name, text in {CARD: card, **(more or {})}.items():
            _write(draft / name, text.encode() if isinstance(text, str) else text)
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


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder says of itself.

    Attributes:
        folder: where it is.
        full_name: the network, alpha and tag, "oct_resnet50_a0.25.fb_in1k".
        alpha: the low share of the channels.
        config: config.json.
    """

    folder: Path
    full_name: str
    alpha: float
    config: dict[str, Any]

    @property
    def weights(self) -> Path:
        return self.folder / MODEL

    def may_be_called(self, name: str) -> bool:
        """Whether its folder or repository can have that name: its own, or any for an octavized network."""
        return name == self.full_name or self.full_name.startswith(f"{ANY}.")

    @property
    def sha256(self) -> str | None:
        """Of the weights, where octzoo wrote them."""
        return self.config.get(CHECKSUM)


def open_folder(folder: Path) -> Checkpoint:
    """Read what a folder says of itself, and hold its weights to it.

    Raises:
        UserError: it is no checkpoint folder, is damaged, does not say its alpha, or says two.
    """
    path = folder / MODEL
    if not path.is_file():
        raise UserError(f"{folder} has no {MODEL}{pickles_instead(p.name for p in folder.glob('*'))}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        network, tag, said = _identity(config)
        golden = config.get(GOLDEN)
        if golden is not None and not (golden and all(isinstance(value, float | int) for value in golden)):
            raise ValueError(f"{GOLDEN} are no numbers")
        with safe_open(path, "np"):
            pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as problem:
        raise UserError(f"{folder} is damaged ({type(problem).__name__}: {problem}): remove or replace it") from problem
    if "model_args" not in said or len(set(said.values())) > 1:
        told = ", ".join(f"{value} by {where}" for where, value in said.items()) or "none"
        raise UserError(f"{folder / CONFIG} does not say one alpha (model_args.alpha, and the same in its tag): {told}")
    found = Checkpoint(folder, f"{network}.{tag}", float(said["model_args"]), config)
    if found.sha256 is not None and sha256_of(path) != found.sha256:
        raise UserError(f"{path} is damaged: its SHA-256 is not that in {CONFIG}; remove or replace the folder")
    return found


def pickles_instead(names: Iterable[str]) -> str:
    """What to add to "there are no weights" where there are pickles."""
    pickles = sorted(name for name in names if Path(name).suffix in PICKLES)
    return f", only {', '.join(pickles)}, which can run code and is not read" if pickles else ""


def _identity(config: Mapping[str, Any]) -> tuple[str, str, dict[str, float]]:
    """(Network, tag, alpha as each place says it) of a config.json."""
    network, _, named = config["architecture"].partition(".")
    tag = config["pretrained_cfg"].get("tag") or ""
    alpha = (config.get("model_args") or {}).get("alpha")
    says = {"model_args": alpha, "its tag": _fraction(tag.split(".")[0]), "its architecture": _fraction(named)}
    return network, tag, {where: value for where, value in says.items() if value is not None}


def _fraction(digits: str) -> float | None:
    """ "25" -> 0.25."""
    return float(f"0.{digits}") if digits.isdigit() else None


def checked(folder: Path, record: Record) -> Path | None:
    """The model.safetensors of a folder; None if there is none.

    Raises UserError if the folder is not what ``record`` says: another network, alpha or tag in its config.json, a file
    that is not whole, or another SHA-256 than config.json (one that octzoo did not write may have none) or the record
    has.
    """
    if not (folder / MODEL).is_file():
        return None
    found = open_folder(folder)
    if (found.full_name, found.alpha) != (record.full_name, record.alpha):
        raise UserError(f"{folder} holds {found.full_name}, alpha {found.alpha}: its name is not what is in it")
    if record.model_sha256 not in (None, found.sha256):
        raise UserError(f"{folder} holds other weights than the published {record.full_name}: give them another tag")
    return found.weights


def _draft(folder: Path) -> str:
    return f"{folder.name}.tmp"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file of a folder anew, wholly or not at all."""
    draft = path.with_name(f"{path.name}.tmp")
    try:
        _write(draft, content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Make what was written to a file last through a power failure."""
    with path.open("r+b") as file:  # Windows syncs no file that is open for reading
        os.fsync(file.fileno())


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
