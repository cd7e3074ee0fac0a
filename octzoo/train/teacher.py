"""Distillation: a trained network that the student also learns from. It is no part of the student."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from octzoo.data import Preprocess, SettingError
from octzoo.train.initial import load, read_weights
from octzoo.train.runs import CONFIG


@dataclass
class TeacherArgs:
    """A network to learn from, and how; without a name and a checkpoint there is none.

    Args:
        name: any name that timm.create_model takes
        checkpoint: a checkpoint file, run folder or checkpoint folder of octzoo, which knows its network's name
        pretrained: give a network of that name its published weights; false is for tests
        weight: the part of the loss that the teacher decides, from 0 to 1
        kind: soft learns the teacher's probabilities (Hinton et al. 2015), hard its likeliest class (DeiT)
        temperature: soft: softens both networks' probabilities; the loss is multiplied by its square
    """

    name: str | None = None
    checkpoint: str | None = None
    pretrained: bool = True
    weight: float = 0.5
    kind: Literal["soft", "hard"] = "soft"
    temperature: float = 1.0

    @property
    def on(self) -> bool:
        """Whether there is a teacher."""
        return self.name is not None or self.checkpoint is not None


class Teacher:
    """The network in eval mode, without gradients. Not an nn.Module, so that whoever holds it does not own it:

    neither parameters() nor state_dict() of the student's task have it, so no optimizer, DDP, EMA or checkpoint does.

    Args:
        args: which network, and how to learn from it
        num_classes: the student's
        class_names: the student's, where they are known
        mean: of the pictures that the student gets
        std: likewise

    Raises:
        SettingError: there is no such network, or it knows other classes.
    """

    def __init__(
        self,
        args: TeacherArgs,
        num_classes: int,
        class_names: list[str] | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.args = args
        self.model: Any
        self.model, expects = make_teacher(args, num_classes, class_names)
        own_mean, own_std = (torch.tensor(expects[key]).view(-1, 1, 1) for key in ("mean", "std"))
        scale, shift = torch.tensor(std).view(-1, 1, 1), torch.tensor(mean).view(-1, 1, 1)
        # pixels = images * std + mean, and the teacher wants (pixels - own_mean) / own_std
        self.scale, self.shift = scale / own_std, (shift - own_mean) / own_std
        self.same = bool((self.scale == 1).all() and (self.shift == 0).all())

    def to(self, like: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> "Teacher":
        """Moves the network to the device and the type of `like`."""
        self.model.to(device=like.device, dtype=like.dtype, memory_format=memory_format)
        self.scale, self.shift = self.scale.to(like), self.shift.to(like)
        return self

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """[B, num_classes] of images as the student gets them."""
        return self.model(images if self.same else images * self.scale + self.shift)

    def loss(self, logits: Tensor, images: Tensor, student_loss: Tensor) -> Tensor:
        """`student_loss`, with the teacher's part in it."""
        distance = distil(logits, self.logits(images), self.args.kind, self.args.temperature)
        return (1 - self.args.weight) * student_loss + self.args.weight * distance


def distil(logits: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """How far logits [B, C] are from the teacher's: T^2 KL(teacher || student), or cross-entropy with its best."""
    if kind == "hard":
        return F.cross_entropy(logits, teacher.argmax(dim=1))
    student, wanted = (x.float().div(temperature).log_softmax(dim=1) for x in (logits, teacher))
    return temperature**2 * F.kl_div(student, wanted, reduction="batchmean", log_target=True)


def make_teacher(args: TeacherArgs, num_classes: int, class_names: list[str] | None) -> tuple[Any, dict[str, Any]]:
    """(the network in eval mode, its pretrained_cfg with the mean and std that it was trained with).

    Raises:
        SettingError: as Teacher.
    """
    if args.name and args.checkpoint:
        raise SettingError("model.teacher: name and checkpoint exclude each other; a checkpoint knows its name")
    if not 0 <= args.weight <= 1 or args.temperature <= 0:
        raise SettingError(
            f"model.teacher: weight is {args.weight}, from 0 to 1; temperature is {args.temperature}, above 0"
        )
    name, model_args, names = str(args.name), {}, None
    weights: dict[str, Tensor] = {}
    if args.checkpoint is not None:
        weights, facts = read_weights(Path(args.checkpoint), "model.teacher.checkpoint")
        if not facts.get("name"):
            raise SettingError(
                f"model.teacher.checkpoint: {args.checkpoint} does not say which network it is; "
                "give a run, its checkpoint or a checkpoint folder"
            )
        name, names = facts["name"], facts.get("class_names")
        model_args = {**(facts.get("model_args") or {}), "num_classes": facts["num_classes"]}
    try:
        model: Any = timm.create_model(name, pretrained=args.pretrained and not weights, **model_args)
    except (RuntimeError, TypeError, ValueError) as problem:
        raise SettingError(f"model.teacher: timm cannot make {name}: {problem}") from problem
    if weights:
        load(model, weights, f"model.teacher.checkpoint: {args.checkpoint}")
    if model.num_classes != num_classes:
        raise SettingError(f"model.teacher: {name} knows {model.num_classes} classes, the student {num_classes}")
    if names and class_names and names != class_names:
        raise SettingError(f"model.teacher: {args.checkpoint} has other class names, or another order, than the data")
    expects = dict(model.pretrained_cfg)
    if args.checkpoint:
        expects |= trained_with(Path(args.checkpoint))
    return model.eval().requires_grad_(False), expects


def trained_with(checkpoint: Path) -> dict[str, Any]:
    """mean and std where the config of the checkpoint's run sets them."""
    config = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / CONFIG
    content = yaml.safe_load(config.read_text()) if config.is_file() else {}
    wanted = content.get("data", {}).get("preprocess") or {}
    return {key: wanted[key] for key in ("mean", "std") if wanted.get(key)}


def normalisation(datamodule: Any, pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
    """mean and std of the pictures that a student gets."""
    preprocess = getattr(datamodule, "preprocess", None) or Preprocess()
    return {key: value for key, value in preprocess.resolve(pretrained_cfg).items() if key in ("mean", "std")}
