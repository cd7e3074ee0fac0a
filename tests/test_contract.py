"""timm's whole contract, for every registered name and alpha, with no exception list.

Construction and the interface on the meta device (no arithmetic), then one small forward and backward of each. timm's
own model tests run over the same names by tests/run_timm_tests.py.
"""

import functools
import inspect
import json
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import octzoo
from tests.golden import our_network

# A tag of published weights (oct_resnet50_a0.25.fb_in1k), and the name without alpha, are the same network.
TAGGED = [name for name in timm.list_models("oct_*_a0*", include_tags=True) if name.count(".") == 1]
# oct_any is told its network, and has no name for each alpha.
NAMES = sorted({name.removesuffix("_a0") for name in timm.list_models("oct_*")} - {"oct_any"})
PAPER = json.loads((Path(__file__).parent / "golden" / "macs.json").read_text())


# What takes longest: every network at one alpha, the others with -m slow.
ONE_ALPHA = [n if n.endswith("_a0.25") else pytest.param(n, marks=pytest.mark.slow) for n in TAGGED]


def pictures(model, size=None, batch=2, device="meta"):
    channels, height, width = model.pretrained_cfg["input_size"]
    return torch.zeros(batch, channels, size or height, size or width, device=device)


def macs(model, size=224):
    """Multiply-accumulates of convolutions and linear layers; torch counts two operations each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(pictures(model, size, batch=1))
    return counter.get_total_flops() / 2


def test_there_is_a_name_for_every_network_and_alpha():
    networks = """
        resnet18 resnet26 resnet34 resnet50 resnet101 resnet152 resnet200 seresnet50 seresnet152 resnext50_32x4d
        resnext101_32x4d densenet121 mobilenetv1_075 mobilenetv1_100 mobilenetv2_100 mobilenetv2_112
        cifar_resnet20 cifar_resnet56 cifar_resnet110
        resnet50_v1 resnet101_v1 resnet152_v1 resnet50d wide_resnet50_2 seresnet50_v1 resnext50_32x4d_v1
        densenet121_v1 regnety_040 mobilenetv3_large_100 efficientnet_b0 tf_efficientnet_lite0 convnext_tiny
    """
    assert {f"oct_{network}" for network in networks.split()} <= set(NAMES)
    for name in NAMES:
        for digits in ("0", "125", "25", "5", "75"):
            if f"{name}_a0.{digits}" not in TAGGED:  # then it cannot be built
                with pytest.raises(octzoo.OctaveError, match="32 groups do not divide the parts"):
                    timm.create_model(name, alpha=float(f"0.{digits}"), device="meta")


@functools.cache
def plain_shapes(name):
    """Keys and shapes of the ordinary network's state dict."""
    return {k: v.shape for k, v in timm.create_model(name, alpha=0.0, device="meta").state_dict().items()}


@pytest.mark.parametrize("name", TAGGED)
def test_interface(name):
    model = timm.create_model(name, device="meta", dtype=torch.float32)
    cfg, x = model.pretrained_cfg, pictures(model)
    state = model.state_dict()
    assert {k: v.shape for k, v in state.items()} == plain_shapes(name.split(".")[0].removesuffix("_a0"))
    assert all(t.device.type == "meta" for t in state.values())
    assert cfg["first_conv"] + ".weight" in state
    assert cfg["classifier"] + ".weight" in state
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    assert (model.num_classes, model.in_chans) == (cfg["num_classes"], cfg["input_size"][0])

    final, maps = model.forward_intermediates(x)
    assert all(isinstance(m, torch.Tensor) for m in [final, *maps])
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    assert [x.shape[2] // m.shape[2] for m in maps] == [info["reduction"] for info in model.feature_info]
    assert final.shape[1:] == (model.num_features, *cfg["pool_size"])

    groups = timm.models.group_parameters(model, model.group_matcher())
    assert len(groups) > 2
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
    assert set(getattr(model, "no_weight_decay", set)()) <= {n for n, _ in model.named_parameters()}

    model.set_grad_checkpointing(True)
    features = model.forward_features(x)
    model.set_grad_checkpointing(False)
    assert features.shape == final.shape
    assert model.forward_head(features).shape == (2, model.num_classes)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model.forward_head(features).shape == (2, 7)
    model.reset_classifier(0)
    assert model.forward_head(features).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model.forward_head(features).shape == (2, model.head_hidden_size, *cfg["pool_size"])

    model.prune_intermediate_layers([1])
    assert model.forward_features(x).shape == maps[1].shape


@pytest.mark.parametrize("name", ONE_ALPHA)
def test_features_only(name):
    model = timm.create_model(name, device="meta", features_only=True, out_indices=(-3, -2, -1))
    maps = model(torch.zeros(2, 3, 96, 96, device="meta"))
    assert all(isinstance(m, torch.Tensor) for m in maps)
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [96 // m.shape[2] for m in maps] == model.feature_info.reduction()


@functools.cache
def has_paths_to_drop(name):
    """Whether the network has residual branches; timm's DenseNet has none and takes no drop_path_rate."""
    return "drop_path_rate" in inspect.signature(type(timm.create_model(name, alpha=0.0, device="meta"))).parameters


@pytest.mark.parametrize("name", ONE_ALPHA)
def test_forward_and_backward_reach_every_parameter(name):
    torch.manual_seed(0)
    options = dict(num_classes=5, in_chans=1, drop_rate=0.1, global_pool="avgmax")
    options |= {"drop_path_rate": 0.1} if has_paths_to_drop(name.split(".")[0]) else {}
    model = timm.create_model(name, **options)
    y = model(torch.randn(2, 1, 32, 32))
    y.square().sum().backward()
    assert y.shape == (2, 5)
    assert y.isfinite().all()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_argument_is_a_type_error(name):
    with pytest.raises(TypeError, match="nonsense"):
        timm.create_model(name, device="meta", nonsense=1)


def test_pruned_features_equal_the_intermediate():
    x = torch.randn(2, 3, 64, 64)
    for i in range(3):
        model = timm.create_model("oct_cifar_resnet20_a0.25").eval()
        whole = model.forward_intermediates(x, indices=[i], intermediates_only=True)[0]
        early = model.forward_intermediates(x, indices=[i], intermediates_only=True, stop_early=True)[0]
        model.prune_intermediate_layers([i], prune_norm=True)
        torch.testing.assert_close(early, whole, rtol=0, atol=0)
        torch.testing.assert_close(model.forward_features(x), whole)


def test_alpha_zero_is_the_ordinary_network():
    for name in NAMES:
        model = timm.create_model(f"{name}_a0.0", device="meta")
        assert not [m for m in model.modules() if isinstance(m, octzoo.OctConv2d)]


@pytest.mark.parametrize("record", PAPER, ids=lambda r: r["key"])
def test_macs_and_parameters_are_the_papers(record):
    arch, alpha = our_network(record["key"])
    model = timm.create_model(arch, alpha=alpha, device="meta")
    assert sum(p.numel() for p in model.parameters()) == record["params"]
    assert macs(model) == pytest.approx(record["macs"], rel=1e-3)
