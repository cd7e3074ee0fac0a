"""The convolution of a pooled map, and the sum with an enlarged one, against the two steps they stand for."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.testing import assert_close

from octzoo.geometry import Geometry
from octzoo.resample import add_upsampled_, conv_pooled, pool, upsample

SIZES = [(4, 6), (5, 6), (4, 5), (5, 5), (1, 1), (2, 1)]
GEOMETRIES = {
    "3x3": Geometry((3, 3), (1, 1), 1, (1, 1), "zeros"),
    "1x1": Geometry((1, 1), (1, 1), 0, (1, 1), "zeros"),
    "stride, dilation": Geometry((3, 3), (2, 2), 2, (2, 2), "zeros"),
    "reflected": Geometry((3, 3), (1, 1), 1, (1, 1), "reflect"),
    "same": Geometry((3, 3), (1, 1), "same", (1, 1), "zeros"),
}


def randn(*shape):
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def two_steps(x, weight, bias, geometry):
    return geometry.conv(pool(x), weight, bias, x.shape[1] // weight.shape[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradients_are_right(size, groups, bias):
    k, p = (3, 1) if min(size) > 1 else (1, 0)
    arguments = (randn(2, 4, *size), randn(4, 4 // groups, k, k), randn(4) if bias else None)
    geometry = Geometry((k, k), (1, 1), p, (1, 1), "zeros")
    assert gradcheck(lambda *a: conv_pooled(*a, geometry), arguments)
    assert gradgradcheck(lambda *a: conv_pooled(*a, geometry), arguments)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("train", [True, False])
def test_it_equals_the_two_steps(name, train):
    geometry = GEOMETRIES[name]
    x, weight, bias = randn(2, 4, 12, 12), randn(6, 4, *geometry.kernel), randn(6)
    with torch.set_grad_enabled(train):
        y, expected = conv_pooled(x, weight, bias, geometry), two_steps(x, weight, bias, geometry)
    assert_close(y, expected)
    if train:
        ours, theirs = (torch.autograd.grad(out.square().sum(), (x, weight, bias)) for out in (y, expected))
        assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_wanted_gets_a_gradient(wanted):
    tensors = [
        t.detach().requires_grad_(want) for t, want in zip((randn(1, 4, 4, 4), randn(2, 4, 3, 3), randn(2)), wanted)
    ]
    conv_pooled(*tensors, GEOMETRIES["3x3"]).sum().backward()
    assert [t.grad is not None for t in tensors] == list(wanted)


def test_it_keeps_its_input_alone():
    """Which another convolution keeps anyway."""
    kept = []
    x, weight = randn(1, 4, 8, 8), randn(2, 4, 3, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        conv_pooled(x, weight, None, GEOMETRIES["3x3"])
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), weight.data_ptr()}


def test_under_autocast_gradients_have_the_precision_of_what_they_are_of():
    x, weight, bias = (t.detach().float().requires_grad_() for t in (randn(2, 4, 8, 8), randn(6, 4, 3, 3), randn(6)))
    results = []
    for function in (conv_pooled, two_steps):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x, weight, bias, GEOMETRIES["3x3"])
        assert y.dtype == torch.bfloat16
        results.append(torch.autograd.grad(y.float().square().sum(), (x, weight, bias)))
    for ours, theirs in zip(*results):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_functional_gradients_a_sample():
    x, weight = randn(3, 4, 6, 6).detach(), randn(2, 4, 3, 3).detach()
    loss = lambda f: lambda w, x: f(x[None], w, None, GEOMETRIES["3x3"]).square().sum()  # noqa: E731
    ours, theirs = (vmap(grad(loss(f)), (None, 0))(weight, x) for f in (conv_pooled, two_steps))
    assert_close(ours, theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("train", [True, False])
def test_an_enlarged_map_is_added_in_place(size, train):
    half = [(n + 1) // 2 for n in size]
    with torch.set_grad_enabled(train):
        y, x = randn(2, 3, *size) * 1, randn(2, 3, *half)
        expected = y + upsample(x, size)
        out = add_upsampled_(y, x)
    assert out is y
    assert_close(out, expected)
