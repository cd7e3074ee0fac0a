"""Whether the weights on this machine are what they were: by checksums, and by what the network says of a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import timm
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from octzoo.errors import UserError
from octzoo.weights.folder import MODEL, open_folder
from octzoo.weights.golden import GOLDEN, differs
from octzoo.weights.names import parse
from octzoo.weights.records import CONFIG, published
from octzoo.weights.resolve import cache_folder, local_folders, named_by_content


class Found(NamedTuple):
    """A checkpoint folder of this machine: where it stands, what to call it, its path, and the name it should hold."""

    place: str
    label: str
    folder: Path
    full_name: str


def folders(name: str | None = None) -> Iterator[Found]:
    """Every checkpoint folder: local ones, our cache's, the Hub's cache's.

    Args:
        name: only those of that full name, or in that repository; or a folder, which is then the only one.
    """
    if name is not None and (path := Path(name)).is_dir():
        yield Found("given", name, path, path.resolve().name)
        return
    here = [("local", root) for root in dict.fromkeys((*local_folders(), Path("checkpoints").resolve()))]
    for place, root in (*here, ("cache", cache_folder())):
        for folder in sorted(root.glob("oct_*_a0.*.*")):
            if folder.is_dir() and _is_name(folder.name) and name in (None, folder.name):
                yield Found(place, folder.name, folder, folder.name)
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(cached, key=lambda repo: repo.repo_id):
        full_name = repo.repo_id.split("/")[-1]
        if repo.repo_type != "model" or not _is_name(full_name) or name not in (None, full_name, repo.repo_id):
            continue
        for revision in sorted(repo.revisions, key=lambda revision: revision.commit_hash):
            if any(file.file_name == MODEL for file in revision.files):  # else somebody looked at config.json alone
                label = f"{repo.repo_id}@{revision.commit_hash[:7]}"
                yield Found("Hub's cache", label, revision.snapshot_path, full_name)


def problem_of(found: Found) -> str | None:
    """What is wrong with a folder; None if nothing is. Builds the network by timm, so ours must be registered."""
    folder = found.folder
    try:
        for path in sorted(folder.iterdir()):
            if path.is_symlink() and not named_by_content(path):
                return f"{path.name} is damaged: it has not the hash that the Hub said"
        checkpoint = open_folder(folder)
    except (UserError, OSError) as problem:
        return str(problem)
    if not checkpoint.may_be_called(found.full_name):
        return f"it holds {checkpoint.full_name}"
    record = published(checkpoint.full_name)
    if record and record.model_sha256 not in (None, checkpoint.sha256):
        return f"{MODEL} is whole, and not the published one"
    try:
        return differs(checkpoint.config, timm.create_model(f"local-dir:{folder}", pretrained=True))
    except (RuntimeError, ValueError, TypeError, KeyError) as problem:
        return f"does not load: {' '.join(str(problem).split())}"


def has_golden(found: Found) -> bool:
    """Whether a folder says what its network answers to the golden picture."""
    return json.loads((found.folder / CONFIG).read_text(encoding="utf-8")).get(GOLDEN) is not None


def _is_name(text: str) -> bool:
    try:
        parse(text)
    except UserError:
        return False
    return True
