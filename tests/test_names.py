"""What timm.create_model makes of our names: the traps of names that carry a number behind a dot."""

import subprocess
import sys

import pytest
import timm
import torch
from timm.models import get_arch_name, get_pretrained_cfg, is_model, is_model_pretrained, list_modules

import octzoo

R50, SMALL = "oct_resnet50", "oct_cifar_resnet20"
NONE = "oct_cifar_resnet56"  # has no published weights


def make(name, **kwargs):
    return timm.create_model(name, device="meta", **kwargs)


def described(model):
    cfg = model.pretrained_cfg
    return getattr(model, "octave_alpha", 0.0), cfg["architecture"], cfg.get("tag")


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        (f"{SMALL}_a0.25", {}, (0.25, f"{SMALL}_a0", "25")),
        (f"{SMALL}_a0.125", {}, (0.125, f"{SMALL}_a0", "125")),
        (f"{SMALL}_a0.0", {}, (0.0, f"{SMALL}_a0", "0")),
        (f"{SMALL}_a0.50", {}, (0.5, f"{SMALL}_a0", "5")),
        (f"{SMALL}_a0.3", {}, (0.3, f"{SMALL}_a0", "3")),
        (f"{SMALL}_a0", {}, (0.25, f"{SMALL}_a0", "25")),
        (f"{SMALL}_a0.", {}, (0.25, f"{SMALL}_a0", "25")),
        (f"{SMALL}_a0", {"alpha": 0.5}, (0.5, f"{SMALL}_a0", "5")),
        (f"{SMALL}_a0", {"alpha": 0.3}, (0.3, f"{SMALL}_a0", "3")),
        (f"{SMALL}_a0.25", {"alpha": 0.25}, (0.25, f"{SMALL}_a0", "25")),
        (f"{SMALL}_a0.25", {"alpha": None}, (0.25, f"{SMALL}_a0", "25")),
        (f"{SMALL}_a0.25", {"pretrained_cfg": "125"}, (0.125, f"{SMALL}_a0", "125")),
        (f"{R50}_a0.25.fb_in1k", {}, (0.25, f"{R50}_a0", "25.fb_in1k")),
        (f"{R50}_v1_a0.5.dli14_in1k", {}, (0.5, f"{R50}_v1_a0", "5.dli14_in1k")),
        (SMALL, {}, (0.25, SMALL, None)),
        (SMALL, {"alpha": 0.5}, (0.5, SMALL, None)),
        (SMALL, {"alpha": 0}, (0.0, SMALL, None)),
    ],
)
def test_what_a_name_builds(name, kwargs, expected):
    model = make(name, **kwargs)
    assert described(model) == expected
    assert model._model_args["alpha"] == expected[0]  # what timm writes into config.json


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "text"),
    [
        (f"{SMALL}_a0.25.nosuch", {}, RuntimeError, r"Invalid pretrained tag \(25.nosuch\)"),
        (f"{SMALL}_a0.fb_in1k", {}, RuntimeError, r"Invalid pretrained tag \(fb_in1k\)"),
        (f"{SMALL}_a0.25", {"alpha": 0.5}, ValueError, "alpha=0.5, but the name says 0.25"),
        (f"{SMALL}_a0", {"alpha": 1.0}, ValueError, "alpha=1.0 is not a number from 0 to below 1"),
        (f"{SMALL}_a0", {"alpha": -0.5}, ValueError, "alpha=-0.5 is not a number from 0 to below 1"),
        (SMALL, {"alpha": 1.5}, ValueError, "alpha=1.5 is not a number from 0 to below 1"),
        (SMALL, {"alpha": 1.0}, ValueError, "alpha=1.0 is not a number from 0 to below 1"),
        (f"{SMALL}_a0.25", {"foo": 1}, TypeError, "foo"),
        ("OCT_cifar_resnet20_a0.25", {}, RuntimeError, "Unknown model"),
        (f"{NONE}_a0.25", {"pretrained": True}, RuntimeError, "no published weights for alpha 0.25: use pretrained="),
        (f"{NONE}_a0.3", {"pretrained": True}, RuntimeError, "no published weights for alpha 0.3: use pretrained="),
        (f"{R50}_a0.3", {"pretrained": True}, RuntimeError, r"alpha 0.3 \(there are oct_resnet50_a0.125.fb_in1k, oct_"),
        (f"{R50}_a0.25.dli14_in1k", {}, RuntimeError, r"Invalid pretrained tag \(25.dli14_in1k\)"),
        (NONE, {"pretrained": True}, RuntimeError, "no published weights for alpha 0.25: use pretrained="),
    ],
)
def test_what_a_name_refuses(name, kwargs, error, text):
    with pytest.raises(error, match=text):
        make(name, **kwargs)


def test_a_cfg_given_as_a_dict_stays_as_it_is():
    cfg = dict(get_pretrained_cfg(f"{SMALL}_a0.5").to_dict(), mean=(0.1, 0.2, 0.3))
    model = make(f"{SMALL}_a0", pretrained_cfg=cfg)
    assert model.octave_alpha == 0.5
    assert tuple(model.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)


def test_weights_of_the_callers_own_load(tmp_path):
    saved = timm.create_model(f"{SMALL}_a0.5", num_classes=4)
    torch.save(saved.state_dict(), tmp_path / "mine.pth")
    overlay = dict(file=str(tmp_path / "mine.pth"), num_classes=4)
    loaded = timm.create_model(f"{SMALL}_a0.5", pretrained=True, num_classes=4, pretrained_cfg_overlay=overlay)
    checkpoint = timm.create_model(f"{SMALL}_a0.5", num_classes=4, checkpoint_path=str(tmp_path / "mine.pth"))
    for model in (loaded, checkpoint):
        for a, b in zip(saved.state_dict().values(), model.state_dict().values()):
            assert torch.equal(a, b)


def test_timms_saved_folder_keeps_alpha(tmp_path):
    saved = timm.create_model(f"{SMALL}_a0.125", num_classes=4).eval()
    timm.models.save_for_hf(saved, str(tmp_path / "folder"), safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    x = torch.randn(1, 3, 32, 32)
    assert loaded.octave_alpha == 0.125
    assert torch.equal(loaded(x), saved(x))
    with pytest.raises(ValueError, match="alpha=0.5, but the name says 0.125"):
        timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True, alpha=0.5)


def test_another_alpha_is_saved_as_such(tmp_path):
    saved = octzoo.set_alpha(timm.create_model(f"{SMALL}_a0.25", num_classes=4).eval(), 0.5)
    timm.models.save_for_hf(saved, str(tmp_path / "folder"), safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    x = torch.randn(1, 3, 32, 32)
    assert loaded.octave_alpha == 0.5
    assert torch.equal(loaded(x), saved(x))


def test_look_ups():
    assert f"{R50}_a0" in timm.list_models("oct_*")
    assert f"{R50}_a0.25" in timm.list_models("oct_*", include_tags=True)
    assert timm.list_models(f"{R50}_a0.25*", include_tags=True) == [f"{R50}_a0.25", f"{R50}_a0.25.fb_in1k"]
    assert timm.list_pretrained(f"{R50}_a0.5*") == [f"{R50}_a0.5", f"{R50}_a0.5.fb_in1k"]
    assert is_model(f"{R50}_a0.3")
    assert is_model_pretrained(f"{R50}_a0.25")
    assert is_model_pretrained(f"{R50}_a0.25.fb_in1k")
    assert not is_model_pretrained(f"{R50}_a0.0")
    assert get_arch_name(f"{R50}_a0.25") == f"{R50}_a0"
    assert get_pretrained_cfg(f"{R50}_a0.25").tag == "25"
    assert R50 in timm.list_models(module="oct_resnetv2")
    ours = [m for m in list_modules() if m.startswith("oct_")]
    families = ["oct_any", "oct_densenet", "oct_mobilenet", "oct_resnet152", "oct_resnetv2", "oct_timm"]
    assert ours == families  # none of ours mixes into a module of timm's


def test_importing_octzoo_leaves_timms_own_names_alone():
    code = (
        "import timm, warnings; warnings.simplefilter('error'); before = timm.list_models(include_tags=True); "
        "import octzoo; after = timm.list_models(include_tags=True); "
        "assert [n for n in after if not n.startswith('oct_')] == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
