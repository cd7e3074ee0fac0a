"""LightningCLI over ClassificationTask and ImageData: `fit`, `validate`, `test` and `predict`."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from octzoo.data import ImageData, SettingError
from octzoo.train.callbacks import EpochLines, ImagesPerSecond, RunFolder
from octzoo.train.curves import draw_curves, read_metrics
from octzoo.train.parser import Parser
from octzoo.train.predict import PredictionWriter
from octzoo.train.runs import find_checkpoint, new_run_folder, run_name
from octzoo.train.sync import OctaveSync
from octzoo.train.task import ClassificationTask

# what the data find out for the model: neither a flag nor a YAML may say otherwise
LINKS = {"data.num_classes": "model.num_classes", "data.class_names": "model.class_names"}

CHECKPOINT = """\
--ckpt_path takes a file, or a run's folder and then its best checkpoint. Without --config, the config of the run that
made the checkpoint is used."""
EPILOGS = {
    "fit": """\
One folder, runs/<config>/<number>, holds everything of the run; runs/ is --trainer.default_root_dir. Several --config
are merged, later ones win, and flags win over all. --ckpt_path continues from a file, or from a run folder's last.

example: octzoo fit --config configs/digits.yaml --model.optimizer.lr 0.05 --trainer.max_epochs 5""",
    "validate": f"{CHECKPOINT}\n\nexample: octzoo validate --ckpt_path runs/digits/0",
    "test": f"{CHECKPOINT}\n\nexample: octzoo test --ckpt_path runs/digits/0/last.ckpt",
    "predict": f"""\
Labels the pictures of a folder, at any depth: NAME.csv and NAME.json with path, the five likeliest classes, their
probabilities, and an error for a picture that does not open. {CHECKPOINT}

example: octzoo predict --ckpt_path runs/digits/0 --data.pictures photos/ --predictions.out NAME""",
}
CHECKPOINTS = {
    "filename": "epoch={epoch:03d}-top1={val/top1:.3f}",
    "auto_insert_metric_name": False,
    "monitor": "val/top1",
    "mode": "max",
}


class OctzooCLI(LightningCLI):
    """`octzoo fit|validate|test|predict`. Arguments come from sys.argv, where --config must stand first."""

    def __init__(self) -> None:
        self.run_dir: Path | None = None
        self.checkpoint: Path | None = None
        self.started = time.monotonic()
        super().__init__(
            ClassificationTask,
            ImageData,
            save_config_callback=RunFolder,
            seed_everything_default=0,
            trainer_defaults={"default_root_dir": "runs", "enable_model_summary": False},
            parser_class=Parser,
            parser_kwargs={
                "parser_mode": "omegaconf+",
                **{v: {"parser_mode": "omegaconf+", "verb": v, "epilog": text} for v, text in EPILOGS.items()},
            },
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for source, target in LINKS.items():
            parser.link_arguments(source, target, apply_on="instantiate")
        verb = parser.verb if isinstance(parser, Parser) else ""
        if verb in ("", "fit"):
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        else:
            parser.add_class_arguments(ModelCheckpoint, "checkpoint")  # read from the run's config, and not used
        parser.set_defaults({f"checkpoint.{key}": value for key, value in CHECKPOINTS.items()})
        if verb == "predict":
            parser.add_lightning_class_args(PredictionWriter, "predictions")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and refuses what LightningCLI would drop in silence.

        The checkpoint's file is put aside until the classes are made: LightningCLI lets the hyper-parameters in it
        win over YAML and flags.
        """
        super().parse_arguments(parser, args)
        settings = self.config[self.config.subcommand]
        for path in settings.get("config") or []:
            refuse_linked(Path(str(path)))
        if settings.ckpt_path:
            self.checkpoint = find_checkpoint(Path(settings.ckpt_path), prefer_last=self.config.subcommand == "fit")
            settings.ckpt_path = None

    def before_instantiate_classes(self) -> None:
        settings = self.config[self.subcommand]
        settings.ckpt_path = str(self.checkpoint) if self.checkpoint else None
        if self.subcommand == "fit":
            return
        self.save_config_callback = None
        if self.checkpoint:
            settings.model.pretrained = False  # the checkpoint has the weights
            settings.data.class_names = settings.data.class_names or saved_class_names(self.checkpoint)
        elif self.subcommand == "predict":
            raise SettingError("no weights: give --ckpt_path FILE_OR_RUN")
        elif not settings.model.pretrained:
            raise SettingError("no weights: give --ckpt_path FILE_OR_RUN, or --model.pretrained true")

    def after_instantiate_classes(self) -> None:
        """Refuses to measure published weights with a head that is not theirs."""
        theirs, ours = self.model.pretrained_cfg.get("num_classes"), self.model.num_classes
        if self.subcommand != "fit" and not self.checkpoint and theirs != ours:
            raise SettingError(f"data.num_classes is {ours}, but {self.model.name} was published for {theirs} classes")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds what every run has: the run folder, its loggers and callbacks; one process to predict."""
        settings = self.config_init[self.subcommand]
        if self.subcommand == "predict":
            kwargs |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        callbacks = as_list(settings.trainer.callbacks)
        if settings.trainer.enable_progress_bar is None and not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False
            callbacks.append(EpochLines())
        if settings.trainer.sync_batchnorm:
            kwargs |= {"sync_batchnorm": False, "plugins": [*as_list(settings.trainer.plugins), OctaveSync()]}
        if self.subcommand != "fit":
            kwargs["enable_checkpointing"] = False
        if self.subcommand != "fit" or settings.trainer.fast_dev_run:
            return super().instantiate_trainer(logger=False, callbacks=callbacks, **kwargs)
        self.run_dir = self._new_run_dir()
        self.save_config_kwargs = {"run_dir": self.run_dir}
        settings.checkpoint.dirpath = settings.checkpoint.dirpath or str(self.run_dir)
        loggers = run_loggers(settings.trainer.logger, self.run_dir)
        callbacks += [ImagesPerSecond(), last_checkpoint(settings.checkpoint.dirpath)]
        if loggers:
            callbacks.append(LearningRateMonitor("step"))
        return super().instantiate_trainer(logger=loggers, callbacks=callbacks, **kwargs)

    def _new_run_dir(self) -> Path:
        """Made by the first process alone; the others never write there without asking it."""
        settings = self.config[self.subcommand]
        name = run_name([Path(str(path)) for path in settings.get("config") or []], settings.model.name)
        root = Path(settings.trainer.default_root_dir)
        return new_run_folder(root, name) if rank_zero_only.rank == 0 else root / name  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """Draws the curves and says what came out."""
        if self.run_dir is not None and self.trainer.is_global_zero:
            finish(self.run_dir, time.monotonic() - self.started)


def last_checkpoint(dirpath: str) -> ModelCheckpoint:
    """last.ckpt, written at the end of every epoch: Lightning's save_last waits for one that is among the best."""
    return ModelCheckpoint(
        dirpath, filename="last", monitor=None, save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True
    )


def as_list(value: Any) -> list[Any]:
    """None, one or several as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def run_loggers(wanted: Any, run_dir: Path) -> list[Logger]:
    """CSV and TensorBoard into the run folder, then the user's own; none where the user says `logger: false`."""
    if wanted is False:
        return []
    extra = [] if wanted in (None, True) else as_list(wanted)
    place = str(run_dir)
    return [CSVLogger(place, name="", version=""), TensorBoardLogger(place, name="", version=""), *extra]


def refuse_linked(config: Path) -> None:
    """Raises SettingError where a YAML sets what the data find out (LightningCLI would ignore it)."""
    content = yaml.safe_load(config.read_text()) or {}
    for source, target in LINKS.items():
        group, key = target.split(".")
        if key in (content.get(group) or {}):
            raise SettingError(f"{config}: {target} is found by the data; take it out ({source} has it checked)")


def saved_class_names(checkpoint: Path) -> list[str] | None:
    """The class names that a checkpoint of ours was trained with."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return saved.get("hyper_parameters", {}).get("class_names")


def finish(run_dir: Path, seconds: float) -> None:
    """Draws curves.png and prints the summary of a run."""
    print(f"\nrun folder   {run_dir}")
    if (run_dir / "metrics.csv").is_file():
        metrics = read_metrics(run_dir / "metrics.csv")
        draw_curves(metrics, str(run_dir), run_dir / "curves.png")
        if top1 := metrics.get("val/top1"):
            epoch, best = max(top1, key=lambda pair: pair[1])
            print(f"best top-1   {100 * best:.2f} % in epoch {epoch} (of 0 to {top1[-1][0]})")
    print(f"wall time    {seconds:.0f} s")
    print(f"next         octzoo test --ckpt_path {run_dir}")
