"""Whole tensors from parts, and where a network's cuts are: cutting and putting together is the identity."""

import itertools

import numpy as np
import pytest
import timm
import torch
from torch import nn

import octzoo
from octzoo.octave import split_channels
from octzoo.splits import splits
from octzoo.weights.official import NamesError, Rule
from octzoo.weights.parts import Split, to_ours, to_theirs, whole_shapes

RULES = (Rule(r"(\w+)\.conv", "{0}."),)  # "a.conv_h2l.weight" -> "a.weight"


def cut(name, whole, split):
    """The parts of one tensor as others store them, by a definition of its own: slice by slice."""
    rows = {"h": whole[: len(whole) - split.rows], "l": whole[len(whole) - split.rows :]}
    if whole.ndim == 1:
        return {f"{name}.conv_{t}.weight": part for t, part in rows.items() if len(part)}
    if split.columns is None:
        return {f"{name}.conv_{t}2{t}.weight": part for t, part in rows.items() if len(part)}
    edge = whole.shape[1] - split.columns
    paths = itertools.product(rows.items(), (("h", slice(0, edge)), ("l", slice(edge, None))))
    parts = {f"{name}.conv_{s}2{t}.weight": part[:, columns] for (t, part), (s, columns) in paths}
    return {key: part for key, part in parts.items() if part.size}


@pytest.mark.parametrize(
    ("shape", "split"),
    [
        ((8, 6, 3, 3), Split(2, 3)),
        ((8, 6, 3, 3), Split(0, 3)),
        ((8, 6, 1, 1), Split(2, 0)),
        ((8, 6), Split(8, 6)),
        ((8, 1, 3, 3), Split(3, None)),
        ((8,), Split(3, 0)),
        ((8,), Split(0, 0)),
    ],
)
def test_parts_put_together_are_the_whole(shape, split):
    whole = np.random.default_rng(0).random(shape, np.float32)
    parts = cut("a", whole, split)
    ours = to_ours(parts, {"a.weight": shape}, {"a.weight": split}, RULES)
    assert np.array_equal(ours["a.weight"], whole)
    back = to_theirs(ours, {name: part.shape for name, part in parts.items()}, {"a.weight": split}, RULES)
    assert all(np.array_equal(back[name], part) for name, part in parts.items())
    for name in parts:  # and every part is needed, once, of the right size
        less = {key: part for key, part in parts.items() if key != name}
        with pytest.raises(NamesError, match=r"nothing, or not enough, for a\.weight"):
            to_ours(less, {"a.weight": shape}, {"a.weight": split}, RULES)
        with pytest.raises(NamesError, match="is not the"):
            to_ours({**parts, name: parts[name][:-1]}, {"a.weight": shape}, {"a.weight": split}, RULES)
    shapes, alpha = whole_shapes({name: part.shape for name, part in parts.items()}, RULES)
    assert shapes == {"a.weight": shape}
    assert alpha == (split.rows / shape[0] if 0 < split.rows < shape[0] else 0)


def test_a_part_that_the_network_does_not_cut_off_is_refused():
    with pytest.raises(NamesError, match=r"a\.weight of this network has no such part"):
        to_ours({"a.conv_h2l.weight": np.zeros((2, 6))}, {"a.weight": (8, 6)}, {}, RULES)
    both = {"a.conv_h2h.weight": np.zeros((8, 6)), "module.a.conv_h2h.weight": np.zeros((8, 6))}
    with pytest.raises(NamesError, match="falls where another tensor of a.weight already is"):
        to_ours(both, {"a.weight": (8, 6)}, {}, RULES)


@pytest.mark.parametrize("alpha", [0.25, 0.3])
def test_a_networks_cuts_are_those_of_its_layers(alpha):
    model = timm.create_model("oct_seresnet50", alpha=alpha, device="meta")
    found = splits(model)
    c = {n: split_channels(n, alpha) for n in (64, 128, 256, 512)}
    assert found["stages.0.0.convs.0.weight"] == Split(c[64], 0)  # from the stem
    assert found["stages.0.0.convs.1.weight"] == Split(c[64], c[64])
    assert found["stages.0.1.norms.0.running_var"] == Split(c[256], 0)
    assert found["stages.0.1.se.fc1.weight"] == Split(0, c[256])
    assert found["stages.0.1.se.fc2.bias"] == Split(c[256], 0)
    assert found["stages.3.0.convs.0.weight"] == Split(0, split_channels(1024, alpha))  # the last stage converts back
    assert not [key for key in found if key.startswith(("stem", "stages.3.1", "tail", "head"))]
    assert splits(timm.create_model("oct_seresnet50", alpha=0.0, device="meta")) == {}


def test_cuts_of_grouped_and_depthwise_convolutions():
    class Net(nn.Sequential):
        def __init__(self):
            layers = [nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)]
            layers += [nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.Conv2d(32, 64, 3, padding=1, groups=32)]
            super().__init__(*layers, nn.Conv2d(64, 8, 1))

    plan = [("0", "plain"), ("5", "zero"), ("*", "octave")]
    found = splits(octzoo.octavize(Net(), 0.25, plan, input_size=(3, 8, 8)))
    assert found["1.weight"] == Split(8, 0)
    assert found["3.weight"] == Split(8, 2)
    assert found["4.weight"] == Split(16, None)
    assert found["5.weight"] == Split(0, 16)
    assert found["2.running_mean"] == found["1.bias"] == Split(8, 0)
    assert "2.num_batches_tracked" not in found
    assert torch.is_grad_enabled()
