"""Batch norm by rows is batch norm: values, statistics, gradients, and gradients of those."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from octzoo import Octave, narrow
from octzoo.layers import OctBatchNorm2d

SHAPES = [(6, 12, 8, 8), (3, 4, 5, 2), (2, 1, 3, 3), (1, 15, 2, 2), (2, 2, 1, 4)]


def maps(*shape, dtype=torch.float32):
    """Maps with channels last, whose mean is far from 0."""
    return (torch.randn(*shape, dtype=dtype) + 5).contiguous(memory_format=torch.channels_last)


def arguments(channels, dtype=torch.float32):
    return [torch.rand(channels, dtype=dtype) + 0.5 for _ in range(4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_gives_what_batch_norm_gives(shape):
    x, (mean, var, weight, bias) = maps(*shape), arguments(shape[1])
    expected_mean, expected_var = mean.clone(), var.clone()
    expected = F.batch_norm(x, expected_mean, expected_var, weight, bias, True, 0.3, 1e-3)
    y = narrow.batch_norm(x, mean, var, weight, bias, 0.3, 1e-3)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(var, expected_var)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_its_gradients_are_those_of_batch_norm(shape):
    x = maps(*shape).requires_grad_()
    weight, bias = (a.requires_grad_() for a in arguments(shape[1])[2:])
    g = torch.randn(shape)
    y = narrow.batch_norm(x, None, None, weight, bias, 0.1, 1e-5)
    expected = F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5)
    for got, wanted in zip(*(torch.autograd.grad(z, (x, weight, bias), g) for z in (y, expected))):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


def test_an_activation_may_work_in_place_on_it():
    x, (_, _, weight, bias) = maps(2, 4, 3, 3).requires_grad_(), arguments(4)
    F.relu(narrow.batch_norm(x, None, None, weight, bias, 0.1, 1e-5), inplace=True).square().sum().backward()
    found, x.grad = x.grad, None
    F.relu(F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5)).square().sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=2e-5)


def test_it_can_be_differentiated_twice():
    x = maps(2, 3, 2, 2, dtype=torch.float64).requires_grad_()
    weight, bias = (a.requires_grad_() for a in arguments(3, torch.float64)[2:])

    def normalised(*args):
        return narrow.batch_norm(args[0], None, None, *args[1:], 0.1, 1e-5)

    assert torch.autograd.gradcheck(normalised, (x, weight, bias))
    assert torch.autograd.gradgradcheck(normalised, (x, weight, bias))


def test_it_takes_part_in_functional_transforms():
    x, (_, _, weight, bias) = maps(4, 3, 2, 2), arguments(3)

    def squares(w):
        return narrow.batch_norm(x, None, None, w, bias, 0.1, 1e-5).square().sum()

    def expected(w):
        return F.batch_norm(x, None, None, w, bias, True, 0.1, 1e-5).square().sum()

    torch.testing.assert_close(torch.func.grad(squares)(weight), torch.func.grad(expected)(weight))


def test_only_few_channels_that_come_last_take_it():
    assert narrow.is_narrow(maps(2, 15, 4, 4))
    assert not narrow.is_narrow(maps(2, 16, 4, 4))
    assert not narrow.is_narrow(maps(2, 15, 4, 4).contiguous())
    assert not narrow.is_narrow(maps(2, 15, 4, 4, dtype=torch.float64))
    assert not narrow.is_narrow(maps(2, 15, 4, 4).bfloat16())
    assert not narrow.is_narrow(maps(2, 15, 4, 4).to("meta"))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_of_narrow_parts_is_two_plain_norms(momentum, affine):
    octave = Octave(maps(4, 12, 8, 8), maps(4, 6, 4, 4))
    norm = OctBatchNorm2d(18, momentum=momentum, affine=affine)
    plain = [nn.BatchNorm2d(c, momentum=momentum, affine=affine) for c in (12, 6)]
    for _ in range(3):
        got = norm(octave)
        for part, its in zip((got.high, got.low), (its(p) for its, p in zip(plain, (octave.high, octave.low)))):
            torch.testing.assert_close(part, its, rtol=1e-5, atol=2e-5)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name), torch.cat([getattr(its, name) for its in plain]))
    assert norm.num_batches_tracked == 3


def test_a_norm_in_training_takes_it_for_its_narrow_part_alone():
    norm = OctBatchNorm2d(20)
    y = norm(Octave(maps(4, 16, 8, 8), maps(4, 4, 4, 4)))
    assert "Rows" in type(y.low.grad_fn).__name__
    assert "Rows" not in type(y.high.grad_fn).__name__
    assert "Rows" not in type(norm.eval()(Octave(maps(4, 16, 8, 8), maps(4, 4, 4, 4))).low.grad_fn).__name__


def test_a_network_that_trains_by_rows_learns_the_same():
    gradients = {}
    for layout in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        model = timm.create_model("oct_cifar_resnet20_a0.25", num_classes=5).to(memory_format=layout)
        model(torch.randn(4, 3, 32, 32).to(memory_format=layout)).square().sum().backward()
        gradients[layout] = {name: p.grad for name, p in model.named_parameters()}
        gradients[layout] |= {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    for name, got in gradients[torch.channels_last].items():
        torch.testing.assert_close(got, gradients[torch.contiguous_format][name], rtol=1e-3, atol=1e-3, msg=name)


def test_too_few_values_are_refused_as_ever():
    norm = OctBatchNorm2d(6)
    with pytest.raises(ValueError, match="more than 1 value"):
        norm(Octave(maps(1, 4, 2, 2), maps(1, 2, 1, 1)))
