"""Whether the weights on this machine are what they were: by checksums, and by what the network says of a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import timm
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from octzoo.errors import UserError
from octzoo.weights.download import hash_like
from octzoo.weights.folder import MODEL, open_folder
from octzoo.weights.golden import GOLDEN, differs
from octzoo.weights.records import published
from octzoo.weights.resolve import cache_folder, local_folder, named_by_content


class Found(NamedTuple):
    """A checkpoint folder of this machine: where it stands, what it is called, and its path."""

    place: str
    full_name: str
    folder: Path


def folders(name: str | None = None) -> Iterator[Found]:
    """Every checkpoint folder: local ones, our cache's, the Hub's cache's; with ``name`` only those of that name."""
    for place, root in (("local", local_folder()), ("cache", cache_folder())):
        for folder in sorted(root.glob("oct_*_a0.*.*")):
            if folder.is_dir() and ".tmp" not in folder.name and name in (None, folder.name):
                yield Found(place, folder.name, folder)
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(cached, key=lambda repo: repo.repo_id):
        full_name = repo.repo_id.split("/")[-1]
        if not full_name.startswith("oct_") or name not in (None, full_name, repo.repo_id):
            continue
        for revision in sorted(repo.revisions, key=lambda revision: revision.commit_hash):
            yield Found("Hub's cache", f"{repo.repo_id}@{revision.commit_hash[:7]}", revision.snapshot_path)


def problem_of(found: Found) -> str | None:
    """What is wrong with a folder; None if nothing is. Builds the network by timm, so ours must be registered."""
    folder = found.folder
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not named_by_content(path):
            return f"{path.name} is damaged: it has not the hash that the Hub said"
    try:
        checkpoint = open_folder(folder)
    except UserError as problem:
        return str(problem)
    if checkpoint.full_name != found.full_name.split("/")[-1].split("@")[0]:
        return f"it holds {checkpoint.full_name}"
    record = published(checkpoint.full_name)
    if record and record.model_sha256 and hash_like(record.model_sha256, folder / MODEL) != record.model_sha256:
        return f"{MODEL} is whole, and not the published one"
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, ValueError, TypeError) as problem:
        return f"does not load: {' '.join(str(problem).split())}"
    return differs(checkpoint.config, model)


def has_golden(found: Found) -> bool:
    """Whether the folder says what its network answers to the golden picture."""
    return GOLDEN in open_folder(found.folder).config
