"""The octave network learns the plain one's answers: how fast, on which crops, and what stays."""

import copy

import pytest
import timm
import torch

import octzoo
from octzoo.adaptation.distil import Answers, Distillation, Schedule, difference, vary


@pytest.fixture
def plain() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("oct_cifar_resnet20_a0.0").eval()


def octave_of(plain: torch.nn.Module) -> torch.nn.Module:
    return octzoo.octavize(copy.deepcopy(plain), 0.25)


def batches() -> list[torch.Tensor]:
    return list(torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0)).split(8))


def test_the_rate_rises_then_falls_to_nothing(plain: torch.nn.Module) -> None:
    work = Distillation(octave_of(plain), plain, 3, Schedule(epochs=4, lr=0.01, warm_up=3))
    rates = [work.rate.get_last_lr()[0]]
    for _ in range(4):
        work.epoch([batches()[0]] * 3)
        rates.append(work.rate.get_last_lr()[0])
    assert rates[0] < rates[1] > rates[2] > rates[3] > rates[4]
    assert rates[1] < 0.01
    assert rates[4] == pytest.approx(0, abs=1e-9)


def test_the_answers_come_nearer_and_the_norms_keep_their_statistics(plain: torch.nn.Module) -> None:
    octave = octave_of(plain)
    before = {name: b.clone() for name, b in octave.named_buffers()}
    work = Distillation(octave, plain, 3, Schedule(epochs=6, lr=1e-3, warm_up=1, scale=0.9))
    losses = [work.epoch(batches()) for _ in range(6)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(before[name], b) for name, b in octave.named_buffers())
    assert not octave.training


def test_gone_on_with_from_its_state_it_is_the_same(plain: torch.nn.Module) -> None:
    through, halves = octave_of(plain), octave_of(plain)
    schedule = Schedule(epochs=2, lr=1e-3)
    work = Distillation(through, plain, 3, schedule)
    work.epoch(batches())
    work.epoch(batches())
    first = Distillation(halves, plain, 3, schedule)
    first.epoch(batches())
    second = Distillation(halves, plain, 3, schedule)
    second.load(first.state())
    second.epoch(batches())
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), halves.parameters()))


def test_varied_pictures_keep_the_size_and_depend_on_the_seed_alone() -> None:
    x = batches()[0]
    one, again, other = vary(x, 0.3, 1), vary(x, 0.3, 1), vary(x, 0.3, 2)
    assert one.shape == x.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_pictures_are_mixed_with_their_opposites() -> None:
    x = torch.stack([torch.full((3, 8, 8), float(i)) for i in range(4)])
    mixed = vary(x, 0.3, 0)
    for i, picture in enumerate(mixed):
        assert min(i, 3 - i) < picture.mean() < max(i, 3 - i)
        assert torch.allclose(picture, picture.mean())


def test_equal_answers_differ_by_nothing() -> None:
    a, b = (Answers(torch.randn(2, 4, 3, 3), torch.randn(2, 5)) for _ in range(2))
    assert difference(a, a) == pytest.approx(0, abs=1e-6)
    assert difference(a, b) > 0.1
