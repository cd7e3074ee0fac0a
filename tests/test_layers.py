"""Layers: the plain modules' parameters; on a Tensor the plain modules' answers, on an Octave one for each part."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import (
    BatchNormAct2d,
    BlurPool2d,
    GroupNorm,
    GroupNorm1,
    GroupNormAct,
    LayerNorm2d,
    LayerNormAct2d,
    RmsNorm2d,
    RmsNormAct2d,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    SelectiveKernel,
    SplitAttn,
    StdConv2d,
    StdConv2dSame,
)
from timm.layers.norm_act import GroupNorm1Act
from torch import nn
from torch.testing import assert_close

from octzoo import OctConv2d, channel_order, octavize, set_alpha, sync_batchnorm
from octzoo.channels import reorder
from octzoo.layers import OCTAVE_OF, OctBatchNorm2d, OctBatchNormAct2d, OctBlurPool2d, octave_form
from octzoo.norms import OctGroupNorm, OctLayerNorm2d, OctRmsNorm2d
from octzoo.octave import Octave, OctaveError, drop, merge, octave_conv2d, pool


def assert_octaves_close(actual, expected, **kwargs):
    assert isinstance(actual, Octave)
    assert isinstance(expected, Octave)
    assert_close(actual.high, expected.high, **kwargs)
    assert_close(actual.low, expected.low, **kwargs)


def shapes(module):
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def randomised(module):
    """``module`` with other parameters and statistics than fresh ones, where every slice counts."""
    with torch.no_grad():
        for name, t in module.state_dict().items():
            if t.is_floating_point() and name != "filt":
                t.copy_(torch.rand_like(t) + 0.5)
    return module


# ---- OctConv2d -----------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "2x2 stride 2": {"kernel_size": 2, "stride": 2, "stride_mode": "conv"},
    "same": {"kernel_size": (4, 3), "padding": "same"},
    "dilated": {"kernel_size": (3, 1), "padding": (2, 0), "dilation": (2, 1)},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 16, "alpha": 0.5},
    "without a bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2},
    "h2l off": {"kernel_size": 3, "padding": 1, "h2l": False},
    "l2h off": {"kernel_size": 3, "padding": 1, "l2h": False},
    "multiple": {"kernel_size": 1, "alpha": 0.4, "multiple": 4},
    "float64": {"kernel_size": 1, "dtype": torch.float64},
    "all low": {"kernel_size": 1, "alpha": 1.0},
    "alpha 0": {"kernel_size": 1, "alpha": 0.0},
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_layer_is_the_function_with_the_plain_parameters(kind):
    options = CONVOLUTIONS[kind]
    layer = OctConv2d(16, 32, **options)
    plain = {k: v for k, v in options.items() if k not in ("alpha", "multiple", "stride_mode", "h2l", "l2h")}
    assert shapes(layer) == shapes(nn.Conv2d(16, 32, **plain))
    assert isinstance(layer, nn.Conv2d)
    low = {"multiple": 12, "depthwise": 16, "all low": 32, "alpha 0": 0}.get(kind, 8)
    assert layer.low_out == low
    for name in ("kernel_size", "dtype", "bias", "multiple", "alpha"):
        plain.pop(name, None)
    exchange = {k: options[k] for k in ("stride_mode", "h2l", "l2h") if k in options}
    for c in (4, 8) if kind == "h2l off" else (0, 4, 8):
        x = drop(torch.randn(2, 16, 8, 6, dtype=options.get("dtype")), c)
        y = layer(x)
        expected = octave_conv2d(x, layer.weight, layer.bias, **plain, low_out=low, **exchange)
        assert torch.equal(merge(y), merge(expected))
        assert isinstance(y, Octave) == (low > 0)


def test_the_layer_begins_with_the_weights_of_a_plain_one():
    torch.manual_seed(1)
    octave = OctConv2d(8, 16, 3, padding=1)
    torch.manual_seed(1)
    plain = nn.Conv2d(8, 16, 3, padding=1)
    assert torch.equal(octave.weight, plain.weight)
    plain.load_state_dict(octave.state_dict())
    octave.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("options", [{}, {"stride": 2, "stride_mode": "conv"}, {"groups": 2}, {"dilation": 2}], ids=str)
def test_alpha_zero_is_exactly_conv2d(options):
    layer = OctConv2d(8, 8, 3, padding=1, alpha=0, **options)
    options.pop("stride_mode", None)
    plain = nn.Conv2d(8, 8, 3, padding=1, **options)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 9, 8)
    assert torch.equal(layer(x), plain(x))


def test_on_the_meta_device():
    layer = OctConv2d(8, 16, 3, stride=2, padding=1, device="meta")
    y = layer(layer(torch.zeros(2, 8, 9, 9, device="meta")).map(lambda p: p[:, ::2]))
    assert y.device == torch.device("meta")
    assert y.shape == (2, 16, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    layers = nn.Sequential(OctConv2d(4, 8, 3, padding=1, dtype=dtype), OctConv2d(8, 8, 1, dtype=dtype, alpha=1))
    y = layers(torch.randn(1, 4, 6, 6, dtype=dtype))
    assert y.high.dtype == y.low.dtype == y.dtype == dtype


def test_repr_shows_what_differs():
    assert repr(OctConv2d(8, 16, 3, padding=1)) == (
        "OctConv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), alpha=0.25)"
    )
    assert repr(OctConv2d(8, 16, 1, 2, alpha=0.5, multiple=4, stride_mode="conv", h2l=False, l2h=False)) == (
        "OctConv2d(8, 16, kernel_size=(1, 1), stride=(2, 2), alpha=0.5, multiple=4, stride_mode='conv', h2l=False, "
        "l2h=False)"
    )


NEVER_RIGHT = {
    "stride (3, 3) is not 1 or 2: leave this layer plain": {"kernel_size": 3, "stride": 3, "padding": 1},
    "stride (2, 1) is not 1 or 2: leave this layer plain": {"kernel_size": 3, "stride": (2, 1), "padding": 1},
    "8 groups do not divide the parts (12 high out, 4 low out): choose an alpha whose low channels are a multiple of "
    "8, or leave this layer plain": {
        "kernel_size": 3,
        "padding": 1,
        "groups": 8,
        "alpha": 0.25,
        "out_channels": 16,
        "in_channels": 16,
    },
    "kernel (3, 3), padding (0, 0), dilation (1, 1) at stride 1 does not keep the sizes of both parts: leave this "
    "layer plain": {"kernel_size": 3},
    "kernel (2, 2), padding (0, 0), dilation (1, 1) at stride 2 does not keep its size behind pooling (an odd kernel "
    "with padding k//2 does): use stride_mode='conv', or leave this layer plain": {"kernel_size": 2, "stride": 2},
    "kernel (3, 3), padding (0, 0), dilation (1, 1) at stride 2 does not keep its size behind pooling (an odd kernel "
    "with padding k//2 does): use stride_mode='conv', or leave this layer plain": {
        "kernel_size": 3,
        "stride": 2,
        "alpha": 0.0,
    },
    "kernel (5, 5), padding (1, 1), dilation (1, 1) at stride 2 does not keep the sizes of both parts: leave this "
    "layer plain": {"kernel_size": 5, "stride": 2, "padding": 1, "stride_mode": "conv"},
    "alpha=1.5 is not between 0 and 1": {"kernel_size": 1, "alpha": 1.5},
    "alpha=-0.1 is not between 0 and 1": {"kernel_size": 1, "alpha": -0.1},
    "alpha=nan is not between 0 and 1": {"kernel_size": 1, "alpha": float("nan")},
    "stride_mode='stride' is neither 'pool' nor 'conv'": {"kernel_size": 1, "stride_mode": "stride"},
}


@pytest.mark.parametrize("text", NEVER_RIGHT)
def test_what_no_input_could_make_right_is_refused_at_once(text):
    with pytest.raises(OctaveError) as error:
        OctConv2d(**({"in_channels": 8, "out_channels": 8} | NEVER_RIGHT[text]))
    assert str(error.value).startswith("OctConv2d(")
    assert str(error.value).endswith("): " + text)


ONLY_AT_RUN_TIME = {
    "expected an input of 8 channels, [B, 8, H, W], and got Tensor[2, 6, 6, 6]": (torch.zeros(2, 6, 6, 6), {}),
    "expected an input of 8 channels, [B, 8, H, W], and got Octave(high=[2, 4, 6, 6], low=[2, 2, 3, 3])": (
        drop(torch.zeros(2, 6, 6, 6), 2),
        {},
    ),
    "2 groups do not divide the parts (5 high in, 3 low in): choose an alpha whose low channels are a multiple of 2, "
    "or leave this layer plain": (drop(torch.zeros(2, 8, 6, 6), 3), {"groups": 2}),
    "nothing reaches the low output: an exchange path is off": (torch.zeros(2, 8, 6, 6), {"h2l": False}),
}


@pytest.mark.parametrize("text", ONLY_AT_RUN_TIME)
def test_errors_at_run_time_name_the_layer(text):
    x, options = ONLY_AT_RUN_TIME[text]
    layer = OctConv2d(8, 8, 3, padding=1, **options)
    with pytest.raises(OctaveError) as error:
        layer(x)
    assert str(error.value) == f"{layer}: {text}"
    layer.name = "stage2.conv1"
    with pytest.raises(OctaveError) as error:
        layer(x)
    assert str(error.value) == f"stage2.conv1: {text}"


@given(st.integers(1, 24), st.floats(0, 1), st.integers(1, 4))
def test_any_alpha_of_any_width_gives_the_plain_size(channels, alpha, multiple):
    layer = OctConv2d(3, channels, 3, 2, 1, alpha=alpha, multiple=multiple)
    y = layer(torch.zeros(1, 3, 7, 5))
    assert y.shape == (1, channels, 4, 3)
    assert layer.low_out % multiple == 0


def test_a_small_octave_network_learns():
    """The value, the layers and autograd together: the loss of an XOR of stripes falls to nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(
        OctConv2d(1, 8, 3, padding=1),
        OctBatchNorm2d(8),
        nn.ReLU(inplace=True),
        OctConv2d(8, 8, 3, 2, 1),
        OctBatchNorm2d(8),
        nn.ReLU(inplace=True),
        OctConv2d(8, 2, 3, padding=1, alpha=0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    stripes = torch.tensor([1.0, -1.0]).repeat(4)
    x = torch.stack([stripes.expand(1, 8, 8), stripes[:, None].expand(1, 8, 8)] * 4) + 0.1 * torch.randn(8, 1, 8, 8)
    target, optimizer = torch.tensor([0, 1] * 4), torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(40):
        loss = F.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


# ---- norms ---------------------------------------------------------------------------------------------------------


class Pair:
    """Two independent plain layers, holding the high and the low channels of one."""

    def __init__(self, plain, low, make):
        n = next(iter(plain.state_dict().values())).shape[0] - low
        self.parts = [make(n), make(low)]
        for part, cut in zip(self.parts, (slice(0, n), slice(n, None))):
            state = {k: v[cut] if v.ndim else v for k, v in plain.state_dict().items()}
            part.load_state_dict(state)
            part.train(plain.training)

    def __call__(self, x):
        return Octave(*(f(p) for f, p in zip(self.parts, (x.high, x.low))))

    def state(self):
        high, low = (part.state_dict() for part in self.parts)
        return {k: torch.cat([high[k], low[k]]) if high[k].ndim else high[k] for k in high}

    def gradients(self):
        return [torch.cat([a.grad, b.grad]) for a, b in zip(*(part.parameters() for part in self.parts))]


BATCH_NORMS = {
    "default": {},
    "momentum": {"momentum": 0.3, "eps": 1e-2},
    "momentum None": {"momentum": None},
    "affine False": {"affine": False},
    "bias False": {"bias": False},
    "without statistics": {"track_running_stats": False},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [k for k in BATCH_NORMS if k != "without statistics"])
def test_batch_norm_of_an_octave_is_two_independent_ones(kind, training):
    options = BATCH_NORMS[kind]
    plain = randomised(nn.BatchNorm2d(8, **options)).train(training)
    octave = OctBatchNorm2d(8, **options).train(training)
    octave.load_state_dict(plain.state_dict())
    assert shapes(octave) == shapes(plain)
    pair = Pair(plain, 2, lambda n: nn.BatchNorm2d(n, **options))
    for _ in range(3):
        x = drop(torch.randn(4, 8, 5, 6), 2).map(lambda p: 3 * p + 1)
        y, expected = octave(x), pair(x)
        assert_octaves_close(y, expected)
        for name, value in pair.state().items():
            assert_close(octave.state_dict()[name], value)
        if octave.weight is not None:
            for z in (y, expected):
                (z.high.square().sum() + z.low.exp().sum()).backward()
            for p, gradient in zip(octave.parameters(), pair.gradients()):
                assert_close(p.grad, gradient)
    assert octave.num_batches_tracked == (3 if training else 0) + plain.num_batches_tracked


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_without_statistics_uses_those_of_the_batch(training):
    octave = OctBatchNorm2d(8, track_running_stats=False).train(training)
    x = drop(torch.randn(4, 8, 5, 6), 2)
    halves = [nn.BatchNorm2d(n, track_running_stats=False) for n in (6, 2)]
    assert_octaves_close(octave(x), Octave(halves[0](x.high), halves[1](x.low)))
    assert set(octave.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_batch_norm_of_a_tensor_is_the_plain_one(kind):
    plain = randomised(nn.BatchNorm2d(8, **BATCH_NORMS[kind]))
    octave = OctBatchNorm2d(8, **BATCH_NORMS[kind])
    octave.load_state_dict(plain.state_dict())
    for training in (True, True, False):
        x = torch.randn(4, 8, 5, 6)
        assert torch.equal(octave.train(training)(x), plain.train(training)(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(octave.state_dict()[name], value)


def test_batch_norm_of_an_all_low_octave_is_that_of_its_low_part():
    plain, octave = nn.BatchNorm2d(8), OctBatchNorm2d(8)
    x = drop(torch.randn(4, 8, 6, 6), 8)
    y = octave(x)
    assert y.high.shape == (4, 0, 6, 6)
    assert torch.equal(y.low, plain(x.low))
    assert torch.equal(octave.running_var, plain.running_var)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("act", [{}, {"apply_act": False}, {"act_layer": nn.SiLU, "inplace": False}], ids=str)
def test_batch_norm_act(act, training):
    plain = randomised(BatchNormAct2d(8, **act)).train(training)
    octave = OctBatchNormAct2d(8, **act).train(training)
    octave.load_state_dict(plain.state_dict())
    pair = Pair(plain, 2, lambda n: BatchNormAct2d(n, **act))
    x = torch.randn(4, 8, 5, 6)
    assert shapes(octave) == shapes(plain)
    assert_octaves_close(octave(drop(x, 2)), pair(drop(x, 2)))
    for name, value in pair.state().items():
        assert_close(octave.state_dict()[name], value)
    octave.load_state_dict(plain.state_dict())
    assert torch.equal(octave(x), plain(x))


def test_batch_norm_act_drops_as_the_plain_one_does():
    octave = OctBatchNormAct2d(8, drop_layer=nn.Dropout2d, apply_act=False)
    x = drop(torch.ones(4, 8, 4, 4) + torch.randn(4, 8, 4, 4), 4)
    y = octave(x)
    for part in (y.high, y.low):
        dropped = (part == 0).flatten(2).all(2)
        assert 0 < dropped.sum() < dropped.numel()


def test_group_norm_has_groups_as_wide_as_the_plain_one():
    for plain in (nn.GroupNorm(4, 8), GroupNorm(8, 4)):
        octave = OctGroupNorm(4, 8)
        octave.load_state_dict(randomised(plain).state_dict())
        assert shapes(octave) == shapes(plain)
        x = torch.randn(2, 8, 5, 6)
        assert torch.equal(octave(x), F.group_norm(x, 4, plain.weight, plain.bias))
        for low, groups in ((2, (3, 1)), (4, (2, 2))):
            n = 8 - low
            y = drop(x, low)
            high = F.group_norm(y.high, groups[0], plain.weight[:n], plain.bias[:n])
            assert_octaves_close(
                octave(y), Octave(high, F.group_norm(y.low, groups[1], plain.weight[n:], plain.bias[n:]))
            )
        y = drop(x, 8)
        assert torch.equal(octave(y).low, F.group_norm(y.low, 4, plain.weight, plain.bias))


def test_a_single_group_is_one_for_each_part():
    plain, octave = randomised(GroupNorm1(8)), OctGroupNorm(1, 8)
    octave.load_state_dict(plain.state_dict())
    pair = Pair(plain, 3, GroupNorm1)
    x = torch.randn(2, 8, 5, 6)
    assert_octaves_close(octave(drop(x, 3)), pair(drop(x, 3)))
    assert torch.equal(octave(x), plain(x))


def test_group_norm_refuses_parts_that_cut_a_group():
    octave = OctGroupNorm(2, 8)
    text = (
        "a part of 6 channels is not made of groups of 4: choose an alpha whose low channels are a multiple of 4, or "
        "leave this layer plain"
    )
    for name in ("", "stages.1.norm"):
        octave.name = name
        with pytest.raises(OctaveError) as error:
            octave(drop(torch.zeros(1, 8, 4, 4), 2))
        assert str(error.value) == f"{name or octave}: {text}"


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_is_over_the_channels_of_each_part(affine):
    plain, octave = randomised(LayerNorm2d(8, affine=affine)), OctLayerNorm2d(8, affine=affine)
    octave.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 5, 6)
    assert torch.equal(octave(x), plain(x))
    assert shapes(octave) == shapes(plain)
    halves = [LayerNorm2d(n, affine=affine) for n in (6, 2)]
    if affine:
        for half, cut in zip(halves, (slice(0, 6), slice(6, None))):
            half.load_state_dict({k: v[cut] for k, v in plain.state_dict().items()})
    y = drop(x, 2)
    assert_octaves_close(octave(y), Octave(halves[0](y.high), halves[1](y.low)))
    assert torch.equal(octave(drop(x, 8)).low, plain(drop(x, 8).low))


@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm_is_over_the_channels_of_each_part(affine):
    plain = randomised(RmsNorm2d(8, affine=affine))
    octave = OctRmsNorm2d(8, affine=affine)
    octave.load_state_dict(plain.state_dict())
    x = drop(torch.randn(2, 8, 5, 6), 2)
    assert torch.equal(octave(x.high.repeat(1, 2, 1, 1)[:, :8]), plain(x.high.repeat(1, 2, 1, 1)[:, :8]))
    weight = plain.weight if affine else torch.ones(8)
    high, low = (p / (p.square().mean(1, keepdim=True) + plain.eps).sqrt() for p in (x.high, x.low))
    assert_octaves_close(octave(x), Octave(high * weight[:6, None, None], low * weight[6:, None, None]))


NORM_ACTS = {
    GroupNormAct: (OctGroupNorm, lambda m: m(4, 8), {"num_groups": 4}),
    GroupNorm1Act: (OctGroupNorm, lambda m: m(1, 8), {}),
    LayerNormAct2d: (OctLayerNorm2d, lambda m: m(8), {}),
    RmsNormAct2d: (OctRmsNorm2d, lambda m: m(8), {}),
}


@pytest.mark.parametrize("plain", NORM_ACTS, ids=lambda c: c.__name__)
def test_norm_acts_are_a_norm_and_an_activation(plain):
    norm_class, make, options = NORM_ACTS[plain]
    module = randomised(plain(8, act_layer=nn.SiLU, **options))
    norm = make(norm_class)
    norm.load_state_dict(module.state_dict())
    norm.eps = module.eps
    x = torch.randn(2, 8, 5, 6)
    expected = module(x)
    module.__class__ = OCTAVE_OF[plain]
    assert torch.equal(module(x), expected)
    assert_octaves_close(module(drop(x, 2)), norm(drop(x, 2)).map(F.silu))


def test_a_norm_that_differs_in_its_constructor_alone_is_what_its_base_is():
    class NoBias(GroupNorm1):
        def __init__(self, channels):
            super().__init__(channels)
            self.bias = None

    class Other(GroupNorm1):
        def forward(self, x):
            return 2 * super().forward(x)

    class Convolution(nn.Conv2d):
        pass

    assert octave_form(NoBias) is OctGroupNorm
    assert octave_form(Other) is octave_form(Convolution) is octave_form(nn.Linear) is None


# ---- weights that are standardised ---------------------------------------------------------------------------------


def standardised(weight, gain, eps):
    """Row by row, from the definition."""
    rows = []
    for i, row in enumerate(weight):
        mean = row.sum() / row.numel()
        variance = (row - mean).square().sum() / row.numel()
        rows.append((row - mean) / (variance + eps).sqrt() * (1 if gain is None else gain[i]))
    return torch.stack(rows)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "kind", [StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame], ids=lambda c: c.__name__
)
def test_standardised_weights_are_those_of_whole_rows(kind, stride):
    plain = kind(8, 8, 3, stride=stride, groups=2, bias=True).double()
    scaled = hasattr(plain, "gain")
    if scaled:
        plain.gain.data.uniform_(0.5, 2)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), copy.deepcopy(plain), nn.Conv2d(8, 4, 1)).double()
    plan = [("1", "octave", 1, "conv"), ("2", "zero")]
    x = torch.randn(2, 8, 9, 8).double()
    model = octavize(net, 0, plan, input_size=(3, 16, 16))
    assert_close(model[1](x), plain(x))  # alpha 0: what timm computes
    layer = set_alpha(model, 0.5)[1]
    gain = plain.gain.flatten() * plain.scale if scaled else None
    weight = standardised(plain.weight, gain, plain.eps)
    padding = "same" if kind in (StdConv2dSame, ScaledStdConv2dSame) else 1
    y = drop(x, 4)
    expected = octave_conv2d(y, weight, plain.bias, stride, padding, 1, 2, low_out=4, stride_mode="conv")
    assert_octaves_close(layer(y), expected)
    assert shapes(layer) == shapes(plain)


# ---- blocks over several maps --------------------------------------------------------------------------------------


def as_constant(block):
    """``block`` with convolutions that keep a constant map constant."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "replicate"
    return block.double().eval()


BLOCKS = {
    "selective kernel": lambda: SelectiveKernel(16, 16),
    "selective kernel of the whole input": lambda: SelectiveKernel(16, 16, split_input=False),
    "split attention": lambda: SplitAttn(16, 16, norm_layer=nn.BatchNorm2d),
    "split attention of three": lambda: SplitAttn(24, 24, radix=3),
    "split attention of one": lambda: SplitAttn(16, 16, radix=1),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_compute_what_the_plain_ones_do(case):
    """On tensors exactly; in a network, on constant pictures and with the weights in the octave order."""
    block = as_constant(BLOCKS[case]())
    width = 24 if "three" in case else 16
    x = torch.randn(2, width, 6, 6).double()
    twin = copy.deepcopy(block)
    twin.__class__ = octave_form(type(block))
    assert_close(twin(x), block(x))
    plain = nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1), block, nn.Conv2d(width, 8, 1)).double()
    for key, t in plain.state_dict().items():
        if "running" in key:
            t.uniform_(0.5, 1.5)
    vectors = [("*.fc*", "plain"), ("*.attn.*", "plain")]
    plan = [*vectors, ("1", "octave"), ("2.*", "octave"), ("3", "zero")]
    model = octavize(copy.deepcopy(plain), 0.5, plan, input_size=(3, 16, 16)).eval()
    model.load_state_dict(reorder(plain.state_dict(), channel_order(model)))
    seen = []
    model[2].register_forward_hook(lambda m, args, out: seen.append(out))
    picture = torch.randn(2, 3, 1, 1).double().expand(-1, -1, 16, 16)
    assert_close(model(picture), plain.eval()(picture))
    assert isinstance(seen[0], Octave)
    assert not torch.allclose(model[2](drop(x, width // 2)).low, pool(block(x))[:, width // 2 :])


@pytest.mark.parametrize("filt_size", [3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_blur_pool_is_the_same_filter_on_each_part(filt_size, stride):
    plain, octave = BlurPool2d(8, filt_size, stride), OctBlurPool2d(8, filt_size, stride)
    assert shapes(octave) == shapes(plain)
    for size in ((12, 11), (9, 8)):
        x = torch.randn(2, 8, *size)
        assert torch.equal(octave(x), plain(x))
        y = drop(x, 2)
        if filt_size == 4 and stride == 1:  # an even filter moves the map by half a pixel and keeps no size
            continue
        z = octave(y)
        assert_octaves_close(
            z, Octave(BlurPool2d(6, filt_size, stride)(y.high), BlurPool2d(2, filt_size, stride)(y.low))
        )
        assert merge(z).shape == plain(x).shape


def test_octave_classes_need_no_attribute_that_plain_ones_lack():
    """Surgery changes a module's class and nothing else."""
    made = {
        nn.Conv2d: (8, 8, 1),
        nn.BatchNorm2d: (8,),
        BatchNormAct2d: (8,),
        nn.GroupNorm: (4, 8),
        GroupNorm: (8, 4),
        GroupNorm1: (8,),
        LayerNorm2d: (8,),
        BlurPool2d: (8,),
        GroupNormAct: (8, 4),
        GroupNorm1Act: (8,),
        LayerNormAct2d: (8,),
        RmsNorm2d: (8,),
        RmsNormAct2d: (8,),
        **dict.fromkeys([StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame], (8, 8, 1)),
    }
    from timm.layers import Conv2dSame

    made[Conv2dSame] = (8, 8, 1)
    assert set(made) <= set(OCTAVE_OF)
    for plain in OCTAVE_OF:
        module = plain(*made.get(plain, ()))
        x = torch.randn(2, 8, 6, 6)
        expected = copy.deepcopy(module)(x)
        module.__class__ = OCTAVE_OF[plain]
        assert_close(module(x), expected)
        assert isinstance(module(drop(x, 4)) if not isinstance(module, nn.Conv2d) else Octave(x, x), Octave)
        assert repr(module)


def test_sync_batchnorm_without_processes_changes_nothing():
    plain = nn.Sequential(nn.BatchNorm2d(8), BatchNormAct2d(8), OctBatchNorm2d(8))
    synced = sync_batchnorm(copy.deepcopy(plain))
    assert [type(m) for m in synced] == [OctBatchNorm2d, OctBatchNormAct2d, OctBatchNorm2d]
    assert all(m.sync for m in synced)
    assert not plain[2].sync
    x = torch.randn(4, 8, 5, 6)
    for training in (True, False):
        assert_close(synced.train(training)(x), plain.train(training)(x))
    assert_close(synced.state_dict(), plain.state_dict())
    assert isinstance(synced(drop(x, 2)), Octave)
    sync_batchnorm(synced, False)
    assert not any(m.sync for m in synced)


def test_sync_batchnorm_refuses_what_it_cannot_do_and_changes_nothing():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm1d(8))
    with pytest.raises(OctaveError, match=r"^1: sync_batchnorm has no synchronised form of BatchNorm1d$"):
        sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d
