"""octzoo.data.loading: what becomes of a picture that does not decode, and of the processes that read."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from octzoo.data.loading import MOST_IN_A_ROW, UNREADABLE, Broken, Item, Loader, Prepared, collate
from octzoo.data.order import EvalBatches, Sample, TrainBatches, epoch_order
from octzoo.data.sources import Pictures, SettingError
from octzoo.errors import RunError
from tests import faults

NAMES = ["a", "b", "c"]


class Some(torch.utils.data.Dataset):
    """`count` pictures whose pixels tell their index; those of `broken` raise what Pillow raises, each in its turn."""

    def __init__(self, count: int, broken: Sequence[int] = (), meet: Callable[[int], Any] = hash) -> None:
        self.count, self.broken, self.meet = count, broken, meet

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.meet(index)
        if index in self.broken:
            raise UNREADABLE[self.broken.index(index) % len(UNREADABLE)](f"no picture {index}")
        return Image.new("L", (1, 1), index), index % 3


def value(image: Image.Image) -> Tensor:
    """float [3, 1, 1]: a picture's index, a random number, 0."""
    return torch.tensor([image.getpixel((0, 0))[0], float(torch.rand(())), 0.0]).view(3, 1, 1)  # type: ignore[index]


def prepared(count: int, broken: Sequence[int] = (), meet: Any = hash, fate: Any = "fail", **settings: Any) -> Prepared:
    dataset = Some(count, broken, meet)
    pictures = Pictures(dataset, NAMES, list, "{}.png".format)
    return Prepared(pictures, range(count), NAMES, value, broken=fate, **settings)


def training(count: int, broken: Sequence[int], size: int = 4, rank: int = 0, world: int = 1, workers: int = 0, **more):
    dataset = prepared(count, broken, **{"seed": 2, "fate": "replace", **more})
    sampler = TrainBatches(count, size, 2, rank, world, more.get("repeats", 1))
    return Loader(dataset, "take another", batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def evaluation(count: int, broken: Sequence[int], size: int = 4, fate: str = "skip", workers: int = 0) -> Loader:
    dataset = prepared(count, broken, fate=fate)
    return Loader(dataset, "REMEDY", batch_sampler=EvalBatches(count, size), num_workers=workers)


def indices(loader: Loader) -> list[list[int]]:
    return [images[:, 0, 0, 0].int().tolist() for images, _ in loader]


class TestReplacing:
    broken = (1, 5, 6, 7, 20, 21, 22)

    @pytest.mark.parametrize("repeats", [1, 2])
    def test_a_broken_picture_is_replaced_by_that_of_the_next_position_that_decodes(self, repeats: int) -> None:
        order = epoch_order(24, 2, 3, repeats).tolist()
        dataset = prepared(24, self.broken, seed=2, fate="replace", repeats=repeats)
        for position, index in enumerate(order):
            item = dataset[Sample(3, position, index)]
            walk = order[position:] + order  # the order goes round
            expected = next(i for i in walk if i not in self.broken)
            assert item.image is not None
            assert item.image[0].item() == expected
            assert item.target == expected % 3
            met = walk[: walk.index(expected)]
            assert [(note.epoch, note.position, note.name, note.fatal) for note in item.broken] == [
                (3, position, f"{i}.png", False) for i in met
            ]

    def test_the_note_says_what_pillow_said(self) -> None:
        order = epoch_order(24, 2, 0).tolist()
        item = prepared(24, [7], seed=2, fate="replace")[Sample(0, order.index(7), 7)]
        assert item.broken == (Broken(0, order.index(7), "7.png", "OSError: no picture 7"),)

    def test_a_replacement_has_the_random_numbers_of_the_position_that_it_fills(self) -> None:
        order = epoch_order(24, 2, 0).tolist()
        place = order.index(7)
        for dataset in (prepared(24, [7], seed=2, fate="replace"), prepared(24, seed=2)):
            image = dataset[Sample(0, place, 7)].image
            torch.rand(5)
            assert image is not None
            assert image[1] == prepared(24, seed=2)[Sample(0, place, 3)].image[1]  # type: ignore[index]

    def test_it_is_the_same_for_any_number_of_processes_and_workers(self) -> None:
        def steps(world: int, workers: int) -> tuple[list[Tensor], list[Broken]]:
            loaders = [training(24, self.broken, 8 // world, rank, world, workers) for rank in range(world)]
            images = [torch.stack([i for i, _ in parts], 1).flatten(0, 1) for parts in zip(*loaders)]
            return images, sorted(note for loader in loaders for note in loader.broken)

        expected, notes = steps(1, 0)
        assert {note.name for note in notes} == {f"{i}.png" for i in self.broken}
        for world, workers in ((2, 0), (1, 2), (2, 1), (4, 0)):
            found, theirs = steps(world, workers)
            assert theirs == notes
            assert all(torch.equal(a, b) for a, b in zip(found, expected))
            assert len(found) == len(expected)

    def test_notes_gather_until_they_are_taken(self) -> None:
        loader = training(24, self.broken)
        indices(loader)
        once, loader.broken = loader.broken, []
        indices(loader)
        assert loader.broken == once

    def test_to_fail_ends_the_run_and_names_the_picture_and_the_remedy(self) -> None:
        with pytest.raises(SettingError) as raised:
            indices(training(24, [5], fate="fail"))
        assert str(raised.value) == "5.png does not decode (OSError: no picture 5); take another"

    def test_a_hundred_in_a_row_end_the_run(self) -> None:
        order = epoch_order(150, 2, 0).tolist()
        almost = prepared(150, order[: MOST_IN_A_ROW - 1], seed=2, fate="replace")[Sample(0, 0, order[0])]
        assert almost.image is not None
        assert len(almost.broken) == MOST_IN_A_ROW - 1 == 99
        loader = training(150, order[:MOST_IN_A_ROW], size=1)
        with pytest.raises(SettingError) as raised:
            next(iter(loader))
        last = order[99]
        error = UNREADABLE[99 % len(UNREADABLE)].__name__
        assert str(raised.value) == (
            f"{last}.png does not decode ({error}: no picture {last}; 100 in a row: are the data still there?); "
            "take another"
        )
        assert len(loader.broken) == 100
        assert [note.fatal for note in loader.broken] == [False] * 99 + [True]

    def test_a_root_that_is_not_there_any_more_ends_the_run_also_with_fewer_pictures(self) -> None:
        with pytest.raises(SettingError, match="100 in a row: are the data still there?"):
            indices(training(8, range(8)))

    def test_only_what_pillow_raises_is_a_broken_picture(self) -> None:
        def bug(index: int) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            prepared(4, meet=bug, seed=2, fate="replace")[Sample(0, 0, 0)]


class TestSkipping:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_batches_are_short_and_also_empty(self, workers: int) -> None:
        loader = evaluation(12, [1, 4, 5, 6, 7, 10], workers=workers)
        batches = [(images.shape[0], targets.tolist()) for images, targets in loader]
        assert batches == [(3, [0, 2, 0]), (0, []), (3, [2, 0, 2])]
        assert [(note.name, note.fatal) for note in loader.broken] == [(f"{i}.png", False) for i in (1, 4, 5, 6, 7, 10)]

    def test_an_empty_batch_is_of_images_all_the_same(self) -> None:
        images, targets, _ = collate([Item(None, -1), Item(None, -1)])
        assert (images.ndim, images.shape[:2], targets.shape, targets.dtype) == (4, (0, 3), (0,), torch.long)
        assert collate([])[0].shape == images.shape

    def test_to_fail_names_the_picture_and_the_remedy(self) -> None:
        with pytest.raises(SettingError) as raised:
            indices(evaluation(12, [5], fate="fail"))
        assert str(raised.value) == "5.png does not decode (SettingError: no picture 5); REMEDY".replace(
            "SettingError", UNREADABLE[0].__name__
        )

    def test_pictures_that_decode_draw_no_random_numbers_of_ours(self) -> None:
        torch.manual_seed(1)
        state = torch.get_rng_state()
        dataset = prepared(4)
        dataset.transform = lambda image: torch.zeros(3, 1, 1)
        dataset[Sample(0, 0, 0)]
        assert torch.equal(torch.get_rng_state(), state)


def test_classes_are_numbered_as_the_network_numbers_them() -> None:
    dataset = prepared(6)
    dataset = Prepared(dataset.pictures, [4, 0, 5], ["c", "x", "a", "b"], value)
    assert [dataset[Sample(0, i, i)].target for i in range(3)] == [3, 2, 0]
    assert [dataset.name(i) for i in range(3)] == ["4.png", "0.png", "5.png"]


def test_a_dataset_reaches_another_process_by_pickle() -> None:
    dataset = Prepared(Pictures(Some(24, (5,), print), NAMES, list, str), range(24), NAMES, value, 2, 1, "replace")
    place = epoch_order(24, 2, 1).tolist().index(5)
    assert dataset[Sample(1, place, 5)].broken  # its order is computed
    again = pickle.loads(pickle.dumps(dataset))
    for ours, theirs in zip(dataset[Sample(1, place, 5)], again[Sample(1, place, 5)]):
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def test_processes_that_persist_see_every_new_epoch() -> None:
    here, there = training(24, [3]), training(24, [3], workers=2)
    for epoch in range(3):
        for loader in (here, there):
            loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        batches = [[images for images, _ in loader] for loader in (here, there)]
        assert all(torch.equal(a, b) for a, b in zip(*batches))
        assert here.broken == there.broken
        assert here.broken[-1].epoch == epoch


DIED = (
    "; often memory ran out: lower data.num_workers or data.batch_size; the run continues from its last checkpoint "
    "with --ckpt_path last"
)


def test_a_reading_process_that_is_killed_is_one_clear_error() -> None:
    def killed(index: int) -> None:
        if index == 9:
            time.sleep(0.3)  # what was read before is handed on
            os.kill(os.getpid(), signal.SIGKILL)

    loader = Loader(prepared(12, meet=killed), "", batch_sampler=EvalBatches(12, 2), num_workers=2)
    with pytest.raises(RunError) as raised:
        indices(loader)
    text = str(raised.value)
    assert raised.value.exit_code == 1
    assert text.startswith("a process that reads pictures died (DataLoader worker (pid")
    assert "\n" not in text
    assert text.endswith(f"){DIED}")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "no socket")])
def test_also_where_it_dies_as_it_hands_a_batch_on(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's memory is asked of the process that made it; what Python says where that is gone."""

    def handing_on(self: Any, timeout: float = 5) -> None:
        raise error

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data", handing_on)
    with pytest.raises(RunError) as raised:
        indices(Loader(prepared(12), "", batch_sampler=EvalBatches(12, 2), num_workers=2))
    assert str(raised.value).startswith("a process that reads pictures died (")
    assert str(raised.value).endswith(DIED)


def test_an_error_of_the_one_that_reads_on_is_its_own() -> None:
    batches = iter(evaluation(4, []))
    next(batches)
    with pytest.raises(RuntimeError, match="^mine$"):
        batches.throw(RuntimeError("mine"))  # type: ignore[attr-defined]


def refuse(image: Image.Image) -> Tensor:
    raise SettingError("data.augment: not with these pictures (OSError: no reason)")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_setting_that_cannot_work_is_said_as_it_was_in_whatever_process(workers: int) -> None:
    pictures = Pictures(Some(4), NAMES, list)
    dataset = Prepared(pictures, range(4), NAMES, refuse)
    with pytest.raises(SettingError) as raised:
        indices(Loader(dataset, "", batch_sampler=EvalBatches(4, 2), num_workers=workers))
    assert str(raised.value) == "data.augment: not with these pictures (OSError: no reason)"


# A parent that reads with two processes: argv: what the parent does at the end, and the start method
SCRIPT = """
import multiprocessing, os, signal, sys, time
import torch
from octzoo.data.loading import Loader
from octzoo.data.order import TrainBatches
sys.path.insert(0, {here!r})
from test_loading import prepared, Slow

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    end, method = sys.argv[1:]
    multiprocessing.set_start_method(method)
    dataset = prepared(12, meet=Slow({pids!r}), seed=2, fate="replace")
    loader = Loader(dataset, "", batch_sampler=TrainBatches(12, 2, 2), num_workers={workers}, persistent_workers=True)
    batches = iter(loader)
    seen = [next(batches)]
    for pid in os.listdir({pids!r}):
        os.kill(int(pid), signal.SIGTERM)
        os.kill(int(pid), signal.SIGINT)
    seen += list(batches)
    print(sorted(int(i) for images, _ in seen for i in images[:, 0, 0, 0]), flush=True)
    batches = iter(loader)  # they are reading as the parent leaves
    next(batches)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "interrupt":
        raise KeyboardInterrupt
"""


class Slow:
    """Writes this process's number down in a folder, and takes 20 ms."""

    def __init__(self, pids: str) -> None:
        self.pids = pids

    def __call__(self, index: int) -> None:
        Path(self.pids, str(os.getpid())).touch()
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes there are")
@pytest.mark.parametrize(
    ("end", "method", "code"),
    [pytest.param("return", "spawn", 0, marks=pytest.mark.slow), ("kill", "fork", -9), ("interrupt", "fork", -2)],
)
def test_reading_processes_outlive_signals_and_end_with_the_one_they_read_for(
    end: str, method: str, code: int, tmp_path: Path
) -> None:
    """All get SIGTERM and SIGINT, as a scheduler or a terminal sends them; every picture is read all the same."""
    pids, script = tmp_path / "pids", tmp_path / "script.py"
    pids.mkdir()
    workers = 1 if method == "spawn" else 2
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent), pids=str(pids), workers=workers))
    started = subprocess.run(
        [sys.executable, str(script), end, method],
        env=faults.environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = started.stdout + started.stderr
    assert str(list(range(12))) in started.stdout.splitlines(), said
    assert started.returncode == code, said
    assert "Exception ignored" not in said
    readers = [int(p.name) for p in pids.iterdir()]
    assert len(readers) == workers
    until = time.monotonic() + (12 if end == "kill" else 0.5)  # PyTorch looks every 5 s whether the parent is there
    while any(map(alive, readers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, readers)), said
