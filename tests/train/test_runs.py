"""Run folders, the curves of a run, and the lines of its log."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from PIL import Image

from octzoo.data import SettingError
from octzoo.train.checkpoints import TEMPORARY
from octzoo.train.curves import draw_curves, read_metrics
from octzoo.train.runs import find_checkpoint, find_resume, new_run_folder, newest_checkpoint, run_name


def test_every_run_gets_a_folder_of_its_own_above_the_highest(tmp_path: Path) -> None:
    assert new_run_folder(tmp_path, "digits") == tmp_path / "digits" / "0"
    assert new_run_folder(tmp_path, "digits") == tmp_path / "digits" / "1"
    (tmp_path / "digits" / "7").mkdir()
    (tmp_path / "digits" / "notes").mkdir()
    assert new_run_folder(tmp_path, "digits") == tmp_path / "digits" / "8"
    assert new_run_folder(tmp_path, "other") == tmp_path / "other" / "0"


@pytest.mark.parametrize(
    ("configs", "name"),
    [
        (["configs/digits.yaml"], "digits"),
        (["configs/r50.yaml", "configs/half.yaml"], "r50"),
        (["runs/digits/3/config.yaml"], "digits"),
        (["somewhere/config.yaml"], "config"),
        ([], "hf-hub_timm_resnet50.a1"),
    ],
)
def test_a_run_is_called_after_its_config_or_the_run_it_repeats_or_its_network(configs: list[str], name: str) -> None:
    assert run_name([Path(c) for c in configs], "hf-hub:timm/resnet50.a1") == name


def test_processes_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_run_folder(tmp_path, "a"), range(40)))
    assert sorted(int(path.name) for path in made) == list(range(40))


def test_a_run_of_an_overlay_is_called_after_it_also_where_it_is_repeated(tmp_path: Path) -> None:
    base, overlay, more = (tmp_path / f"{name}.yaml" for name in ("r50", "se50", "half"))
    overlay.write_text("# se50, as in the paper\n# base  configs/r50.yaml\nmodel: {}\n")
    for path in (base, more):
        path.write_text("model: {}\n")
    assert run_name([base, overlay], "m") == "se50"
    assert run_name([base, overlay, more], "m") == "se50"
    assert run_name([base, more], "m") == "r50"
    repeated = tmp_path / "runs" / "se50" / "12" / "config.yaml"
    assert run_name([repeated], "m") == "se50"
    assert run_name([repeated, more], "m") == "se50"


def test_a_repeated_run_is_found_from_its_own_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits" / "3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "digits")
    assert run_name([Path("3/config.yaml")], "m") == "digits"


def test_a_run_folder_stands_for_its_best_checkpoint_or_to_continue_for_its_last(tmp_path: Path) -> None:
    for name in ("epoch=003-top1=0.900.ckpt", "last.ckpt"):
        (tmp_path / name).touch()
    assert find_checkpoint(tmp_path).name == "epoch=003-top1=0.900.ckpt"
    assert find_checkpoint(tmp_path, prefer_last=True).name == "last.ckpt"
    assert find_checkpoint(tmp_path / "last.ckpt").name == "last.ckpt"


def test_nothing_to_load_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"^ckpt_path: no checkpoint in {tmp_path}$"):
        find_checkpoint(tmp_path)
    with pytest.raises(SettingError, match=f"^ckpt_path: no such file or run folder: {tmp_path}/x$"):
        find_checkpoint(tmp_path / "x")


METRICS = """epoch,lr-SGD,step,train/loss,train/loss_step,val/loss,val/top1
,0.1,9,,,,
0,,9,,2.1,,
0,,21,,,1.5,0.4
0,,21,2.0,,,
1,,43,,,1.0,0.6
1,,43,1.2,,,
"""


def test_metrics_are_read_by_epoch(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics["train/loss"] == [(0, 2.0), (1, 1.2)]
    assert metrics["val/top1"] == [(0, 0.4), (1, 0.6)]


def test_curves_are_drawn_also_where_there_is_nothing_to_draw(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    for metrics in (read_metrics(tmp_path / "metrics.csv"), {}):
        draw_curves(metrics, "a run", tmp_path / "curves.png")
        assert Image.open(tmp_path / "curves.png").size == (1200, 480)


def test_the_best_checkpoint_is_that_of_the_best_figure(tmp_path: Path) -> None:
    for name in ("epoch=002-top1=0.990.ckpt", "epoch=009-top1=0.950.ckpt", "epoch=1001-top1=0.990.ckpt"):
        (tmp_path / name).touch()
    assert find_checkpoint(tmp_path).name == "epoch=1001-top1=0.990.ckpt"


def test_a_second_file_of_the_same_figure_is_no_better(tmp_path: Path) -> None:
    """ModelCheckpoint adds -v1 where the name is taken, as by a resumed run that does an epoch again."""
    for name in ("epoch=002-top1=0.900.ckpt", "epoch=002-top1=0.900-v1.ckpt", "epoch=009-top1=0.950.ckpt"):
        (tmp_path / name).touch()
    assert find_checkpoint(tmp_path).name == "epoch=009-top1=0.950.ckpt"


def checkpoint(path: Path, at: int = 1000, whole: bool = True) -> Path:
    """A checkpoint that was written at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "state_dict": {"model.w": torch.zeros(100)}}, path)
    if not whole:
        path.write_bytes(path.read_bytes()[:-100])
    os.utime(path, (at, at))
    return path


class TestResume:
    """The table of find_resume: run_dir, ckpt_path, what is there -> what is continued from, and what is said."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        """A run with a last checkpoint and an older best one."""
        checkpoint(tmp_path / "run" / "last.ckpt", at=2000)
        checkpoint(tmp_path / "run" / "epoch=003-top1=0.900.ckpt", at=1000)
        return tmp_path / "run"

    def found(self, run_dir: Path | None, ckpt_path: object, first: bool = True) -> tuple[Path | None, list[str]]:
        said: list[str] = []
        given = None if ckpt_path is None else str(ckpt_path)
        return find_resume(None if run_dir is None else str(run_dir), given, said.append, first), said

    def error(self, run_dir: Path | None, ckpt_path: object) -> str:
        with pytest.raises(SettingError) as raised:
            self.found(run_dir, ckpt_path)
        return str(raised.value)

    @pytest.mark.parametrize("place", [None, "new", "empty"])
    def test_without_a_checkpoint_a_run_starts_new(self, place: str | None, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert self.found(tmp_path / place if place else None, None) == (None, [])
        assert os.listdir(tmp_path) == ["empty"]  # nothing is written

    @pytest.mark.parametrize("continued", [False, True])
    def test_but_never_where_something_is(self, continued: bool, run: Path, tmp_path: Path) -> None:
        other = checkpoint(tmp_path / "x.ckpt") if continued else None
        assert self.error(run, other) == (
            f"run_dir: {run} is not empty; resume the run in it with --ckpt_path last, or take another"
        )
        assert self.found(run, other, first=False) == (other, [])  # the first process has made it by then

    @pytest.mark.parametrize("how", ["last", "auto"])
    def test_to_resume_needs_a_folder(self, how: str) -> None:
        assert self.error(None, how) == f"ckpt_path: {how} needs --run_dir, the folder of the run to resume"

    @pytest.mark.parametrize("how", ["last", "auto"])
    def test_a_run_is_resumed_from_its_last(self, how: str, run: Path) -> None:
        assert self.found(run, how) == (run / "last.ckpt", [f"resuming {run} from last.ckpt"])

    @pytest.mark.parametrize("there", ["nothing", "empty", "papers", "damaged", "unfinished"])
    def test_where_there_is_nothing_last_is_an_error_and_auto_starts_new(self, there: str, tmp_path: Path) -> None:
        place = tmp_path / "run"
        if there != "nothing":
            place.mkdir()
        if there == "papers":
            (place / "config.yaml").touch()
        if there == "damaged":
            checkpoint(place / "last.ckpt", whole=False)
        if there == "unfinished":
            checkpoint(place / f"{TEMPORARY}last.ckpt")
        warned = [f"warning: {place}/last.ckpt is damaged"] if there == "damaged" else []
        assert self.error(place, "last") == f"ckpt_path: nothing to resume in {place}: no checkpoint that loads"
        assert self.found(place, "auto") == (None, [*warned, f"nothing to resume in {place}: starting new"])
        assert self.found(place, "auto", first=False)[0] is None

    @pytest.mark.parametrize("how", ["last", "auto"])
    def test_a_damaged_last_gives_way_to_the_newest_that_is_whole(self, how: str, run: Path) -> None:
        checkpoint(run / "last.ckpt", at=2000, whole=False)
        best = run / "epoch=003-top1=0.900.ckpt"
        assert self.found(run, how) == (
            best,
            [
                f"warning: {run}/last.ckpt is damaged",
                f"taking the newest that is whole: {best}",
                f"resuming {run} from {best.name}",
            ],
        )

    def test_a_file_or_another_run_is_continued_from(self, run: Path, tmp_path: Path) -> None:
        best = run / "epoch=003-top1=0.900.ckpt"
        for place in (None, tmp_path / "new"):
            assert self.found(place, best) == (best, [])
            assert self.found(place, run) == (run / "last.ckpt", [])
        (run / "last.ckpt").unlink()
        assert self.found(None, run) == (best, [])

    def test_what_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        assert self.error(None, tmp_path / "x") == f"ckpt_path: no such file or run folder: {tmp_path}/x"
        (tmp_path / "y").mkdir()
        assert self.error(None, tmp_path / "y") == f"ckpt_path: no checkpoint in {tmp_path}/y"

    def test_a_file_of_the_name_last_in_the_current_folder_is_no_checkpoint_path(
        self, tmp_path: Path, monkeypatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        checkpoint(tmp_path / "last")
        assert self.error(None, "last").startswith("ckpt_path: last needs --run_dir")


class TestNewestCheckpoint:
    def newest(self, run_dir: Path) -> tuple[str | None, list[str]]:
        said: list[str] = []
        found = newest_checkpoint(run_dir, said.append)
        return found and found.name, said

    def test_last_counts_whatever_is_newer(self, tmp_path: Path) -> None:
        """The best checkpoint of an epoch may be written after last.ckpt, of the same moment or an earlier one."""
        checkpoint(tmp_path / "last.ckpt", at=1000)
        checkpoint(tmp_path / "epoch=003-top1=0.900.ckpt", at=2000)
        assert self.newest(tmp_path) == ("last.ckpt", [])

    def test_but_for_what_slurm_saved(self, tmp_path: Path) -> None:
        checkpoint(tmp_path / "last.ckpt", at=1000)
        checkpoint(tmp_path / "hpc_ckpt_1.ckpt", at=2000)
        assert self.newest(tmp_path)[0] == "hpc_ckpt_1.ckpt"
        checkpoint(tmp_path / "last.ckpt", at=3000)
        assert self.newest(tmp_path) == ("last.ckpt", [])

    def test_what_is_unfinished_does_not_count(self, tmp_path: Path) -> None:
        checkpoint(tmp_path / f"{TEMPORARY}last.ckpt", at=2000)
        assert self.newest(tmp_path) == (None, [])
        checkpoint(tmp_path / "epoch=003-top1=0.900.ckpt", at=1000)
        assert self.newest(tmp_path)[0] == "epoch=003-top1=0.900.ckpt"

    def test_what_was_put_aside_for_a_new_one_that_never_came_does(self, tmp_path: Path) -> None:
        """As a folder is replaced, there is a moment in which only the old one is, under a name of its own."""
        folder = tmp_path / f"{TEMPORARY}old-last.ckpt"
        dcp.save({"state_dict": {"model.a": torch.ones(3)}}, checkpoint_id=folder)
        torch.save({}, folder / "meta.pt")
        assert self.newest(tmp_path)[0] == folder.name

    def test_of_several_damaged_ones_each_is_named(self, tmp_path: Path) -> None:
        checkpoint(tmp_path / "last.ckpt", at=3000, whole=False)
        checkpoint(tmp_path / "epoch=003-top1=0.900.ckpt", at=2000, whole=False)
        assert self.newest(tmp_path) == (
            None,
            [f"warning: {tmp_path}/{name} is damaged" for name in ("last.ckpt", "epoch=003-top1=0.900.ckpt")],
        )
