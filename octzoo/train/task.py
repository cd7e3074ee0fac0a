"""The classification task: a timm network by name, its loss, metrics and optimizer. It knows nothing of octaves."""

import math
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from octzoo.data import SettingError
from octzoo.train.bad_steps import SkipStep
from octzoo.train.initial import init_from as load_initial
from octzoo.train.losses import LossArgs, LossMean, make_loss
from octzoo.train.optim import OptimizerArgs, ScheduleArgs, make_optimizer, make_schedule, scaled_lr
from octzoo.train.sharded import shard
from octzoo.train.teacher import Teacher, TeacherArgs, normalisation

GROUP_SETTINGS = ("initial_lr", "lr_scale")  # which timm adds to a parameter group, beside the optimizer's own
TRAIN_LOSS = "train_loss"  # a checkpoint's key for the loss of the epoch so far: [loss x pictures, pictures] a process


@dataclass
class MixArgs:
    """Arguments of timm's Mixup, with its names; both alphas 0 mix nothing.

    Args:
        mixup_alpha: blend two pictures, the share drawn from Beta(alpha, alpha)
        cutmix_alpha: paste a rectangle of another picture, likewise
        prob: the part of the batches (or elements) that is mixed
        switch_prob: the part of those that is cutmix, where both are on
        mode: one draw for the batch, for a pair or for each element
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


class ClassificationTask(pl.LightningModule):
    """Trains and measures `timm.create_model(name)` on pictures of one class each.

    A batch is (images [B, 3, H, W], class indices [B]); to predict, {"image": [B, 3, H, W], ...}.

    Args:
        name: any name that timm.create_model takes
        num_classes: found by the data
        class_names: found by the data; kept in every checkpoint
        pretrained: start from published weights; a head of another size starts new
        init_from: start from the weights of a checkpoint file, run folder (its best) or checkpoint folder instead (the
            EMA's where there is an EMA); a head of another size starts new
        model_args: further arguments of timm.create_model, such as {drop_path_rate: 0.1}
        optimizer: what updates the weights
        schedule: the learning rate's course
        loss: cross-entropy or one yes-or-no question a class
        label_smoothing: the part of each target that is spread over all classes
        mix: mixup and cutmix
        teacher: a trained network to learn from as well
        freeze_backbone: train the classifier alone; the other layers' batch norms keep their statistics
        channels_last: keep images and weights in the channels-last memory format
        grad_checkpointing: keep no activations inside a block, and compute them anew in the backward pass
        compile: compile the network in place (torch.compile); checkpoints are the same with and without

    Raises:
        SettingError: timm has no network of that name, or the weights to start from are not its.
    """

    teacher: Teacher | None  # while fitting; no nn.Module, so that nothing of it is ours
    model: Any  # a timm network; timm has no type for get_classifier, pretrained_cfg ...

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        class_names: list[str] | None = None,
        pretrained: bool = False,
        init_from: str | None = None,
        model_args: dict[str, Any] | None = None,
        optimizer: OptimizerArgs = OptimizerArgs(),  # noqa: B008  (a value that nobody changes)
        schedule: ScheduleArgs = ScheduleArgs(),  # noqa: B008
        loss: LossArgs = LossArgs(),  # noqa: B008
        label_smoothing: float = 0.0,
        mix: MixArgs = MixArgs(),  # noqa: B008
        teacher: TeacherArgs = TeacherArgs(),  # noqa: B008
        freeze_backbone: bool = False,
        channels_last: bool = False,
        grad_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="init_from")  # a checkpoint has its weights
        self.name, self.num_classes, self.class_names = name, num_classes, class_names
        self.optimizer, self.schedule, self.loss = optimizer, schedule, make_loss(loss, label_smoothing)
        self.freeze_backbone, self.channels_last = freeze_backbone, channels_last
        self.mixup = make_mixup(mix, num_classes)
        self.teacher_args, self.teacher = teacher, None
        self.model = make_model(name, num_classes, pretrained and init_from is None, model_args or {})
        if init_from is not None:
            load_initial(self.model, init_from, name)
        if freeze_backbone:
            self.model.requires_grad_(False)
            self.model.get_classifier().requires_grad_(True)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if grad_checkpointing:
            keep_no_activations(self.model, name)
        if compile:
            self.model.compile()
        self.train_loss = LossMean()
        self.val_metrics = make_metrics(num_classes, prefix="val/")
        self.test_metrics = make_metrics(num_classes, prefix="test/")
        self.step_skipped = False  # the last update, as a bad step
        self.train()  # Lightning leaves the modes as it finds them

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm knows of the network: input size, mean, std ... ImageData prepares pictures by it."""
        return dict(self.model.pretrained_cfg)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, 3, H, W]."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        count = len(images)
        if self.mixup is not None:
            if count % 2:
                raise SettingError(f"data.batch_size is {count}, but mixup and cutmix pair the pictures of a batch")
            images, targets = self.mixup(images, targets)  # targets: now probabilities [B, num_classes]
        logits = self(images)
        loss = self.loss(logits, targets)
        if self.teacher is not None:
            loss = self.teacher.loss(logits, images, loss)
        self.train_loss.add(loss, count)
        if self.trainer._logger_connector.should_update_logs:  # else nobody looks
            self.log("train/loss_step", loss, prog_bar=True, batch_size=count)
        return loss

    def on_train_epoch_end(self) -> None:
        mean = self.train_loss.take(lambda sums: self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum"))
        self.log("train/loss", mean, sync_dist=True)  # the same everywhere

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """{"logits": [B, num_classes], "targets": [B]}, for callbacks."""
        return self._measure(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_metrics, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> tuple[Tensor, Tensor]:
        """(probabilities, class indices), each [B, min(5, num_classes)], likeliest first."""
        best = self(batch["image"]).float().softmax(dim=-1).topk(min(5, self.num_classes))
        return best.values, best.indices

    def train(self, mode: bool = True) -> "ClassificationTask":
        """As nn.Module.train, but the batch norms of a frozen backbone stay in eval mode."""
        super().train(mode)
        if self.freeze_backbone:
            for module in self.model.modules():
                if hasattr(module, "running_mean"):
                    module.eval()
        return self

    def on_fit_start(self) -> None:
        if self.teacher_args.on:
            expects = normalisation(self.trainer.datamodule, self.pretrained_cfg)  # type: ignore[attr-defined]
            teacher = Teacher(self.teacher_args, self.num_classes, self.class_names, **expects)
            like = torch.zeros((), device=self.device, dtype=self.dtype)  # type: ignore[arg-type]
            self.teacher = teacher.to(like, torch.channels_last if self.channels_last else torch.preserve_format)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = make_optimizer(self.model, replace(self.optimizer, lr=self._learning_rate()))
        names = {*optimizer.defaults, *GROUP_SETTINGS}  # the rest of a group, such as a count of steps, is its state
        self.group_settings = [{k: v for k, v in group.items() if k in names} for group in optimizer.param_groups]
        updates = self.trainer.estimated_stepping_batches
        if not math.isfinite(updates):
            raise SettingError("trainer.max_epochs or trainer.max_steps: the schedule needs an end")
        self.trainer.fit_loop.setup_data()
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        self.scheduler = make_schedule(optimizer, self.schedule, int(updates), per_epoch)
        if self.scheduler is None:
            return {"optimizer": optimizer}
        scheduler: Any = self.scheduler
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """What is set now wins over what a checkpoint was trained with: rate, decay, and the schedule's length."""
        for group, settings in zip(self.trainer.optimizers[0].param_groups, self.group_settings):
            group.update(settings)
        if self.scheduler is not None:
            self.scheduler.step_update(self.trainer.global_step)

    def configure_model(self) -> None:
        """Shards the network where the strategy is FSDP2."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Lightning's, but a bad step is left out: weights and optimizer stay as they are (see BadSteps)."""
        self.step_skipped = False
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        except SkipStep:
            self.step_skipped = True
            optimizer.zero_grad()
            if (scaler := getattr(self.trainer.precision_plugin, "scaler", None)) is not None:
                scaler.update()  # it waits for the end of a step that it has begun

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """timm's schedules count updates themselves."""
        scheduler.step_update(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what train/loss needs where the epoch is not over."""
        rows = torch.zeros(self.trainer.world_size, 2, device=self.device)
        rows[self.trainer.global_rank] = self.train_loss.sums
        checkpoint[TRAIN_LOSS] = self.trainer.strategy.reduce(rows, reduce_op="sum").tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says in one line why another network's checkpoint does not fit."""
        saved = checkpoint.get("hyper_parameters", {})
        for key, mine in (("name", self.name), ("num_classes", self.num_classes)):
            if saved.get(key, mine) != mine:
                raise SettingError(f"the checkpoint has model.{key} {saved[key]}, this network {mine}")
        optimizer = saved.get("optimizer", self.optimizer)
        theirs = optimizer["opt"] if isinstance(optimizer, dict) else optimizer.opt
        if self._trainer is not None and self.trainer.state.fn == "fit" and theirs != self.optimizer.opt:
            raise SettingError(
                f"the checkpoint has the state of {theirs}, but model.optimizer.opt is {self.optimizer.opt}: resume "
                f"with {theirs}, or start from the checkpoint's weights with --model.init_from"
            )
        checkpoint["lr_schedulers"] = [{} for _ in checkpoint.get("lr_schedulers", [])]  # see on_train_start
        if self._trainer is not None and TRAIN_LOSS in checkpoint:
            self.train_loss.put_back(checkpoint[TRAIN_LOSS], self.trainer.global_rank, self.trainer.world_size)

    def _measure(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection) -> dict[str, Tensor]:
        images, targets = batch
        if not len(images):  # there are fewer pictures than processes, or none of them decodes
            if self.device_mesh is not None:  # all processes take part in a sharded network's forward
                self(images.new_zeros(1, *self.pretrained_cfg["input_size"]))
            return {"logits": images.new_zeros(0, self.num_classes), "targets": targets}
        logits = self(images).float()
        losses = F.cross_entropy(logits, targets, reduction="none")  # [B]
        metrics.update(preds=logits, target=targets, value=losses)
        return {"logits": logits, "targets": targets}

    def _learning_rate(self) -> float:
        """The rate for the global batch of this run."""
        args, trainer = self.optimizer, self.trainer
        if args.lr_batch is None:
            return args.lr
        of_process = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
        if of_process is None:
            raise SettingError(
                f"model.optimizer.lr_batch is {args.lr_batch}, but the data do not say their batch_size; "
                "set lr_batch to null, and lr for the batches that there are"
            )
        batch = of_process * trainer.world_size * trainer.accumulate_grad_batches
        rate = scaled_lr(args, batch)
        rank_zero_info(f"learning rate {rate:g} for a global batch of {batch} (lr {args.lr:g} for {args.lr_batch})")
        return rate


def make_model(name: str, num_classes: int, pretrained: bool, model_args: dict[str, Any]) -> nn.Module:
    """timm.create_model.

    Raises:
        SettingError: timm has no such network, or not with these arguments or weights.
    """
    if ":" not in name and not timm.is_model(name):
        near = get_close_matches(name, timm.list_models() + timm.list_models(include_tags=True), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "timm.list_models() has them all"
        raise SettingError(f"model.name: no network '{name}'; {hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **model_args)
    except (RuntimeError, TypeError, ValueError) as problem:  # an unknown tag, weights that are not there, model_args
        raise SettingError(f"model.name: timm cannot make {name}: {problem}") from problem


def keep_no_activations(model: Any, name: str) -> None:
    """timm's set_grad_checkpointing.

    Raises:
        SettingError: the network cannot.
    """
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError, RuntimeError) as problem:
        raise SettingError(f"model.grad_checkpointing: {name} cannot: {problem}") from problem


def make_mixup(args: MixArgs, num_classes: int) -> Mixup | None:
    """timm's Mixup, or None where nothing is mixed. Label smoothing is left to the loss."""
    if not args.on:
        return None
    return Mixup(
        mixup_alpha=args.mixup_alpha,
        cutmix_alpha=args.cutmix_alpha,
        prob=args.prob,
        switch_prob=args.switch_prob,
        mode=args.mode,
        label_smoothing=0.0,
        num_classes=num_classes,
    )


def mean_loss() -> MeanMetric:
    """Mean over pictures. Update it with one value a picture: torchmetrics 1.9 ignores weights with "disable".

    Any other nan_strategy would wait for the GPU at every update, and most leave a NaN loss out of the mean.
    """
    return MeanMetric(nan_strategy="disable")


def make_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """loss, top1 and, where it says anything, top5."""
    metrics: dict[str, Any] = {"loss": mean_loss()}
    for k in (1, 5):
        if k < num_classes:
            metrics[f"top{k}"] = MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False)
    return MetricCollection(metrics, prefix=prefix)


# a task made in Python (not by the command line) keeps these in its checkpoints; torch.load may read them
torch.serialization.add_safe_globals([OptimizerArgs, ScheduleArgs, LossArgs, MixArgs, TeacherArgs])
