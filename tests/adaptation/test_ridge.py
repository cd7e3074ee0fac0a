"""Ridge regression from sums: an oracle that holds all rows, and the promise not to do worse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octzoo.adaptation.ridge import Sums, error, fit, raw, solve


def rows(n: int, groups: int = 2, features: int = 5, outputs: int = 3, noise: float = 0.3, seed: int = 0) -> tuple:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, n, features, generator=g).double() + 2
    w = torch.randn(groups, features, outputs, generator=g).double()
    y = x @ w + 1.5 + noise * torch.randn(groups, n, outputs, generator=g).double()
    return x, y, w


def test_sums_of_batches_are_the_sums_of_all() -> None:
    x, y, _ = rows(40)
    parts = Sums.of(x[:, :13], y[:, :13]) + Sums.of(x[:, 13:], y[:, 13:])
    for a, b in zip(vars(parts).values(), vars(Sums.of(x, y)).values()):
        torch.testing.assert_close(a, b)


def test_the_error_is_the_share_of_the_variance_that_is_missed() -> None:
    x, y, w = rows(50)
    left = y - x @ w
    left = left - left.mean(1, keepdim=True)  # the best constant
    expected = left.square().sum() / (y - y.mean(1, keepdim=True)).square().sum()
    assert error(Sums.of(x, y).centred(), w) == pytest.approx(float(expected))


def test_without_a_pull_it_is_least_squares() -> None:
    x, y, w = rows(60)
    one = torch.ones(2, 60, 1).double()
    expected = torch.linalg.lstsq(torch.cat([x, one], 2), y).solution
    torch.testing.assert_close(solve(Sums.of(x, y).centred(), w, 0.0), expected[:, :-1], rtol=1e-4, atol=1e-4)
    assert torch.allclose(solve(raw(Sums.of(x, y)), w, 0.0), torch.linalg.lstsq(x, y).solution, rtol=1e-4, atol=1e-4)


def test_a_strong_pull_keeps_the_old_weights() -> None:
    x, y, w = rows(60)
    old = w + 1
    assert (solve(Sums.of(x, y).centred(), old, 1e6) - old).abs().max() < 1e-4


@given(st.integers(0, 10_000), st.integers(3, 40), st.floats(0, 3))
def test_it_never_does_worse_than_the_old_weights_on_what_it_is_checked_on(seed: int, n: int, noise: float) -> None:
    x, y, w = rows(n + 10, noise=noise, seed=seed)
    learn, check = Sums.of(x[:, :n], y[:, :n]), Sums.of(x[:, n:], y[:, n:])
    _, _, before, after = fit(learn, check, w, constant=True)
    assert after <= before


def test_the_constant_makes_the_means_meet() -> None:
    x, y, w = rows(80)
    new, constant, _, after = fit(Sums.of(x[:, :60], y[:, :60]), Sums.of(x[:, 60:], y[:, 60:]), w + 0.5, constant=True)
    torch.testing.assert_close((x @ new + constant[:, None]).mean(1), y.mean(1))
    assert after < 0.1


def test_without_a_constant_there_is_none() -> None:
    x, y, w = rows(80)
    _, constant, _, _ = fit(Sums.of(x[:, :60], y[:, :60]), Sums.of(x[:, 60:], y[:, 60:]), w, constant=False)
    assert not constant.any()
