"""octzoo.train.checkpoints: files that are whole or not there, and the newest that loads."""

import errno
import multiprocessing
import os
import random
import resource
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from octzoo.errors import RunError, UserError
from octzoo.train.checkpoints import (
    TEMPORARY,
    AtomicIO,
    is_intact,
    network_weights,
    newest_intact,
    read_whole,
    replacing,
    unwritable,
)
from octzoo.train.runs import find_checkpoint, newest_checkpoint
from tests.faults import same


def content(number: int, size: int = 1000) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    return {"epoch": number, "state_dict": {f"model.{k}": torch.randn(size, generator=generator) for k in "ab"}}


def save(path: Path, number: int, size: int = 1000) -> Path:
    AtomicIO().save_checkpoint(content(number, size), path)
    return path


def in_a_process(action: Callable[[], None]) -> int:
    """Runs `action` in a process of its own (a copy of this one); its exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def holds(path: Path, number: int, size: int = 1000) -> bool:
    return is_intact(path) and not same(torch.load(path, weights_only=True), content(number, size))


class TestWriting:
    def test_what_is_saved_is_what_is_read_and_nothing_else_is_left(self, tmp_path: Path) -> None:
        path = save(tmp_path / "new" / "last.ckpt", 1)
        save(path, 2)
        assert holds(path, 2)
        assert os.listdir(path.parent) == ["last.ckpt"]

    def test_it_is_lightnings_own_content(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.ckpt", 3)
        assert not same(AtomicIO().load_checkpoint(path), content(3))

    def test_it_is_synced_before_it_has_its_name_and_the_folder_after(self, tmp_path: Path, monkeypatch) -> None:
        done: list[str] = []
        fsync, replace = os.fsync, os.replace

        def synced(descriptor: int) -> None:
            done.append("sync " + os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
        save(tmp_path / "last.ckpt", 1)
        assert done == [f"sync {tmp_path}/{TEMPORARY}last.ckpt", "rename", f"sync {tmp_path}"]

    def test_a_full_disk_keeps_the_former_one_and_says_so(self, tmp_path: Path) -> None:
        """A limit on the size of files stands in for it: the write fails in the middle."""
        path = save(tmp_path / "last.ckpt", 1)

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            for target, kept in ((path, "; the former one is kept"), (tmp_path / "other.ckpt", "")):
                with pytest.raises(RunError) as raised:
                    save(target, 2, size=100_000)
                assert str(raised.value) == f"{target} cannot be written: File too large{kept}"
                assert raised.value.exit_code == 1

        assert in_a_process(limited) == 0
        assert holds(path, 1)
        assert os.listdir(tmp_path) == ["last.ckpt"]

    @pytest.mark.parametrize(("where", "survivor"), [("half", 1), ("fsync", 1), ("before", 1), ("after", 2)])
    def test_a_kill_while_it_is_written_leaves_one_that_is_whole(
        self, where: str, survivor: int, tmp_path: Path
    ) -> None:
        """In the middle of the file (by a file size limit that kills), as it is synced, before and after the rename."""
        path = save(tmp_path / "last.ckpt", 1)

        def killed() -> None:
            def die(*_: Any) -> None:
                os.kill(os.getpid(), signal.SIGKILL)

            if where == "half":
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            elif where == "fsync":
                os.fsync = die
            else:
                replace = os.replace
                os.replace = lambda a, b: (replace(a, b) if where == "after" else None, die())  # type: ignore
            save(path, 2, size=100_000)

        assert in_a_process(killed) == -(signal.SIGXFSZ if where == "half" else signal.SIGKILL)
        assert holds(path, survivor, 1000 if survivor == 1 else 100_000)
        left = sorted(p.name for p in tmp_path.iterdir())
        if where == "half":
            assert 0 < (tmp_path / f"{TEMPORARY}last.ckpt").stat().st_size <= 100_000
        said: list[str] = []
        assert newest_checkpoint(tmp_path, said.append) == path
        assert find_checkpoint(tmp_path) == path
        path.unlink()  # what is left of the write, whole or not, is no checkpoint
        if left != ["last.ckpt"]:
            assert newest_checkpoint(tmp_path, said.append) is None
        assert not said
        save(path, 3)
        assert holds(path, 3)
        assert os.listdir(tmp_path) == ["last.ckpt"]

    def test_a_kill_at_any_moment_leaves_one_that_is_whole(self, tmp_path: Path) -> None:
        """A real SIGKILL from outside, 8 times, while a process saves without pause."""
        path = save(tmp_path / "last.ckpt", 0, 300_000)

        def saving() -> None:
            for number in range(1000):
                save(path, number % 3, 300_000)

        chance = random.Random(0)
        for _ in range(8):
            process = multiprocessing.get_context("fork").Process(target=saving)
            process.start()
            process.join(0.05 + 0.1 * chance.random())
            process.kill()
            process.join()
            assert any(holds(path, number, 300_000) for number in range(3))
            assert newest_checkpoint(tmp_path, print) == path

    def test_another_error_comes_through_and_keeps_the_former_one_too(self, tmp_path: Path) -> None:
        path = save(tmp_path / "last.ckpt", 1)
        with pytest.raises(Exception, match=r"(?i)pickle"):
            AtomicIO().save_checkpoint({"x": lambda: 0}, path)
        assert holds(path, 1)
        assert os.listdir(tmp_path) == ["last.ckpt"]

    def test_an_interruption_leaves_nothing_behind(self, tmp_path: Path) -> None:
        def interrupted() -> None:
            with replacing(tmp_path / "a") as temporary:
                temporary.write_text("x")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert not os.listdir(tmp_path)

    def test_a_full_disk_is_told_behind_other_errors(self) -> None:
        problem = RuntimeError("torch's own words")
        problem.__context__ = OSError(errno.ENOSPC, "no")
        assert unwritable(problem) == os.strerror(errno.ENOSPC)
        problem.__context__, problem.__cause__ = None, OSError(errno.ENOSPC, "no")
        assert unwritable(problem) == os.strerror(errno.ENOSPC)
        assert unwritable(OSError(errno.EDQUOT, "")) == os.strerror(errno.EDQUOT)
        assert unwritable(OSError(errno.ENOENT, "")) == unwritable(RuntimeError()) == unwritable(None) == ""


class TestIntact:
    def test_a_file_that_is_cut_short_is_not(self, tmp_path: Path) -> None:
        whole = save(tmp_path / "a.ckpt", 1).read_bytes()
        assert is_intact(tmp_path / "a.ckpt")
        cut = tmp_path / "cut.ckpt"
        for length in [*range(0, len(whole), 97), len(whole) - 1]:
            cut.write_bytes(whole[:length])
            assert not is_intact(cut), length

    def test_a_byte_that_is_flipped_in_a_tensor_is_found(self, tmp_path: Path) -> None:
        whole = save(tmp_path / "a.ckpt", 1).read_bytes()
        tensor = content(1)["state_dict"]["model.a"].numpy().tobytes()
        first = whole.index(tensor)
        for place in range(first, first + len(tensor), 101):
            (tmp_path / "flipped.ckpt").write_bytes(flipped(whole, place))
            assert not is_intact(tmp_path / "flipped.ckpt"), place

    def test_whatever_byte_is_flipped_it_answers_and_what_is_intact_loads_the_same(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.ckpt", 1, size=8)
        whole, undetected = path.read_bytes(), 0
        directory = zipfile.ZipFile(path).start_dir  # fields of its own, which no checksum covers, come last
        for place in range(len(whole)):
            path.write_bytes(flipped(whole, place))
            if is_intact(path):
                undetected += 1
                assert place >= directory or not same(torch.load(path, weights_only=True), content(1, 8)), place
        assert undetected  # padding, dates

    def test_a_folder_has_all_its_parts(self, tmp_path: Path) -> None:
        folder = sharded(tmp_path / "last.ckpt")
        assert is_intact(folder)
        for name in (".metadata", "meta.pt"):
            text = (folder / name).read_bytes()
            (folder / name).unlink()
            assert not is_intact(folder)
            (folder / name).write_bytes(text)
        assert is_intact(folder)

    def test_a_folder_without_one_of_its_shards_is_not(self, tmp_path: Path) -> None:
        folder = sharded(tmp_path / "last.ckpt")
        next(folder.glob("*.distcp")).unlink()
        assert not is_intact(folder)

    def test_what_is_not_there_or_something_else_is_not(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        (tmp_path / "text").write_text("no checkpoint")
        assert not any(is_intact(tmp_path / name) for name in ("nothing", "empty", "text"))


def flipped(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]


def sharded(folder: Path) -> Path:
    """A checkpoint as Lightning's ModelParallelStrategy writes it, of one process."""
    dcp.save({"state_dict": content(5)["state_dict"]}, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 5}, folder / "meta.pt")
    return folder


def written(path: Path, number: int, at: int) -> Path:
    save(path, number)
    os.utime(path, (at, at))
    return path


def damage(path: Path) -> None:
    when = path.stat().st_mtime
    path.write_bytes(path.read_bytes()[:-100])
    os.utime(path, (when, when))


class TestNewest:
    def test_it_is_the_last_written_that_is_whole_and_newer_ones_are_named(self, tmp_path: Path) -> None:
        paths = [written(tmp_path / f"{name}.ckpt", 1, at=1000 + t) for t, name in enumerate("cab")]
        said: list[str] = []
        for left in ("b", "a", "c"):
            assert newest_intact(paths, said.append) == tmp_path / f"{left}.ckpt"
            damage(tmp_path / f"{left}.ckpt")
        assert newest_intact(paths, said.append) is None
        damaged = [f"{tmp_path}/{name}.ckpt is damaged" for name in "bac"]
        assert said == damaged[:1] + damaged[:2] + damaged

    def test_of_none_there_is_none(self) -> None:
        assert newest_intact([], print) is None


class TestReading:
    def test_one_file_and_a_sharded_folder_are_read_alike(self, tmp_path: Path) -> None:
        assert not same(read_whole(save(tmp_path / "a.ckpt", 5)), content(5))
        assert not same(read_whole(sharded(tmp_path / "b.ckpt")), content(5))

    @pytest.mark.parametrize("spoil", ["missing", "empty", "text", "cut", "folder", "list"])
    def test_what_is_no_checkpoint_is_one_clear_error(self, spoil: str, tmp_path: Path) -> None:
        path = tmp_path / "a.ckpt"
        if spoil == "folder":
            path.mkdir()
        elif spoil == "cut":
            path.write_bytes(save(path, 1).read_bytes()[:5000])
        elif spoil == "list":
            torch.save([1, 2], path)
        elif spoil != "missing":
            path.write_text("no checkpoint" if spoil == "text" else "")
        for read in (network_weights,) if spoil == "list" else (read_whole, network_weights):
            with pytest.raises(UserError) as raised:
                read(path)
            assert str(path) in str(raised.value)
            if spoil != "list":
                assert str(raised.value).startswith(f"{path} is no checkpoint, or damaged")

    def test_code_in_a_file_is_not_run(self, tmp_path: Path) -> None:
        torch.save({"state_dict": Evil(tmp_path / "ran")}, tmp_path / "a.ckpt")
        with pytest.raises(UserError, match="is no checkpoint, or damaged"):
            read_whole(tmp_path / "a.ckpt")
        assert not (tmp_path / "ran").exists()

    def test_the_networks_weights_are_those_under_model(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"model.w": torch.ones(2), "model.model.v": torch.ones(1), "other": torch.ones(3)}},
                   tmp_path / "a.ckpt")  # fmt: skip
        assert {k: v.tolist() for k, v in network_weights(tmp_path / "a.ckpt").items()} == {"w": [1, 1], "model.v": [1]}

    @pytest.mark.parametrize("saved", [{}, {"state_dict": {}}, {"state_dict": {"w": torch.ones(1)}}])
    def test_without_any_it_says_so(self, saved: dict[str, Any], tmp_path: Path) -> None:
        torch.save(saved, tmp_path / "a.ckpt")
        with pytest.raises(UserError) as raised:
            network_weights(tmp_path / "a.ckpt")
        assert str(raised.value) == f"{tmp_path}/a.ckpt holds no weights of a network (keys that begin with model.)"


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
