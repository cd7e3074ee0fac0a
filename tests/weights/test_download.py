"""A download is whole and right, or there is no file; what broke off is resumed. Against a real server."""

import hashlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octzoo.weights import download
from octzoo.weights.download import DownloadError, fetch
from tests.fileserver import serving

BODY = bytes(range(256)) * 40_000  # 10 MB
SHA = hashlib.sha256(BODY).hexdigest()
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.1)))
    monkeypatch.setattr(download, "TIMEOUT", 1.0)


def left(folder):
    """What is in a folder, without the hash of the URL."""
    return sorted(re.sub(r"\.[0-9a-f]{8}\.", ".", p.name) for p in folder.iterdir())


PARTS = ["w.tar.etag", "w.tar.part"]


def test_a_file_arrives_whole_and_alone(tmp_path):
    with serving({"/w.tar": BODY}) as server:
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA, len(BODY))
    assert (tmp_path / "w.tar").read_bytes() == BODY
    assert left(tmp_path) == ["w.tar"]


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([("drop", 3_000_000)], [None, "bytes=3000000-"]),
        ([("drop", 3_000_000), ("drop", 1_000_000)], [None, "bytes=3000000-", "bytes=4000000-"]),
        ([("drop", 2_000_000)] * 5, [None, *(f"bytes={2_000_000 * i}-" for i in range(1, 5)), "bytes=10000000-"]),
        ([("drop", 3_000_000), "no range"], [None, "bytes=3000000-"]),
        ([("drop", 3_000_000), "other range"], [None, "bytes=3000000-", "bytes=3000000-"]),
        ([503, 503], [None, None, None]),
        ([429, ("drop", 5), 500], [None, None, "bytes=5-", "bytes=5-"]),
    ],
)
def test_broken_connections_and_busy_servers_are_outlived(tmp_path, faults, ranges):
    with serving({"/w.tar": BODY}, faults) as server:
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA)
        assert [r for _, _, r in server.requests] == ranges
    assert (tmp_path / "w.tar").read_bytes() == BODY


def test_the_next_call_resumes_what_a_killed_process_left(tmp_path):
    """A process is killed in the middle of the download; nothing under the target's name is left."""
    code = "import sys; from pathlib import Path; from octzoo.weights.download import fetch; "
    code += "fetch(sys.argv[1], Path(sys.argv[2]))"
    with serving({"/w.tar": BODY}, [("drop", 4_000_000)]) as server:
        url, target = f"{server.url}/w.tar", tmp_path / "w.tar"
        server.faults += [503] * 100  # after the broken connection the server is busy for ever
        process = subprocess.Popen([sys.executable, "-c", code, url, str(target)], cwd=REPOSITORY)
        deadline = time.monotonic() + 60
        while not (left(tmp_path) == PARTS and len(server.requests) > 1):
            assert process.poll() is None or time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert left(tmp_path) == PARTS
        server.faults.clear()
        server.requests.clear()
        fetch(url, target, SHA)
        assert server.requests == [("GET", "/w.tar", "bytes=4000000-")]
    assert target.read_bytes() == BODY


def interrupted(url, target):
    """Leaves the first 3 MB of a download."""
    with pytest.raises(DownloadError, match="503"):
        fetch(url, target)


def test_another_file_or_another_server_is_not_continued(tmp_path):
    other = bytes(reversed(BODY))
    with serving({"/w.tar": other}, [("drop", 3_000_000), *[503] * 9]) as server:
        interrupted(f"{server.url}/w.tar", tmp_path / "w.tar")
        server.files["/w.tar"] = BODY  # meanwhile the server has another file
        server.faults.clear()
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar")
        assert (tmp_path / "w.tar").read_bytes() == BODY
    (tmp_path / "w.tar").unlink()
    with serving({"/w.tar": other}, [("drop", 3_000_000), *[503] * 9]) as server:
        interrupted(f"{server.url}/w.tar", tmp_path / "w.tar")
    with serving({"/w.tar": BODY}) as server:
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar")
    assert (tmp_path / "w.tar").read_bytes() == BODY


def test_a_finished_part_that_was_not_renamed_is_no_trap(tmp_path):
    with serving({"/w.tar": BODY}, [("drop", 3_000_000), *[503] * 9]) as server:
        interrupted(f"{server.url}/w.tar", tmp_path / "w.tar")
        next(tmp_path.glob("*.part")).write_bytes(BODY)
        server.faults.clear()
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA)
    assert (tmp_path / "w.tar").read_bytes() == BODY
    assert left(tmp_path) == ["w.tar"]


def test_a_file_that_is_there_is_taken_if_it_is_the_published_one(tmp_path):
    with serving({"/w.tar": BODY}) as server:
        (tmp_path / "w.tar").write_bytes(BODY)
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA, len(BODY))
        assert server.requests == []
        (tmp_path / "w.tar").write_bytes(BODY[:-1])
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA, len(BODY))
    assert (tmp_path / "w.tar").read_bytes() == BODY


def test_a_wrong_checksum_is_fetched_again_once_and_then_an_error(tmp_path):
    with serving({"/w.tar": BODY}, [("flip", 1_000_000)]) as server:
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA)
        assert len(server.requests) == 2
    assert (tmp_path / "w.tar").read_bytes() == BODY
    (tmp_path / "w.tar").unlink()
    with serving({"/w.tar": BODY}, [("flip", 1_000_000)] * 2) as server:
        with pytest.raises(DownloadError, match=rf"w.tar has the checksum \w+, not {SHA}: it is not the file that was"):
            fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA)
        assert len(server.requests) == 2
    assert left(tmp_path) == []


def test_a_wrong_size_is_an_error(tmp_path):
    with serving({"/w.tar": BODY}) as server, pytest.raises(DownloadError, match="has 10,240,000 bytes, not 17"):
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar", None, 17)
    assert left(tmp_path) == []


def test_a_file_that_is_not_there_is_asked_for_once(tmp_path):
    with serving({}) as server:
        with pytest.raises(DownloadError, match="w.tar: the server answers 404"):
            fetch(f"{server.url}/w.tar", tmp_path / "w.tar")
        assert len(server.requests) == 1


def test_a_busy_a_silent_and_an_absent_server_are_given_up(tmp_path):
    with serving({"/w.tar": BODY}, [503] * 100) as server, pytest.raises(DownloadError, match="503"):
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar")
    with serving({"/w.tar": BODY}, silent=True) as server, pytest.raises(DownloadError, match="timed out"):
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="refused"):
            fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/w.tar", tmp_path / "w.tar")
    assert left(tmp_path) == []


def test_a_full_disk_is_the_systems_own_error_and_the_rest_is_resumed(tmp_path):
    """A limit on the size of files stands in for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with serving({"/w.tar": BODY}) as server:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, limits[1]))
            with pytest.raises(OSError, match="too large"):
                fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert left(tmp_path) == PARTS
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA)
        assert server.requests[-1][2] == f"bytes={6_000_000}-"
    assert (tmp_path / "w.tar").read_bytes() == BODY


def test_no_token_is_sent(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_TOKEN", "hf_secret")
    seen = []
    with serving({"/w.tar": BODY}) as server:
        handler = server.RequestHandlerClass
        monkeypatch.setattr(
            handler,
            "parse_request",
            lambda self, f=handler.parse_request: f(self) and not seen.append(str(self.headers)),
        )
        fetch(f"{server.url}/w.tar", tmp_path / "w.tar", SHA)
    assert seen
    assert "secret" not in "".join(seen)


def test_what_is_for_one_server_follows_a_redirect_within_it_and_to_no_other(tmp_path):
    """A renamed repository of the Hub is redirected to itself, large files to another server."""
    secret = {"Authorization": "Bearer s3cret"}
    with serving({"/elsewhere": BODY}) as other:
        moved = {"/old": "/new", "/large": f"{other.url}/elsewhere"}
        with serving({"/new": BODY}, moved=moved) as server:
            fetch(f"{server.url}/old", tmp_path / "renamed", headers=secret)
            fetch(f"{server.url}/large", tmp_path / "large", headers=secret)
    assert server.tokens == ["Bearer s3cret"] * 3
    assert other.tokens == [None]
    assert (tmp_path / "renamed").read_bytes() == (tmp_path / "large").read_bytes() == BODY
