"""octzoo.train.last and stopping, in one process: when last.ckpt is written, and how a run is asked to stop."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from octzoo.train import last
from octzoo.train.checkpoints import AtomicIO
from octzoo.train.last import LastCheckpoint, before_validation
from octzoo.train.stopping import Stopped, StopRequest


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


class Moments(LastCheckpoint):
    """Writes down each save: (epoch, batches of the epoch that are done, updates, whether validating)."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.seen: list[tuple[int, int, int, bool]] = []

    def _save(self, trainer: pl.Trainer) -> None:
        super()._save(trainer)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self.seen.append((trainer.current_epoch, done, trainer.global_step, trainer.validating))


class Ask(pl.Callback):
    """Sends this process a signal in a hook, at an epoch and batch."""

    def __init__(self, hook: str, epoch: int, batch: int = 0, number: int = signal.SIGTERM) -> None:
        def meet(trainer: pl.Trainer, module: Any, data: Any = None, at: int = 0, loader: int = 0) -> None:
            if not trainer.sanity_checking and (trainer.current_epoch, at) == (epoch, batch):
                os.kill(os.getpid(), number)

        setattr(self, hook, meet)


def fit(folder: Path, *callbacks: pl.Callback, module: BoringModel | None = None, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    more = {"max_epochs": 2, "limit_train_batches": 5, "limit_val_batches": 2, "plugins": [AtomicIO()]}
    checkpoint = settings.pop("ckpt_path", None)
    trainer = pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **more, **settings})
    trainer.fit(module or BoringModel(), ckpt_path=checkpoint, weights_only=True)
    return trainer


class TestWhenItSaves:
    def test_before_each_validation_and_at_each_epochs_end(self, tmp_path: Path) -> None:
        saves = Moments(tmp_path)
        fit(tmp_path, saves)
        assert saves.seen == [(0, 5, 5, True), (0, 5, 5, False), (1, 5, 10, True), (1, 5, 10, False)]
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 10

    def test_and_after_so_many_updates_but_an_epochs_last(self, tmp_path: Path) -> None:
        saves = Moments(tmp_path, every_n_steps=2)
        fit(tmp_path, saves, max_epochs=1, limit_train_batches=7, limit_val_batches=0)
        assert [step for _, _, step, _ in saves.seen] == [2, 4, 6, 7]

    def test_never_inside_accumulation(self, tmp_path: Path) -> None:
        saves = Moments(tmp_path, every_n_steps=1)
        fit(tmp_path, saves, max_epochs=1, limit_val_batches=0, accumulate_grad_batches=2)
        assert saves.seen == [(0, 2, 1, False), (0, 4, 2, False), (0, 5, 3, False)]

    def test_or_when_so_much_time_went_by(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A batch takes 20 s: after the fourth, which began a minute after the last save, and at the epoch's end."""
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(last.time, "monotonic", lambda: clock.now)

        class Slow(BoringModel):
            def training_step(self, *step: Any) -> Any:
                clock.now += 20
                return super().training_step(*step)

        saves = Moments(tmp_path, every_minutes=1.0)
        fit(tmp_path, saves, module=Slow(), max_epochs=1, limit_train_batches=8, limit_val_batches=0)
        assert [step for _, _, step, _ in saves.seen] == [4, 8]

    def test_where_validation_follows_it_saves_as_that_begins_and_not_before(self, tmp_path: Path) -> None:
        """A checkpoint written between the update and its validation would be resumed without it."""
        saves = Moments(tmp_path, every_n_steps=1)
        fit(tmp_path, saves, max_epochs=1, limit_train_batches=4, val_check_interval=2)
        assert [(step, validating) for _, _, step, validating in saves.seen] == [
            *((1, False), (2, True), (3, False), (4, True), (4, False))
        ]

    def test_the_sanity_check_saves_nothing(self, tmp_path: Path) -> None:
        saves = Moments(tmp_path)
        fit(tmp_path, saves, max_epochs=1, limit_train_batches=1, num_sanity_val_steps=2)
        assert len(saves.seen) == 2


class TestAskedToStop:
    """The run ends with what it had at the next place where it can be resumed to the same bits."""

    def stopped(
        self, folder: Path, hook: str, epoch: int, batch: int = 0, number: int = 15, **settings: Any
    ) -> Moments:
        saves = Moments(folder)
        with pytest.raises(Stopped) as raised:
            fit(folder, Ask(hook, epoch, batch, number), saves, **settings)
        assert raised.value.exit_code == 128 + number
        return saves

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_inside_an_epoch_after_the_batch(self, number: int, tmp_path: Path) -> None:
        assert self.stopped(tmp_path, "on_train_batch_start", 0, 2, number).seen == [(0, 3, 3, False)]

    def test_inside_accumulation_after_the_update(self, tmp_path: Path) -> None:
        saves = self.stopped(tmp_path, "on_train_batch_start", 0, 2, accumulate_grad_batches=2)
        assert saves.seen == [(0, 4, 2, False)]

    def test_at_an_epochs_last_batch_after_its_validation_begins(self, tmp_path: Path) -> None:
        assert self.stopped(tmp_path, "on_train_batch_start", 0, 4).seen == [(0, 5, 5, True)]

    def test_or_without_validation_after_the_epoch(self, tmp_path: Path) -> None:
        assert self.stopped(tmp_path, "on_train_batch_start", 0, 4, limit_val_batches=0).seen == [(0, 5, 5, False)]

    def test_during_validation_at_once(self, tmp_path: Path) -> None:
        ended: list[int] = []

        class Counts(BoringModel):
            def validation_step(self, batch: Any, batch_idx: int) -> Any:
                ended.append(batch_idx)
                return super().validation_step(batch, batch_idx)

        settings: dict[str, Any] = {"num_sanity_val_steps": 0, "limit_val_batches": 5}
        saves = self.stopped(tmp_path, "on_validation_batch_start", 1, 1, module=Counts(), **settings)
        assert saves.seen[-1] == (1, 5, 10, True)
        assert ended == [0, 1, 2, 3, 4, 0, 1]
        del ended[:]
        fit(tmp_path, Moments(tmp_path), module=Counts(), ckpt_path=tmp_path / "last.ckpt", **settings)
        assert ended == [0, 1, 2, 3, 4]  # it is done again from its start, and nothing is trained twice

    def test_at_the_end_of_an_epoch_as_the_next_would_start(self, tmp_path: Path) -> None:
        assert self.stopped(tmp_path, "on_train_epoch_end", 0).seen[-1] == (0, 5, 5, False)

    def test_at_the_end_of_the_last_epoch_it_has_ended(self, tmp_path: Path) -> None:
        saves = Moments(tmp_path)
        fit(tmp_path, Ask("on_train_epoch_end", 1), saves)
        assert saves.seen[-1] == (1, 5, 10, False)

    def test_all_that_is_left_is_done_by_the_resumed_run(self, tmp_path: Path) -> None:
        steps: list[tuple[int, int]] = []

        class Counts(BoringModel):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                steps.append((self.current_epoch, self.global_step))
                return super().training_step(batch, batch_idx)

        self.stopped(tmp_path, "on_train_batch_start", 0, 2, module=Counts(), limit_val_batches=0)
        saved = tmp_path / "last.ckpt"
        fit(tmp_path, Moments(tmp_path), module=Counts(), ckpt_path=saved, limit_val_batches=0)
        assert steps == [(step // 5, step) for step in range(10)]

    def test_the_signals_are_given_back_after_a_fit(self, tmp_path: Path) -> None:
        former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        fit(tmp_path, Moments(tmp_path))
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == former


class TestRequest:
    def kill(self, *numbers: int) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    def test_nobody_asked(self) -> None:
        request = StopRequest()
        request.install()
        request.ask()
        assert not request.agreed()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_is_a_request(self, number: int) -> None:
        request = StopRequest()
        request.install()
        self.kill(number)
        request.ask()
        assert request.agreed()
        assert request.agreed()  # and stays one
        assert request.signum == number

    def test_a_second_ctrl_c_ends_at_once_a_second_sigterm_does_not(self) -> None:
        request = StopRequest()
        request.install()
        self.kill(signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            self.kill(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_sigterm_after_a_ctrl_c_does_not_either(self) -> None:
        request = StopRequest()
        request.install()
        self.kill(signal.SIGINT, signal.SIGTERM)
        assert request.agreed()

    def test_it_takes_the_signals_again_and_gives_them_back_to_the_first(self) -> None:
        first: Callable[..., None] = lambda *_: None  # noqa: E731
        signal.signal(signal.SIGTERM, first)
        request = StopRequest()
        request.install()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Lightning takes it between two hooks
        request.install()
        self.kill(signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        request.restore()
        assert signal.getsignal(signal.SIGTERM) is first
        request.restore()

    def test_what_is_said(self, tmp_path: Path) -> None:
        last = tmp_path / "my run" / "last.ckpt"
        assert str(Stopped(signal.SIGTERM, last)) == "stopped by SIGTERM; nothing was trained yet"
        last.parent.mkdir()
        last.touch()
        stopped = Stopped(signal.SIGTERM, last)
        again = f"octzoo fit --run_dir '{last.parent}' --ckpt_path last"
        assert str(stopped) == f"stopped by SIGTERM; to resume: {again}"
        assert (stopped.exit_code, Stopped(signal.SIGINT, Path("x")).exit_code) == (143, 130)
        assert not isinstance(stopped, Exception)  # no handler of errors takes it


def test_progress_before_validation_is_a_copy_that_lightning_takes_up() -> None:
    place = "epoch_loop.val_loop.batch_progress"
    counts = {"ready": 4, "started": 4, "processed": 3, "completed": 3}
    loop = {"state": {"a": [1]}, place: {"total": dict(counts), "current": dict(counts), "is_last_batch": True}}
    changed = before_validation(loop)
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    assert changed == {"state": {"a": [1]}, place: {"total": begun, "current": begun, "is_last_batch": False}}
    assert loop[place] == {"total": counts, "current": counts, "is_last_batch": True}
