"""octzoo.train.teacher: distillation, and that the teacher is no part of the student."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from octzoo.data import SettingError
from octzoo.train.ema import EMA
from octzoo.train.optim import OptimizerArgs
from octzoo.train.task import ClassificationTask, MixArgs
from octzoo.train.teacher import Teacher, TeacherArgs, distil
from tests.train.test_task import CLASSES, NAME, loader, step_loss, trainer

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a network with CLASSES classes."""
    folder = tmp_path_factory.mktemp("run")
    module = ClassificationTask(NAME, CLASSES, class_names=[f"c{i}" for i in range(CLASSES)])
    fitted = trainer(folder, limit_train_batches=1, limit_val_batches=0, enable_checkpointing=False)
    fitted.fit(module, loader())
    fitted.save_checkpoint(folder / "last.ckpt")
    return folder


def teacher(run: Path, **settings: Any) -> Teacher:
    expects = timm.get_pretrained_cfg(NAME)
    return Teacher(TeacherArgs(checkpoint=str(run), **settings), CLASSES, None, expects.mean, expects.std)


class TestLoss:
    student, wanted = torch.randn(5, CLASSES), torch.randn(5, CLASSES)

    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_soft_is_hintons(self, temperature: float) -> None:
        p, q = (x.double().div(temperature).softmax(dim=1) for x in (self.wanted, self.student))
        expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
        assert distil(self.student, self.wanted, "soft", temperature).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_hard_is_the_cross_entropy_with_the_teachers_likeliest_class(self) -> None:
        best = self.wanted.argmax(dim=1)
        expected = -self.student.log_softmax(dim=1)[range(5), best].mean()
        torch.testing.assert_close(distil(self.student, self.wanted, "hard", 2.0), expected)

    @pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
    def test_the_weight_is_the_teachers_part(self, weight: float, run: Path) -> None:
        images, targets = torch.randn(4, 3, 32, 32), torch.arange(4)
        module = ClassificationTask(NAME, CLASSES).eval()
        module.teacher = teacher(run, weight=weight, kind="hard")
        logits = module(images)
        best = module.teacher.logits(images).argmax(dim=1)
        expected = (1 - weight) * F.cross_entropy(logits, targets) + weight * F.cross_entropy(logits, best)
        torch.testing.assert_close(step_loss(module, images, targets), expected)

    def test_whoever_equals_the_teacher_has_nothing_to_learn_from_it(self, run: Path) -> None:
        module = ClassificationTask(NAME, CLASSES, init_from=str(run)).eval()
        module.teacher = teacher(run, weight=1.0, temperature=2.0)
        assert step_loss(module, torch.randn(4, 3, 32, 32), torch.arange(4)).item() == pytest.approx(0, abs=1e-6)


class TestWhatItSees:
    def test_the_students_mixed_pictures(self, run: Path) -> None:
        module = ClassificationTask(NAME, CLASSES, mix=MixArgs(mixup_alpha=1.0))
        module.teacher = teacher(run)
        seen: list[Tensor] = []
        for network in (module.model, module.teacher.model):
            network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        images = torch.randn(4, 3, 32, 32)
        step_loss(module, images, torch.arange(4))
        assert torch.equal(*seen)
        assert not torch.equal(seen[0], images)

    def test_pictures_normalised_as_it_was_trained(self, run: Path) -> None:
        """ImageNet's mean and std for the student, the teacher's own for the teacher: the same pixels."""
        other = Teacher(TeacherArgs(checkpoint=str(run)), CLASSES, None, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
        pixels = torch.rand(2, 3, 32, 32)
        cfg = timm.get_pretrained_cfg(NAME)
        as_student, as_teacher = (
            (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            for mean, std in (([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), (cfg.mean, cfg.std))
        )
        with torch.no_grad():
            torch.testing.assert_close(other.logits(as_student), other.model(as_teacher), rtol=1e-4, atol=1e-5)

    def test_a_run_that_set_its_own_mean_and_std_is_given_them(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "last.ckpt").symlink_to(run / "last.ckpt")
        preprocess = {"mean": [0.3, 0.3, 0.3], "std": [0.4, 0.4, 0.4], "crop_pct": 1.0}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"preprocess": preprocess}}))
        args = TeacherArgs(checkpoint=str(tmp_path))
        assert Teacher(args, CLASSES, None, preprocess["mean"], preprocess["std"]).same
        assert not Teacher(args, CLASSES, None, **IMAGENET).same

    def test_the_same_normalisation_costs_nothing(self, run: Path) -> None:
        assert teacher(run).same


class Watch(pl.Callback):
    """Looks at a task with a teacher while it trains."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        teacher = pl_module.teacher.model
        self.weights = {key: value.clone() for key, value in teacher.state_dict().items()}
        assert not any(module.training for module in teacher.modules())
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        own = {id(p) for p in pl_module.parameters()} | {id(m) for m in pl_module.modules()}
        assert not own & ({id(p) for p in teacher.parameters()} | {id(m) for m in teacher.modules()})


class TestItIsNoPartOfTheStudent:
    def test_it_learns_nothing_and_is_in_no_checkpoint(self, run: Path, tmp_path: Path) -> None:
        args = TeacherArgs(checkpoint=str(run))
        module = ClassificationTask(NAME, CLASSES, teacher=args, optimizer=OptimizerArgs(lr=0.01))
        watch, average = Watch(), EMA(0.9)
        fitted = trainer(tmp_path, max_epochs=2, callbacks=[watch, average])
        fitted.fit(module, loader(), loader())
        fitted.save_checkpoint(tmp_path / "x.ckpt")
        saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
        assert saved["state_dict"].keys() == ClassificationTask(NAME, CLASSES).state_dict().keys()
        assert saved["hyper_parameters"]["teacher"] == args
        before = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(before[f"model.{key}"], value) for key, value in watch.weights.items())

    def test_only_a_fit_makes_it(self, tmp_path: Path) -> None:
        module = ClassificationTask(NAME, CLASSES, teacher=TeacherArgs(checkpoint="not there"))
        trainer(tmp_path).validate(module, loader(), verbose=False)
        assert module.teacher is None

    def test_it_follows_the_tasks_precision(self, run: Path, tmp_path: Path) -> None:
        module = ClassificationTask(NAME, CLASSES, teacher=TeacherArgs(checkpoint=str(run)))
        images, targets = loader().dataset.tensors
        doubles = DataLoader(TensorDataset(images.double(), targets), batch_size=8)
        trainer(tmp_path, precision="64-true", limit_val_batches=0).fit(module, doubles)
        assert {p.dtype for p in module.teacher.model.parameters()} == {torch.float64}  # type: ignore[union-attr]


class TestMistakes:
    """The exact text that a user sees."""

    def message(self, classes: int = CLASSES, names: list[str] | None = None, **settings: Any) -> str:
        with pytest.raises(SettingError) as raised:
            Teacher(TeacherArgs(**settings), classes, names, **IMAGENET)
        return str(raised.value)

    def test_another_number_of_classes(self, run: Path) -> None:
        text = f"model.teacher: {NAME} knows {CLASSES} classes, the student 9"
        assert self.message(9, checkpoint=str(run)) == text
        assert (
            self.message(9, name=NAME, pretrained=False) == f"model.teacher: {NAME} knows 1000 classes, the student 9"
        )

    def test_the_same_number_of_other_classes(self, run: Path) -> None:
        text = f"model.teacher: {run} has other class names, or another order, than the data"
        assert self.message(names=list("abcdefg"), checkpoint=str(run)) == text

    def test_two_teachers(self, run: Path) -> None:
        text = "model.teacher: name and checkpoint exclude each other; a checkpoint knows its name"
        assert self.message(name=NAME, checkpoint=str(run)) == text

    def test_a_state_dict_that_does_not_say_whose_it_is(self, tmp_path: Path) -> None:
        torch.save(timm.create_model(NAME).state_dict(), tmp_path / "x.pth")
        text = (
            f"model.teacher.checkpoint: {tmp_path}/x.pth does not say which network it is; "
            "give a run, its checkpoint or a checkpoint folder"
        )
        assert self.message(checkpoint=str(tmp_path / "x.pth")) == text

    def test_nothing_there(self) -> None:
        text = "model.teacher.checkpoint: no such file or run folder: runs/nowhere"
        assert self.message(checkpoint="runs/nowhere") == text

    def test_unknown_network(self) -> None:
        assert self.message(name="resnet5O").startswith("model.teacher: timm cannot make resnet5O: ")

    def test_settings_out_of_range(self) -> None:
        text = "model.teacher: weight is 1.5, from 0 to 1; temperature is 1.0, above 0"
        assert self.message(name=NAME, weight=1.5) == text
