"""octzoo.data.order: which picture comes when, and with which random numbers."""

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from octzoo.data.loading import Loader, Prepared
from octzoo.data.order import EvalBatches, Sample, TrainBatches, epoch_order, mix, run_seed, seed_everywhere
from octzoo.data.sources import Pictures

counts = st.integers(0, 120)
sizes = st.integers(1, 7)
worlds = st.integers(1, 4)
repeat = st.integers(1, 4)


def processes(count: int, batch_size: int, world: int, seed: int = 0, **more: Any) -> list[TrainBatches]:
    return [TrainBatches(count, batch_size, seed, rank, world, **more) for rank in range(world)]


def positions(batches: Sequence[Sequence[Sample]]) -> list[int]:
    return [sample.position for batch in batches for sample in batch]


class TestOrder:
    @given(counts, st.integers(0, 5), st.integers(0, 5))
    def test_an_epoch_has_every_index_once(self, count: int, seed: int, epoch: int) -> None:
        assert sorted(epoch_order(count, seed, epoch).tolist()) == list(range(count))

    def test_it_is_a_function_of_seed_and_epoch(self) -> None:
        orders = {(seed, epoch): tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
        assert len(set(orders.values())) == 25  # also not that of seed + epoch
        assert all(tuple(epoch_order(50, *place)) == order for place, order in orders.items())

    @given(st.integers(1, 120), repeat, st.integers(0, 3))
    def test_with_repeats_each_comes_so_often_in_a_row_and_the_epoch_is_no_longer(self, count, repeats, epoch) -> None:
        order, once = epoch_order(count, 1, epoch, repeats), epoch_order(count, 1, epoch)
        assert len(order) == count
        assert [order[p] for p in range(count)] == [once[p // repeats] for p in range(count)]


class TestTrainBatches:
    @given(st.integers(1, 120), sizes, worlds, repeat)
    def test_the_processes_share_the_positions_and_lose_the_last_incomplete_global_batch_only(
        self, count: int, size: int, world: int, repeats: int
    ) -> None:
        shares = [positions(list(share)) for share in processes(count, size, world, repeats=repeats)]
        whole = count // (size * world) * size * world
        assert sorted(chain.from_iterable(shares)) == list(range(whole))

    @given(st.integers(1, 120), sizes, worlds, repeat, st.integers(0, 3))
    def test_together_their_batches_are_those_of_one_process(self, count, size, world, repeats, epoch) -> None:
        alone = TrainBatches(count, size * world, 5, repeats=repeats)
        shares = processes(count, size, world, seed=5, repeats=repeats)
        for sampler in (alone, *shares):
            sampler.set_epoch(epoch)
        order = epoch_order(count, 5, epoch, repeats)
        for number, batch in enumerate(alone):
            assert batch == [
                Sample(epoch, p, order[p]) for p in range(number * size * world, (number + 1) * size * world)
            ]
        for rank, share in enumerate(shares):
            assert list(share) == [batch[rank::world] for batch in alone]
            assert len(share) == len(alone) == len(list(alone))

    @given(st.integers(1, 120), sizes, worlds, st.integers(0, 3))
    def test_a_batch_can_be_asked_for_by_number(self, count: int, size: int, world: int, epoch: int) -> None:
        for sampler in processes(count, size, world, repeats=2):
            sampler.set_epoch(epoch)
            assert [sampler.batch(epoch, number) for number in range(len(sampler))] == list(sampler)

    @given(st.integers(1, 120), sizes, worlds, st.integers(0, 20))
    def test_what_a_resumed_run_has_had_is_left_out_and_the_length_stays(self, count, size, world, done) -> None:
        for whole, rest in zip(processes(count, size, world), processes(count, size, world, done=lambda: done)):
            assert list(rest) == list(whole)[done:]
            assert len(rest) == len(whole)

    def test_done_is_asked_as_an_epoch_begins(self) -> None:
        had = [2, 0]
        sampler = TrainBatches(10, 2, 0, done=lambda: had.pop(0))
        assert [len(list(sampler)) for _ in range(2)] == [3, 5]

    def test_lightning_finds_set_epoch(self) -> None:
        sampler = TrainBatches(10, 2, 0)
        sampler.sampler.set_epoch(7)
        assert {sample.epoch for batch in sampler for sample in batch} == {7}
        assert positions(list(sampler)) == list(range(10))

    def test_another_seed_or_epoch_is_another_order(self) -> None:
        def indices(seed: int, epoch: int) -> list[int]:
            sampler = TrainBatches(40, 4, seed)
            sampler.set_epoch(epoch)
            return [sample.index for batch in sampler for sample in batch]

        assert indices(0, 0) == indices(0, 0)
        assert len({tuple(indices(*place)) for place in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


class TestEvalBatches:
    @given(counts, sizes, worlds)
    def test_every_picture_once(self, count: int, size: int, world: int) -> None:
        shares = [EvalBatches(count, size, rank, world) for rank in range(world)]
        samples = [sample for share in shares for batch in share for sample in batch]
        assert sorted(samples) == [Sample(0, i, i) for i in range(count)]

    @given(counts, sizes, worlds)
    def test_equally_many_batches_in_each_process_none_too_large_or_unlike(self, count, size, world) -> None:
        shares = [list(EvalBatches(count, size, rank, world)) for rank in range(world)]
        assert {len(share) for share in shares} == {len(EvalBatches(count, size, 0, world))}
        lengths = [len(batch) for share in shares for batch in share]
        assert max(lengths, default=0) <= size
        assert max(lengths, default=0) - min(lengths, default=0) <= 1

    def test_one_process_has_as_many_batches_as_it_needs(self) -> None:
        assert [len(EvalBatches(count, 4)) for count in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]

    def test_with_fewer_pictures_than_processes_some_batches_are_empty(self) -> None:
        assert [list(EvalBatches(2, 8, rank, 3)) for rank in range(3)] == [[[(0, 0, 0)]], [[(0, 1, 1)]], [[]]]


class TestMix:
    def test_no_two_of_a_grid_are_the_same(self) -> None:
        grid = [(s, e, p) for s in range(6) for e in range(20) for p in range(500)]
        shorter = [(e, p) for e in range(60) for p in range(60)] + [(p,) for p in range(1000)] + [()]
        hashes = [mix(*numbers) for numbers in grid + shorter]
        assert len(set(hashes)) == len(hashes)
        assert all(0 <= h < 1 << 64 for h in hashes)

    def test_nor_are_their_lower_halves_that_numpy_takes(self) -> None:
        """One in 4 billion pairs may meet: of 100 million pairs none does here."""
        hashes = [mix(0, 1, p) & 0xFFFFFFFF for p in range(14000)]
        assert len(hashes) - len(set(hashes)) <= 1

    def test_neighbours_differ_in_half_the_bits(self) -> None:
        for place in range(3):
            flips = []
            for numbers in np.ndindex(8, 8, 8):
                next_one = [n + (i == place) for i, n in enumerate(numbers)]
                flips.append((mix(*next_one) ^ mix(*numbers)).bit_count())
            assert 31 < np.mean(flips) < 33

    def test_order_counts(self) -> None:
        assert mix(1, 2) != mix(2, 1)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeding_reaches_python_numpy_and_torch() -> None:
    seed_everywhere(1, 2, 3)
    first = draws()
    draws()
    seed_everywhere(1, 2, 3)
    assert draws() == first
    seed_everywhere(1, 2, 4)
    assert all(a != b for a, b in zip(draws(), first))


def test_the_runs_seed_is_lightnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert run_seed() == 17
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert run_seed() == 0


class Noise(torch.utils.data.Dataset):
    """12 pictures of noise, that all look different."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype="uint8")
        return Image.fromarray(pixels), index % 3


def prepared(**settings: Any) -> Prepared:
    """With timm's augmentation by Python's, numpy's and torch's random numbers."""
    pictures = Pictures(Noise(), ["a", "b", "c"], lambda: [i % 3 for i in range(12)])
    transform = create_transform(16, is_training=True, auto_augment="rand-m9-mstd0.5", re_prob=0.5, re_mode="pixel")
    return Prepared(pictures, range(12), ["a", "b", "c"], transform, **{"seed": 4, **settings})


def seen(batch_size: int, world: int, workers: int, repeats: int = 1, epochs: Sequence[int] = (0, 1)) -> list:
    """For each epoch the (images [world * batch_size, 3, 16, 16], targets) of each step, in order of the positions."""
    steps = []
    samplers = processes(12, batch_size, world, seed=4, repeats=repeats)
    loaders = [
        Loader(prepared(repeats=repeats), "", batch_sampler=s, num_workers=workers, persistent_workers=workers > 0)
        for s in samplers
    ]
    for epoch in epochs:
        for sampler in samplers:
            sampler.set_epoch(epoch)
        for parts in zip(*loaders):
            images, targets = (torch.stack(kind, dim=1).flatten(0, 1) for kind in zip(*parts))
            steps.append((images, targets))
    return steps


@pytest.mark.parametrize("repeats", [1, 3])
def test_augmented_pictures_are_the_same_bits_for_any_number_of_processes_and_workers(repeats: int) -> None:
    expected = seen(4, world=1, workers=0, repeats=repeats)
    assert len(expected) == 2 * 3
    for world, workers in ((2, 0), (1, 2), (2, 2), (4, 0)):
        torch.manual_seed(world + workers)  # the state before counts for nothing
        found = seen(4 // world, world, workers, repeats)
        assert len(found) == len(expected)
        for (images, targets), (theirs, theirs_targets) in zip(found, expected):
            assert torch.equal(images, theirs)
            assert torch.equal(targets, theirs_targets)


def test_repeated_copies_of_a_picture_are_augmented_differently() -> None:
    order = epoch_order(12, 4, 0, repeats=3)
    images = torch.cat([images for images, _ in seen(4, 1, 0, repeats=3, epochs=[0])])
    for first in range(0, 12, 3):
        assert len(set(order[first : first + 3])) == 1
        copies = images[first : first + 3]
        assert not any(torch.equal(copies[i], copies[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_picture_is_augmented_differently_in_each_epoch_and_by_each_seed() -> None:
    images = [prepared(seed=seed)[Sample(epoch, 5, 3)].image for seed in (0, 1) for epoch in (0, 1)]
    assert not any(torch.equal(images[i], images[j]) for i in range(4) for j in range(i))
    assert torch.equal(images[3], prepared(seed=1)[Sample(1, 5, 3)].image)  # type: ignore[arg-type]
