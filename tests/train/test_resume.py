"""A run that is stopped at any step and resumed ends with the bits of an unbroken one: real processes, real signals.

The run is tests/tiny.yaml: augmentation, mixup, dropout, EMA, a schedule per update, accumulation, six batches (three
updates) an epoch, three epochs.
"""

import csv
import json
import math
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.faults import TINY, differences, fault, finish, pictures, record, run, start
from tests.packed import shards

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
FIT = ("fit", "--config", TINY)
LR = "lr-AdamW/pg1"
FLAGS: dict[str, tuple[str, ...]] = {"one process": (), "two processes": TWO}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures and, in one/ and its record, the unbroken run."""
    place = tmp_path_factory.mktemp("resume")
    pictures(place / "pictures")
    run(*FIT, "--run_dir", "one", *record(place / "one.log"), folder=place)
    return place


@pytest.fixture(scope="module")
def place_two(place: Path) -> Path:
    """The same with two/, the unbroken run of two processes."""
    run(*FIT, "--run_dir", "two", *TWO, folder=place)
    return place


def broken_run(place: Path, name: str, code: int, *flags: str, **at: object) -> None:
    """Begins a run that meets a fault once, and ends with `code`."""
    run(*FIT, "--run_dir", name, *flags, *fault(**at, once=place / f"{name}.once"), folder=place, code=code)


def resume(place: Path, name: str, *flags: str) -> str:
    return run("fit", "--run_dir", name, "--ckpt_path", "last", *flags, folder=place)


def figures(run_dir: Path) -> dict[tuple[str, str], str]:
    """Every figure of a run's epochs: (epoch, name) -> text; speed left out."""
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = ("train/loss", "val/loss", "val/top1")
    return {(row["epoch"], name): row[name] for row in rows for name in kept if row.get(name)}


def test_killed_inside_accumulation_and_resumed_with_reading_processes(place: Path) -> None:
    broken_run(place, "killed", -signal.SIGKILL, hook="before_backward", epoch=1, batch=3)
    said = resume(place, "killed", "--data.num_workers", "2")
    assert "resuming killed from last.ckpt" in said
    assert "not the same bits" not in said
    assert differences(place / "one", place / "killed") == []
    assert figures(place / "killed") == figures(place / "one")


def test_terminated_during_validation_it_is_validated_whole(place: Path) -> None:
    broken_run(place, "validation", 143, hook="validation_batch_end", epoch=1, batch=1, number=signal.SIGTERM)
    resume(place, "validation")
    assert differences(place / "one", place / "validation") == []
    assert figures(place / "validation") == figures(place / "one")


def test_killed_while_a_checkpoint_is_written_the_former_one_is_whole(place: Path) -> None:
    process = start(*FIT, "--run_dir", "writing", "--trainer.callbacks+=tests.faults.KillWriting", folder=place)
    code, said = finish(process)
    assert code == -signal.SIGKILL, said
    assert (place / "writing" / ".writing-last.ckpt").exists()
    config = yaml.safe_load((place / "writing" / "config.yaml").read_text())
    config["trainer"]["callbacks"] = None
    (place / "writing" / "config.yaml").write_text(yaml.safe_dump(config))
    resume(place, "writing")
    assert differences(place / "one", place / "writing") == []


def test_a_damaged_last_checkpoint_gives_way_to_the_newest_that_is_whole(place: Path) -> None:
    shutil.copytree(place / "one", place / "damaged")
    last = place / "damaged" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    said = run("fit", "--run_dir", "damaged", "--ckpt_path", "auto", folder=place)
    assert "warning: damaged/last.ckpt is damaged" in said
    assert "taking the newest that is whole: damaged/epoch=" in said
    assert differences(place / "one", place / "damaged") == []


@pytest.mark.slow
def test_two_processes_of_which_any_is_signalled(place_two: Path) -> None:
    broken_run(place_two, "two_any", 143, *TWO, hook="train_batch_end", epoch=1, batch=0, number=15, rank=1)
    resume(place_two, "two_any")
    assert differences(place_two / "two", place_two / "two_any") == []


def test_a_run_repeats_from_its_config_into_a_new_folder(place: Path) -> None:
    said = run("fit", "--config", "one/config.yaml", "--run_dir", "again", folder=place)
    assert "warning" not in said
    assert differences(place / "one", place / "again") == []
    for name in ("ckpt_path", "run_dir"):
        assert yaml.safe_load((place / "again" / "config.yaml").read_text())[name] is None


def test_elsewhere_it_says_that_the_bits_are_others(place: Path) -> None:
    shutil.copytree(place / "one", place / "elsewhere")
    papers = json.loads((place / "elsewhere" / "environment.json").read_text())
    (place / "elsewhere" / "environment.json").write_text(json.dumps({**papers, "torch": "1.0", "threads": 64}))
    two_steps = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2")
    said = run("fit", "--config", "elsewhere/config.yaml", *two_steps, folder=place)
    assert f"warning: not the same bits as elsewhere: torch was 1.0, is {torch.__version__}" in said
    assert "warning: not the same bits as elsewhere: threads was 64, is 1" in said
    saved = torch.load(place / "elsewhere" / "last.ckpt", weights_only=True)
    saved["octzoo_environment"]["processes"] = 8
    torch.save(saved, place / "elsewhere" / "last.ckpt")
    said = resume(place, "elsewhere", "--trainer.max_epochs", "4")
    assert "warning: the run goes on, but not to the same bits: processes was 8, is 1" in said


def test_the_first_losses_are_the_golden_ones(place: Path) -> None:
    """What a refactor must not change; across processors to 1e-4. Made anew by python -m tests.golden.make_losses."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())["losses"]
    lines = (place / "one.log-0").read_text().splitlines()
    assert [float.fromhex(line.split()[3]) for line in lines[: len(golden)]] == pytest.approx(golden, rel=1e-4)


STREAMED = ("--data.source", "wds-stream", "--data.root", "shards", "--trainer.max_epochs", "2")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stream_goes_on_where_it_was_with_as_many_workers(place: Path, workers: str) -> None:
    if not (place / "shards").exists():
        shards(place / "shards", [13, 14])
        shards(place / "shards", [5], split="validation")
    flags = (*STREAMED, "--data.num_workers", workers)
    run(*FIT, "--run_dir", f"stream{workers}", *flags, folder=place)
    broken_run(place, f"cut{workers}", -9, *flags, hook="before_backward", epoch=1, batch=3)
    resume(place, f"cut{workers}")
    assert differences(place / f"stream{workers}", place / f"cut{workers}") == []
    assert figures(place / f"stream{workers}") == figures(place / f"cut{workers}")


def test_what_is_set_now_wins_over_the_checkpoint(place: Path) -> None:
    """More epochs, another rate: the course of a run with these from the step on that was reached."""
    longer = ("--trainer.max_epochs", "4", "--model.optimizer.lr", "0.02", "--model.optimizer.weight_decay", "0.5")
    shutil.copytree(place / "one", place / "longer")
    resume(place, "longer", *longer)
    with (place / "longer" / "metrics.csv").open() as file:
        rates = {int(row["step"]): float(row[LR]) for row in csv.DictReader(file) if row.get(LR)}
    cosine = [0.01 * (1 + math.cos(math.pi * (step - 3) / 9)) for step in range(9, 12)]
    assert [rate for step, rate in sorted(rates.items()) if step >= 9] == pytest.approx(cosine, rel=1e-6)
    group = torch.load(place / "longer" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"][-1]
    assert group["weight_decay"] == 0.5
    said = run("fit", "--run_dir", "one", "--ckpt_path", "last", "--model.optimizer.opt", "sgd", folder=place, code=2)
    assert "error: the checkpoint has the state of adamw, but model.optimizer.opt is sgd: resume with adamw" in said


POINTS = [
    ("train_batch_start", 0, 0),
    ("train_batch_start", 1, 0),
    ("train_batch_end", 1, 5),
    ("train_epoch_start", 1, 0),
    ("train_epoch_end", 1, 0),
    ("validation_batch_end", 2, 0),
]


@pytest.mark.long
@pytest.mark.parametrize("processes", FLAGS)
@pytest.mark.parametrize(("hook", "epoch", "batch"), POINTS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_at(place_two: Path, number: int, hook: str, epoch: int, batch: int, processes: str) -> None:
    """Every point and signal; where nothing was saved yet, it starts anew by `auto`."""
    batch = batch // 2 if processes == "two processes" else batch  # of which each has half as many batches
    name = f"{hook}-{epoch}-{batch}-{number}-{processes[:3]}"
    code = -9 if number == signal.SIGKILL else 128 + number
    at = {"hook": hook, "epoch": epoch, "batch": batch, "number": int(number)}
    broken_run(place_two, name, code, *FLAGS[processes], **at)
    config = ("--config", f"{name}/config.yaml") if not (place_two / name / "last.ckpt").exists() else ()
    run("fit", *config, "--run_dir", name, "--ckpt_path", "auto", folder=place_two)
    assert differences(place_two / processes[:3].strip(), place_two / name) == []


@pytest.mark.slow
def test_twenty_random_kills_in_a_row(place: Path) -> None:
    rng, log = random.Random(5), place / "random.log-0"
    flags = ("--ckpt_path", "auto", "--trainer.max_epochs", "40", "--data.num_workers", "1")
    run(*FIT, "--run_dir", "long", *flags, folder=place)
    log.touch()
    for _ in range(20):
        seen = log.stat().st_size
        process = start(*FIT, "--run_dir", "random", *flags, *record(place / "random.log"), folder=place)
        while log.stat().st_size == seen:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    run(*FIT, "--run_dir", "random", *flags, folder=place)
    assert differences(place / "long", place / "random") == []


@pytest.mark.slow
def test_compiled_in_place_a_run_resumes_uncompiled_and_back(place: Path) -> None:
    broken_run(place, "compiled", 143, "--model.compile", "true", hook="train_batch_end", epoch=0, batch=1, number=15)
    saved = torch.load(place / "compiled" / "last.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == torch.load(place / "one" / "last.ckpt", weights_only=True)["state_dict"].keys()
    resume(place, "compiled", "--model.compile", "false", "--trainer.max_epochs", "2")
    resume(place, "compiled", "--model.compile", "true", "--trainer.max_epochs", "3")
    assert torch.load(place / "compiled" / "last.ckpt", weights_only=True)["epoch"] == 2
