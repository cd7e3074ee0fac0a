"""Which class is taken for which: counts, the table with names, the picture."""

import csv
import io
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch._subclasses import FakeTensorMode
from torchmetrics.classification import MulticlassConfusionMatrix

from octzoo.train import confusion
from octzoo.train.confusion import Confusion, as_csv, count, draw_confusion, most_confused, short


@given(classes=st.integers(2, 12), batch=st.integers(0, 40))
def test_counts_are_torchmetrics(classes: int, batch: int) -> None:
    logits, targets = torch.randn(batch, classes), torch.randint(classes, (batch,))
    counts = torch.zeros(classes, classes, dtype=torch.long)
    count(counts, logits, targets)
    theirs = MulticlassConfusionMatrix(classes)
    if batch:
        theirs.update(logits, targets)
        assert counts.equal(theirs.compute())
    assert counts.sum() == batch


def test_counting_never_waits_for_the_device() -> None:
    """It works on tensors that have no values; what must see one raises there, as torch.bincount does."""
    with FakeTensorMode():
        counts, cells = torch.zeros(5, 5, dtype=torch.long), torch.zeros(8, dtype=torch.long)
        count(counts, torch.zeros(8, 5), cells)
        with pytest.raises(Exception, match="bincount|data-dependent"):
            torch.bincount(cells, minlength=25)


def test_the_table_has_true_classes_in_rows_and_all_of_them() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(np.array([[3, 1], [0, 2]]), ['a "cat", one', "dog"]))))
    assert rows == [["true \\ predicted", 'a "cat", one', "dog"], ['a "cat", one', "3", "1"], ["dog", "0", "2"]]


def test_the_most_confused_pairs_are_mistakes_only_most_frequent_first() -> None:
    counts = np.array([[9, 0, 4], [2, 9, 0], [0, 7, 9]])
    assert most_confused(counts) == [(2, 1, 7), (0, 2, 4), (1, 0, 2)]
    assert most_confused(counts, number=1) == [(2, 1, 7)]
    assert counts[0, 0] == 9  # the counts stay as they were


@pytest.mark.parametrize("classes", [2, 10, 50, 51, 200])
def test_every_number_of_classes_has_its_picture(classes: int, tmp_path: Path) -> None:
    counts = 20 * np.eye(classes, dtype=int)
    counts[0, 1] = 3
    counts[1] = 0  # a class without pictures
    draw_confusion(counts, [f"${i}_$ 漢 {'x' * 40}" for i in range(classes)], "validation", tmp_path / "c.png")
    assert max(Image.open(tmp_path / "c.png").size) <= 2000


def test_names_and_figures_are_in_the_picture(tmp_path: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(confusion, "replace_picture", lambda path, figure: drawn.append(figure))
    counts = np.array([[3, 1], [0, 4]])
    draw_confusion(counts, ["cat", "dog"], "validation of epoch 7", tmp_path / "c.png")
    axes = drawn[0].axes[0]
    assert axes.get_title() == "validation of epoch 7: 7 of 8 right (87.50 %)"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["cat", "dog"]
    assert {text.get_text() for text in axes.texts} == {"75", "25", "100"}


def test_above_50_classes_the_picture_is_of_the_30_most_confused_pairs(tmp_path: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(confusion, "replace_picture", lambda path, figure: drawn.append(figure))
    counts = 100 * np.eye(60, dtype=int) + np.arange(3600).reshape(60, 60) % 7
    counts[8, 5] = 50
    draw_confusion(counts, [f"class {i}" for i in range(60)], "validation", tmp_path / "c.png")
    labels = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]
    assert len(labels) == 30
    assert labels[0] == "class 8  taken for  class 5"
    assert drawn[0].axes[0].texts[0].get_text().startswith("50 (")


def test_a_long_name_is_cut() -> None:
    assert short("a\nname  of\twords") == "a name of words"
    assert len(short("x" * 100)) == 28


class Guess(pl.LightningModule):
    """Takes every picture for a cat, from the third epoch on for a dog; the pictures are of both by turns."""

    class_names = ("cat", "dog")

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        return {"logits": torch.tensor([[0.0, self.current_epoch - 1.5]]).expand(len(batch), 2), "targets": batch % 2}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(run: Path, **settings) -> Confusion:
    loader = torch.utils.data.DataLoader(torch.arange(7), batch_size=3)
    watching = Confusion(run)
    trainer = pl.Trainer(
        default_root_dir=str(run),
        accelerator="cpu",
        logger=False,
        callbacks=[watching],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(Guess(), loader, loader)
    return watching


def test_after_training_the_last_validation_is_there_alone(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=3)  # the third is within 20 s of the first, and written all the same, with its own counts
    assert (tmp_path / "confusion.csv").read_text() == "true \\ predicted,cat,dog\ncat,0,4\ndog,0,3\n"
    assert Image.open(tmp_path / "confusion.png").format == "PNG"


def test_the_sanity_check_is_not_counted(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=1, limit_train_batches=1, check_val_every_n_epoch=2)
    assert list(tmp_path.iterdir()) == []


def test_too_many_classes_are_not_counted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(confusion, "MOST_CLASSES", 1)
    fit(tmp_path, max_epochs=1)
    assert list(tmp_path.iterdir()) == []
