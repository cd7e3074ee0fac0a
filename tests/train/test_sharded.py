"""octzoo.train.sharded, in one process: how a checkpoint's folder takes an older one's place."""

from pathlib import Path

import pytest

from octzoo.train.sharded import replace_folder


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "part").write_text(content)
    return path


@pytest.mark.parametrize("left", ["nothing", "a folder", "a file"])
@pytest.mark.parametrize("former", ["nothing", "a folder", "a file"])
def test_it_takes_the_place_whatever_was_there_and_whatever_a_kill_left(tmp_path: Path, former: str, left: str) -> None:
    last, old = tmp_path / "last.ckpt", tmp_path / ".writing-old-last.ckpt"
    for path, kind in ((last, former), (old, left)):
        if kind == "a folder":
            folder(path, kind)
        elif kind == "a file":
            path.write_text(kind)
    replace_folder(folder(tmp_path / ".writing-last.ckpt", "new"), last)
    assert (last / "part").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
