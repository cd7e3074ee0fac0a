"""The octave as arithmetic (values against loops, then laws), and as a value that flows through code for tensors."""

import copy
import itertools
import operator
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import octzoo.octave
from octzoo.octave import (
    Octave,
    OctaveError,
    drop,
    low_channels,
    merge,
    octave_conv2d,
    pool,
    resplit,
    split_channels,
    upsample,
)
from tests import reference

ALPHAS = [0, 0.25, 0.5, 1]
SIZES = [(6, 6), (7, 6), (5, 7), (2, 2), (1, 1)]


def randn(*size, **kwargs):
    return torch.randn(*size, dtype=torch.float64, **kwargs)


def octave(channels, low, size, batch=2):
    """Random parts that no tensor needs to have produced; a Tensor if ``low`` is 0."""
    high = randn(batch, channels - low, *size)
    return Octave(high, randn(batch, low, (size[0] + 1) // 2, (size[1] + 1) // 2)) if low else high


def parts(x):
    """(high, low); a tensor is all high."""
    return (x.high, x.low) if isinstance(x, Octave) else (x, x[:, :0, ::2, ::2])


def assert_octaves_close(actual, expected, **kwargs):
    assert type(actual) is type(expected)
    for a, b in zip(parts(actual), parts(expected)):
        assert_close(a, b, **kwargs)


def check_against_the_reference(x, weight, bias, low_out, **options):
    y = octave_conv2d(x, weight, bias, low_out=low_out, **options)
    assert isinstance(y, Octave) == (low_out > 0)
    for name in ("padding", "dilation"):
        if isinstance(options.get(name), int):
            options[name] = (options[name],) * 2
    arrays = [None if t is None else t.numpy() for t in (*parts(x), weight, bias)]
    for actual, expected in zip(parts(y), reference.octave_conv2d(*arrays, low_out, **options)):
        assert_close(actual, torch.from_numpy(expected), rtol=1e-11, atol=1e-11)


# ---- the reference itself, on numbers that a reader can check ------------------------------------------------------


def test_reference_on_a_picture_of_nine_pixels():
    x = np.arange(9.0).reshape(1, 1, 3, 3)
    assert reference.pool(x).tolist() == [[[[2, 3.5], [6.5, 8]]]]  # (0+1+3+4)/4, (2+5)/2, (6+7)/2, 8
    assert reference.upsample(reference.pool(x), (3, 3)).tolist() == [[[[2, 2, 3.5], [2, 2, 3.5], [6.5, 6.5, 8]]]]
    ones = np.ones((1, 1, 3, 3))
    assert reference.conv(x, ones, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)).tolist() == [
        [[[8, 15, 12], [21, 36, 27], [20, 33, 24]]]
    ]


def test_pool_and_upsample_are_the_reference():
    for size in SIZES:
        x = randn(2, 3, *size)
        assert_close(pool(x), torch.from_numpy(reference.pool(x.numpy())))
        assert_close(upsample(pool(x), size), torch.from_numpy(reference.upsample(reference.pool(x.numpy()), size)))


# ---- the convolution against the reference -------------------------------------------------------------------------

GEOMETRIES = {
    "1x1": (8, (1, 1), {}),
    "3x3": (8, (3, 3), {"padding": 1}),
    "3x3 groups": (8, (3, 3), {"padding": 1, "groups": 2}),
    "3x3 depthwise": (8, (3, 3), {"padding": 1, "groups": 8}),
    "3x3 depthwise doubling": (16, (3, 3), {"padding": 1, "groups": 8}),
    "5x5 dilated": (4, (5, 5), {"padding": 4, "dilation": 2}),
    "3x1 dilated 3, 1": (4, (3, 1), {"padding": (3, 0), "dilation": (3, 1)}),
    "4x3 same": (4, (4, 3), {"padding": "same"}),
    "3x3 reflect": (4, (3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "3x3 circular groups": (8, (3, 3), {"padding": 1, "padding_mode": "circular", "groups": 2}),
    "3x3 replicate": (4, (3, 3), {"padding": "same", "padding_mode": "replicate"}),
    "1x1 pool": (8, (1, 1), {"stride": 2}),
    "3x3 pool": (8, (3, 3), {"stride": 2, "padding": 1}),
    "3x3 pool groups": (8, (3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    "3x3 pool depthwise": (8, (3, 3), {"stride": 2, "padding": 1, "groups": 8}),
    "5x3 pool dilated": (4, (5, 3), {"stride": 2, "padding": (4, 1), "dilation": (2, 1)}),
    "3x3 pool same": (4, (3, 3), {"stride": 2, "padding": "same"}),
    "3x3 pool replicate": (4, (3, 3), {"stride": 2, "padding": 1, "padding_mode": "replicate"}),
    "1x1 conv": (8, (1, 1), {"stride": 2, "stride_mode": "conv"}),
    "2x2 conv": (8, (2, 2), {"stride": 2, "stride_mode": "conv"}),
    "4x4 conv": (4, (4, 4), {"stride": 2, "padding": 1, "stride_mode": "conv"}),
    "3x3 conv": (8, (3, 3), {"stride": 2, "padding": 1, "stride_mode": "conv"}),
    "3x3 conv groups": (8, (3, 3), {"stride": 2, "padding": 1, "groups": 2, "stride_mode": "conv"}),
    "3x3 conv depthwise": (8, (3, 3), {"stride": 2, "padding": 1, "groups": 8, "stride_mode": "conv"}),
    "5x5 conv dilated": (4, (5, 5), {"stride": 2, "padding": 4, "dilation": 2, "stride_mode": "conv"}),
    "3x3 conv same": (4, (3, 3), {"stride": 2, "padding": "same", "stride_mode": "conv"}),
    "2x2 conv same": (4, (2, 2), {"stride": 2, "padding": "same", "stride_mode": "conv"}),
    "3x3 conv replicate": (4, (3, 3), {"stride": 2, "padding": 1, "padding_mode": "replicate", "stride_mode": "conv"}),
}


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_path_equals_the_reference(geometry, size):
    c_out, kernel, options = GEOMETRIES[geometry]
    if options.get("padding_mode") in ("reflect", "circular") and min(size) < 5:
        size = (5, 5)  # these modes need a part larger than the padding, as in nn.Conv2d
    weight, bias = randn(c_out, 8 // options.get("groups", 1), *kernel), randn(c_out)
    for alpha_in, alpha_out in itertools.product(ALPHAS, ALPHAS):
        x = octave(8, int(alpha_in * 8), size)
        check_against_the_reference(x, weight, bias, int(alpha_out * c_out), **options)


def test_a_single_pixel():
    for (alpha_in, alpha_out), stride in itertools.product(itertools.product(ALPHAS, ALPHAS), (1, 2)):
        x, weight = octave(4, int(alpha_in * 4), (1, 1)), randn(4, 4, 3, 3)
        check_against_the_reference(x, weight, None, int(alpha_out * 4), padding=1, stride=stride)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"stride": 2, "stride_mode": "conv"}], ids=str)
@pytest.mark.parametrize("off", ["h2l", "l2h"])
def test_a_path_that_is_off_is_missing_from_the_sum(off, options):
    x, weight, bias = octave(8, 2, (7, 6)), randn(8, 8, 3, 3), randn(8)
    check_against_the_reference(x, weight, bias, 4, padding=1, **options, **{off: False})
    without = octave_conv2d(x, weight, bias, padding=1, low_out=4, **options, **{off: False})
    removed = weight.clone()  # the same as a weight that is zero on that path
    removed[(slice(4, None), slice(0, 6)) if off == "h2l" else (slice(0, 4), slice(6, None))] = 0
    assert_octaves_close(without, octave_conv2d(x, removed, bias, padding=1, low_out=4, **options))
    whole = octave_conv2d(x, weight, bias, padding=1, low_out=4, **options)
    changed, same = (1, 0) if off == "h2l" else (0, 1)
    assert_close(parts(whole)[same], parts(without)[same])
    assert not torch.allclose(parts(whole)[changed], parts(without)[changed])


# ---- laws of the convolution ---------------------------------------------------------------------------------------


@st.composite
def convolutions(
    draw, strides=(1, 2), modes=("pool", "conv"), padding_modes=("zeros", "reflect", "replicate", "circular")
):
    """An input, a weight and options that an octave convolution takes."""
    groups = draw(st.sampled_from([1, 1, 2, 3, "depthwise"]))
    stride, stride_mode = draw(st.sampled_from(strides)), draw(st.sampled_from(modes))
    size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kernel = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 5]))
    dilation = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 1, 2]))
    padding_mode = draw(st.sampled_from(padding_modes))
    padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation))
    assume(padding_mode in ("zeros", "replicate") or min(size) > 4 * max(padding))
    if groups == "depthwise":
        c_in = groups = draw(st.integers(2, 5))
        factor = draw(st.integers(1, 2))
        c_out, low_out = factor * c_in, factor * draw(st.integers(0, c_in))
        low_in = draw(st.integers(0, c_in))
    else:
        c_in, c_out = (groups * draw(st.integers(1, 4)) for _ in range(2))
        low_in, low_out = (groups * draw(st.integers(0, c // groups)) for c in (c_in, c_out))
        assume(groups == 1 or groups != c_in)
    torch.manual_seed(draw(st.integers(0, 9)))
    x = octave(c_in, low_in, size)
    weight = randn(c_out, c_in // groups, *kernel)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": padding_mode,
    }
    return x, weight, draw(st.sampled_from([None, randn(c_out)])), low_out, dict(options, stride_mode=stride_mode)


def plain_size(x, weight, options):
    """The size of what ``F.conv2d`` gives."""
    rest = {k: v for k, v in options.items() if k not in ("stride_mode", "padding_mode")}
    return F.conv2d(torch.zeros(x.shape, dtype=torch.float64), weight, **rest).shape


@settings(max_examples=150)
@given(convolutions())
def test_any_convolution_equals_the_reference_and_has_the_plain_size(case):
    x, weight, bias, low_out, options = case
    y = octave_conv2d(x, weight, bias, low_out=low_out, **options)
    assert y.shape == plain_size(x, weight, options)
    if low_out:
        assert y.low.shape[1:] == (low_out, (y.shape[2] + 1) // 2, (y.shape[3] + 1) // 2)
    check_against_the_reference(x, weight, bias, low_out, **options)


@given(convolutions(modes=["conv"]))
def test_alpha_zero_is_exactly_conv2d(case):
    x, weight, bias, _, options = case
    x = merge(x)
    layer = nn.Conv2d(
        x.shape[1],
        weight.shape[0],
        weight.shape[-2:],
        options["stride"],
        options["padding"],
        options["dilation"],
        options["groups"],
        padding_mode=options["padding_mode"],
        dtype=torch.float64,
    )
    layer.weight.data, layer.bias = weight, bias if bias is None else nn.Parameter(bias)
    assert torch.equal(octave_conv2d(x, weight, bias, **options), layer(x))


@pytest.mark.parametrize("padding", [0, 2, (1, 3), "same", "valid"], ids=str)
def test_alpha_zero_at_stride_one_takes_any_geometry(padding):
    x, weight = randn(2, 4, 9, 8), randn(6, 2, 4, 3)
    expected = F.conv2d(x, weight, None, 1, padding, (2, 1), 2)
    assert torch.equal(octave_conv2d(x, weight, None, 1, padding, (2, 1), 2), expected)


@pytest.mark.parametrize("padding", [0, 1, 3], ids=str)
def test_alpha_zero_at_a_convolved_stride_takes_any_geometry(padding):
    x, weight = randn(2, 4, 9, 8), randn(6, 4, 4, 3)
    assert torch.equal(
        octave_conv2d(x, weight, None, 2, padding, stride_mode="conv"), F.conv2d(x, weight, None, 2, padding)
    )


def test_alpha_zero_at_a_pooled_stride_is_pooling_then_conv2d():
    x, weight = randn(2, 4, 9, 8), randn(6, 4, 3, 3)
    assert_close(octave_conv2d(x, weight, stride=2, padding=1), F.conv2d(pool(x), weight, padding=1))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("low_in", [0, 2, 8])
def test_a_1x1_convolution_is_the_ordinary_one_on_the_merged_map_its_low_outputs_pooled(size, low_in):
    x, weight, bias = octave(8, low_in, size), randn(8, 8, 1, 1), randn(8)
    plain = F.conv2d(merge(x), weight, bias)
    for low_out in (0, 2, 8):
        assert_octaves_close(octave_conv2d(x, weight, bias, low_out=low_out), drop(plain, low_out))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_a_convolved_stride_leaving_the_octaves_is_conv2d_of_the_merged_map(size, kernel):
    for low_in in (2, 8):
        x, weight = octave(8, low_in, size), randn(6, 8, kernel, kernel)
        plain = F.conv2d(merge(x), weight, None, 2, (kernel - 1) // 2)
        y = octave_conv2d(x, weight, None, 2, (kernel - 1) // 2, stride_mode="conv")
        assert_close(y, plain)


def combine(a, x, b, y):
    return Octave(a * x.high + b * y.high, a * x.low + b * y.low)


@given(convolutions(), st.floats(-3, 3), st.floats(-3, 3))
def test_linear_in_x_and_in_the_weight(case, a, b):
    x, weight, _, low_out, options = case

    def f(x, w):
        return parts(octave_conv2d(x, w, low_out=low_out, **options))

    x2 = octave(x.shape[1], low_channels(x), x.shape[2:])
    w2 = randn(*weight.shape)
    both = combine(a, x, b, x2) if isinstance(x, Octave) else a * x + b * x2
    for whole, first, second in zip(f(both, weight), f(x, weight), f(x2, weight)):
        assert_close(whole, a * first + b * second)
    for whole, first, second in zip(f(x, a * weight + b * w2), f(x, weight), f(x, w2)):
        assert_close(whole, a * first + b * second)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_constant_maps_stay_constant(size, stride):
    level, weight = randn(1, 8, 1, 1), randn(8, 8, 3, 3)
    expected = F.conv2d(level.expand(2, 8, 3, 3), weight)
    for low_in, low_out in itertools.product((0, 2, 8), repeat=2):
        x = drop(level.expand(2, 8, *size), low_in)
        y = octave_conv2d(x, weight, None, stride, 1, low_out=low_out, padding_mode="replicate")
        assert_close(merge(y), expected.expand(2, 8, *y.shape[2:]))


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"stride": 2, "stride_mode": "conv"}, {"groups": 2}, {"groups": 4}],
    ids=str,
)
@pytest.mark.parametrize("low_in", [0, 2, 4])
def test_gradients(options, low_in):
    x = octave(4, low_in, (5, 4), batch=1)
    weight, bias = randn(4, 4 // options.get("groups", 1), 3, 3), randn(4)
    for low_out in (0, 2, 4):

        def f(high, low, weight, bias, low_out=low_out):
            x = Octave(high, low) if low_in else high
            y = octave_conv2d(x, weight, bias, padding=1, low_out=low_out, **options)
            return tuple(p for p in parts(y) if p.shape[1])

        tensors = [t.detach().requires_grad_() for t in (*parts(x), weight, bias)]
        assert torch.autograd.gradcheck(f, tensors, fast_mode=True)


# ---- no path is computed that nothing uses -------------------------------------------------------------------------


class Count(TorchDispatchMode):
    """The convolutions, poolings and upsamplings that really run."""

    def __init__(self):
        super().__init__()
        self.macs, self.pools, self.upsamplings = [], 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.pools += name == "avg_pool2d"
        self.upsamplings += name.startswith("upsample")
        if name == "convolution":
            weight = args[1]
            self.macs.append(weight[0].numel() * out[0].numel())
        return out


def counted(x, weight, low_out, **options):
    with Count() as count:
        octave_conv2d(x, weight, padding=1, low_out=low_out, **options)
    return count


@pytest.mark.parametrize("low_in", [0, 2, 8])
@pytest.mark.parametrize("low_out", [0, 4, 8])
def test_only_the_paths_that_are_needed_run(low_in, low_out):
    x, weight = octave(8, low_in, (8, 8), batch=1), randn(8, 8, 3, 3)
    high_in, high_out = 8 - low_in, 8 - low_out
    paths = {
        "h2h": high_in * high_out * 64,
        "h2l": high_in * low_out * 16,
        "l2h": low_in * high_out * 16,
        "l2l": low_in * low_out * 16,
    }
    convolutions = dict(paths)
    if all(paths.values()):  # one convolution of the low part gives what both outputs need
        convolutions["l2h"] += convolutions.pop("l2l")
    count = counted(x, weight, low_out)
    assert sorted(count.macs) == sorted(9 * n for n in convolutions.values() if n)
    assert count.pools == bool(paths["h2l"])
    assert count.upsamplings == bool(paths["l2h"])


def test_a_pooled_stride_runs_on_the_pooled_maps():
    x, weight = octave(8, 2, (8, 8), batch=1), randn(8, 8, 3, 3)
    count = counted(x, weight, 4, stride=2)
    assert sorted(count.macs) == sorted(9 * n for n in (6 * 4 * 16, 6 * 4 * 4, 2 * 4 * 16, 2 * 4 * 4))
    assert (count.pools, count.upsamplings) == (
        3,
        0,
    )  # high twice, low once; the low part already fits the new high one
    count = counted(x, weight, 0, stride=2)
    assert (len(count.macs), count.pools) == (2, 1)


def test_a_switched_off_path_does_not_run():
    x, weight = octave(8, 2, (8, 8), batch=1), randn(8, 8, 3, 3)
    count = counted(x, weight, 4, h2l=False)
    assert sorted(count.macs) == sorted(9 * n for n in (6 * 4 * 64, 2 * 4 * 16, 2 * 4 * 16))
    assert (count.pools, count.upsamplings) == (0, 1)
    count = counted(x, weight, 4, l2h=False)
    assert (len(count.macs), count.pools, count.upsamplings) == (3, 1, 0)


def test_depthwise_convolutions_have_no_exchange():
    count = counted(octave(8, 2, (8, 8), batch=1), randn(8, 1, 3, 3), 2, groups=8)
    assert sorted(count.macs) == sorted(9 * n for n in (6 * 64, 2 * 16))
    assert (count.pools, count.upsamplings) == (0, 0)


# ---- what it refuses -----------------------------------------------------------------------------------------------

REFUSALS = {
    "stride (3, 3) is not 1 or 2: leave this layer plain": {"stride": 3},
    "stride (1, 2) is not 1 or 2: leave this layer plain": {"stride": (1, 2)},
    "4 groups do not divide the parts (6 high in, 2 low in, 6 high out, 2 low out): choose an alpha whose low channels "
    "are a multiple of 4, or leave this layer plain": {"weight": (8, 2, 3, 3), "groups": 4},
    "1 low outputs of a depthwise convolution are not whole channels of 8": {
        "weight": (16, 1, 3, 3),
        "groups": 8,
        "low_out": 1,
    },
    "kernel (3, 3), padding 0, dilation (1, 1) at stride 1 does not keep the sizes of both parts: leave this layer "
    "plain": {"padding": 0},
    "kernel (3, 3), padding valid, dilation (1, 1) at stride 1 does not keep the sizes of both parts: leave this layer "
    "plain": {"padding": "valid"},
    "kernel (2, 2), padding 0, dilation (1, 1) at stride 2 does not keep its size behind pooling (an odd kernel with "
    "padding k//2 does): use stride_mode='conv', or leave this layer plain": {
        "weight": (8, 8, 2, 2),
        "padding": 0,
        "stride": 2,
    },
    "kernel (3, 3), padding 0, dilation (1, 1) at stride 2 does not keep the sizes of both parts: leave this layer "
    "plain": {"padding": 0, "stride": 2, "stride_mode": "conv"},
    "expected an input of 9 channels, [B, 9, H, W], and got Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3])": {
        "weight": (8, 9, 3, 3)
    },
    "expected an input of 9 channels, [B, 9, H, W], and got Tensor[2, 8, 6, 6]": {
        "weight": (8, 9, 3, 3),
        "x": torch.zeros(2, 8, 6, 6),
    },
    "expected an input of 8 channels, [B, 8, H, W], and got Tensor[8, 6, 6]": {"x": torch.zeros(8, 6, 6)},
    "9 of 8 output channels cannot be low": {"low_out": 9},
    "-1 of 8 output channels cannot be low": {"low_out": -1},
    "stride_mode='stride' is neither 'pool' nor 'conv'": {"stride_mode": "stride"},
    "the low part of Octave(high=[2, 6, 6, 6], low=[2, 2, 6, 6]) should be 3x3, half of the high part, rounded up": {
        "x": Octave(torch.zeros(2, 6, 6, 6), torch.zeros(2, 2, 6, 6))
    },
    "nothing reaches the low output: an exchange path is off": {"x": torch.zeros(2, 8, 6, 6), "h2l": False},
    "nothing reaches the high output: an exchange path is off": {
        "x": Octave(torch.zeros(2, 0, 6, 6), torch.zeros(2, 8, 3, 3)),
        "l2h": False,
    },
}


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_say_what_and_what_to_do(text):
    options = {"x": drop(torch.zeros(2, 8, 6, 6), 2), "weight": (8, 8, 3, 3), "padding": 1, "low_out": 2} | REFUSALS[
        text
    ]
    with pytest.raises(OctaveError) as error:
        octave_conv2d(options.pop("x"), torch.zeros(options.pop("weight")), **options)
    assert str(error.value) == text


# ---- the split and the resamplings ---------------------------------------------------------------------------------


@given(st.integers(0, 4096), st.floats(0, 1), st.sampled_from([1, 1, 2, 4, 7]))
def test_split_channels_truncates_to_a_multiple_and_never_exceeds(channels, alpha, multiple):
    c = split_channels(channels, alpha, multiple)
    assert 0 <= c <= int(alpha * channels) < c + multiple
    assert c % multiple == 0


def test_split_channels_as_the_authors():
    assert [split_channels(10, a) for a in (0, 0.125, 0.25, 0.5, 0.75, 1)] == [0, 1, 2, 5, 7, 10]
    assert split_channels(104, 0.25, 4) == 24


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(sizes, st.integers(1, 6), st.data())
def test_drop_and_merge(size, channels, data):
    c = data.draw(st.integers(0, channels))
    x = randn(2, channels, *size)
    y = drop(x, c)
    assert isinstance(y, Octave) == (c > 0)
    assert y.shape == merge(y).shape == x.shape
    assert torch.equal(merge(y)[:, : channels - c], x[:, : channels - c])  # high channels are kept as they are
    if c:
        assert torch.equal(y.low, pool(x[:, channels - c :]))
        again = drop(merge(y), c)  # a merged map drops to itself, odd sizes too
        assert torch.equal(again.high, y.high)
        assert_close(again.low, y.low)


@given(sizes, st.integers(1, 6), st.data())
def test_resplit_moves_the_channels_in_between(size, channels, data):
    a, b = (data.draw(st.integers(0, channels)) for _ in range(2))
    x = octave(channels, a, size)
    y = resplit(x, b)
    assert low_channels(y) == b
    assert y.shape == x.shape
    whole = merge(x)
    n = channels - max(a, b)
    assert torch.equal(merge(y)[:, :n], whole[:, :n])
    if b <= a:  # nothing is lost upwards, and it is the way back
        assert torch.equal(merge(y), whole)
        assert_octaves_close(resplit(y, a), x)
    else:
        assert_octaves_close(y, drop(whole, b))
    assert_octaves_close(resplit(y, b), y)


@pytest.mark.parametrize("c", [-1, 9])
def test_resplit_refuses_more_channels_than_there_are(c):
    with pytest.raises(OctaveError, match=f"^cannot make {c} of 8 channels low$"):
        resplit(randn(1, 8, 2, 2), c)


# ---- the octave as a value -----------------------------------------------------------------------------------------

MAPS = {
    **dict.fromkeys(["relu", "sigmoid", "tanh", "neg", "abs", "exp", "square", "rsqrt", "sqrt", "hardshrink"], ()),
    **dict.fromkeys(["relu_", "sigmoid_", "tanh_"], ()),
    **dict.fromkeys(["clamp", "clamp_"], (-0.5, 0.5)),
    **dict.fromkeys(["clamp_min", "clamp_min_"], (0.2,)),
}
TENSOR_MAPS = {
    **dict.fromkeys(["contiguous", "clone", "detach", "float", "half", "bfloat16", "double", "requires_grad_"], ()),
    "to": (torch.float32,),
}
FUNCTIONAL_MAPS = {
    **dict.fromkeys(
        [
            "relu",
            "relu6",
            "leaky_relu",
            "elu",
            "selu",
            "celu",
            "gelu",
            "silu",
            "mish",
            "hardswish",
            "hardsigmoid",
            "hardtanh",
            "softplus",
            "softsign",
            "tanhshrink",
            "sigmoid",
            "tanh",
            "logsigmoid",
        ],
        (),
    ),
    "threshold": (0.1, 20.0),
    "rrelu": (0.1, 0.3, True),
    **dict.fromkeys(["dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout"], (0.5, True)),
}
UNARY = [
    *((getattr(torch, name), args) for name, args in MAPS.items() if hasattr(torch, name)),
    *((getattr(Tensor, name), args) for name, args in (MAPS | TENSOR_MAPS).items() if hasattr(Tensor, name)),
    *((getattr(F, name), args) for name, args in FUNCTIONAL_MAPS.items()),
]
ADD = [torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, operator.add]
ADD_INPLACE = [Tensor.add_, Tensor.__iadd__, operator.iadd]
MUL = [torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, operator.mul]
MUL_INPLACE = [Tensor.mul_, Tensor.__imul__, operator.imul]
SUB = [torch.sub, Tensor.sub, Tensor.__sub__, operator.sub]
DIV = [torch.div, Tensor.div, Tensor.__truediv__, operator.truediv]
DIV_INPLACE = [Tensor.div_, Tensor.__itruediv__, operator.itruediv]
BINARY = [
    *((f, operator.add) for f in ADD + ADD_INPLACE),
    *((f, operator.mul) for f in MUL + MUL_INPLACE),
    *((f, operator.sub) for f in SUB),
    *((f, operator.truediv) for f in DIV + DIV_INPLACE),
    (Tensor.__rsub__, lambda x, y: y - x),
    (Tensor.__rtruediv__, lambda x, y: y / x),
]
INPLACE = ADD_INPLACE + MUL_INPLACE + DIV_INPLACE
POOLS = [F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d]
OTHERS = [Tensor.expand_as, torch.cat, torch.concat, torch.split, Tensor.split, torch.chunk, Tensor.chunk]
OTHERS += [torch.mean, Tensor.mean, torch.amax, Tensor.amax, *POOLS]
OTHERS += [torch.pow, Tensor.pow, Tensor.__pow__, operator.pow, Tensor.__getitem__, operator.getitem, F.interpolate]


METHODS = {getattr(Tensor, name): name for name in [*MAPS, *TENSOR_MAPS] if hasattr(Tensor, name)}
METHODS |= {getattr(Tensor, name): name for name in ["add", "add_", "mul", "mul_", "sub", "div", "div_"]}
METHODS |= {
    getattr(Tensor, f"__{name}__"): f"__{name}__"
    for name in ["add", "radd", "iadd", "sub", "rsub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv"]
}


def name_of(function):
    return f"Tensor.{METHODS[function]}" if function in METHODS else getattr(function, "__qualname__", str(function))


def call(function, x, *args):
    """``function(x, *args)``; ``Tensor.add(x, y)`` of an Octave x is what users write as ``x.add(y)``."""
    if function in METHODS and isinstance(x, Octave):
        return getattr(x, METHODS[function])(*args)
    return function(x, *args)


def test_every_rule_is_tested_here():
    tested = {f for f, _ in UNARY} | {f for f, _ in BINARY} | set(OTHERS)
    assert {name_of(f) for f in set(octzoo.octave.RULES) - tested} == set()
    assert {name_of(f) for f in tested - set(octzoo.octave.RULES)} == set()


@pytest.mark.parametrize(("function", "args"), UNARY, ids=lambda f: name_of(f) if callable(f) else "")
def test_unary_functions_map_over_the_parts(function, args):
    for low in (2, 8):
        x = octave(8, low, (5, 4)).map(Tensor.abs)
        torch.manual_seed(1)
        expected = [function(p.clone(), *args) if p.shape[1] else p for p in (x.high, x.low)]
        torch.manual_seed(1)
        y = call(function, x, *args)
        assert isinstance(y, Octave)
        for actual, p in zip((y.high, y.low), expected):
            if p.shape[1]:
                assert_close(actual, p, equal_nan=True)
        if function.__name__.endswith("_"):
            assert y.low is x.low


@pytest.mark.parametrize(
    "module",
    [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid],
    ids=lambda m: m.__name__,
)
def test_activation_modules_in_place(module):
    x = octave(8, 2, (5, 4))
    expected = module()(x)
    assert_octaves_close(module(inplace=True)(x), expected)
    assert_octaves_close(x, expected)


SECONDS = {
    "octave": lambda: octave(8, 2, (5, 4)),
    "scalar": lambda: 1.5,
    "tensor of no dimensions": lambda: randn(()),
    "[B, 1, 1, 1]": lambda: randn(2, 1, 1, 1),
    "[1, 1, 1]": lambda: randn(1, 1, 1),
    "[B, C, 1, 1]": lambda: randn(2, 8, 1, 1),
    "[1, C, 1, 1]": lambda: randn(1, 8, 1, 1),
    "[C, 1, 1]": lambda: randn(8, 1, 1),
}


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize(("function", "arithmetic"), BINARY, ids=lambda f: name_of(f))
def test_binary_functions(function, arithmetic, second):
    """What a value broadcast over space does to the merged map, it does to the parts."""
    x, y = octave(8, 2, (5, 4)), SECONDS[second]()
    before = copy.deepcopy(x)
    got = call(function, x, y)
    expected = arithmetic(merge(before), merge(y) if isinstance(y, Octave) else y)
    assert isinstance(got, Octave)
    assert_close(got.high, expected[:, :6])
    assert_close(got.low, expected[:, 6:, ::2, ::2])
    if function in INPLACE:
        assert got.low is x.low
    else:
        assert_octaves_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("second", ["scalar", "tensor of no dimensions", "[B, 1, 1, 1]", "[B, C, 1, 1]"])
@pytest.mark.parametrize("function", [operator.add, operator.mul, operator.sub, operator.truediv])
def test_binary_operators_with_the_octave_on_the_right(function, second):
    x, y = octave(8, 2, (5, 4)), SECONDS[second]()
    got, expected = function(y, x), function(y, merge(x))
    assert isinstance(got, Octave)
    assert_close(got.high, expected[:, :6])
    assert_close(got.low, expected[:, 6:, ::2, ::2])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("function", [*ADD, *ADD_INPLACE, torch.sub, operator.sub], ids=name_of)
def test_a_tensor_that_meets_an_octave_in_a_sum_is_dropped(function, size):
    for low in (2, 8):
        x, y = octave(8, low, size), randn(2, 8, *size)
        plain = operator.sub if function in (torch.sub, operator.sub) else operator.add
        y_before, dropped = y.clone(), drop(y, low)
        expected = Octave(plain(x.high, dropped.high), plain(x.low, dropped.low))
        reverse = Octave(plain(dropped.high, x.high), plain(dropped.low, x.low))
        if plain is operator.add:
            reverse = expected
        assert_octaves_close(call(function, y, x), reverse)
        assert torch.equal(y, y_before)  # a tensor cannot become an octave in place
        assert_octaves_close(call(function, x, y), expected)
        assert torch.equal(y, y_before)


def test_torch_add_keeps_its_alpha():
    x, y = octave(8, 2, (5, 4)), octave(8, 2, (5, 4))
    assert_octaves_close(torch.add(x, y, alpha=3), combine(1, x, 3, y))
    assert_octaves_close(x.add(y, alpha=3), combine(1, x, 3, y))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_gate_expands_over_both_parts(size):
    x, gate = octave(8, 2, size), randn(2, 8, 1, 1)
    got = gate.expand_as(x)
    assert torch.equal(got.high, gate[:, :6].expand_as(x.high))
    assert torch.equal(got.low, gate[:, 6:].expand_as(x.low))
    assert_octaves_close(x * got, x * gate)
    with pytest.raises(OctaveError, match="their channels or sizes do not match"):
        randn(2, 6, 1, 1).expand_as(x)


@pytest.mark.parametrize("function", [torch.cat, torch.concat], ids=name_of)
@pytest.mark.parametrize("dim", [1, -3])
def test_cat_joins_part_by_part_and_counts_a_tensor_as_high(function, dim):
    x, y, t = octave(8, 2, (5, 4)), octave(4, 3, (5, 4)), randn(2, 5, 5, 4)
    got = function([x, t, y], dim)
    assert torch.equal(got.high, torch.cat([x.high, t, y.high], 1))
    assert torch.equal(got.low, torch.cat([x.low, y.low], 1))
    assert_octaves_close(function((t, y), dim=dim), Octave(torch.cat([t, y.high], 1), y.low))


@pytest.mark.parametrize("low", [4, 8])
def test_split_and_chunk_are_part_by_part(low):
    x = octave(8, low, (5, 4))
    n = (8 - low) // 4
    for pieces in (
        torch.split(x, 2, 1),
        torch.split(x, 2, dim=1),
        x.split(2, 1),
        torch.split(x, [2, 2, 2, 2], 1),
        torch.chunk(x, 4, 1),
        x.chunk(4, dim=-3),
    ):
        assert len(pieces) == 4
        for i, piece in enumerate(pieces):
            assert torch.equal(piece.high, x.high[:, n * i : n * (i + 1)])
            assert torch.equal(piece.low, x.low[:, low // 4 * i : low // 4 * (i + 1)])
        assert_octaves_close(torch.cat(list(pieces), 1), x)


def channels(x):
    """[(is it low, the map of one channel), ...] in the octave's order."""
    return [(is_low, p[:, i]) for is_low, p in enumerate(parts(x)) for i in range(p.shape[1])]


@pytest.mark.parametrize("low", [2, 3, 8])
def test_slices_of_the_channels_have_their_share_of_both_parts(low):
    """Counted one by one: of the first k of 8 channels, k * low // 8 are low. What is cut apart is all there."""
    x = octave(8, low, (5, 4))
    is_low = [(k + 1) * low // 8 - k * low // 8 for k in range(8)]  # whether the k-th channel is
    for start, stop in itertools.combinations(range(9), 2):
        y = x[:, start:stop]
        highs = [k for k in range(8) if not is_low[k]].index
        high = [parts(x)[0][:, highs(k)] for k in range(start, stop) if not is_low[k]]
        lows = [k for k in range(8) if is_low[k]].index
        low_ones = [parts(x)[1][:, lows(k)] for k in range(start, stop) if is_low[k]]
        got = channels(y)
        assert [p for p, _ in got] == [0] * len(high) + [1] * len(low_ones)
        assert all(torch.equal(a, b) for (_, a), b in zip(got, high + low_ones))
        assert y.shape == (2, stop - start, 5, 4)
        for key in ((slice(None), slice(start, stop), ...), (slice(None), slice(start - 8, stop), slice(None))):
            assert_octaves_close(x[key], y)


def test_unequal_pieces_are_slices():
    x = octave(8, 4, (5, 4))
    for pieces in (torch.split(x, [2, 6], 1), x.split([2, 6], dim=1), [x[:, :2], x[:, 2:]]):
        assert_octaves_close(pieces[0], Octave(x.high[:, :1], x.low[:, :1]))
        assert_octaves_close(pieces[1], Octave(x.high[:, 1:], x.low[:, 1:]))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("function", [operator.add, operator.sub, torch.add, operator.iadd], ids=name_of)
def test_a_sum_of_two_splits_has_the_low_channels_of_the_one_with_more(function, size):
    x, y = octave(8, 2, size), octave(8, 4, size)
    dropped = Octave(x.high[:, :4], torch.cat([pool(x.high[:, 4:]), x.low], 1))
    if function is operator.iadd:  # in place: those of the first
        assert_octaves_close(function(copy.deepcopy(y), x), y + dropped)
        z = copy.deepcopy(x)
        assert_octaves_close(function(z, y), x + resplit(y, 2))
        assert_octaves_close(z, x + resplit(y, 2))
    else:
        assert_octaves_close(function(x, y), function(dropped, y))
        assert_octaves_close(function(y, x), function(y, dropped))


@pytest.mark.parametrize("low", [2, 8])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_powers_and_enlargement_are_those_of_the_merged_map(size, low):
    x = octave(8, low, size).map(Tensor.abs)
    for y in (x**2, x.pow(2), torch.pow(x, 2), operator.pow(x, 2)):
        assert isinstance(y, Octave)
        assert_close(merge(y), merge(x) * merge(x))
    assert_close(merge(x**0.5), merge(x).sqrt())
    for factor in (1, 2, 3, (2, 1)):
        y = F.interpolate(x, scale_factor=factor)
        assert isinstance(y, Octave)
        assert y.low.shape[2:] == ((y.shape[2] + 1) // 2, (y.shape[3] + 1) // 2)
        h, w = factor if isinstance(factor, tuple) else (factor, factor)
        assert torch.equal(merge(y), merge(x).repeat_interleave(h, 2).repeat_interleave(w, 3))
    assert torch.equal(merge(nn.Upsample(scale_factor=2)(x)), merge(F.interpolate(x, scale_factor=2)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("low", [2, 8])
def test_reductions_over_space_are_of_each_part(size, low):
    x = octave(8, low, size)
    means = torch.cat([p.mean((2, 3)) for p in (x.high, x.low) if p.shape[1]], 1)
    peaks = torch.cat([p.amax((2, 3)) for p in (x.high, x.low) if p.shape[1]], 1)
    for got in (torch.mean(x, (2, 3)), x.mean((2, 3)), x.mean([-1, -2]), x.mean(dim=(-2, -1), keepdim=False)):
        assert torch.equal(got, means)
    for got in (torch.amax(x, (2, 3)), x.amax((2, 3)), x.amax(dim=[2, 3])):
        assert torch.equal(got, peaks)
    square = (2, 8, 1, 1)
    for got in (x.mean((2, 3), keepdim=True), F.adaptive_avg_pool2d(x, 1), nn.AdaptiveAvgPool2d((1, 1))(x)):
        assert torch.equal(got, means.view(square))
    for got in (x.amax((2, 3), keepdim=True), F.adaptive_max_pool2d(x, 1), nn.AdaptiveMaxPool2d(1)(x)):
        assert torch.equal(got, peaks.view(square))


def test_the_mean_is_that_of_the_merged_map_at_even_sizes():
    x = octave(8, 2, (6, 4))
    assert_close(x.mean((2, 3)), merge(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (1, 2, 0), (3, 1, 1), (5, 1, 2), (5, 2, 2)]
)
@pytest.mark.parametrize("low", [2, 4])
def test_pools_are_of_each_part_at_every_size(kernel, stride, padding, low):
    smallest = max(kernel - 2 * padding, 1)  # the smallest map that the plain pooling takes
    for size in itertools.product(range(smallest, 10), (smallest, smallest + 3)):
        x = octave(4, low, size, batch=1)
        largest = F.max_pool2d(x, kernel, stride, padding)
        average = F.avg_pool2d(x, kernel, stride, padding, count_include_pad=False)
        for y, reduce in ((largest, np.max), (average, np.mean)):
            expected = reference.window(x.high.numpy(), x.low.numpy(), kernel, stride, padding, reduce)
            assert_octaves_close(y, Octave(*map(torch.from_numpy, expected)))
        assert_octaves_close(largest, nn.MaxPool2d(kernel, stride, padding)(x))
        assert_octaves_close(average, nn.AvgPool2d(kernel, stride, padding, count_include_pad=False)(x))


@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (3, 0), (3, 1)])
def test_pools_in_ceil_mode_keep_the_halves(kernel, padding):
    for size in itertools.product(range(kernel, 10), (5, 6)):
        x = octave(4, 2, size)
        y = F.max_pool2d(x, kernel, 2, padding, ceil_mode=True)
        assert torch.equal(y.high, F.max_pool2d(x.high, kernel, 2, padding, ceil_mode=True))
        assert y.low.shape[2:] == ((y.shape[2] + 1) // 2, (y.shape[3] + 1) // 2)


def test_pool_strides_default_to_the_kernel():
    x = octave(4, 2, (6, 6))
    assert_octaves_close(F.max_pool2d(x, 2), F.max_pool2d(x, 2, 2))
    assert_octaves_close(F.avg_pool2d(x, 2), F.avg_pool2d(x, 2, 2))


NO_ANSWER = {
    "torch.flatten": (
        lambda x: torch.flatten(x, 1),
        "flatten has no meaning for an Octave (Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3])): leave the layers that "
        "feed it plain, or merge(x) before it",
    ),
    "torch.stack": (
        lambda x: torch.stack([x, x]),
        "stack has no meaning for an Octave (Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]), Octave(high=[2, 6, 6, 6], "
        "low=[2, 2, 3, 3])): leave the layers that feed it plain, or merge(x) before it",
    ),
    "a plain convolution": (
        lambda x: F.conv2d(x, torch.zeros(8, 8, 1, 1)),
        "conv2d has no meaning for an Octave (Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]), Tensor[8, 8, 1, 1]): leave "
        "the layers that feed it plain, or merge(x) before it",
    ),
    "a plain batch norm": (
        lambda x: nn.BatchNorm2d(8).double()(x),
        "batch_norm has no meaning for an Octave (Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]), Tensor[8], Tensor[8]): "
        "a plain batch norm met an octave; use octzoo.sync_batchnorm instead of a converter that makes plain ones",
    ),
    "an attribute of tensors": (
        lambda x: x.permute(0, 2, 3, 1),
        "permute has no meaning for an Octave (Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3])): leave the layers that "
        "feed it plain, or merge(x) before it",
    ),
    "a product with another split": (
        lambda x: x * octave(8, 4, (6, 6)),
        "mul of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) and Octave(high=[2, 4, 6, 6], low=[2, 4, 3, 3]): their "
        "channels or sizes do not match",
    ),
    "a sum with other channels": (
        lambda x: x + octave(6, 2, (6, 6)),
        "add of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) and Octave(high=[2, 4, 6, 6], low=[2, 2, 3, 3]): their "
        "channels or sizes do not match",
    ),
    "a power of two maps": (
        lambda x: x**x,
        "pow has no meaning for an Octave (Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]), Octave(high=[2, 6, 6, 6], "
        "low=[2, 2, 3, 3])): leave the layers that feed it plain, or merge(x) before it",
    ),
    "an enlargement by a fraction": (
        lambda x: F.interpolate(x, scale_factor=1.5),
        "interpolate of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]): only by nearest neighbour and whole factors; "
        "merge(x) before it",
    ),
    "rows": (
        lambda x: x[:, :, 1:],
        "__getitem__ has no meaning for an Octave (Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3])): leave the layers that "
        "feed it plain, or merge(x) before it",
    ),
    "a tensor of another size": (
        lambda x: x + randn(2, 8, 5, 6),
        "add of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) and Tensor[2, 8, 5, 6]: their channels or sizes do not "
        "match",
    ),
    "a product with a whole map": (
        lambda x: x * randn(2, 8, 6, 6),
        "mul of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) and Tensor[2, 8, 6, 6]: their channels or sizes do not "
        "match",
    ),
    "a product with a map of one channel": (
        lambda x: x * randn(2, 1, 6, 6),
        "mul of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) and Tensor[2, 1, 6, 6]: their channels or sizes do not "
        "match",
    ),
    "cat of pictures": (
        lambda x: torch.cat([x, x]),
        "cat of octaves on dimension 0: only channels (1) can be joined",
    ),
    "unequal pieces that do not divide both parts": (
        lambda x: x.split([2, 6], 1),
        "split of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) into [2, 6], which do not divide both parts: give the "
        "layer before it multiple=4 in the plan",
    ),
    "pieces of the rows": (
        lambda x: x.split(3, 2),
        "split of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) into 3 on dimension 2: only the channels (1), all of "
        "them",
    ),
    "pieces that do not divide both parts": (
        lambda x: x.chunk(4, 1),
        "split of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) into 4 pieces, which do not divide both parts: give the "
        "layer before it multiple=4 in the plan",
    ),
    "the mean of everything": (
        lambda x: x.mean(),
        "mean of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) over dimensions None: only over height and width, (2, 3)",
    ),
    "the mean over channels": (
        lambda x: x.mean(1, keepdim=True),
        "mean of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) over dimensions 1: only over height and width, (2, 3)",
    ),
    "pooling to 2x2": (
        lambda x: F.adaptive_avg_pool2d(x, 2),
        "adaptive_avg_pool2d of Octave(high=[2, 6, 6, 6], low=[2, 2, 3, 3]) to 2: only to size 1; merge(x) before it",
    ),
    "pooling that shrinks by a border": (
        lambda x: F.max_pool2d(x, 3, 1),
        "max_pool2d with kernel 3, stride 1, padding 0 does not keep the sizes of both parts of Octave(high=[2, 6, 6, "
        "6], low=[2, 2, 3, 3]): merge(x) before it, or leave the layers that feed it plain",
    ),
}


@pytest.mark.parametrize("case", NO_ANSWER)
def test_what_has_no_meaning_raises_with_the_function_and_the_shapes(case):
    function, text = NO_ANSWER[case]
    with pytest.raises(OctaveError) as error:
        function(octave(8, 2, (6, 6)))
    assert str(error.value) == text


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(x, 3, 1, 1, 3),  # dilated: shrinks both parts by the same border
        lambda x: F.max_pool2d(x, 2, return_indices=True),
        lambda x: F.adaptive_max_pool2d(x, 1, return_indices=True),
        lambda x: torch.add(x, x, out=torch.empty(0)),
        lambda x: torch.where(torch.ones(2, 8, 16, 16) > 0, x, x),
        lambda x: torch.zeros(2, 8, 16, 16).copy_(x),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x, size=(32, 32)),
        lambda x: x[:, 1],
        lambda x: x[:, ::2],
        lambda x: x[:, 4:4],
        lambda x: x[:1],
        lambda x: F.pad(x, (1, 1)),
        lambda x: nn.Linear(8, 8)(x),
        lambda x: nn.PReLU(8)(x),
    ],
)
def test_never_a_half_answer(function):
    with pytest.raises(OctaveError):
        function(drop(torch.randn(2, 8, 16, 16), 2))


@pytest.mark.parametrize(
    "function",
    [lambda x: x**x, lambda x: 2**x, lambda x: x @ x, lambda x: x[0], lambda x: x > 0, len, list],
)
def test_operators_without_a_rule_fail_loudly(function):
    with pytest.raises((OctaveError, TypeError)):
        function(octave(8, 2, (6, 6)))


def test_an_attribute_that_tensors_have_not_either():
    x = octave(8, 2, (6, 6))
    with pytest.raises(AttributeError, match=r"^'Octave' object has no attribute 'colour'$"):
        _ = x.colour
    assert not hasattr(x, "permute")
    assert not x.requires_grad
    assert octzoo.Octave(x.high, x.low.clone().requires_grad_()).requires_grad


def test_an_octave_says_what_it_is():
    x = octave(8, 2, (5, 4))
    assert repr(x) == "Octave(high=[2, 6, 5, 4], low=[2, 2, 3, 2])"
    assert x.shape == x.size() == (2, 8, 5, 4)
    assert isinstance(x.shape, torch.Size)
    assert (x.size(1), x.size(-1), x.ndim, x.dim()) == (8, 4, 4, 4)
    assert (x.dtype, x.device) == (torch.float64, torch.device("cpu"))
    assert x.new_empty((2, 1, 1, 1)).shape == (2, 1, 1, 1)
    with pytest.raises(AttributeError):
        x.high = x.low


@pytest.mark.parametrize("low", [2, 8])
def test_dtype_and_device_move_both_parts(low):
    x = octave(8, low, (5, 4))
    for y in (x.half(), x.to(torch.float16), x.to(dtype=torch.float16)):
        assert merge(y).dtype == y.high.dtype == y.low.dtype == y.dtype == torch.float16
    y = x.to("meta")
    assert merge(y).device == y.high.device == y.low.device == y.device == torch.device("meta")


def test_pytree_round_trip():
    x = octave(8, 2, (5, 4))
    leaves, spec = pytree.tree_flatten({"x": [x, 1]})
    assert leaves[0] is x.high
    assert leaves[1] is x.low
    assert_octaves_close(pytree.tree_unflatten(leaves, spec)["x"][0], x)
    assert_octaves_close(pytree.tree_map(lambda t: 2 * t, x), combine(2, x, 0, x))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(copied):
    x = octave(8, 2, (5, 4))
    y = copied(x)
    assert y is not x
    assert_octaves_close(y, x, rtol=0, atol=0)


def test_torch_save_keeps_an_octave(tmp_path):
    x = octave(8, 2, (5, 4))
    torch.save(x, tmp_path / "x.pt")
    assert_octaves_close(torch.load(tmp_path / "x.pt", weights_only=False), x, rtol=0, atol=0)


# ---- a draw a sample serves both parts -----------------------------------------------------------------------------


def droppers():
    from timm.layers import DropPath
    from torchvision.ops import StochasticDepth

    return {"timm": DropPath(0.5), "torchvision": StochasticDepth(0.5, "row"), "batch": StochasticDepth(0.5, "batch")}


@pytest.mark.parametrize("kind", ["timm", "torchvision", "batch"])
@pytest.mark.parametrize("low", [2, 8])
def test_drop_path_drops_both_parts_of_a_sample_or_none(kind, low):
    layer, x = droppers()[kind], Octave(torch.ones(32, 8 - low, 4, 4), torch.ones(32, low, 2, 2))
    seen = set()
    for _ in range(8):
        y = layer(x)
        factor = y.low[:, :1, :1, :1]
        seen |= set(factor.flatten().tolist())
        assert torch.equal(y.high, factor.expand_as(y.high))
        assert torch.equal(y.low, factor.expand_as(y.low))
    assert seen == {0.0, 2.0}
    assert_octaves_close(layer.eval()(x), x)
