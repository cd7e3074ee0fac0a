"""The progress bar: what it shows, and that the steps between two looks cost nothing."""

import io
import mmap
import os
import re

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from rich.console import Console

from octzoo.train import bar
from octzoo.train.bar import Bar, left_text, memory_text, resident_bytes


@pytest.mark.parametrize(
    ("spent", "done", "to_do", "text"),
    [
        (60, 10, 30, "run 0:03:00"),
        (3600, 1, 30, "run 1 day, 6:00:00"),
        (60, 10, 0, "run 0:00:00"),
        (60, 0, 30, ""),  # nothing is known yet
        (60, 10, float("inf"), ""),  # a run without an end
    ],
)
def test_a_run_goes_on_as_it_went(spent: float, done: int, to_do: float, text: str) -> None:
    assert left_text(spent, done, to_do) == text


def test_memory_is_what_the_process_has() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 100_000_000) as held:
        for page in range(0, len(held), 4096):
            held[page] = 1
        assert 90e6 < resident_bytes() - before < 150e6
    assert re.fullmatch(r"\d+\.\d GB", memory_text(torch.device("cpu")))


class Steps(BoringModel):
    """Logs to the bar; 64 batches of 5 pictures an epoch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("loss", loss, prog_bar=True)
        return loss

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(320, 32)), batch_size=5)

    def forward(self, x):
        return super().forward(x[0] if isinstance(x, list) else x)


def fit(watching: Bar, monkeypatch, width: int = 80, epochs: int = 2) -> str:
    """What the terminal was sent, as text."""
    sent = io.StringIO()
    console = Console(file=sent, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress.get_console", lambda: console)
    trainer = pl.Trainer(
        max_epochs=epochs,
        limit_val_batches=3,
        accelerator="cpu",
        logger=False,
        callbacks=[watching],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Steps())
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent.getvalue())


def test_80_columns_hold_the_facts_in_one_line_and_the_figures_below(monkeypatch) -> None:
    lines = fit(Bar(refresh_rate=1000), monkeypatch).splitlines()
    facts = re.compile(r"Epoch 1/1 +━+ 64/64 [\d,]+ images/s  \d\.\d GB  left 0:00:00  run 0:00:00")
    last = max(i for i, line in enumerate(lines) if facts.match(line))
    assert re.fullmatch(r" +loss=\d\.\d{3} *", lines[last + 1])
    assert max(map(len, lines)) <= 80


def test_an_epoch_is_seen_to_its_end_however_seldom_one_looks(monkeypatch) -> None:
    looks = []
    monkeypatch.setattr(bar, "memory_text", lambda device: looks.append(1) or "0.0 GB")
    text = fit(Bar(refresh_rate=1), monkeypatch)
    assert "64/64" in text
    # the first step, the last of each epoch, that of each validation (two, and the sanity check's); perhaps one more
    assert 4 <= len(looks) <= 7


def test_between_two_looks_no_figure_is_read(monkeypatch) -> None:
    """Reading one waits for the GPU."""
    reads = []
    watching = Bar(refresh_rate=1)
    monkeypatch.setattr(watching, "get_metrics", lambda *_: reads.append(1) or {})
    fit(watching, monkeypatch, epochs=1)
    assert len(reads) <= 5  # of 64 steps


def test_a_disabled_bar_says_nothing(monkeypatch) -> None:
    assert "Epoch" not in fit(Bar(refresh_rate=0), monkeypatch)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc, which Linux alone has")
def test_where_the_system_does_not_tell_it_is_the_most_there_was(monkeypatch) -> None:
    def nothing(*_):
        raise OSError

    now = resident_bytes()
    monkeypatch.setattr("builtins.open", nothing)
    assert resident_bytes() >= 0.9 * now
