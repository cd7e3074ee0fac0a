"""`octzoo weights`: a checkpoint's weights as one safetensors file."""

import os
import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from octzoo.cli.weights import main
from octzoo.train.checkpoints import AtomicIO
from octzoo.train.ema import EMA, RAW
from octzoo.train.optim import OptimizerArgs
from octzoo.train.task import ClassificationTask
from tests.faults import same

NAME = "oct_cifar_resnet20_a0.25"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with an average; the best checkpoint is of another epoch than the last."""
    folder = tmp_path_factory.mktemp("run")
    images, targets = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    saving = ModelCheckpoint(str(folder), filename="x-{epoch}", save_top_k=-1, save_last=False)
    trainer = pl.Trainer(max_epochs=2, callbacks=[EMA(0.5), saving], plugins=[AtomicIO()], **quiet)  # type: ignore
    module = ClassificationTask(NAME, 3, optimizer=OptimizerArgs("sgd", lr=0.05))
    trainer.fit(module, DataLoader(TensorDataset(images, targets), batch_size=4))
    os.rename(folder / "x-epoch=0.ckpt", folder / "epoch=000-top1=0.900.ckpt")
    os.rename(folder / "x-epoch=1.ckpt", folder / "last.ckpt")
    return folder


def average(path: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(path, weights_only=True)
    assert same(saved["state_dict"], saved[RAW])
    return {k.removeprefix("model."): v for k, v in saved["state_dict"].items() if k.startswith("model.")}


def test_of_a_run_its_bests_average(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "model.safetensors"
    assert main(["weights", str(run), "--out", str(out)]) == 0
    best = run / "epoch=000-top1=0.900.ckpt"
    written, expected = load_file(out), average(best)
    assert not same(dict(sorted(written.items())), dict(sorted(expected.items())))
    assert capsys.readouterr().out == f"{out}: {len(expected)} tensors of {best}\n"
    assert os.listdir(out.parent) == ["model.safetensors"]
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("arguments", [["{run}", "--last"], ["{run}/last.ckpt"]])
def test_or_its_last_or_that_of_a_file(arguments: list[str], run: Path, tmp_path: Path) -> None:
    words = [word.format(run=run) for word in arguments]
    assert main(["weights", *words, "--out", str(tmp_path / "a.safetensors")]) == 0
    assert not same(
        dict(sorted(load_file(tmp_path / "a.safetensors").items())), dict(sorted(average(run / "last.ckpt").items()))
    )


def test_timm_takes_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    main(["weights", str(run), "--out", str(out)])
    model = timm.create_model(NAME, num_classes=3, checkpoint_path=str(out)).eval()
    module = ClassificationTask.load_from_checkpoint(run / "epoch=000-top1=0.900.ckpt").eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), module(images))


def test_init_from_takes_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    main(["weights", str(run), "--out", str(out)])
    assert not same(
        dict(ClassificationTask(NAME, 3, init_from=str(out)).model.state_dict()), average(next(run.glob("epoch*")))
    )


def test_by_default_it_goes_into_the_current_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["weights", str(run)]) == 0
    assert os.listdir(tmp_path) == ["model.safetensors"]


class TestMistakes:
    def said(self, capsys: pytest.CaptureFixture, *words: str, code: int = 2) -> str:
        assert main(["weights", *words]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    def test_a_file_that_is_there_is_not_overwritten(self, run: Path, tmp_path: Path, capsys) -> None:
        out = tmp_path / "a.safetensors"
        out.write_text("mine")
        said = self.said(capsys, str(run), "--out", str(out))
        assert said == f"error: {out} is there already; give another --out, or remove it\n"
        assert out.read_text() == "mine"

    def test_no_such_run(self, tmp_path: Path, capsys) -> None:
        assert "no such file or run folder" in self.said(
            capsys, str(tmp_path / "nothing"), "--out", str(tmp_path / "a")
        )
        assert "no checkpoint in" in self.said(capsys, str(tmp_path), "--out", str(tmp_path / "a"))
        assert not (tmp_path / "a").exists()

    def test_a_damaged_checkpoint(self, run: Path, tmp_path: Path, capsys) -> None:
        cut = tmp_path / "cut.ckpt"
        shutil.copy(run / "last.ckpt", cut)
        cut.write_bytes(cut.read_bytes()[:3000])
        said = self.said(capsys, str(cut), "--out", str(tmp_path / "a"))
        assert said.startswith(f"error: {cut} is no checkpoint, or damaged")
        assert os.listdir(tmp_path) == ["cut.ckpt"]

    def test_a_checkpoint_that_is_damaged_inside(self, run: Path, tmp_path: Path, capsys) -> None:
        """Its archive's list is whole: only a CRC tells."""
        flipped = tmp_path / "flipped.ckpt"
        whole = bytearray((run / "last.ckpt").read_bytes())
        tensor = average(run / "last.ckpt")
        name = max(tensor, key=lambda key: tensor[key].numel())
        place = bytes(whole).index(tensor[name].numpy().tobytes()) + 1000
        whole[place] ^= 0x40
        flipped.write_bytes(whole)
        assert str(flipped) in self.said(capsys, str(flipped), "--out", str(tmp_path / "a"))
        assert not (tmp_path / "a").exists()

    def test_no_weights(self, tmp_path: Path, capsys) -> None:
        torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
        assert "holds no weights of a network" in self.said(
            capsys, str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "b")
        )
