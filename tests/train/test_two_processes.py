"""Two real processes through the command line compute what one does on the same pictures."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults import TINY, fault, pictures, record, run

SAME = (
    *("--ema.decay", "0", "--model.mix", '{"mixup_alpha": 0, "cutmix_alpha": 0}', "--model.model_args", "{}"),
    *("--trainer.accumulate_grad_batches", "1", "--trainer.max_epochs", "1"),
)
DOUBLE = ("--trainer.precision", "64-true")
SGD = ("--model.optimizer.opt", "sgd", "--model.optimizer.lr", "0.01")
ONE = ("--data.batch_size", "8")
TWO = ("--data.batch_size", "4", "--trainer.devices", "2")
SMALL = '{"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 64]}'
CONVNEXT = (
    "--model.name",
    "oct_convnext_tiny_a0.25",
    "--model.model_args",
    SMALL,
    "--data.preprocess.image_size",
    "32",
)
SYNCED = ("--trainer.sync_batchnorm", "true")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 training pictures, which two processes with batches of 4 do not use up, and 11 to validate on."""
    place = tmp_path_factory.mktemp("two")
    pictures(place / "pictures")
    (place / "pictures" / "val" / "class0" / "0.png").unlink()
    return place


def fit(place: Path, name: str, *flags: str) -> None:
    gradients = ("--trainer.callbacks+=tests.faults.Gradients", f"--trainer.callbacks.file={place / name}.pt")
    log = record(place / f"{name}.log")
    run("fit", "--config", TINY, "--run_dir", name, *SAME, *flags, *log, *gradients, folder=place)


def furthest(a: Path, b: Path) -> float:
    """The largest relative L2 distance of a parameter's gradient, over the first three steps."""
    steps = zip(torch.load(a), torch.load(b), strict=True)
    return max(float((x[k] - y[k]).norm() / y[k].norm().clamp(min=1e-300)) for x, y in steps for k in y if y[k].any())


def figure(run_dir: Path, name: str) -> float:
    with (run_dir / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)][-1]


def batches(place: Path, name: str, ranks: Sequence[int]) -> list[float]:
    """The sum over all images of each global batch."""
    logs = [(place / f"{name}.log-{rank}").read_text().splitlines() for rank in ranks]
    return [sum(float.fromhex(line.split()[2]) for line in lines) for lines in zip(*logs, strict=True)]


CASES = {
    "without batch norm": ((*CONVNEXT, *DOUBLE, *SGD), 1e-12),
    "with synchronised batch norm": ((*SYNCED, *DOUBLE, *SGD), 1e-9),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_pictures_and_figures_are_those_of_one_process(place: Path, case: str) -> None:
    """The augmented pictures are the same, and the last ones, which do not fill a global batch, are left out."""
    flags, bound = CASES[case]
    name = case.replace(" ", "_")
    fit(place, f"{name}-1", *flags, *ONE)
    fit(place, f"{name}-2", *flags, *TWO, "--data.num_workers", "1")
    assert furthest(place / f"{name}-2.pt", place / f"{name}-1.pt") <= bound
    one, two = batches(place, f"{name}-1", [0]), batches(place, f"{name}-2", [0, 1])
    assert two == pytest.approx(one, rel=1e-12)
    assert len(one) == 27 // 8
    for kind in ("train/loss", "val/loss", "val/top1"):
        alone, together = (figure(place / f"{name}-{n}", kind) for n in (1, 2))
        assert together == pytest.approx(alone, rel=1e-6), kind  # written in single precision


@pytest.mark.slow
def test_sharded_weights_train_save_resume_and_come_out_as_one_file_like_ddps(place: Path) -> None:
    flags = (*SGD, *TWO, "--trainer.max_epochs", "2")
    fit(place, "ddp", *flags, "--trainer.strategy", "ddp")
    at = fault(hook="before_backward", epoch=1, batch=1, number=15, once=place / "sharded.once")
    arguments = ("--config", TINY, "--run_dir", "sharded", *SAME, *flags, "--trainer.strategy", "fsdp2", *at)
    run("fit", *arguments, folder=place, code=143)
    assert not list((place / "sharded").glob(".writing-*"))
    run("fit", "--run_dir", "sharded", "--ckpt_path", "last", folder=place)
    for name in ("ddp", "sharded"):
        run("weights", name, "--last", "--out", f"{name}.safetensors", folder=place)
    ddp, sharded = (load_file(place / f"{name}.safetensors") for name in ("ddp", "sharded"))
    assert ddp.keys() == sharded.keys()
    for key, value in ddp.items():
        assert float((value.double() - sharded[key].double()).norm()) <= 1e-6 * float(value.double().norm()), key
