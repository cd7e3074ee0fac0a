"""`octzoo plan-run`: the formula against cases that were computed by hand, and what the command and its page say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import octzoo_cli
from octzoo.cli.plan_run import Plan

ROOT = Path(octzoo_cli.__file__).parent


def test_one_device_takes_pictures_by_speed() -> None:
    """90 epochs of 1,000 steps of 100 pictures at 500 a second: 90,000 x 0.2 s = 18,000 s = 5 h; at 3 an hour, 15."""
    plan = Plan(images_per_second=500, epochs=90, images=100_000, batch_size=100, price=3)
    assert plan.steps == 90_000
    assert plan.compute == 0.2
    assert plan.exchange == 0
    assert plan.best == plan.worst == pytest.approx(5)
    assert plan.cost(plan.best) == pytest.approx(15)


def test_eight_devices_with_a_fast_link() -> None:
    """25 M parameters of 4 bytes = 100 MB; the ring moves 2 * 7/8 of it = 175 MB at 10 GB/s = 17.5 ms.

    A step computes 128 / 1,280 = 100 ms. 102,400 pictures are 100 steps of 1,024; 360 epochs are 36,000 steps:
    1 h overlapped, 1.175 h not; 8 devices at 2.5 an hour: 20 and 23.5.
    """
    plan = Plan(1280, 8, epochs=360, images=102_400, batch_size=128, parameters=25_000_000, bandwidth=10e9, price=2.5)
    assert plan.steps == 36_000
    assert plan.exchange == pytest.approx(0.0175)
    assert (plan.best, plan.worst) == (pytest.approx(1), pytest.approx(1.175))
    assert (plan.cost(plan.best), plan.cost(plan.worst)) == (pytest.approx(20), pytest.approx(23.5))


def test_a_slow_link_is_what_one_waits_for() -> None:
    """Two devices: 2 * 1/2 of 2 bytes x 50 M = 100 MB at 0.1 GB/s = 1 s; computing 0.5 s. 3,600 steps: 1 and 1.5 h."""
    plan = Plan(64, 2, epochs=1, images=230_400, batch_size=32, parameters=50_000_000, bandwidth=1e8, gradient_bytes=2)
    assert (plan.compute, plan.exchange) == (0.5, pytest.approx(1))
    assert (plan.best, plan.worst) == (pytest.approx(1), pytest.approx(1.5))


def test_an_incomplete_batch_is_dropped_as_in_training() -> None:
    assert Plan(1, epochs=2, images=19, batch_size=5).steps == 6
    assert Plan(1, devices=2, epochs=2, images=19, batch_size=5).steps == 2


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = octzoo_cli.main(["plan-run", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_the_pages_worked_examples_are_what_the_command_prints(capsys) -> None:
    page = (ROOT / "docs" / "plan-run.md").read_text()
    examples = re.findall(r"\$ octzoo plan-run (.*)\n((?:[^`\n]+\n)+)", page)
    assert len(examples) >= 2
    for arguments, printed in examples:
        assert said(capsys, *arguments.split()) == (0, printed, "")


MISTAKES = {
    "no speed": ([], "error: the following arguments are required: --images-per-second"),
    "zero": (["--images-per-second", "0"], "error: --images-per-second 0: it must be above zero"),
    "not a number": (["--images-per-second", "nan"], "error: --images-per-second nan: it must be above zero"),
    "no link": (
        ["--images-per-second", "9", "--devices", "2", "--parameters", "1e6"],
        "error: --devices 2: gradients travel between them; give --bandwidth GB/s",
    ),
    "no size": (
        ["--images-per-second", "9", "--devices", "2", "--bandwidth", "1"],
        "error: --devices 2: gradients travel between them; give --parameters P or --name NETWORK",
    ),
    "two sizes": (
        ["--images-per-second", "9", "--parameters", "1e6", "--name", "resnet18"],
        "error: --parameters or --name, not both",
    ),
    "unknown network": (
        ["--images-per-second", "9", "--name", "resnet18000"],
        "error: --name: timm knows no network 'resnet18000'; `octzoo list` has ours",
    ),
    "batch above data": (
        ["--images-per-second", "9", "--images", "100"],
        "error: --batch-size 128 on 1 devices is more than --images 100",
    ),
    "price": (["--images-per-second", "9", "--price", "-1"], "error: --price -1: it cannot be below zero"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake: str, capsys) -> None:
    arguments, text = MISTAKES[mistake]
    code, out, err = said(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(text)


def test_it_needs_no_lightning() -> None:
    code = (
        "import octzoo_cli, sys; "
        "octzoo_cli.main(['plan-run', '--images-per-second', '9', '--name', 'oct_resnet50_a0.25']); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "timm" in done.stdout.split()
    assert "lightning" not in done.stdout.split()
