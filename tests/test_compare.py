"""`octzoo compare`: several runs in one table and one picture, finished or not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import octzoo_cli
from octzoo.train.compare import draw_comparison, labels


def make(run: Path, name: str, top1: list[float], epochs: int = 3, state: str = "finished", speed: float = 150) -> Path:
    """A run folder as `octzoo fit` leaves it, as far as it got."""
    attempt = run / "logs" / "0"
    attempt.mkdir(parents=True)
    (run / "config.yaml").write_text(f"model: {{name: {name}}}\ntrainer: {{max_epochs: {epochs}}}\n")
    rows = [f"{i},{10 * i + 9},{speed},{2 - i / 2},{value}" for i, value in enumerate(top1)]
    header = "epoch,step,train/images_per_second,train/loss,val/top1"
    (attempt / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    (attempt / "clock.json").write_text(json.dumps({"seconds": 125.0, "state": state}))
    return run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make(Path("runs/digits/0"), "oct_cifar_resnet20_a0.25", [0.5, 0.875, 0.75])
    make(Path("runs/digits/10"), "oct_cifar_resnet20_a0.0", [0.25], state="stopped", speed=1200)
    Path("runs/digits/2").mkdir()
    Path("runs/digits/2/config.yaml").write_text("model: {name: resnet18}\ntrainer: {max_epochs: 3}\n")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = octzoo_cli.main(["compare", *arguments])
    return code, *capsys.readouterr()


def test_the_table_has_a_row_for_each_run_finished_or_not(runs: Path, capsys) -> None:
    code, out, _ = said(capsys, "runs/digits/0", "runs/digits/10", "runs/digits/2")
    assert code == 0
    table = [" ".join(line.split()) for line in out.splitlines()]
    assert table[1] == "digits/0 oct_cifar_resnet20_a0.25 finished 3/3 87.50 1 75.00 150 2 min 05 s"
    assert table[2] == "digits/10 oct_cifar_resnet20_a0.0 stopped 1/3 25.00 0 25.00 1,200 2 min 05 s"
    assert table[3] == "digits/2 resnet18 0/3"
    assert out.splitlines()[-1] == "picture   compare.png"
    assert Image.open("compare.png").format == "PNG"


def test_json_has_the_numbers_as_they_are(runs: Path, capsys) -> None:
    code, out, _ = said(capsys, "runs/digits/0", "runs/digits/2", "--format", "json", "--out", "both.png")
    first, second = json.loads(out)
    assert (code, Path("both.png").is_file()) == (0, True)
    assert (first["run"], first["best_top1"], first["best_epoch"], first["seconds"]) == ("runs/digits/0", 0.875, 1, 125)
    assert second["best_top1"] is second["state"] is None


def test_nothing_in_the_runs_is_changed(runs: Path, capsys) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in (runs / "runs").rglob("*"))
    said(capsys, "runs/digits/0", "runs/digits/10")
    assert sorted((p, p.stat().st_mtime_ns) for p in (runs / "runs").rglob("*")) == before


MISTAKES = {
    "no folder": (["runs/digits/7"], "error: no such run folder: runs/digits/7"),
    "several": (
        ["runs/digits"],
        "error: runs/digits is not the folder of one run; its runs are runs/digits/0, runs/digits/2, runs/digits/10",
    ),
    "other": (["."], "error: . is not the folder of one run; octzoo fit makes them: runs/<config>/<number>"),
    "no PNG": (
        ["runs/digits/0", "--out", "compare.jpg"],
        "error: --out compare.jpg: the picture is a PNG; give a name that ends in .png",
    ),
    "nowhere": (["runs/digits/0", "--out", "no/c.png"], "error: --out no/c.png: there is no folder no"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake: str, runs: Path, capsys) -> None:
    arguments, text = MISTAKES[mistake]
    assert said(capsys, *arguments) == (2, "", text + "\n")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["runs/digits/0"], ["digits/0"]),
        (["runs/digits/0", "runs/digits/1"], ["digits/0", "digits/1"]),
        (["a/digits/0", "b/digits/0"], ["a/digits/0", "b/digits/0"]),
        (["runs/digits/0", "runs/digits/0"], ["digits/0", "digits/0"]),
    ],
)
def test_runs_are_called_by_the_shortest_ends_that_differ(paths: list[str], expected: list[str]) -> None:
    assert labels([Path(path) for path in paths]) == expected


def test_thirty_runs_are_drawn_each_in_its_own_style(tmp_path: Path) -> None:
    runs = [make(tmp_path / "runs" / str(i), "resnet18", [0.1 * (i % 7), 0.5]) for i in range(30)]
    draw_comparison(runs, tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").size[0] == 1320


def test_it_needs_no_lightning() -> None:
    code = "import octzoo_cli, sys; octzoo_cli.main(['compare', '.', '--out', 'no/c.png']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "octzoo.train.summary" in done.stdout.split()
    assert "lightning" not in done.stdout.split()
