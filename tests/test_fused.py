"""A fused network computes what the network it was made from does."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from octzoo import OctConv2d, octavize, set_alpha
from octzoo.deploy import fuse
from octzoo.fused import FusedConv2d
from octzoo.geometry import OctaveError
from octzoo.layers import OctBatchNorm2d
from octzoo.octave import drop, merge


def lively(model):
    """Statistics and parameters that a folded norm has to bring along."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def build(name="resnet10t", alpha=0.5, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs)
    return lively(octavize(model, alpha) if alpha else model)


def pictures(size=64, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def norms(model):
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


# ---- networks ------------------------------------------------------------------------------------------------------

NETWORKS = {
    "resnet10t": {},  # norm and activation apart, average pooling in the shortcut
    "mobilenetv2_035": {},  # depthwise, norm and activation in one
    "mobilenetv3_small_050": {},  # squeeze-excite
    "regnetx_002": {},  # groups
    "densenet121": dict(block_config=(2, 2)),  # norms before the convolutions
    "skresnet18": dict(layers=(1, 1, 1, 1)),
    "resnest14d": {},
    "resnetblur18": {},
    "convnext_atto": dict(depths=(1, 1, 1, 1)),  # no batch norm
    "test_nfnet": {},  # standardised weights
    "tf_efficientnet_lite0": {},  # TensorFlow's padding
}


# Blurring has no meaning for an empty high part.
@pytest.mark.parametrize(
    ("name", "alpha"), [(n, a) for n in NETWORKS for a in (0, 0.25, 0.5, 1) if (n, a) != ("resnetblur18", 1)]
)
def test_the_outputs_stay(name, alpha):
    model = build(name, alpha, **NETWORKS[name]).double()
    fused = fuse(model)
    for size in (64, 75):
        x = pictures(size).double()
        assert_close(fused(x), model(x), rtol=1e-9, atol=1e-12)


def test_the_outputs_stay_in_float32():
    model = timm.create_model("oct_resnet50_a0.25").eval()
    lively(model)
    with torch.no_grad():
        out, expected = fuse(model)(pictures(224)), model(pictures(224))
    assert (out - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("alpha", [0, 0.25, 1])
def test_no_norm_behind_a_convolution_is_left(alpha):
    fused = fuse(build(alpha=alpha))
    assert not norms(fused)
    assert not any(isinstance(m, OctConv2d) for m in fused.modules())


def test_the_network_itself_stays():
    model = build().train()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert model.training
    assert not fused.training
    assert_close(model.state_dict(), before)
    assert len(norms(model)) > 0
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in fused.parameters())


def test_a_fused_network_is_still_one_of_timm():
    model = build()
    fused = fuse(model)
    assert fused.pretrained_cfg == model.pretrained_cfg
    assert_close(fused.forward_features(pictures()), model.forward_features(pictures()), rtol=1e-4, atol=1e-5)
    for a, b in zip(*(m.forward_intermediates(pictures(), intermediates_only=True) for m in (fused, model))):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_weights_of_paths_hold_what_is_used_and_no_more():
    model = build(alpha=0.25)
    fused = fuse(model)
    # The stem gives a tensor: the first octave layer has no low inputs, and nothing of its weight is lost.
    first = next(m for m in fused.modules() if isinstance(m, FusedConv2d))
    plain = model.get_submodule(first.name)
    assert first.low_in == 0
    assert sum(p.numel() for n, p in first.named_parameters() if "bias" not in n) == plain.weight.numel()


def test_the_layout_stays():
    fused = fuse(build().to(memory_format=torch.channels_last))
    weights = [p for p in fused.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    y = fused.forward_features(pictures().to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_fused_network_is_copied_and_pickled(copied):
    fused = fuse(build())
    assert_close(copied(fused)(pictures()), fused(pictures()))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_a_fused_network_compiles_and_exports(name):
    torch._dynamo.reset()
    model = build(name)
    fused, expected = fuse(model), model(pictures())
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    program = torch.export.export(fused, (pictures(),))
    for run in (compiled, program.module()):
        assert_close(run(pictures()), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


# ---- layers --------------------------------------------------------------------------------------------------------

LAYERS = {
    "3x3": dict(kernel_size=3, padding=1),
    "1x1, no bias": dict(kernel_size=1, bias=False),
    "pooled stride": dict(kernel_size=3, padding=1, stride=2),
    "convolved stride": dict(kernel_size=3, padding=1, stride=2, stride_mode="conv"),
    "same padding": dict(kernel_size=3, padding="same"),
    "reflected edges": dict(kernel_size=3, padding=1, padding_mode="reflect"),
    "groups": dict(kernel_size=3, padding=1, groups=2),
    "depthwise": dict(kernel_size=3, padding=1, groups=16),
    "no path to low": dict(kernel_size=3, padding=1, h2l=False),
    "no path to high": dict(kernel_size=3, padding=1, l2h=False),
}


class Layer(nn.Module):
    """A convolution and a norm between plain ones, so that a tensor goes in and comes out."""

    def __init__(self, low_in, alpha, **kwargs):
        super().__init__()
        self.first = OctConv2d(3, 16, 1, alpha=low_in / 16)
        self.conv = OctConv2d(16, 16, alpha=alpha, **kwargs)
        self.norm = OctBatchNorm2d(16)

    def forward(self, x):
        return merge(self.norm(self.conv(self.first(x))))


CASES = [(n, low_in, alpha) for n in LAYERS for low_in in (0, 8, 16) for alpha in (0, 0.25, 1)]
NOTHING_REACHES = [
    ("no path to low", 0, 0.25),
    ("no path to low", 0, 1),
    ("no path to high", 16, 0),
    ("no path to high", 16, 0.25),
]


@pytest.mark.parametrize(("layer", "low_in", "alpha"), [case for case in CASES if case not in NOTHING_REACHES])
def test_a_layer_of_each_kind(layer, low_in, alpha):
    model = lively(Layer(low_in, alpha, **LAYERS[layer])).double()
    fused = fuse(model)
    assert isinstance(fused.conv, FusedConv2d)
    assert isinstance(fused.norm, nn.Identity)
    for size in (12, 13):
        x = pictures(size).double()
        for grad in (True, False):  # which add in two ways
            with torch.set_grad_enabled(grad):
                assert_close(fused(x), model(x))


def test_an_input_that_is_split_elsewhere_is_refused():
    model = Layer(8, 0.25, kernel_size=1)
    model.conv.name = "conv"
    fused = fuse(model)
    with pytest.raises(OctaveError, match=r"conv: fused for 16 channels, 8 of them low, and got Octave\(high=\[1, 12"):
        fused.conv(drop(torch.randn(1, 16, 4, 4), 4))


# ---- what is not folded --------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, conv=nn.Conv2d, norm=nn.BatchNorm2d):
        super().__init__()
        self.a, self.b, self.norm, self.other = conv(3, 3, 1), conv(3, 3, 1), norm(3), norm(3)


class UsedTwice(Net):
    def forward(self, x):
        y = self.a(x)
        return self.norm(y) + y


class UsedByTwoNorms(Net):
    def forward(self, x):
        y = self.a(x)
        return self.norm(y) + self.other(y)


class SharedNorm(Net):
    def forward(self, x):
        return self.norm(self.b(self.norm(self.a(x))))


class SharedConvolution(Net):
    def forward(self, x):
        return self.norm(self.a(F.relu(self.other(self.a(x)))))


class Between(Net):
    def forward(self, x):
        return self.norm(F.relu(self.a(x)))


@pytest.mark.parametrize("kind", [nn.Conv2d, OctConv2d])
@pytest.mark.parametrize("network", [UsedTwice, UsedByTwoNorms, SharedNorm, SharedConvolution, Between])
def test_a_norm_that_is_not_alone_behind_its_convolution_stays(network, kind):
    conv = kind if kind is nn.Conv2d else lambda *args: OctConv2d(*args, alpha=0)
    model = lively(network(conv)).double()
    fused = fuse(model)
    assert len(norms(fused)) == 2
    assert_close(fused(pictures(8).double()), model(pictures(8).double()))


def test_a_norm_without_statistics_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert len(norms(fuse(model))) == 1


# ---- timm's reparameterize_model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("inplace", [True, False])
def test_timm_finds_it(inplace, wrap):
    model = build()
    expected = model(pictures())
    found = wrap(model)
    fused = reparameterize_model(found, inplace=inplace)
    assert (fused is found) == inplace
    assert not norms(fused)
    assert bool(norms(found)) == (not inplace)
    assert_close(fused(pictures()), expected, rtol=1e-4, atol=1e-5)


def test_timm_leaves_a_layer_alone_that_is_in_no_network_of_ours():
    model = lively(Layer(8, 0.25, kernel_size=1))
    assert_close(reparameterize_model(model)(pictures(8)), model(pictures(8)))


def test_timm_folds_the_norm_that_is_there_now():
    """Not the one that was there when the network was made."""
    model = build()
    name = next(n for n, m in model.named_modules() if isinstance(m, OctBatchNorm2d))
    new = lively(copy.deepcopy(model.get_submodule(name)))
    nn.init.constant_(new.weight, 3.0)
    model.set_submodule(name, new)
    assert_close(reparameterize_model(model)(pictures()), model(pictures()), rtol=1e-4, atol=1e-5)


def test_a_fused_network_has_its_alpha_for_good():
    for fused in (fuse(build()), reparameterize_model(build())):
        with pytest.raises(OctaveError, match=r"is fused: set_alpha needs the network that it was made from"):
            set_alpha(fused, 0.25)


def test_fusing_twice_changes_nothing():
    once = fuse(build())
    assert_close(fuse(once)(pictures()), once(pictures()))
