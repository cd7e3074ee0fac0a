"""Parity with the authors' networks run in MXNet, and with d-li14's: given the same parameters, the same logits.

tests/golden holds the logits and the summaries at every block that ../shared/golden recorded; parameters and inputs are
a formula over their names (tests/golden/formula.py).
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import octzoo
from octzoo.weights.official import DLI14_RESNET, SYMBOL_RESNET, NamesError, our_name, to_ours
from tests.golden import formula

GOLDEN = Path(__file__).parent / "golden"
RECORDS = json.loads((GOLDEN / "goldens.json").read_text())
NAMES = {
    "resnet-26_alpha-0.250": "oct_resnet26_a0.25",
    "resnet-50_alpha-0.500": "oct_resnet50_a0.5",
    "resnet-50_alpha-0.125": "oct_resnet50_a0.125",
}


def symbol_parameters(key):
    record = RECORDS[key]
    return {
        name: formula.param(key, re.sub("^(arg|aux):", "", name), shape, record["gains"])
        for name, shape in record["params"]
    }


def dli14_parameters(record):
    def value(name, shape):
        s = 2 * formula.uniform(f"{record['key']}/{name}", int(np.prod(shape))) - 1
        kind = name.split(".")[-1]
        if kind == "weight" and len(shape) > 1:
            s = s * np.sqrt(3 * (0.3 if ".conv3." in name else 1) / np.prod(shape[1:]))
        elif kind in ("weight", "running_var"):
            s = 1 + (0.25 if kind == "weight" else 0.3) * s
        else:
            s = {"running_mean": 0.3, "bias": 0.2 if name.startswith("fc.") else 0.4}[kind] * s
        return s.reshape(shape).astype(np.float32)

    return {name: value(name, shape) for name, shape in record["params"]}


def fill(model, foreign, rules):
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    ours = {key: torch.from_numpy(array) for key, array in to_ours(foreign, shapes, rules).items()}
    result = model.load_state_dict(ours, strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("key", NAMES)
def test_logits_and_every_block_equal_the_authors_networks(key):
    record, golden = RECORDS[key], np.load(GOLDEN / f"{key}.npz")
    model = timm.create_model(NAMES[key]).eval().double()
    fill(model, symbol_parameters(key), SYMBOL_RESNET)
    taps = {}
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage):
            name = f"L{i + 2}_B{j + 1:02d}"
            block.register_forward_hook(lambda module, args, out, name=name: taps.__setitem__(name, out))
    x = torch.from_numpy(formula.image(key, record["n"], record["size"])).double()
    with torch.no_grad():
        assert relative(model(x).numpy(), golden["logits"]) <= 1e-11
    checked = 0
    for tap, shape, mean, std, values in zip(*(golden[k] for k in ("tap", "shape", "mean", "std", "values"))):
        block, _, part = str(tap).partition(".")
        if block not in taps:
            continue
        out = taps[block]
        out = getattr(out, {"h": "high", "l": "low"}[part]) if isinstance(out, octzoo.Octave) else out
        assert tuple(out.shape) == tuple(shape)
        at = torch.from_numpy(np.linspace(0, out.numel() - 1, 32).astype(np.int64))
        assert np.abs(out.flatten()[at].numpy() - values).max() <= 1e-11 * std
        assert abs(out.mean().item() - mean) <= 1e-11 * std
        assert abs(out.std(correction=0).item() - std) <= 1e-11 * std
        checked += 1
    assert checked == sum(str(t).startswith("L") for t in golden["tap"])


def test_float32_logits_are_as_close_as_float32_allows():
    key = "resnet-26_alpha-0.250"
    model = timm.create_model(NAMES[key]).eval()
    fill(model, symbol_parameters(key), SYMBOL_RESNET)
    with torch.no_grad():
        logits = model(torch.from_numpy(formula.image(key, RECORDS[key]["n"], RECORDS[key]["size"])))
    assert relative(logits.numpy(), np.load(GOLDEN / f"{key}.npz")["logits"]) <= 5e-6


def test_logits_equal_d_li14s_network():
    record = RECORDS["d-li14_oct_resnet50"]
    model = timm.create_model("oct_resnet50_v1_a0.5").eval().double()
    fill(model, dli14_parameters(record), DLI14_RESNET)
    x = torch.from_numpy(formula.image(record["key"], record["n"], record["size"])).double()
    with torch.no_grad():
        assert relative(model(x).numpy(), np.load(GOLDEN / "d-li14_oct_resnet50.npz")["logits"]) <= 1e-11


def test_names_that_do_not_fit_are_listed():
    shapes = {"stem.conv.weight": (64, 3, 7, 7)}
    with pytest.raises(NamesError, match="no rule for the name 'nonsense'"):
        our_name("nonsense", SYMBOL_RESNET)
    with pytest.raises(NamesError, match=r"does not fit into stem\.conv\.weight"):
        to_ours({"arg:conv1_conv_weight": np.zeros((65, 3, 7, 7))}, shapes, SYMBOL_RESNET)
    with pytest.raises(NamesError, match=r"not enough, for stem\.conv\.weight"):
        to_ours({}, shapes, SYMBOL_RESNET)
    with pytest.raises(NamesError, match=r"would be norm\.weight, which this network does not have"):
        to_ours({"arg:tail_bn_gamma": np.zeros(4)}, shapes, SYMBOL_RESNET)
