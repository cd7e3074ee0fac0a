"""LightningCLI over ClassificationTask and ImageData: `fit`, `validate`, `test` and `predict`."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from octzoo.data import ImageData, SettingError
from octzoo.train.bad_steps import BadSteps
from octzoo.train.bar import Bar
from octzoo.train.callbacks import BrokenCount, EpochLines, ImagesPerSecond, RunFolder, StepRandomness
from octzoo.train.checkpoints import AtomicIO, read_whole
from octzoo.train.confusion import Confusion
from octzoo.train.ema import EMA, refuse_sharded
from octzoo.train.environment import differences, same_bits
from octzoo.train.last import LastCheckpoint
from octzoo.train.loggers import make_loggers
from octzoo.train.metrics import attempts
from octzoo.train.parser import Parser
from octzoo.train.predict import PredictionWriter, published_names
from octzoo.train.recipes import missing_base
from octzoo.train.references import environment_references, with_references
from octzoo.train.runs import CONFIG, LAST, RESUME, find_checkpoint, find_resume, new_run_folder, run_name
from octzoo.train.settings import (
    BadStepArgs,
    EmaArgs,
    LastArgs,
    count_processes,
    find_strategy,
)
from octzoo.train.sharded import BuffersOfFirst, Sharded
from octzoo.train.stopping import EndAtOnce
from octzoo.train.summary import finish
from octzoo.train.sync import OctaveSync
from octzoo.train.task import ClassificationTask
from octzoo.train.watch import Clock, Curves

# what the data find out for the model: neither a flag nor a YAML may say otherwise
LINKS = {"data.num_classes": "model.num_classes", "data.class_names": "model.class_names"}

CHECKPOINT = """\
First comes what is measured: a checkpoint's file, a run's folder (its best checkpoint, with that run's config), or a
network's name with published weights (prepared as it was trained); then on which pictures, if not on the run's."""
EPILOGS = {
    "fit": """\
One folder, --run_dir or runs/<config>/<number>, holds everything of the run. Several --config are merged, later ones
win, and flags win over all. `--run_dir RUN --ckpt_path last` resumes a run in its folder; `--ckpt_path auto` does if
there is something to resume, and starts otherwise; a file or another run's folder is continued from in a new one.

example: octzoo fit --config configs/digits.yaml --model.optimizer.lr 0.05 --trainer.max_epochs 5
example: octzoo fit --run_dir runs/digits/0 --ckpt_path last""",
    "validate": f"""\
usage: octzoo validate RUN_OR_NAME [FOLDER] [options]

{CHECKPOINT}

example: octzoo validate runs/digits/0
example: octzoo validate oct_resnet50_a0.25 imagenet/val""",
    "test": f"""\
usage: octzoo test RUN_OR_NAME [FOLDER] [options]

{CHECKPOINT}

example: octzoo test runs/digits/0/last.ckpt""",
    "predict": f"""\
usage: octzoo predict RUN_OR_NAME FOLDER [options]

Labels the pictures of a folder, at any depth: NAME.csv and NAME.json with path, the five likeliest classes, their
probabilities, and an error for a picture that does not open. {CHECKPOINT}

example: octzoo predict runs/digits/0 photos/ --predictions.out NAME
example: octzoo predict oct_resnet50_a0.25 photos/""",
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
        self.resumes = False  # in place: the run folder is an earlier attempt's
        self.references: dict[str, str] = {}
        self.started = time.monotonic()
        super().__init__(
            ClassificationTask,
            ImageData,
            save_config_callback=RunFolder,
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": "runs",
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the data deal out the pictures themselves
            },
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
        for group, kind in (("ema", EmaArgs), ("last", LastArgs), ("bad_steps", BadStepArgs)):
            parser.add_argument(f"--{group}", type=kind, default=kind())
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="the folder of this run; default: a new one"
        )
        parser.add_argument(
            "--group_timeout", type=float, default=1800.0, help="seconds that processes wait for one that is lost"
        )
        if verb == "predict":
            parser.add_lightning_class_args(PredictionWriter, "predictions")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and refuses what LightningCLI would drop in silence.

        The checkpoint is put aside until the classes are made: LightningCLI lets the hyper-parameters in it win over
        YAML and flags.
        """
        super().parse_arguments(parser, args)
        settings = self.config[self.config.subcommand]
        configs = [Path(str(path)) for path in settings.get("config") or []]
        if problem := missing_base(configs):
            raise SettingError(problem)
        texts = [path.read_text() for path in configs]
        for path, text in zip(configs, texts):
            refuse_linked(path, text)
        self.references = environment_references(texts, sys.argv[2:])
        if self.config.subcommand == "fit":
            self.checkpoint = find_resume(settings.run_dir, settings.ckpt_path, self._say, self._first)
            self.resumes = self.checkpoint is not None and settings.ckpt_path in RESUME
        elif settings.ckpt_path:
            self.checkpoint = find_checkpoint(Path(settings.ckpt_path))
        settings.ckpt_path = None

    def before_instantiate_classes(self) -> None:
        settings = self.config[self.subcommand]
        settings.ckpt_path = str(self.checkpoint) if self.checkpoint else None
        self.init_from = settings.model.get("init_from")
        if self.checkpoint:  # it has the weights
            settings.model.pretrained, settings.model.init_from = False, None
        if self.subcommand == "fit":
            self._warn_of_differences(settings)
            self.loggers, settings.trainer.logger = settings.trainer.logger, None  # made when there is a run folder
            return
        self.save_config_callback = None
        if self.checkpoint and self.checkpoint.is_dir():  # sharded, and measured by one strategy or another
            self.whole = tempfile.TemporaryDirectory()
            settings.ckpt_path = str(Path(self.whole.name) / "whole.ckpt")
            torch.save(read_whole(self.checkpoint), settings.ckpt_path)
        if self.checkpoint:
            settings.data.class_names = settings.data.class_names or saved_class_names(self.checkpoint)
        elif not settings.model.pretrained:
            raise SettingError("no weights: give a run, a checkpoint or a published name")
        elif settings.data.class_names is None:
            settings.data.class_names = published_names(settings.model.name, readable=self.subcommand == "predict")

    def after_instantiate_classes(self) -> None:
        """Refuses to measure published weights with a head that is not theirs."""
        theirs, ours = self.model.pretrained_cfg.get("num_classes"), self.model.num_classes
        if self.subcommand != "fit" and not self.checkpoint and theirs != ours:
            raise SettingError(f"data.num_classes is {ours}, but {self.model.name} was published for {theirs} classes")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds what every run has: the run folder, its loggers and callbacks; one process to predict."""
        settings = self.config_init[self.subcommand]
        fits = self.subcommand == "fit"
        callbacks = as_list(settings.trainer.callbacks)
        if not fits and settings.trainer.strategy == "fsdp2":
            settings.trainer.strategy = "auto"  # weights are measured in one piece
        kwargs["strategy"] = find_strategy(settings.trainer, settings.group_timeout)
        sharded = isinstance(kwargs["strategy"], Sharded)
        if fits:
            check_resume(self.checkpoint, sharded)
            if settings.ema.decay:
                refuse_sharded(kwargs["strategy"])
            if settings.checkpoint.save_on_exception:
                raise SettingError(
                    "checkpoint.save_on_exception would save bad steps too; last.ckpt is there without it"
                )
        plugins = as_list(settings.trainer.plugins)
        if self.subcommand == "predict":
            kwargs |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        bar = settings.trainer.enable_progress_bar
        kwargs["enable_progress_bar"] = sys.stdout.isatty() if bar is None else bar
        if not kwargs["enable_progress_bar"]:
            callbacks.append(EpochLines())
        elif not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(Bar())
        if settings.trainer.sync_batchnorm:
            kwargs["sync_batchnorm"] = False
            plugins.append(OctaveSync())
        if not fits or settings.trainer.fast_dev_run:
            kwargs["enable_checkpointing"] = False if not fits else settings.trainer.enable_checkpointing
            callbacks += [StepRandomness(), BrokenCount()] if fits else [EndAtOnce(), BrokenCount()]
            return super().instantiate_trainer(logger=False, callbacks=callbacks, plugins=plugins, **kwargs)
        if not sharded:
            plugins.append(AtomicIO())
        self.run_dir = self._open_run_dir(settings)
        attempt = self.run_dir / "logs" / str(self.attempt)
        settings.checkpoint.dirpath = settings.checkpoint.dirpath or str(self.run_dir)
        self.config[self.subcommand].trainer.logger = self.loggers  # for the saved config
        loggers = run_loggers(self.loggers, self.run_dir, self.attempt)
        callbacks += run_callbacks(settings, self.run_dir, loggers, sharded)
        callbacks.append(Clock(attempt, self.started))
        trainer = super().instantiate_trainer(
            logger=loggers, callbacks=callbacks, plugins=plugins, **kwargs | {"default_root_dir": str(self.run_dir)}
        )
        when = settings.last
        last = LastCheckpoint(self.run_dir, when.every_n_steps, when.every_minutes, settings.group_timeout)
        trainer.callbacks.append(last)  # type: ignore[attr-defined]  # after the best checkpoint's, whose state it saves
        return trainer

    def after_fit(self) -> None:
        """Says what came out."""
        if self.run_dir is not None and self.trainer.is_global_zero:
            some = (self.run_dir / LAST).exists()
            paths = [find_checkpoint(self.run_dir, prefer_last=last) if some else None for last in (False, True)]
            finish(self.run_dir, *paths)

    def _open_run_dir(self, settings: Any) -> Path:
        """The run's folder, made by the first process alone; the others ask it (LastCheckpoint) before they write."""
        name = run_name([Path(str(path)) for path in self.config[self.subcommand].get("config") or []], self.model.name)
        root = Path(settings.trainer.default_root_dir)
        if settings.run_dir:
            run_dir = Path(settings.run_dir)
        else:
            run_dir = new_run_folder(root, name) if self._first else root / name
        if self._first:
            run_dir.mkdir(parents=True, exist_ok=True)
        self.attempt = len(attempts(run_dir))
        self.save_config_kwargs = {"run_dir": run_dir, "attempt": self.attempt, "written": self._as_saved}
        return run_dir

    def _as_saved(self, text: str) -> str:
        """The config as the run folder keeps it: as it was asked for, without the environment's values."""
        content = yaml.safe_load(text)
        content["model"]["init_from"] = self.init_from
        return yaml.safe_dump(with_references(content, self.references), sort_keys=False)

    def _warn_of_differences(self, settings: Any) -> None:
        """Where the config is an earlier run's: in what this machine differs from that run's."""
        for path in settings.get("config") or []:
            papers = Path(str(path)).with_name("environment.json")
            if Path(str(path)).name == CONFIG and papers.is_file() and not self.resumes:
                now = same_bits(count_processes(settings.trainer))
                for difference in differences(json.loads(papers.read_text()), now):
                    self._say(f"warning: not the same bits as {papers.parent}: {difference}")

    @property
    def _first(self) -> bool:
        return rank_zero_only.rank == 0  # type: ignore[attr-defined]

    def _say(self, text: str) -> None:
        if self._first:
            print(text, flush=True)


def run_callbacks(settings: Any, run_dir: Path, loggers: list[Logger], sharded: bool) -> list[pl.Callback]:
    """What every fit with a run folder has, but for the last checkpoint."""
    bad = settings.bad_steps
    found: list[pl.Callback] = [StepRandomness(), BadSteps(run_dir, bad.action, bad.abort_grad_norm)]
    if settings.ema.decay:
        found.append(EMA(settings.ema.decay, settings.ema.warmup))
    if sharded:
        found.append(BuffersOfFirst())
    found += [BrokenCount(run_dir), ImagesPerSecond(), Confusion(run_dir)]
    if loggers:
        found += [LearningRateMonitor("step"), Curves(run_dir)]
    return found


def check_resume(checkpoint: Path | None, sharded: bool) -> None:
    """Raises SettingError for a sharded checkpoint where the weights will not be."""
    if checkpoint is not None and checkpoint.is_dir() and not sharded:
        raise SettingError(
            f"ckpt_path: {checkpoint} is sharded: resume it with --trainer.strategy fsdp2, or start from its weights "
            "with --model.init_from"
        )


def as_list(value: Any) -> list[Any]:
    """None, one or several as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def run_loggers(wanted: Any, run_dir: Path, attempt: int) -> list[Logger]:
    """TensorBoard and CSV into the run folder, then the user's own; none where the user says `logger: false`.

    Each attempt has a CSV of its own: Lightning's logger deletes what it finds.
    """
    if wanted is False:
        return []
    extra = make_loggers(wanted, run_dir)
    csv = CSVLogger(str(run_dir), name="logs", version=str(attempt))
    return [csv, TensorBoardLogger(str(run_dir), name="", version=""), *extra]


def refuse_linked(config: Path, text: str) -> None:
    """Raises SettingError where a YAML sets what the data find out (LightningCLI would ignore it)."""
    content = yaml.safe_load(text) or {}
    for source, target in LINKS.items():
        group, key = target.split(".")
        if key in (content.get(group) or {}):
            raise SettingError(f"{config}: {target} is found by the data; take it out ({source} has it checked)")


def saved_class_names(checkpoint: Path) -> list[str] | None:
    """The class names that a checkpoint of ours was trained with."""
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return saved.get("hyper_parameters", {}).get("class_names")
