"""octzoo.train.environment: what the bits of a run depend on, and what differs."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from octzoo.train.environment import cpu_name, differences, environment, git_commit, package_version, same_bits


def test_it_says_what_ran_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["octzoo", "fit", "--config", "a b.yaml"])
    said = environment()
    assert said["packages"]["torch"] == version("torch")
    assert said["threads"] == torch.get_num_threads()
    assert said["command"] == "octzoo fit --config 'a b.yaml'"
    assert json.loads(json.dumps(said)) == said


def test_the_bits_depend_on_machine_torch_versions_threads_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = same_bits(2)
    assert set(now) == {"machine", "torch", "versions", "gpu", "threads", "processes"}
    assert differences(now, same_bits(2)) == []
    assert differences(now, same_bits(4)) == ["processes was 2, is 4"]
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert differences(now, same_bits(2)) == [f"threads was {now['threads']}, is 7"]
    assert str(cpu_name()) in now["machine"]


def test_they_come_through_a_checkpoint_and_json_as_they_are(tmp_path: Path) -> None:
    now = same_bits(1)
    torch.save(now, tmp_path / "a.pt")
    for then in (torch.load(tmp_path / "a.pt", weights_only=True), json.loads(json.dumps(environment() | now))):
        assert differences(then, same_bits(1)) == []


def test_only_keys_of_both_are_compared() -> None:
    assert differences({}, {"a": 1}) == differences({"b": 1}, {"a": 1}) == []
    assert differences({"a": 1, "b": 2, "c": 3}, {"c": 4, "b": 2, "a": None}) == ["c was 3, is 4", "a was 1, is None"]


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert package_version("torch") == version("torch")
    assert package_version("no-such-package-of-octzoo") is None


def test_the_folders_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    for words in ("init -q", "add .", "-c user.name=x -c user.email=x@x commit -q --allow-empty -m x"):
        (tmp_path / "a.txt").write_text("one")
        subprocess.run(["git", *words.split()], check=True)
    found = git_commit()
    assert found is not None
    assert (len(found["hash"]), found["changed"]) == (40, False)
    (tmp_path / "a.txt").write_text("two")
    assert git_commit() == {"hash": found["hash"], "changed": True}
