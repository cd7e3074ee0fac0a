"""Faults that a run meets in tests: callbacks that `octzoo fit` takes by their path, and runs of the real command."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image

REPOSITORY = Path(__file__).parent.parent
TINY = str(Path(__file__).parent / "tiny.yaml")


class At(pl.Callback):
    """Sends this process a signal in a hook, at an epoch and batch; once, if `once` names a file to remember it by.

    Args:
        hook: train_batch_start, before_backward, train_batch_end, validation_batch_end, train_epoch_start,
            train_epoch_end, save (while a checkpoint is being written)
        number: the signal's; several are sent one after another
        rank: the process that gets it; -1 every one
    """

    def __init__(self, hook: str, epoch: int, batch: int = 0, number: int = 9, rank: int = 0, once: str = "") -> None:
        self.hook, self.epoch, self.batch, self.number, self.rank, self.once = hook, epoch, batch, number, rank, once

    def _meet(self, trainer: pl.Trainer, hook: str, batch: int) -> None:
        if trainer.sanity_checking or (hook, trainer.current_epoch, batch) != (self.hook, self.epoch, self.batch):
            return
        if self.rank not in (-1, trainer.global_rank):
            return
        if self.once:
            if os.path.exists(self.once):
                return
            Path(self.once).touch()
        os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._meet(trainer, "train_batch_start", batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: Any) -> None:
        self._meet(trainer, "before_backward", trainer.fit_loop.epoch_loop.batch_idx)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._meet(trainer, "train_batch_end", batch_idx)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._meet(trainer, "validation_batch_end", batch_idx)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._meet(trainer, "train_epoch_start", 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._meet(trainer, "train_epoch_end", 0)


class KillWriting(pl.Callback):
    """Kills this process while the second epoch's checkpoint is being written."""

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.current_epoch == 1:
            file = Path(trainer.default_root_dir) / ".writing-last.ckpt"
            file.unlink(missing_ok=True)
            threading.Thread(target=self._watch, args=(file,), daemon=True).start()

    def _watch(self, file: Path) -> None:
        while not (file.exists() and file.stat().st_size):
            time.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)


class NotANumber(pl.Callback):
    """Makes the second process's pictures not numbers in the second epoch's first step."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, trainer.global_rank) == (1, 1):
            batch[0].fill_(float("nan"))


class Sleep(pl.Callback):
    """Begins a step that does not end, and says so by a file `sleeping`."""

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: Any) -> None:
        Path("sleeping").touch()
        while True:
            time.sleep(0.1)


class Vanish(pl.Callback):
    """Takes the pictures away as the second epoch begins."""

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.current_epoch == 1:
            Path("pictures").rename("gone")


class SmallDisk(pl.Callback):
    """From the first step on, no file of this process may become larger than 50 kB."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


class Record(pl.Callback):
    """Appends what each training step saw to a file: a digest of the images, then the loss's bits."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        digest = float(batch[0].double().sum())
        with open(f"{self.file}-{trainer.global_rank}", "a") as file:
            file.write(f"{trainer.current_epoch} {batch_idx} {digest.hex()} {float(outputs['loss']).hex()}\n")


class Gradients(pl.Callback):
    """Saves the gradients of the first steps, as all processes have them, to `file`."""

    def __init__(self, file: str, steps: int = 3) -> None:
        self.file, self.steps, self.seen = file, steps, []

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        if trainer.global_step < self.steps and trainer.is_global_zero:
            self.seen.append({name: p.grad.clone() for name, p in module.model.named_parameters()})
            torch.save(self.seen, self.file)


def pictures(root: Path, classes: int = 3, train: int = 9, val: int = 4) -> Path:
    """root/{train,val}/<class>/<n>.png: small pictures of noise around a class's colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for c in range(classes):
            place = root / split / f"class{c}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (20, 20, 3)) + np.eye(3, dtype=int)[c % 3] * 120
                Image.fromarray(pixels.astype("uint8")).save(place / f"{i}.png")
    return root


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "octzoo_cli.py"), *arguments]


def environment(**more: str) -> dict[str, str]:
    """The surroundings of a test's run: one thread, this repository first, and no launcher's variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "LOCAL_RANK", "WORLD_SIZE", "MASTER_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


def start(*arguments: str, folder: Path, **more: str) -> subprocess.Popen[str]:
    """Begins `octzoo *arguments` in a process (and process group) of its own, in `folder`."""
    return subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str]:
    """(exit code, what was said); whatever is left of the process group is killed."""
    try:
        said = process.communicate(timeout=timeout)[0] if process.poll() is None else ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said or process.communicate()[0]


def run(*arguments: str, folder: Path, code: int = 0, **more: str) -> str:
    """Runs `octzoo *arguments`; what it said. Fails if it ends otherwise than with `code`."""
    ended, said = finish(start(*arguments, folder=folder, **more))
    assert ended == code, f"exit code {ended}, not {code}\n{said}"
    return said


def fault(**settings: Any) -> tuple[str, ...]:
    """The arguments that put an At into a run."""
    flags = [f"--trainer.callbacks.{key}={value}" for key, value in settings.items()]
    return "--trainer.callbacks+=tests.faults.At", *flags


def record(file: Path) -> tuple[str, ...]:
    """The arguments that put a Record into a run."""
    return "--trainer.callbacks+=tests.faults.Record", f"--trainer.callbacks.file={file}"


def same(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested values differ by a bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys {a.keys() ^ b.keys()}"]
        return [text for key in a for text in same(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{where}: lengths {len(a)}, {len(b)}"]
        return [text for i, (x, y) in enumerate(zip(a, b)) for text in same(x, y, f"{where}[{i}]")]
    return [] if a == b else [f"{where}: {a!r}, {b!r}"]


def differences(run_dir: Path, other: Path) -> list[str]:
    """Where the last checkpoints of two runs differ by a bit: weights, average, optimizer, schedule, progress."""
    ours, theirs = (torch.load(d / "last.ckpt", weights_only=True) for d in (run_dir, other))
    for checkpoint in (ours, theirs):
        checkpoint["callbacks"] = {}  # they hold paths
    return same(ours, theirs)
