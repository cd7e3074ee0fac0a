"""Surgery: a plain network becomes an octave network, is refused with a reason, and is never half of either."""

import copy
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import timm
import timm.layers
import torch
import torchvision
from timm.models import FeatureGraphNet, create_feature_extractor
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.feature_extraction import get_graph_node_names

from octzoo import OctConv2d, octavize, set_alpha
from octzoo.layers import OCTAVE_OF, OctBatchNorm2d
from octzoo.octave import Octave, OctaveError, merge
from octzoo.plan import Row
from octzoo.surgery import OctaveNetwork

NETWORKS = [
    "resnet18",
    "resnet50",
    "resnet50d",
    "resnext50_32x4d",
    "seresnet50",
    "wide_resnet50_2",
    "res2net50_26w_4s",
    "resnetv2_50",
    "densenet121",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "regnetx_004",
    "regnety_004",
    "vgg16_bn",
    "convnext_atto",
    "repvit_m1",
    "torchvision.resnet18",
]
ALPHAS = [0.125, 0.25, 0.5, 0.75]
EVERYWHERE = [(n, a) for n in NETWORKS for a in ALPHAS if (n, a) != ("resnext50_32x4d", 0.125)]
QUICK = [
    (name, alpha)
    for name in ("resnet18", "res2net50_26w_4s", "mobilenetv3_large_100", "tf_efficientnet_lite0", "convnext_atto")
    for alpha in (0.125, 0.5)
] + [("torchvision.resnet18", 0.25)]


def build(name, **kwargs):
    torch.manual_seed(0)
    if name.startswith("torchvision."):
        return torchvision.models.get_model(name.split(".")[1], num_classes=10)
    return timm.create_model(name, num_classes=10, **kwargs)


def small(alpha=0.5, **kwargs):
    return octavize(build("resnet10t", **kwargs), alpha)


def pictures(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def shapes(model):
    return {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}


def snapshot(model):
    """Everything that a refusal must leave alone: the classes and attributes of each module, by identity."""
    return {
        name: (type(m), {k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items()})
        for name, m in model.named_modules()
    }


# ---- the networks --------------------------------------------------------------------------------------------------


def check_network(name, alpha):
    model = build(name)
    before, classes, x = shapes(model), snapshot(model), pictures()
    parameters = dict(model.named_parameters())
    assert octavize(model, alpha) is model
    assert shapes(model) == before
    assert all(p is parameters[n] for n, p in model.named_parameters())
    octaves = []
    with torch.no_grad():  # a branch that starts at zero, as timm's residual ones do, would hide what is before it
        for p in model.parameters():
            if not p.any():
                p.uniform_(0.5, 1)
    for module in model.modules():
        if isinstance(module, OctConv2d):
            module.register_forward_hook(lambda m, args, out: octaves.append(isinstance(out, Octave)))
    out = model(x)
    assert type(out) is Tensor
    assert out.shape == (2, 10)
    assert any(octaves)
    assert not octaves[-1]
    out.square().sum().backward()
    for n, p in model.named_parameters():
        assert p.grad is not None, n
        assert p.grad.isfinite().all(), n
        assert p.grad.any(), n
    changed = {n for n, m in model.named_modules() if n and type(m) is not classes[n][0]}
    assert changed == set(model.octave_layers)
    assert type(model.eval()(x)) is Tensor


@pytest.mark.parametrize(("name", "alpha"), QUICK)
def test_networks(name, alpha):
    check_network(name, alpha)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "alpha"), [pair for pair in EVERYWHERE if pair not in QUICK])
def test_all_networks(name, alpha):
    check_network(name, alpha)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv2_100", "convnext_atto", "densenet121", "torchvision.resnet18"]
)
def test_with_alpha_zero_and_convolved_strides_the_network_is_the_plain_one(name):
    plain = build(name).eval()
    octave = octavize(copy.deepcopy(plain), 0, [("stem.*", "plain"), Row("*", stride_mode="conv")]).eval()
    assert any(isinstance(m, OctConv2d) for m in octave.modules())
    assert_close(octave(pictures()), plain(pictures()))


@pytest.mark.parametrize("size", [32, 33, 47, 65])
def test_any_size(size):
    assert small().eval()(pictures(1, size)).shape == (1, 10)


def test_even_kernels_stride_as_plain_ones_do_and_odd_ones_pool():
    model = octavize(build("convnext_atto"), 0.5)
    assert model.stages[1].downsample[1].stride_mode == "conv"
    assert small().layer2[0].conv1.stride_mode == "pool"


def test_a_plan_of_your_own():
    plan = [("layer1.0.conv2", "plain"), ("layer2.*", "octave", 16, "conv"), Row("layer[34].*", "zero")]
    model = octavize(build("resnet10t"), 0.4, plan)
    assert type(model.layer1[0].conv1) is nn.Conv2d  # none matches
    assert (model.layer2[0].conv1.low_out, model.layer2[0].conv1.stride_mode) == (48, "conv")
    assert model.layer3[0].conv1.low_out == model.layer4[0].conv1.low_out == 0
    assert isinstance(model.layer4[0].conv1, OctConv2d)
    assert model(pictures()).shape == (2, 10)


# ---- what surgery leaves alone -------------------------------------------------------------------------------------


def test_octavize_draws_no_random_numbers_and_keeps_training_flags_and_buffers():
    model = build("resnet10t", drop_path_rate=0.5, drop_rate=0.5)
    model.layer2.eval()
    model.layer3[0].bn1.eval()
    flags = {n: m.training for n, m in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    requires = [p.requires_grad_(i % 2 == 0).requires_grad for i, p in enumerate(model.parameters())]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    octavize(model, 0.5)
    set_alpha(model, 0.25)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == requires
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_on_the_meta_device_and_in_double():
    with torch.device("meta"):
        model = octavize(build("resnet10t"), 0.5)
    assert model(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 10)
    model = octavize(build("resnet10t").double(), 0.5)
    assert model(pictures().double()).dtype == torch.float64


def test_nothing_is_patched_on_an_instance():
    model, other = small(), small()
    assert type(model) is type(other)
    assert isinstance(model, OctaveNetwork)
    assert isinstance(model, timm.models.ResNet)
    assert type(model).__name__ == "OctResNet"
    callables = [k for m in model.modules() for k, v in vars(m).items() if callable(v) and not isinstance(v, nn.Module)]
    plain = [k for m in build("resnet10t").modules() for k, v in vars(m).items() if callable(v)]
    assert callables == [k for k in plain if k not in dict(build("resnet10t").named_modules())]


# ---- refusals ------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """The smallest network with something between a stem and a last stage."""

    def __init__(self, middle=None):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.middle = middle or nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.last(self.middle(self.stem(x))).mean((2, 3))


class Weird(nn.Conv2d):
    pass


REFUSED = {
    "groups that do not divide": (
        lambda: build("resnext50_32x4d"),
        0.125,
        None,
        "layer1.0.conv2: 32 groups do not divide the parts (112 high out, 16 low out): choose an alpha whose low "
        "channels are a multiple of 32, or leave this layer plain",
    ),
    "a channel shuffle": (
        lambda: build("torchvision.shufflenet_v2_x0_5"),
        0.5,
        None,
        "stage2.0: view has no meaning for an Octave (Octave(high=[2, 24, 28, 28], low=[2, 24, 14, 14])): leave the "
        "layers that feed it plain, or merge(x) before it",
    ),
    "linear layers in a block": (
        lambda: build("convnext_atto", conv_mlp=False),
        0.5,
        None,
        "stages.0.blocks.0: permute has no meaning for an Octave (Octave(high=[2, 20, 56, 56], low=[2, 20, 28, 28])): "
        "leave the layers that feed it plain, or merge(x) before it",
    ),
    "a convolution with a class of its own": (
        lambda: Logits(Weird(8, 8, 1)),
        0.5,
        None,
        "middle: Weird has no octave form; give it a 'plain' row in the plan",
    ),
    "a network that ends in an octave": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)),
        0.5,
        [("*", "octave")],
        "OctSequential ends in Octave(high=[2, 4, 224, 224], low=[2, 4, 112, 112]): end it with a plain layer or one "
        "of alpha 0",
    ),
    "a plain layer after octave ones": (
        lambda: build("resnet10t"),
        0.5,
        [("layer1.*", "octave")],
        "layer2.0.conv1: conv2d has no meaning for an Octave (Octave(high=[2, 32, 44, 44], low=[2, 32, 22, 22]), "
        "Tensor[128, 64, 3, 3]): leave the layers that feed it plain, or merge(x) before it",
    ),
    "an activation with a weight for every channel": (
        lambda: Logits(nn.Sequential(nn.Conv2d(8, 8, 1), nn.PReLU(8), nn.Conv2d(8, 8, 1))),
        0.5,
        None,
        "middle.1: prelu has no meaning for an Octave (Octave(high=[2, 4, 112, 112], low=[2, 4, 56, 56]), Tensor[8]): "
        "leave the layers that feed it plain, or merge(x) before it",
    ),
    "a stride of 3": (
        lambda: Logits(nn.Conv2d(8, 8, 3, 3, 1)),
        0.5,
        None,
        "middle: stride (3, 3) is not 1 or 2: leave this layer plain",
    ),
    "a border lost": (
        lambda: Logits(nn.Conv2d(8, 8, 3)),
        0.5,
        None,
        "middle: kernel (3, 3), padding (0, 0), dilation (1, 1) at stride 1 does not keep the sizes of both parts: "
        "leave this layer plain",
    ),
    "alpha above 1": (lambda: build("resnet10t"), 1.5, None, "layer1.0.conv1: alpha=1.5 is not between 0 and 1"),
    "alpha below 0": (lambda: build("resnet10t"), -0.5, None, "layer1.0.conv1: alpha=-0.5 is not between 0 and 1"),
    "no convolution": (lambda: nn.Linear(3, 3), 0.5, None, "Linear has no convolution"),
    "a bad row": (
        lambda: build("resnet10t"),
        0.5,
        [("*", "octav")],
        "plan row '*': kind 'octav' is not 'octave', 'zero', 'plain' or 'whole'",
    ),
    "a bad multiple": (
        lambda: build("resnet10t"),
        0.5,
        [("*", "octave", 0)],
        "plan row '*': multiple=0 is not a whole number from 1",
    ),
    "twice": (
        lambda: small(0.5),
        0.25,
        None,
        "OctResNet is an octave network already: use set_alpha to change its alpha",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_layer_and_leaves_the_network_as_it_was(case):
    make, alpha, plan, text = REFUSED[case]
    model = make().eval()
    before, state = snapshot(model), {k: v.clone() for k, v in model.state_dict().items()}
    x = pictures() if any(isinstance(m, nn.Conv2d) for m in model.modules()) else torch.randn(2, 3)
    out = model(x)
    with pytest.raises(OctaveError) as error:
        octavize(model, alpha, plan)
    assert str(error.value) == text
    assert snapshot(model) == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x), out)


def test_a_network_that_returns_several_tensors_is_not_one_that_ends_in_an_octave():
    class Two(Logits):
        def forward(self, x):
            y = super().forward(x)
            return y, 2 * y

    out = octavize(Two(), 0.5)(pictures())
    assert [type(y) for y in out] == [Tensor, Tensor]


# ---- modules that are given whole maps ----------------------------------------------------------------------------


class Attention(nn.Module):
    """Of every pixel to every pixel."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        return self.proj((v @ (q.transpose(1, 2) @ k).softmax(1)).view(x.shape))


class Mixing(nn.Module):
    pretrained_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.attention = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), Attention(8)
        self.second, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3, 2, 1)

    def forward(self, x):
        x = self.first(self.stem(x))
        return self.last(self.second(x + self.attention(x))).mean((2, 3))


def test_a_module_that_takes_maps_apart_is_given_them_merged():
    """Computed by hand from the layers."""
    model, x = Mixing().double(), torch.randn(2, 3, 16, 16).double()
    plain = copy.deepcopy(model.attention)
    octavize(model, 0.5)
    y = model.first(model.stem(x))
    assert isinstance(y, Octave)
    assert torch.equal(model.attention(y), plain(merge(y)))
    assert_close(model(x), model.last(model.second(y + plain(merge(y)))).mean((2, 3)))
    assert isinstance(model.attention, Attention)
    assert type(model.attention.qkv) is nn.Conv2d
    model(x).sum().backward()
    assert all(p.grad.any() for n, p in model.named_parameters() if n != "attention.qkv.bias")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_of_whole_modules(copied):
    model, x = octavize(Mixing(), 0.5), pictures(2, 16)
    other = copied(model)
    assert type(other.attention) is type(model.attention)
    assert torch.equal(other(x), model(x))
    assert torch.equal(
        copied(model.attention)(x.repeat(1, 3, 1, 1)[:, :8]), model.attention(x.repeat(1, 3, 1, 1)[:, :8])
    )


WHOLE = {
    "a stride of 3": lambda: nn.Conv2d(8, 8, 3, 3, 1),
    "a border lost": lambda: nn.Conv2d(8, 8, 3),
    "groups that do not divide": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8 // 2),
    "an activation with a weight for every channel": lambda: nn.PReLU(8),
    "yours": lambda: Weird(8, 8, 1),
}


@pytest.mark.parametrize("case", WHOLE)
def test_anything_can_be_given_whole_maps(case):
    model = Logits(nn.Sequential(nn.Conv2d(8, 8, 1), WHOLE[case](), nn.Conv2d(8, 8, 1)))
    odd = copy.deepcopy(model.middle[1])
    octavize(model, 0.25, [("middle.1", "whole"), ("middle.*", "octave"), ("last", "zero")])
    y = model.middle[0](torch.randn(2, 8, 12, 12))
    assert isinstance(y, Octave)
    assert torch.equal(model.middle[1](y), odd(merge(y)))
    assert model(pictures()).shape == (2, 8)
    assert repr(model)


# ---- set_alpha -----------------------------------------------------------------------------------------------------


def test_set_alpha_there_and_back_gives_the_same_outputs():
    model, x = small(0.5).eval(), pictures()
    before, parameters = model(x), list(model.parameters())
    assert set_alpha(model, 0.25) is model
    assert not torch.allclose(model(x), before)
    assert model.octave_alpha == 0.25
    assert model.layer1[0].conv1.low_out == 16
    assert model.layer4[0].conv1.low_out == 0
    for alpha in (0, 1, 0.5):
        set_alpha(model, alpha)(x)
    assert torch.equal(model(x), before)
    assert all(p is q for p, q in zip(model.parameters(), parameters))


def test_set_alpha_gives_the_network_that_octavize_would_give():
    other = octavize(build("resnet10t"), 0.25).eval()
    assert torch.equal(set_alpha(small(0.5), 0.25).eval()(pictures()), other(pictures()))


def test_set_alpha_refuses_and_keeps_the_old_one():
    model = octavize(build("resnext50_32x4d"), 0.5).eval()
    before, x = snapshot(model), pictures()
    out = model(x)
    for alpha in (0.125, 2, -1):
        with pytest.raises(OctaveError, match=r"^layer1\.0\.conv"):
            set_alpha(model, alpha)
        assert snapshot(model) == before
        assert model.octave_alpha == 0.5
    assert torch.equal(model(x), out)


def test_set_alpha_needs_an_octave_network():
    with pytest.raises(OctaveError) as error:
        set_alpha(build("resnet10t"), 0.5)
    assert str(error.value) == "ResNet is not an octave network: octavize(model, alpha) makes it one"


# ---- the pair never leaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "regnetx_002"])
def test_forward_features_and_intermediates_give_tensors_of_the_plain_shapes(name):
    plain, x = build(name), pictures()
    octave = octavize(copy.deepcopy(plain), 0.5)
    features = octave.forward_features(x)
    assert type(features) is Tensor
    assert features.shape == plain.forward_features(x).shape
    for options in ({}, {"norm": True}, {"intermediates_only": True}, {"indices": [1, 2]}):
        got, expected = octave.forward_intermediates(x, **options), plain.forward_intermediates(x, **options)
        got, expected = ((o if options.get("intermediates_only") else [o[0], *o[1]]) for o in (got, expected))
        assert [type(t) for t in got] == [Tensor] * len(expected)
        assert [t.shape for t in got] == [t.shape for t in expected]
    assert_close(octave.eval().forward_head(octave.forward_features(x)), octave(x))


def test_features_of_a_network_that_is_octave_to_its_end():
    octave = octavize(build("resnet10t"), 0.5, [("layer?.*", "octave")]).eval()
    features = octave.forward_features(pictures())
    assert type(features) is Tensor
    assert features.shape == (2, 512, 2, 2)
    assert octave(pictures()).shape == (2, 10)


def test_features_module_of_vgg():
    model = octavize(build("vgg11_bn"), 0.5)
    assert type(model.features(pictures())) is Tensor


# ---- copies and engines that walk over modules ---------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(copied):
    model, x = small().eval(), pictures()
    other = copied(model)
    assert type(other) is type(model)
    assert torch.equal(other(x), model(x))
    set_alpha(other, 0.25)
    assert model.octave_alpha == 0.5
    assert model.layer1[0].conv1.alpha == 0.5
    inside = copied(nn.Sequential(model, nn.Softmax(1))).eval()
    assert torch.equal(inside(x), model(x).softmax(1))


def test_a_pickle_opens_in_a_fresh_process(tmp_path):
    model, x = small().eval(), pictures()
    torch.save((model, x, model(x)), tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        "model, x, y = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.allclose(model(x), y, atol=1e-5), 'other outputs'\n"
        "print(type(model).__name__, model.octave_alpha)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt")], capture_output=True, text=True, check=False
    )
    assert run.stdout == "OctResNet 0.5\n", run.stderr


def test_state_dicts_go_both_ways():
    plain, octave = build("resnet10t"), small()
    octave.load_state_dict(plain.state_dict())
    plain.load_state_dict(octave.state_dict())


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.convert_sync_batchnorm])
@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet10t", "layer1.0.bn1"), ("regnetx_002", "s1.b1.conv1.bn"), ("torchvision.resnet18", "layer1.0.bn1")],
)
def test_a_plainly_converted_norm_is_named(convert, name, layer):
    for training in (True, False):
        model = convert(octavize(build(name), 0.5)).train(training)
        with pytest.raises(OctaveError) as error:
            model(pictures())
        assert str(error.value).startswith(layer)
        assert "is a plain SyncBatchNorm" in str(error.value)
        assert str(error.value).endswith("convert with octzoo.sync_batchnorm")


def test_re_entrant_checkpointing_is_refused():
    model = small()
    timm.layers.set_reentrant_ckpt(True)
    try:
        with pytest.raises(OctaveError) as error:
            model.set_grad_checkpointing()
        model.set_grad_checkpointing(False)
    finally:
        timm.layers.set_reentrant_ckpt(False)
    assert str(error.value) == (
        "re-entrant checkpointing loses the gradients of octave networks: timm.layers.set_reentrant_ckpt(False)"
    )
    model.set_grad_checkpointing()
    assert model.grad_checkpointing


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torch_jit_script_is_a_trace_of_the_network_in_eval():
    model = small()
    with pytest.raises(OctaveError) as error:
        torch.jit.script(model)
    assert str(error.value) == (
        "torch.jit.script traces an octave network, which would freeze training mode: .eval() it first"
    )
    scripted = torch.jit.script(model.eval())
    for size in (64, 65, 97):
        assert_close(scripted(pictures(3, size)), model(pictures(3, size)))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "regnety_002", "convnext_atto"])
def test_torch_fx_through_timm_equals_eager(name):
    model = octavize(build(name), 0.5).eval()
    options = {"leaf_modules": list(get_notrace_modules()), "autowrap_functions": list(get_notrace_functions())}
    last = get_graph_node_names(model, tracer_kwargs=options)[1][-1]
    for size in (64, 48):  # the graph holds no sizes
        graph = create_feature_extractor(model, {last: "logits"}).eval()
        assert torch.equal(graph(pictures(2, size))["logits"], model(pictures(2, size)))


def test_torch_fx_features_are_those_of_forward_intermediates():
    model = small().eval()
    out = FeatureGraphNet(model, (0, 1, 2, 3, 4)).eval()(pictures())
    for got, expected in zip(out, model.forward_intermediates(pictures(), intermediates_only=True)):
        assert torch.equal(merge(got), expected)


def test_leaves_are_octave_classes_of_octzoo():
    model = small()
    assert {type(model.get_submodule(n)) for n in model.octave_layers} == {OctConv2d, OctBatchNorm2d}
    assert set(OCTAVE_OF.values()) >= {OctConv2d, OctBatchNorm2d}


def test_a_row_that_matches_nothing_is_refused():
    with pytest.raises(OctaveError, match=r"plan row 'lyer1\.\*' matches no module"):
        octavize(timm.create_model("resnet10t"), 0.25, plan=[("lyer1.*", "octave")])


def test_a_network_for_another_size_is_told_it():
    def small():
        convs = [nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)]
        return nn.Sequential(*convs, nn.Flatten(), nn.Linear(32 * 8 * 8, 10))

    with pytest.raises(OctaveError, match=r"does not run on pictures of 224x224 \(say octavize\(..., input_size=\)\)"):
        octavize(small(), 0.25)
    model = octavize(small(), 0.25, input_size=(3, 32, 32))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert set_alpha(model, 0.5)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
