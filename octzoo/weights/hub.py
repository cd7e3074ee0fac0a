"""Checkpoint folders on the Hugging Face Hub: what is there, and fetching one.

Every file is held to its hash. What asks the Hub is huggingface_hub; files come by ``download.fetch``, since
hf_hub_download notices no wrong byte, tries no failed body again, and can wait for minutes on a silent server.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import NoReturn, TypeVar

from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from octzoo.errors import RunError, UserError
from octzoo.weights.download import fetch, hash_like
from octzoo.weights.folder import (
    CONFIG,
    FILES,
    MODEL,
    Checkpoint,
    check_new,
    open_folder,
    pickles_instead,
    sync,
)

TIMEOUT = 5.0  # seconds, for a question
TRIES = 3
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
T = TypeVar("T")


class HubError(RunError):
    """The Hub could not be asked, or refused; the text says which, and what to do."""


class AbsentError(HubError):
    """There is no such repository, or it is not for everybody's eyes."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository: its bytes, and SHA-256 or (a small text file's) git hash."""

    size: int
    checksum: str


@dataclass(frozen=True)
class Remote:
    """A repository at one commit."""

    repo: str
    commit: str
    files: dict[str, RemoteFile]
    private: bool


def look(repo: str, revision: str | None = None) -> Remote:
    """What a repository holds.

    Args:
        repo: "owner/name".
        revision: a tag, branch or commit; None is main.

    Raises:
        AbsentError: there is no such repository for whoever asks.
        HubError: the Hub cannot be reached, refuses, or has no such revision.
    """
    info = again(repo, lambda: HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT))
    files = {}
    for entry in info.siblings or []:
        checksum = entry.lfs.sha256 if entry.lfs else entry.blob_id
        if entry.size is None or not checksum or not info.sha:
            raise HubError(f"{repo}: the Hub does not say what {entry.rfilename} should be")
        files[entry.rfilename] = RemoteFile(entry.size, checksum)
    return Remote(repo, info.sha or "", files, bool(info.private))


def differing(folder: Path, remote: Remote) -> list[str]:
    """Which files of a checkpoint folder are not as they are in a repository, or missing on one side."""
    here = {name for name in FILES if (folder / name).is_file()}
    there = set(FILES) & remote.files.keys()
    same = {n for n in here & there if hash_like(remote.files[n].checksum, folder / n) == remote.files[n].checksum}
    return sorted((here | there) - same)


def pull(repo: str, folder: Path, revision: str | None = None, sha256: str | None = None) -> Remote:
    """Fetch a checkpoint folder, which appears wholly or not at all; an interrupted call is resumed by the next.

    Args:
        repo: "owner/NAME.TAG"; of an octavized network "owner/" and any name.
        folder: where it will be; must not exist.
        revision: a tag, branch or commit; None is main.
        sha256: of the weights, where it is known beforehand.

    Raises:
        HubError: see ``look``; also a file that is twice not what the Hub says.
        UserError: what is there is no checkpoint folder of that name, or not the weights that were expected.
        OSError: the disk is full.
    """
    check_new(folder)
    remote = look(repo, revision)
    _check_layout(remote)
    if sha256 not in (None, remote.files[MODEL].checksum):
        raise UserError(f"{repo}: {MODEL} there is not the published one (its SHA-256 is another)")
    lock = folder.with_name(f"{folder.name}.pull.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as problem:
        raise UserError(f"{folder.parent} cannot be written: {problem.strerror}") from problem
    with WeakFileLock(lock):
        if folder.exists():  # by another process, meanwhile
            open_folder(folder)
        else:
            _pull(remote, folder)
    with suppress(OSError):  # another process may hold it; it finds the folder
        lock.unlink(missing_ok=True)
    return remote


def _pull(remote: Remote, folder: Path) -> None:
    """The folder, made in a place beside it that an interrupted call leaves to the next."""
    draft = folder.with_name(f"{folder.name}.tmp-pull")
    draft.mkdir(exist_ok=True)
    wanted = [name for name in FILES if name in remote.files]
    for name in wanted:
        fetch_file(remote, name, draft / name)
    for other in set(draft.iterdir()) - {draft / name for name in wanted}:
        other.unlink()  # what an interrupted call left of another commit
    try:
        check_name(open_folder(draft), remote.repo)
    except UserError as problem:
        shutil.rmtree(draft)
        raise UserError(f"{remote.repo}: {str(problem).replace(str(draft), remote.repo)}") from problem
    for name in wanted:
        sync(draft / name)
    draft.rename(folder)


def _check_layout(remote: Remote) -> None:
    """UserError unless a repository has weights that can be read without running code, and says what they are."""
    for name in (MODEL, CONFIG):
        if name not in remote.files:
            text = f"{remote.repo} is no checkpoint folder: it has no {name}{pickles_instead(remote.files)}"
            raise UserError(text)


def check_name(found: Checkpoint, repo: str) -> None:
    """UserError unless a folder holds what the repository's name says."""
    if not found.may_be_called(repo.split("/")[1]):
        raise UserError(f"{found.folder} holds {found.full_name}, which is not what {repo} says")


# ---- asking the Hub ------------------------------------------------------------------------------------------------


def fetch_file(remote: Remote, name: str, target: Path, sha256: str | None = None) -> None:
    """One file at that commit. The token goes to the Hub itself, and to no other server that it redirects to."""
    file = remote.files[name]
    url = hf_hub_url(remote.repo, name, revision=remote.commit)
    headers = build_hf_headers(library_name="octzoo")
    try:
        fetch(url, target, sha256 or file.checksum, file.size, headers)
    except UserError as problem:
        if getattr(problem.__cause__, "code", None) in (401, 403):  # whose list of files is for everybody
            raise _gated(remote.repo) from problem
        raise HubError(_clean(str(problem))) from problem


def again(repo: str, call: Callable[[], T]) -> T:
    """``call``, tried again after what may pass; else HubError."""
    for attempt in range(TRIES):
        try:
            return call()
        except Exception as problem:
            if attempt == TRIES - 1 or not may_pass(problem):
                tell(problem, repo)
            time.sleep(attempt + 1)
    raise AssertionError("unreachable")


def may_pass(problem: Exception, conflict: bool = False) -> bool:
    """Whether to try again: a server's own trouble or a broken connection, not silence; with ``conflict`` that too."""
    problem = reason_of(problem)
    if isinstance(problem, HfHubHTTPError):
        status = problem.response.status_code
        return status >= 500 or status in (408, 429) or (conflict and status == 412)
    return _is_connection(problem) and "timeout" not in type(problem).__name__.lower()


def reason_of(problem: Exception) -> Exception:
    """What is behind the RuntimeError that huggingface_hub makes of a failed upload."""
    cause = problem.__cause__
    return cause if isinstance(problem, RuntimeError) and isinstance(cause, Exception) else problem


def _is_connection(problem: Exception) -> bool:
    """Whether it is the HTTP library's, whichever huggingface_hub uses."""
    return type(problem).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")


def tell(problem: Exception, repo: str) -> NoReturn:
    """Raise what a failed call means, in one line; an error of the disk or of ours stays what it is."""
    told = _meaning(problem, repo)
    if told is None:
        raise problem
    raise told from problem


def _meaning(problem: Exception, repo: str) -> HubError | None:
    problem = reason_of(problem)
    if isinstance(problem, OfflineModeIsEnabled):
        return HubError(f"{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked")
    if isinstance(problem, GatedRepoError):
        return _gated(repo)
    if isinstance(problem, RepositoryNotFoundError):
        return AbsentError(f"{repo} is not on the Hub, or is private: set HF_TOKEN (hf auth login), or mend the name")
    if isinstance(problem, RevisionNotFoundError):
        return HubError(f"{repo} has no such revision")
    if isinstance(problem, HfHubHTTPError):
        status, text = problem.response.status_code, problem.server_message or problem.response.reason_phrase
        advice = ": set an HF_TOKEN that may write there (hf auth login)" if status in (401, 403) else ""
        return HubError(_clean(f"{repo}: the Hub answers {status} {text}{advice}"))
    if _is_connection(problem):
        what = f"{type(problem).__name__} {problem}"
        return HubError(_clean(f"{repo}: the Hub ({constants.ENDPOINT}) cannot be reached: {what}"))
    if isinstance(problem, JSONDecodeError | UnicodeDecodeError | KeyError):
        return HubError(f"{repo}: {constants.ENDPOINT} does not answer as the Hub does")
    if isinstance(problem, ValueError) and not isinstance(problem, UserError):
        return HubError(_clean(f"{repo}: the Hub does not take it: {problem}"))
    return None


def _gated(repo: str) -> AbsentError:
    return AbsentError(f"{repo} is gated: accept its conditions on its page, then set HF_TOKEN (hf auth login)")


def _clean(text: str) -> str:
    """One line, without the token, should a library have put it there."""
    token = get_token()
    return " ".join((text.replace(token, "***") if token else text).split())
