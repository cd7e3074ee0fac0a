"""``oct_any``: any of timm's networks by name, alpha and plan, so that checkpoint folders can say them."""

import pytest
import timm
import torch

import octzoo

PLAN = (("layer1.*", "plain"), ("layer[23].*", "octave"), ("layer4.*", "zero"))


@pytest.mark.parametrize("plan", [None, PLAN])
def test_it_is_the_network_octavized(plan) -> None:
    model = timm.create_model("oct_any", network="resnet18", alpha=0.5, plan=plan).eval()
    twin = octzoo.octavize(timm.create_model("resnet18"), 0.5, plan).eval()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))
    assert model.pretrained_cfg["input_size"] == twin.pretrained_cfg["input_size"]


def test_what_timm_asks_of_a_network() -> None:
    model = timm.create_model("oct_any", network="mobilenetv2_100", alpha=0.25, num_classes=5, in_chans=1)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    levels = timm.create_model("oct_any", network="mobilenetv2_100", features_only=True)(torch.randn(1, 3, 64, 64))
    assert [f.shape[-1] for f in levels] == [32, 16, 8, 4, 2]


def test_its_arguments_are_kept_for_the_checkpoint() -> None:
    model = timm.create_model("oct_any", network="resnet18", alpha=0.25, plan=PLAN)
    kept = {key: model._model_args[key] for key in ("network", "alpha", "plan")}
    again = timm.create_model("oct_any", **kept)
    assert again.octave_plan == model.octave_plan
    assert again.octave_alpha == 0.25


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"network": "resnet1"}, "resnet1"), ({"alpha": 1.0}, "alpha=1.0"), ({"pretrained": True}, "published weights")],
)
def test_mistakes(wrong, text) -> None:
    with pytest.raises((RuntimeError, ValueError), match=text):
        timm.create_model("oct_any", **{"network": "resnet18", **wrong})
