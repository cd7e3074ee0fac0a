"""One file over HTTP: resumed where it broke off, checked, and there only when it is whole."""

from __future__ import annotations

import hashlib
import http.client
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.utils import tqdm
from huggingface_hub.utils.sha import git_hash

from octzoo.errors import UserError

_logger = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds that a server may stay silent
TRIES = 3  # at the same place; a download that gets on starts counting anew
LONGEST = 10.0  # seconds without a byte after which it is not tried again; a name can have many dead addresses
CHUNK = 1 << 20
# What a connection may die of; any other OSError is the disk's.
_BROKEN = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


class DownloadError(UserError):
    """A file that could not be fetched, or is not the one that was published."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_like(checksum: str, content: Path | bytes) -> str:
    """The SHA-256 or, where ``checksum`` has 40 digits, git's hash: the Hub has one or the other for each file."""
    if len(checksum) == 40:
        return git_hash(content.read_bytes() if isinstance(content, Path) else content)
    return sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def fetch(
    url: str,
    target: Path,
    checksum: str | None = None,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Download ``url`` to ``target``, which appears only when it is whole and, where they are known, as expected.

    What came before a broken connection, a kill or a full disk stays in a file beside it, and is resumed by the next
    call too, if the same URL still has the same file. A file with a wrong checksum is fetched anew once. A ``target``
    that is there already, and as expected, is left.

    Args:
        url: http or https.
        target: its folder exists.
        checksum: of the whole file, its SHA-256 or git's SHA-1.
        size: of the whole file, in bytes.
        headers: for this server alone, such as a token; another that it redirects to does not get them.

    Raises:
        DownloadError: the server cannot be reached, does not have the file, or has another one.
        OSError: the disk is full, or cannot be written.
    """
    if target.is_file() and not _unexpected(target, checksum, size):
        return
    part = target.with_name(f"{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
    for again in (True, False):
        _download(url, part, headers or {})
        problem = _unexpected(part, checksum, size)
        if not problem:
            part.replace(target)
            _validator(part).unlink(missing_ok=True)
            return
        _discard(part)
        if not again:
            raise DownloadError(f"{url} {problem}: it is not the file that was published")
        _logger.warning("%s %s: fetching it again", url, problem)


def _unexpected(path: Path, checksum: str | None, size: int | None) -> str | None:
    """What is wrong with a downloaded file, if anything."""
    if size is not None and path.stat().st_size != size:
        return f"has {path.stat().st_size:,} bytes, not {size:,}"
    if checksum is not None and (found := hash_like(checksum, path)) != checksum:
        return f"has the checksum {found}, not {checksum}"
    return None


def _download(url: str, part: Path, headers: Mapping[str, str]) -> None:
    """Append to ``part`` until it is whole."""
    failures, since = 0, time.monotonic()
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _append(url, part, before, headers)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing behind what is there already: start anew
                _discard(part)
            elif error.code < 500 and error.code not in (408, 429):
                raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
            problem: Exception = error
        except _BROKEN as error:
            problem = error
        gained = (part.stat().st_size if part.exists() else 0) > before
        failures, since = (1, time.monotonic()) if gained else (failures + 1, since)
        if failures >= TRIES or time.monotonic() - since > LONGEST:
            raise DownloadError(f"{url}: {problem}") from problem
        time.sleep(failures)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows; what is for one server alone is sent again to that server alone (a renamed repository)."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            request.unredirected_hdrs.update(req.unredirected_hdrs)
        return request


_opener = urllib.request.build_opener(_Redirects)


def _append(url: str, part: Path, start: int, headers: Mapping[str, str]) -> None:
    """One request: from ``start`` if the server can and still has the same file, else from the beginning."""
    request = urllib.request.Request(url)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if _validator(part).exists():
            request.add_header("If-Range", _validator(part).read_text())
    with _opener.open(request, timeout=TIMEOUT) as response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError(f"the server was asked for byte {start} on and sends another part")
        if not resumed:
            _discard(part)
            if validator := response.headers.get("ETag") or response.headers.get("Last-Modified"):
                _validator(part).write_text(validator)
        length = response.headers.get("Content-Length", "")
        rest = int(length) if length.isdigit() else None
        total = None if rest is None else rest + start * resumed
        bar = tqdm(total=total, initial=start * resumed, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1])
        with part.open("ab") as file, bar:
            received = 0
            while chunk := response.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if rest is not None and received < rest:
        raise ConnectionError(f"the connection broke off after {received:,} of {rest:,} bytes")


def _validator(part: Path) -> Path:
    """What the server says by which to know the file again (ETag or date) is kept here while ``part`` is."""
    return part.with_suffix(".etag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)
