"""Run folders, the curves of a run, and the lines of its log."""

from pathlib import Path

import pytest
from PIL import Image

from octzoo.data import SettingError
from octzoo.train.curves import draw_curves, read_metrics
from octzoo.train.environment import environment
from octzoo.train.runs import find_checkpoint, new_run_folder, run_name


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


def test_the_environment_says_what_ran_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["octzoo", "fit", "--config", "a b.yaml"])
    said = environment()
    assert said["packages"]["torch"]
    assert said["threads"] >= 1
    assert said["command"] == "octzoo fit --config 'a b.yaml'"
