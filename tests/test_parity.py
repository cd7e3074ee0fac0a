"""Parity with the authors' networks run in MXNet, and with d-li14's: given the same parameters, the same logits.

And the names in all the files that they published. The data, and what is what in them: tests/golden/__init__.py.
"""

import copy
import functools
import re
import zlib

import numpy as np
import pytest
import timm
import torch

import octzoo
from octzoo.splits import splits
from octzoo.weights.official import DLI14_RESNET, SYMBOL_RESNET, NamesError, choose_rules, our_name
from octzoo.weights.parts import to_ours, to_theirs
from tests.golden import formula, gluon, our_network
from tests.released import GOLDEN, PARAMETERS, RECORDS, parameters

# What a golden calls a block's output -> the module that gives it here, by the golden's family.
HEAD = {"tail": "tail", "pool": "head.global_pool"}
TAPS = {
    "resnetv2": {r"L(\d)_B(\d+)": "stages.{0-2}.{1-1}", "stem": "pool", **HEAD},
    "densenet": {
        r"L(\d)_B(\d+)": "features.denseblock{0-1}.denselayer{1}",
        r"L(\d)_Trans": "features.transition{0-2}",
        "stem": "features.pool0",
        "tail": "features.norm5",
        "pool": "global_pool",
    },
    "mobilenet": {
        "L1_B1": "stages.0.0",
        r"L1_B1\.mid": "stages.0.0.norms.1",
        r"L(\d)_B(\d)": "stages.{0-1}.{1}",
        r"L(\d)_B(\d)\.mid": "stages.{0-1}.{1}.norms.1",
        "stem": "stem",
        **HEAD,
    },
    "resnet152": {r"L(\d)_B(\d+)": "stages.{0-1}.{1}", "stem": "pool", **HEAD},
}


def empty(key):
    """Our network without memory, and the shapes in its state dict."""
    arch, alpha = our_network(key)
    model = timm.create_model(arch, alpha=alpha, device="meta").eval()
    return model, {name: tuple(value.shape) for name, value in model.state_dict().items()}


def filled(key, foreign):
    """Our network with foreign parameters."""
    model, shapes = empty(key)
    ours = to_ours(foreign, shapes, splits(model), choose_rules(foreign, shapes))
    counts = {name: torch.tensor(0) for name in shapes if name.endswith("num_batches_tracked")}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in ours.items()} | counts, assign=True)
    return model


@pytest.fixture(scope="module", params=RECORDS)
def case(request):
    """A golden's key, and our network with its parameters."""
    key = request.param
    foreign = parameters(key)
    if "params_crc32" in RECORDS[key]:
        crc = functools.reduce(lambda crc, array: zlib.crc32(array.tobytes(), crc), foreign.values(), 0)
        assert crc == RECORDS[key]["params_crc32"]
    return key, filled(key, foreign)


def pictures(key):
    x = formula.image(key, RECORDS[key]["n"], RECORDS[key]["size"])
    assert zlib.crc32(x.tobytes()) == RECORDS[key]["input_crc32"]
    return torch.from_numpy(x)


def golden(key):
    return np.load(GOLDEN / f"{key.replace('/', '_')}.npz")


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def module_of(tap, family):
    """The name of our module behind a golden's tap, "L2_B01" -> "stages.0.0"."""
    for pattern, place in TAPS[family].items():
        if match := re.fullmatch(pattern, tap):
            return re.sub(r"\{(\d)(?:-(\d))?\}", lambda m: str(int(match[int(m[1]) + 1]) - int(m[2] or 0)), place)
    raise KeyError(tap)


def watch(model, names):
    """Name -> output of each module, filled at the next call."""
    outputs = {}

    def note(module, args, out, name):
        dense = isinstance(args[0], list)  # a dense layer's output is only what it adds
        outputs[name] = torch.cat([*args[0], out], 1) if dense else out

    for name in names:
        model.get_submodule(name).register_forward_hook(functools.partial(note, name=name))
    return outputs


def part(out, letter):
    if letter is None or (letter == "h" and not isinstance(out, octzoo.Octave)):
        return out
    return {"h": out.high, "l": out.low}[letter]


def check_tap(out, shape, mean, std, values):
    """One row of a golden's npz; tensors differ in trailing ones at most."""
    wanted = tuple(n for n in shape if n)
    assert tuple(out.shape) == wanted[: out.ndim]
    assert set(wanted[out.ndim :]) <= {1}
    out = out.numpy()
    at = np.linspace(0, out.size - 1, 32).astype(np.int64)
    assert np.abs(out.flatten()[at] - values).max() <= 1e-11 * std
    assert abs(out.mean() - mean) <= 1e-11 * std
    assert abs(out.std() - std) <= 1e-11 * std


def test_logits_and_every_block_equal_theirs(case):
    key, model = case
    model, there, family = copy.deepcopy(model).double(), golden(key), RECORDS[key].get("family", "").split("_")[0]
    taps = {}  # (module, part) -> the row of the npz
    for row, tap in enumerate(map(str, there.get("tap", ()))):
        block, letter = (tap[:-2], tap[-1]) if tap[-2:] in (".h", ".l") else (tap, None)
        taps[module_of(block, family), letter] = row
    outputs = watch(model, {name for name, _ in taps})
    with torch.no_grad():
        assert relative(model(pictures(key).double()).numpy(), there["logits"]) <= 1e-11
    for (name, letter), row in taps.items():
        check_tap(part(outputs[name], letter), *(there[k][row] for k in ("shape", "mean", "std", "values")))
        has_low = isinstance(outputs[name], octzoo.Octave)
        assert has_low == ((name, "l") in taps)


def test_float32_logits_are_as_close_as_float32_allows(case):
    key, model = case
    with torch.no_grad():
        logits = model(pictures(key))
    assert relative(logits.numpy(), golden(key)["logits"]) <= 5e-6


@pytest.mark.parametrize(
    ("key", "oracle", "size"),
    [
        ("se-resnet152_v1e_alpha-0.125", gluon.seresnet152_v1e, 64),
        ("mobilenet_v1_100_alpha-0.5", gluon.mobilenet_v1, 222),  # 111 -> 56: windows over the edge
        ("mobilenet_v1_100_alpha-0.5", gluon.mobilenet_v1, 221),
        ("mobilenet_v2_100_alpha-0.375", gluon.mobilenet_v2, 96),
        ("mobilenet_v2_1125_alpha-0.5", gluon.mobilenet_v2, 223),
    ],
)
def test_logits_equal_an_oracle_where_no_golden_is(key, oracle, size):
    foreign = {name: formula.param(key, name, shape, [["conv3", 0.04], ["", 1]]) for name, shape in PARAMETERS[key]}
    foreign |= {name: a * 3 for name, a in foreign.items() if "a.bn_" in name and "gamma" in name}  # MXNet ignores them
    model = filled(key, foreign).double()
    x = torch.from_numpy(formula.image(key, 2, 256))[:, :, :size, :size].double()
    with torch.no_grad():
        there = oracle({name: torch.from_numpy(a).double() for name, a in foreign.items()}, x)
        assert relative(model(x).numpy(), there.numpy()) <= 1e-13


def first_of_each(keys):
    """Further alphas of a network are slow: their files have the same names."""
    files = [key.partition("_alpha")[0] for key in keys]
    slow = [pytest.mark.slow]
    return [
        pytest.param(key, marks=slow if file in files[:i] else []) for i, (key, file) in enumerate(zip(keys, files))
    ]


@pytest.mark.parametrize("key", first_of_each(PARAMETERS))
def test_every_tensor_of_a_published_file_has_its_place(key):
    """Each is filled with its number: they come back, so none is lost, doubled or mixed with another."""
    model, shapes = empty(key)
    foreign = {
        name: np.broadcast_to(np.float32(1 if "a.bn_" in name and "gamma" in name else i), shape)
        for i, (name, shape) in enumerate(PARAMETERS[key])
    }
    rules = choose_rules(foreign, shapes)
    ours = to_ours(foreign, shapes, splits(model), rules)
    assert {k: v.shape for k, v in ours.items()} == {k: s for k, s in shapes.items() if "num_batches" not in k}
    back = to_theirs(ours, dict(PARAMETERS[key]), splits(model), rules)
    assert list(back) == list(foreign)
    assert all((back[name] == foreign[name]).all() and back[name].shape == foreign[name].shape for name in foreign)


def test_d_li14s_deeper_networks_have_the_same_names():
    """Their ResNet-101 and 152 are at hand only as code: names of the 50's blocks, more of them."""
    rules = DLI14_RESNET
    for arch, stage, block in (("oct_resnet101_v1", 3, 22), ("oct_resnet152_v1", 3, 35)):
        shapes = timm.create_model(arch, alpha=0.0, device="meta").state_dict()
        name = f"module.layer{stage}.{block}.conv2.conv.conv_l2h.weight"
        assert our_name(name, rules) == (f"layer{stage}.{block}.conv2.weight", "l", "h")
        assert choose_rules([name], shapes) is rules


def test_a_batch_norm_whose_scale_mxnet_ignores_gets_ones():
    shapes = {f"stages.0.0.pre.{kind}": (8,) for kind in ("weight", "bias", "running_mean", "running_var")}
    kinds = ("gamma", "beta", "running_mean", "running_var")
    foreign = {f"L1_B0.bn1a.bn_h.{kind}": np.full(8, 3, np.float16) for kind in kinds}
    ours = to_ours(foreign, shapes, {}, choose_rules(foreign, shapes))
    assert {key: set(value) for key, value in ours.items()} == {k: {1 if "weight" in k else 3} for k in shapes}
    assert {value.dtype for value in ours.values()} == {np.dtype(np.float16)}


def test_names_that_do_not_fit_are_listed():
    with pytest.raises(NamesError, match="no rule for the name 'nonsense'"):
        our_name("nonsense", SYMBOL_RESNET)
    with pytest.raises(NamesError, match=r"would be tail\.weight, which this network does not have"):
        to_theirs({}, {"arg:tail_bn_gamma": (4,)}, {}, SYMBOL_RESNET)
    with pytest.raises(
        NamesError, match=r"_weight of shape \[65, 3\] is not the \[64, 3\] that stem\.conv\.weight takes there"
    ):
        to_theirs({"stem.conv.weight": np.zeros((64, 3))}, {"conv1_conv_weight": (65, 3)}, {}, SYMBOL_RESNET)
    with pytest.raises(
        NamesError, match=r"^2 of 3 names have no place in this network: tail_bn_gamma, L2_B01_nonsense"
    ):
        choose_rules(["conv1_conv_weight", "tail_bn_gamma", "L2_B01_nonsense"], ["stem.conv.weight"])
