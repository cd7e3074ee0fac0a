"""A checkpoint folder goes to the Hugging Face Hub, and is read back. Each step looks first what is there."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.utils import get_session

from octzoo.errors import UserError
from octzoo.weights.card import with_repo
from octzoo.weights.download import hash_like
from octzoo.weights.folder import CARD, FILES, MODEL, PICKLES, open_folder, replace_file
from octzoo.weights.hub import (
    TRIES,
    AbsentError,
    HubError,
    Remote,
    again,
    check_name,
    fetch_file,
    look,
    may_pass,
    reason_of,
    tell,
)
from octzoo.weights.names import check_owner, check_revision

PATIENCE = 20.0  # seconds, for what the Hub may have to think about: a new repository, a commit
Content = Path | bytes  # of a file to upload
SHA256 = 64 * "0"  # a hash of this kind


def publish(
    folder: Path,
    owner: str,
    private: bool = False,
    tag: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> str:
    """Put a checkpoint folder on the Hub: create, upload what differs in one commit, tag, read all of it back.

    Each step looks what is there first, so that a second call uploads nothing and finishes an interrupted one. In the
    folder's own card, and only there, the snippet gets the repository's name.

    Args:
        folder: named NAME.TAG; one of an octavized network has any name.
        owner: the user or organisation.
        private: of a new repository; one that exists stays as it is.
        tag: for this state.
        dry_run: look and tell, write nothing.
        say: takes one line for the user.

    Returns:
        The commit that holds the folder; of a dry run the present one, or "".

    Raises:
        HubError: the Hub cannot be reached, or refuses.
        UserError: the folder is damaged or holds pickles; the tag exists at another state.
    """
    repo, contents = check_folder(folder, owner)
    for name in others_of(folder):
        say(f"{folder.name}: not part of a checkpoint folder, and not uploaded: {name}")
    with _patience():
        return _publish(folder, repo, contents, private, tag, dry_run, say)


def check_folder(folder: Path, owner: str) -> tuple[str, dict[str, Content]]:
    """(The repository's name, what is uploaded) of a folder that can be published, else UserError. Asks no server."""
    found = open_folder(folder)
    repo = f"{check_owner(owner)}/{folder.resolve().name}"
    check_name(found, repo)
    return repo, _contents(folder, repo)


def others_of(folder: Path) -> list[str]:
    """What lies in a folder and is no part of it."""
    return sorted(path.name for path in folder.iterdir() if path.name not in FILES)


def _publish(
    folder: Path,
    repo: str,
    contents: dict[str, Content],
    private: bool,
    tag: str | None,
    dry_run: bool,
    say: Callable[[str], None],
) -> str:
    remote = _look_if_there(repo)
    if private and remote and not remote.private:
        raise UserError(f"{repo} is there already and public: leave --private out, or make it private on its page")
    changed = _changed(contents, remote)
    tagged = _tagged(remote, tag) if tag else None
    if tagged and (changed or not remote or tagged != remote.commit):
        raise UserError(f"{repo} has a tag {tag} already, of another state: choose another")
    card = contents[CARD]
    assert isinstance(card, bytes)
    if CARD in changed:  # before a repository is made for nothing
        again(repo, lambda: ModelCard(card.decode(), ignore_metadata_errors=False).validate())
    if dry_run:
        deeds = ["create it"] * (remote is None) + [_deed("upload", changed, contents)]
        deeds += [f"tag it {tag}"] * bool(tag and not tagged)
        say(f"{repo}: would {', '.join(deeds)}")
        return remote.commit if remote else ""
    if card != (folder / CARD).read_bytes():
        replace_file(folder / CARD, card)
    if remote is None:
        again(repo, lambda: HfApi().create_repo(repo, private=private, exist_ok=True))
    remote = _upload(repo, contents)
    if tag and not tagged:
        at = remote.commit
        again(repo, lambda: HfApi().create_tag(repo, tag=tag, revision=at, exist_ok=True))
    with tempfile.TemporaryDirectory() as place:
        for name, content in contents.items():
            fetch_file(remote, name, Path(place) / name, hash_like(SHA256, content))
    say(f"{repo}: {_deed('uploaded', changed, contents)}; all {len(contents)} files read back and as they are here")
    return remote.commit


# ---- a folder's contents -------------------------------------------------------------------------------------------


def _contents(folder: Path, repo: str) -> dict[str, Content]:
    """What is uploaded of a folder, the card with the repository's name in it."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{folder} holds {', '.join(pickles)}, which can run code: only {MODEL} is published, remove it"
        )
    contents: dict[str, Content] = {name: folder / name for name in FILES if (folder / name).is_file()}
    if CARD not in contents:
        raise UserError(f"{folder} has no {CARD}, the model card")
    return {**contents, CARD: with_repo((folder / CARD).read_text(encoding="utf-8"), repo).encode()}


def _changed(contents: dict[str, Content], remote: Remote | None) -> list[str]:
    """Which files the repository does not have as they are here."""
    there = remote.files if remote else {}
    return [n for n, c in contents.items() if n not in there or hash_like(there[n].checksum, c) != there[n].checksum]


def _deed(verb: str, changed: list[str], contents: dict[str, Content]) -> str:
    sizes = {n: c.stat().st_size if isinstance(c, Path) else len(c) for n, c in contents.items()}
    files = ", ".join(f"{name} ({sizes[name]:,} bytes)" for name in changed)
    return f"{verb} {files}" if changed else "nothing to upload"


# ---- its steps -----------------------------------------------------------------------------------------------------


def _look_if_there(repo: str) -> Remote | None:
    try:
        return look(repo)
    except AbsentError:
        return None


def _tagged(remote: Remote | None, tag: str) -> str | None:
    """The commit that a tag is at."""
    check_revision(tag)
    if remote is None:
        return None
    refs = again(remote.repo, lambda: HfApi().list_repo_refs(remote.repo))
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)


def _upload(repo: str, contents: dict[str, Content]) -> Remote:
    """Commit what differs until nothing does: the answer to a commit that was made can be lost."""
    for attempt in range(TRIES):
        remote = look(repo)
        changed = _changed(contents, remote)
        if not changed:
            return remote
        operations = [CommitOperationAdd(name, contents[name]) for name in changed]
        message = f"octzoo publish: {', '.join(changed)}"
        try:
            HfApi().create_commit(repo, operations, commit_message=message, parent_commit=remote.commit)
        except Exception as problem:
            if problem is not reason_of(problem):
                print(file=sys.stderr)  # behind the bar of the upload that broke off
            if attempt == TRIES - 1 or not may_pass(problem, conflict=True):
                tell(problem, repo)
            time.sleep(attempt + 1)
    remote = look(repo)
    if changed := _changed(contents, remote):
        raise HubError(f"{repo}: {', '.join(changed)} is not there as uploaded; run the same command again")
    return remote


@contextmanager
def _patience() -> Iterator[None]:
    """Gives up on a silent Hub: huggingface_hub's own client waits for ever."""
    session = get_session()
    before, session.timeout = session.timeout, PATIENCE
    try:
        yield
    finally:
        session.timeout = before
