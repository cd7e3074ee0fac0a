"""``octzoo import``: a published file becomes a checkpoint folder, or is refused before anything is written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import octzoo
from octzoo.cli.import_weights import import_file
from octzoo.errors import UserError
from octzoo.models.convert import read_published
from octzoo.weights.mxnet import write_params
from octzoo.weights.records import find, records, unreleased
from tests import released

NAME, KEY = "oct_mobilenetv1_075_a0.375", "mobilenet_v1_075_alpha-0.375"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A Gluon file, a symbol network's tar, d-li14's."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "gluon": released.write_released(KEY, folder, f"{KEY}.params"),
        "symbol": released.write_released("resnet-26_alpha-0.125", folder, "a02_resnet-26_alpha-0.125.tar"),
        "dli14": released.write_dli14("d-li14/oct_mobilenet", folder / "oct_mobilenet.pth.tar"),
        "dli14 bare": released.write_dli14("d-li14/oct_mobilenet", folder / "bare.pth", prefix=""),
    }


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gluon", f"{NAME}.fb_in1k"),
        ("gluon", f"{NAME}.mine"),
        ("symbol", "oct_resnet26_a0.125.fb_in1k"),
        ("dli14", "oct_mobilenetv1_100_a0.5.dli14_in1k"),
        ("dli14 bare", "oct_mobilenetv1_100_a0.5.dli14_in1k"),
    ],
)
def test_a_published_file_becomes_a_folder_that_timm_loads(tmp_path, files, kind, name):
    import_file(files[kind], name, tmp_path)
    folder = tmp_path / name
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    untagged, _, _tag = name.rpartition(".")
    config = json.loads((folder / "config.json").read_text())
    assert f"{config['architecture']}.{_tag}" == name
    assert f"{config['architecture'].partition('.')[0]}.{config['pretrained_cfg']['tag']}" == name
    assert config["model_args"] == {"alpha": float(re.search(r"_a([\d.]+)", untagged)[1])}
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.octave_alpha == config["model_args"]["alpha"]
    expected = timm.create_model(untagged).eval()
    expected.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), expected(x))
    if record := find(name):
        assert model.pretrained_cfg["license"] == record.licence
        assert f"top-1 {record.accuracy.top1:g} %" in (folder / "README.md").read_text()


def test_the_command_says_what_it_did_and_does_not_write_over_a_folder(tmp_path, files):
    command = [sys.executable, "-m", "octzoo_cli", "import", files["gluon"], "--name", f"{NAME}.fb_in1k"]
    run = lambda: subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # noqa: E731
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"checkpoints/{NAME}.fb_in1k: 256 arrays of {KEY}.params are all the parameters of {NAME}.fb_in1k",
        f'next   timm.create_model("local-dir:checkpoints/{NAME}.fb_in1k", pretrained=True)',
    ]
    again = run()
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (f"error: checkpoints/{NAME}.fb_in1k exists already: remove it, or choose another place\n")


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("gluon", "oct_mobilenetv1_075_a0.5.x", f"does not hold oct_mobilenetv1_075_a0.5: it holds {NAME}$"),
        ("gluon", "oct_mobilenetv1_075_a0.0.x", f"does not hold oct_mobilenetv1_075_a0.0: it holds {NAME}$"),
        ("gluon", "oct_mobilenetv1_100_a0.375.x", f"does not hold oct_mobilenetv1_100_a0.375: it holds {NAME}$"),
        ("symbol", "oct_resnet50_a0.125.x", "does not hold oct_resnet50_a0.125: it holds oct_resnet26_a0.125$"),
        ("symbol", "oct_resnet26_a0.25.fb_in1k", "does not hold oct_resnet26_a0.25: it holds oct_resnet26_a0.125$"),
        ("dli14", "oct_mobilenetv1_100_a0.25.x", "it holds oct_mobilenetv1_100_a0.5$"),
        ("gluon", "oct_nosuch_a0.5.x", "there is no network 'oct_nosuch'; `octzoo list` has them all"),
        ("gluon", "resnet50.x", "'resnet50.x' is not NETWORK_a0.ALPHA.TAG"),
        ("gluon", f"../{NAME}.x", "is not NETWORK_a0.ALPHA.TAG"),
        ("gluon", f"{NAME}.x/../../y", "is not NETWORK_a0.ALPHA.TAG"),
        ("gluon", NAME, "is not NETWORK_a0.ALPHA.TAG"),
        ("gluon", f"{NAME}.5", "is not NETWORK_a0.ALPHA.TAG"),
        ("gluon", f"{NAME}.{'x' * 300}", "is not NETWORK_a0.ALPHA.TAG"),
        ("gluon", "oct_mobilenetv1_075_a0.3750.x", r"write alpha 0.3750 as 0.375, oct_mobilenetv1_075_a0.375.x"),
        (
            "gluon",
            f"{NAME}.dli14_in1k",
            rf"dli14_in1k has no weights of {NAME} \(nor for another alpha\): give a tag of",
        ),
        (
            "symbol",
            "oct_resnet26_a0.3.fb_in1k",
            r"\(there are oct_resnet26_a0.125.fb_in1k, oct_resnet26_a0.25.fb_in1k,",
        ),
        ("symbol", "oct_resnext50_32x4d_a0.125.x", "32 groups do not divide the parts"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_one(tmp_path, files, kind, name, text):
    with pytest.raises(UserError, match=text):
        import_file(files[kind], name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_published_tag_is_held_to_its_checksum_and_one_of_the_users_own_is_not(tmp_path):
    file = released.write_released("resnet-26_alpha-0.250", tmp_path, "a02_resnet-26_alpha-0.250.tar")
    with pytest.raises(UserError, match=r"has the SHA-256 \w+, the published oct_resnet26_a0.25.fb_in1k has 29fba1"):
        import_file(file, "oct_resnet26_a0.25.fb_in1k", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    import_file(file, "oct_resnet26_a0.25.mine", tmp_path / "out")


def damaged(change):
    arrays = released.parameters(KEY)
    change(arrays)
    return arrays


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: a.pop("classifer.bias"), "nothing, or not enough, for head.fc.bias"),
        (lambda a: a.pop("L2_B1.conv2.conv_l2h.weight"), "not enough, for stages.1.1.convs.1.weight"),
        (lambda a: a.update({"extra.weight": np.zeros(3, np.float32)}), "names have no place in this network: extra"),
        (lambda a: a.update({"arg:classifer.bias": a["classifer.bias"]}), "falls where another tensor"),
        (lambda a: a.update({"classifer.bias": np.zeros(999, np.float32)}), r"of shape \[999\] is not the \[1000\]"),
        (
            lambda a: a["L2_B1.conv2.conv_l2h.weight"].fill(np.nan),
            "stages.1.1.convs.1.weight holds numbers that are not",
        ),
        (lambda a: a["L2_B1.bn2.bn_l.running_var"].fill(np.inf), "running_var holds numbers that are not finite"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, change, text):
    write_params(tmp_path / "damaged.params", damaged(change))
    with pytest.raises(UserError, match=text):
        import_file(tmp_path / "damaged.params", f"{NAME}.mine", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_octave_layers_of_alpha_0_are_no_ordinary_network(tmp_path):
    """They have the ordinary network's tensors, but pool where it strides; the plain networks' names have no parts."""
    arrays = released.parameters("resnet-26_baseline")
    write_params(tmp_path / "plain.params", arrays)
    import_file(tmp_path / "plain.params", "oct_resnet26_a0.0.mine", tmp_path)
    named = {re.sub(r"(L\d.*)_(gamma|beta|moving_\w+)$", r"\1-h_\2", n): a for n, a in arrays.items()}
    named = {re.sub(r"(L\d.*conv)_weight$", r"\1-h2h_weight", n): a for n, a in named.items()}
    write_params(tmp_path / "zero.params", named)
    with pytest.raises(
        UserError, match="holds octave layers of alpha 0, which pool where oct_resnet26_a0.0, the ordinary"
    ):
        import_file(tmp_path / "zero.params", "oct_resnet26_a0.0.other", tmp_path)


def test_networks_that_differ_in_their_norms_alone_are_told_apart(tmp_path):
    write_params(tmp_path / "dense.params", released.parameters("densenet-121_alpha-0.250"))
    with pytest.raises(UserError, match="does not hold oct_densenet121_v1_a0.25: it holds oct_densenet121_a0.25$"):
        import_file(tmp_path / "dense.params", "oct_densenet121_v1_a0.25.x", tmp_path)


def test_a_tag_of_the_users_own_claims_nobodys_licence(tmp_path, files):
    import_file(files["gluon"], f"{NAME}.mine", tmp_path)
    config = json.loads((tmp_path / f"{NAME}.mine" / "config.json").read_text())
    assert not {"license", "origin_url", "paper_ids"} & set(config["pretrained_cfg"])
    assert "only the importer knows" in (tmp_path / f"{NAME}.mine" / "README.md").read_text()


@pytest.mark.parametrize("halved", ["conv_l2l", "conv_h2h"])
def test_no_part_of_a_tensor_is_rounded_to_the_type_of_another(tmp_path, halved):
    arrays = released.parameters(KEY)
    name = "L2_B1.conv2.conv_h2h.weight"
    arrays = {n: a.astype(np.float16) if halved in n else a for n, a in arrays.items()}
    write_params(tmp_path / "mixed.params", arrays)
    weight = read_published(f"{NAME}.mine", tmp_path / "mixed.params").state["stages.1.1.convs.1.weight"]
    h2h = arrays[name]
    assert torch.equal(weight[: h2h.shape[0], : h2h.shape[1]], torch.from_numpy(h2h).float())


def test_float16_arrays_become_float32_parameters(tmp_path):
    arrays = {n: a.astype(np.float16) if a.ndim > 1 else a for n, a in released.parameters(KEY).items()}
    write_params(tmp_path / "half.params", arrays)
    state = read_published(f"{NAME}.mine", tmp_path / "half.params").state
    assert {t.dtype for k, t in state.items() if not k.endswith("num_batches_tracked")} == {torch.float32}
    assert torch.equal(state["head.fc.weight"], torch.from_numpy(arrays["classifer.weight"][:, :, 0, 0]).float())


def test_code_in_a_torch_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": torch.zeros(2, dtype=torch.int8)}, tmp_path / "whole.pth")
    torch.save({3: torch.zeros(2)}, tmp_path / "number.pth")
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "sparse.pth")
    torch.save({"a": torch.tensor(1.0)}, tmp_path / "scalar.pth")
    (tmp_path / "empty.tar").write_bytes(b"")
    for name, text in (
        ("evil.pth", r"nor a PyTorch checkpoint of plain tensors \(UnpicklingError\)"),
        ("list.pth", "is a PyTorch file, but holds no state dict"),
        ("number.pth", "is a PyTorch file, but holds no state dict"),
        ("sparse.pth", "is a PyTorch file, but holds no state dict"),
        ("whole.pth", r"a is int8 of shape \[2\], which no parameter is"),
        ("scalar.pth", r"a is float32 of shape \[\], which no parameter is"),
        ("empty.tar", "is neither MXNet's .params"),
        ("nosuch.tar", "no such file"),
    ):
        with pytest.raises(UserError, match=text):
            import_file(tmp_path / name, f"{NAME}.mine", tmp_path / "out")


def test_parameters_and_bfloat16_of_a_torch_file_are_taken(tmp_path):
    arrays = released.parameters("d-li14/oct_mobilenet")
    state = {n: torch.nn.Parameter(torch.from_numpy(a)) for n, a in arrays.items()}
    state["fc.weight"] = state["fc.weight"].detach().bfloat16()
    torch.save(state, tmp_path / "parameters.pth")
    found = read_published("oct_mobilenetv1_100_a0.5.mine", tmp_path / "parameters.pth").state
    assert torch.equal(found["head.fc.weight"], state["fc.weight"].float())


def test_a_place_that_cannot_be_written_has_its_line(tmp_path, files):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", "/proc/nowhere"):
        with pytest.raises(UserError, match=f"{out} cannot be written"):
            import_file(files["gluon"], f"{NAME}.mine", Path(out))


def test_a_folder_is_written_wholly_or_not_at_all(tmp_path, files, monkeypatch):
    from octzoo.weights import folder

    def full(path, content, write=folder._write):
        if path.name == "config.json":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(folder, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        import_file(files["gluon"], f"{NAME}.mine", tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- pretrained=True -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("weights")
    import_file(files["gluon"], f"{NAME}.fb_in1k", folder)
    return folder


@pytest.fixture
def state(weights, monkeypatch):
    """The published weights, which ``pretrained=True`` finds."""
    monkeypatch.setenv("OCTZOO_CHECKPOINTS", str(weights))
    return safetensors.torch.load_file(weights / f"{NAME}.fb_in1k" / "model.safetensors")


def pretrained(name=NAME, **kwargs):
    return timm.create_model(name, pretrained=True, **kwargs)


def test_pretrained_gives_the_published_weights_and_their_preprocessing(state):
    for model in (pretrained(), pretrained(f"{NAME}.fb_in1k"), pretrained("oct_mobilenetv1_075", alpha=0.375)):
        assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())
        assert (model.octave_alpha, model.pretrained_cfg["architecture"]) == (0.375, "oct_mobilenetv1_075_a0")
        config = timm.data.resolve_model_data_config(model)
        assert (config["interpolation"], config["crop_pct"]) == ("bilinear", 0.875)


def test_pretrained_weights_adapt_as_timms_do(state):
    classes, grey, features = pretrained(num_classes=5), pretrained(in_chans=1), pretrained(features_only=True)
    assert classes.get_classifier().weight.shape == (5, 768)
    assert torch.equal(classes.stages[0][0].convs[1].weight, state["stages.0.0.convs.1.weight"])
    torch.testing.assert_close(grey.stem.conv.weight, state["stem.conv.weight"].sum(1, keepdim=True))
    assert [m.shape[1] for m in features(torch.zeros(1, 3, 64, 64))] == features.feature_info.channels()
    with pytest.raises(ValueError, match="alpha=0.5, but the name says 0.375"):
        pretrained(alpha=0.5)


def test_what_is_saved_again_holds_no_path_of_this_machine(state, weights, tmp_path):
    timm.models.save_for_hf(pretrained(), str(tmp_path / "again"), safe_serialization=True)
    text = (tmp_path / "again" / "config.json").read_text()
    assert str(weights) not in text
    assert timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).octave_alpha == 0.375


# ---- the records ---------------------------------------------------------------------------------------------------


def test_there_is_a_record_of_every_published_file_and_a_name_for_every_record():
    by_tag = [record.tag for record in records()]
    assert (by_tag.count("fb_in1k"), by_tag.count("dli14_in1k")) == (31, 4)
    assert set(by_tag) - {"fb_in1k", "dli14_in1k"} <= {"oz_cifar10_jpeg", "oz_digits"}
    assert sum(record.sha256 is not None for record in records()) == 8
    assert sum(record.remeasured is not None for record in records()) == 8
    names = timm.list_models("oct_*", include_tags=True)
    assert {record.full_name for record in records()} <= set(names)
    defaults = {record.name for record in records() if find(record.name)}
    assert set(timm.list_pretrained("oct_*")) == defaults | {record.full_name for record in records()}
    assert {full.rpartition(".")[0] for full in unreleased()} <= set(names)


@pytest.mark.parametrize("record", [r for r in records() if r.url or r.tag == "dli14_in1k"], ids=lambda r: r.full_name)
def test_timms_cfg_is_the_records(record):
    cfg = timm.get_pretrained_cfg(record.full_name)
    rows = json.loads((Path(octzoo.__file__).parent / f"weights/records/{record.tag}.json").read_text())["weights"]
    kind = next(row["evaluation"] for row in rows if row["name"] == record.name)
    assert (cfg.hf_hub_id, cfg.license) == (f"octzoo/{record.full_name}", record.licence)
    assert (cfg.crop_pct, cfg.input_size) == (0.875, (3, 224, 224))
    expected = {
        "symbol": ("bicubic", 124 / 255),
        "gluon": ("bilinear", 123.68 / 255),
        "torchvision": ("bilinear", 0.485),
    }
    assert (cfg.interpolation, pytest.approx(cfg.mean[0])) == expected[kind]
    default = timm.get_pretrained_cfg(record.name)
    assert (default.mean, default.hf_hub_id) == (
        (cfg.mean, cfg.hf_hub_id) if find(record.name) is record else (default.mean, default.hf_hub_id)
    )


def test_the_default_tag_is_the_authors():
    assert find("oct_mobilenetv1_100_a0.5").tag == "fb_in1k"
    assert find("oct_resnet50_v1_a0.5").tag == "dli14_in1k"
    assert find("oct_resnet50_a0.3") is None


def test_digits_are_nobodys_default():
    assert all(find(record.name) is not record for record in records() if record.tag == "oz_digits")
