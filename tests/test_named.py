"""One spelling of networks for all verbs: timm's names, ours, and NAME@ALPHA by surgery."""

import pytest
import timm
import torch

import octzoo
from octzoo.errors import UserError
from octzoo.models.named import build, plain_name


def same(one, other):
    """Same modules with the same shapes of parameters."""
    return repr(one) == repr(other)


def test_a_name_of_timm_is_timms_network():
    assert same(build("test_resnet.r160_in1k"), timm.create_model("test_resnet.r160_in1k"))
    assert same(build("oct_cifar_resnet20_a0.5"), timm.create_model("oct_cifar_resnet20", alpha=0.5))


@pytest.mark.parametrize("alpha", ["0.25", ".5", "0", "1"])
def test_an_at_sign_is_surgery(alpha):
    model = build(f"test_resnet.r160_in1k@{alpha}", num_classes=7, device="meta")
    plain = timm.create_model("test_resnet.r160_in1k", num_classes=7, device="meta")
    assert same(model, octzoo.octavize(plain, float(alpha)))
    assert next(model.parameters()).device == torch.device("meta")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("resnet50", "resnet50"),
        ("resnet50.a1_in1k@0.25", "resnet50.a1_in1k"),
        ("oct_resnet50", "oct_resnet50_a0.0"),
        ("oct_resnet50_a0.25", "oct_resnet50_a0.0"),
        ("oct_resnet50_a0.25.fb_in1k", "oct_resnet50_a0.0"),
        ("oct_resnet50_a0.0", "oct_resnet50_a0.0"),
        ("hf-hub:someone/network@main", "hf-hub:someone/network@main"),
    ],
)
def test_the_plain_peer_has_a_name(name, plain):
    assert plain_name(name) == plain


MISTAKES = {
    "resnet5": "no network 'resnet5'; did you mean 'resnet50'?",
    "oct_resnet51_a0.25": "no network 'oct_resnet51_a0.25'; did you mean 'oct_resnet50_a0.25'?",
    "zzz": "no network 'zzz'; `octzoo list` has ours, timm.list_models() all",
    "resnet18.foo": "resnet18.foo: Invalid pretrained tag (foo) for resnet18.",
    "resnet18@x": "'resnet18@x': 'x' behind the @ is not alpha, a number from 0 to 1",
    "resnet18@2": "resnet18@2: layer1.0.conv1: alpha=2.0 is not between 0 and 1",
    "resnet18@nan": "resnet18@nan: layer1.0.conv1: alpha=nan is not between 0 and 1",
    "test_vit@0.5": "test_vit@0.5: VisionTransformer has no convolutions between a stem and a last stage",
    "oct_cifar_resnet20_a0.25@0.5": "oct_cifar_resnet20_a0.25@0.5: oct_cifar_resnet20_a0.25 is an octave network "
    "already; give the plain network, or oct_cifar_resnet20_a0.25 alone",
    "local-dir:/nowhere": "local-dir:/nowhere: Config file not found: /nowhere/config.json",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_the_remedy(name):
    with pytest.raises(UserError) as error:
        build(name, device="meta")
    assert str(error.value) == MISTAKES[name]


def test_surgery_has_no_published_weights():
    with pytest.raises(UserError, match="resnet18@0.5: there are no weights of a network made by surgery"):
        build("resnet18@0.5", pretrained=True)
