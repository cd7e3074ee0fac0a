"""octzoo.train.initial: new training that starts from weights."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file

from octzoo.data import SettingError
from octzoo.train.ema import EMA
from octzoo.train.initial import head_keys
from octzoo.train.optim import OptimizerArgs
from octzoo.train.task import ClassificationTask
from tests.train.test_task import CLASSES, NAME, loader, trainer


def start(path: Path, name: str = NAME, classes: int = CLASSES) -> dict[str, torch.Tensor]:
    """The weights of a task that starts from `path`."""
    return ClassificationTask(name, classes, init_from=str(path)).model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(5)
    return timm.create_model(NAME, num_classes=CLASSES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with EMA: a best and a last checkpoint of different weights."""
    folder = tmp_path_factory.mktemp("run")
    module = ClassificationTask(NAME, CLASSES, optimizer=OptimizerArgs(lr=0.1))
    callbacks = [EMA(0.5), ModelCheckpoint(folder, filename="last")]
    trainer(folder, limit_val_batches=0, callbacks=callbacks).fit(module, loader())
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    saved["state_dict"] = {key: value + 1 for key, value in saved["state_dict"].items()}
    torch.save(saved, folder / "epoch=000-top1=0.500.ckpt")
    return folder


class TestSources:
    def test_a_checkpoint_gives_its_state_dict_which_is_the_emas(self, run: Path) -> None:
        saved = torch.load(run / "last.ckpt", weights_only=True)
        assert not same(saved["state_dict"], saved["raw_state_dict"])
        assert same({f"model.{key}": value for key, value in start(run / "last.ckpt").items()}, saved["state_dict"])

    def test_a_run_gives_its_best(self, run: Path) -> None:
        assert same(start(run), start(run / "epoch=000-top1=0.500.ckpt"))
        assert not same(start(run), start(run / "last.ckpt"))

    def test_a_run_without_a_best_gives_its_last(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "last.ckpt").symlink_to(run / "last.ckpt")
        assert same(start(tmp_path), start(run / "last.ckpt"))

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_state_dict(self, wrapped: bool, network: Any, tmp_path: Path) -> None:
        state = network.state_dict()
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "x.pth")
        assert same(start(tmp_path / "x.pth"), state)

    def test_safetensors_alone_and_in_a_checkpoint_folder(self, network: Any, tmp_path: Path) -> None:
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME.split(".")[0]}))
        assert same(start(tmp_path / "model.safetensors"), network.state_dict())
        assert same(start(tmp_path), network.state_dict())


def test_a_head_of_another_size_starts_new_and_nothing_else(run: Path) -> None:
    theirs, ours = start(run), start(run, classes=9)
    assert {key for key in ours if ours[key].shape != theirs[key].shape} == {"fc.weight", "fc.bias"}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if not key.startswith("fc."))


def test_the_head_of_an_octave_network_and_of_a_distilled_one() -> None:
    assert head_keys(timm.create_model("oct_resnet26_a0.25")) == {"head.fc.weight", "head.fc.bias"}
    two = head_keys(timm.create_model("deit_tiny_distilled_patch16_224"))
    assert two == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_it_is_said_whose_weights_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those of another alpha fit too."""
    network = timm.create_model("oct_cifar_resnet20_a0.5", num_classes=CLASSES)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "oct_cifar_resnet20_a0", "model_args": {"alpha": 0.5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.INFO):
        start(tmp_path, name="oct_cifar_resnet20_a0.25")
    text = f"oct_cifar_resnet20_a0.25 starts from the weights of oct_cifar_resnet20_a0 alpha=0.5 in {tmp_path}"
    assert text in caplog.text


def test_published_weights_are_not_fetched_for_nothing(run: Path) -> None:
    local = {"pretrained_cfg_overlay": {"file": "not there"}}
    ClassificationTask(NAME, CLASSES, pretrained=True, init_from=str(run), model_args=local)


def test_a_checkpoint_does_not_need_what_it_started_from(run: Path, tmp_path: Path) -> None:
    module = ClassificationTask(NAME, CLASSES, init_from=str(run))
    fitted = trainer(tmp_path, limit_val_batches=0, limit_train_batches=1)
    fitted.fit(module, loader())
    fitted.save_checkpoint(tmp_path / "x.ckpt")
    assert "init_from" not in torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]


class TestMistakes:
    """The exact text that a user sees."""

    def message(self, path: Path, **settings: Any) -> str:
        with pytest.raises(SettingError) as raised:
            start(path, **settings)
        return str(raised.value)

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert self.message(Path("runs/9")) == "model.init_from: no such file or run folder: runs/9"
        assert self.message(tmp_path) == f"model.init_from: no checkpoint in {tmp_path}"

    def test_another_network_lists_the_keys(self, run: Path) -> None:
        text = self.message(run, name="oct_cifar_resnet20_a0.25")
        assert text.startswith(f"model.init_from: {run} does not fit the network: missing: ")
        assert "; unexpected: bn1.bias, " in text
        assert " more" in text

    def test_one_key_each(self, network: Any, tmp_path: Path) -> None:
        state = network.state_dict()
        state["conv1.0.weight"] = state["conv1.0.weight"][:1]
        state["more"] = state.pop("bn1.weight")
        torch.save(state, tmp_path / "x.pth")
        assert self.message(tmp_path / "x.pth") == (
            f"model.init_from: {tmp_path}/x.pth does not fit the network: missing: bn1.weight; unexpected: more; "
            "of another shape: conv1.0.weight"
        )

    def test_no_file_of_weights(self, tmp_path: Path) -> None:
        (tmp_path / "x.pth").write_text("no weights")
        text = self.message(tmp_path / "x.pth")
        assert text.startswith(f"model.init_from: {tmp_path}/x.pth is no file of weights: ")
        torch.save({"epoch": 1}, tmp_path / "y.pth")
        text = f"model.init_from: {tmp_path}/y.pth is no state dict, nor a checkpoint that has one"
        assert self.message(tmp_path / "y.pth") == text
