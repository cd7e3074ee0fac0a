"""Plain weights in the octave network's order: on constant pictures both networks compute the same."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from octzoo import OctaveError, merge, octavize
from octzoo.channels import channel_order, reorder
from octzoo.octave import Octave, low_channels

# Name, what makes it small, alphas. Each has a full-size row as well, marked slow.
MOVED = [
    ("densenet121", {"block_config": (2, 3, 2, 2)}, (0.125, 0.25, 0.75)),
    ("res2net50_26w_4s", {"layers": (1, 2, 2, 1)}, (0.125, 0.25, 0.75)),  # split, cat
    ("res2next50", {"layers": (1, 2, 1, 1)}, (0.25,)),  # grouped convolutions of the pieces
    ("resnext50_32x4d", {"layers": (1, 2, 2, 1)}, (0.25, 0.5)),
    ("regnetx_004", {}, (0.25, 0.5)),
    ("regnety_004", {}, (0.25,)),  # squeeze-excite
    ("dla34", {}, (0.25,)),  # concatenations and residual additions
    ("cspresnext50", {}, (0.25,)),  # chunks, concatenations, groups
    ("rdnet_tiny", {"num_blocks_list": (1,) * 7}, (0.25,)),
]
SAME = [
    ("resnet18", 0.25),
    ("resnet50", 0.5),
    ("mobilenetv2_100", 0.25),
    ("efficientnet_b0", 0.125),
    ("efficientnet_b0", 0.5),
    ("convnext_atto", 0.25),
]


@pytest.fixture(autouse=True)
def _one_thread():
    """These maps are small: on a busy machine two threads wait for each other, 10 times longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def constant_exact(model):
    """``model``, random throughout, such that a spatially constant picture stays constant up to the logits."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, timm.layers.LayerNorm2d):  # an octave one has statistics for each part, by design
                setattr(module, name, nn.BatchNorm2d(len(child.weight)))
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "replicate"
        if isinstance(module, nn.AvgPool2d):
            module.count_include_pad = False
    for name, t in model.state_dict().items():
        if t.ndim <= 1 and t.is_floating_point():  # scales below 1: deep networks must not blow rounding up
            low, high = (0.2, 0.6) if name.endswith(("weight", "gamma")) else (1, 2) if "var" in name else (-0.5, 0.5)
            nn.init.uniform_(t, low, high)
    return model.double().eval()


def constant_picture(channels=3, size=32):
    return torch.randn(2, channels, 1, 1, dtype=torch.float64).expand(-1, -1, size, size)


def octave_twin(plain, alpha, plan=None):
    return octavize(copy.deepcopy(plain), alpha, plan)


def difference(plain, octave, x):
    """Relative L2 of the logits."""
    with torch.no_grad():
        want, got = plain(x), octave(x)
    return ((got - want).norm() / want.norm()).item()


def check_moved(plain, alpha, plan=None, x=None):
    """Wrong without the order, right with it. Returns the order."""
    x = constant_picture() if x is None else x
    octave = octave_twin(plain, alpha, plan)
    order = channel_order(octave)
    assert difference(plain, octave, x) > 1e-3
    octave.load_state_dict(reorder(plain.state_dict(), order))
    assert difference(plain, octave, x) < 1e-10
    return order


@pytest.mark.parametrize(("name", "small", "alpha"), [(n, kw, a) for n, kw, alphas in MOVED for a in alphas])
def test_reordered_weights_compute_what_the_plain_network_does(name, small, alpha):
    check_moved(constant_exact(timm.create_model(name, **small)), alpha, x=constant_picture(size=64))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.25, 0.5])
@pytest.mark.parametrize("name", ["densenet121", "res2net50_26w_4s", "res2next50", "resnext50_32x4d", "regnety_016"])
def test_reordered_weights_at_full_size(name, alpha):
    check_moved(constant_exact(timm.create_model(name)), alpha, x=constant_picture(size=64))


@pytest.mark.parametrize(
    ("name", "small", "alpha"), [*((n, s, a[0]) for n, s, a in MOVED), *((n, {}, a) for n, a in SAME)]
)
def test_sorted_by_any_costs_it_computes_what_the_plain_network_does(name, small, alpha):
    plain = constant_exact(timm.create_model(name, **small))
    costs = {n: torch.rand(m.in_channels) for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)}
    octave = octave_twin(plain, alpha)
    order = channel_order(octave, costs)
    octave.load_state_dict(reorder(plain.state_dict(), order))
    assert difference(plain, octave, constant_picture(size=64)) < 1e-10


@pytest.mark.parametrize(("name", "alpha"), SAME)
def test_without_concatenation_or_groups_nothing_moves(name, alpha):
    plain = constant_exact(timm.create_model(name))
    octave = octave_twin(plain, alpha)
    assert channel_order(octave) == {}
    assert difference(plain, octave, constant_picture()) < 1e-10


def test_on_the_meta_device():
    with torch.device("meta"):
        assert channel_order(octavize(timm.create_model("vgg16_bn"), 0.5)) == {}
        assert len(channel_order(octavize(timm.create_model("densenet121"), 0.25))) == 205


@pytest.mark.parametrize("alpha", [0, 1])
def test_with_one_resolution_nothing_moves(alpha):
    assert channel_order(octavize(timm.create_model("regnetx_002"), alpha)) == {}


# ---- small networks, one trap each ---------------------------------------------------------------------------------


class Net(nn.Module):
    """A stem of 16 channels, a body of which ``way(body, x)`` gives ``width`` channels, and 5 logits."""

    pretrained_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    def __init__(self, body, width, way=lambda body, x: body(x)):
        super().__init__()
        self.stem, self.body, self.way = nn.Conv2d(3, 16, 1), body, way
        self.last, self.fc = nn.Conv2d(width, 8, 1), nn.Linear(8, 5)
        self.double().eval()

    def forward(self, x):
        return self.fc(self.last(self.way(self.body, self.stem(x))).mean((2, 3)))


PLAN = [("body*", "octave"), ("last", "zero")]


def convs(*rows):
    """(in, out, groups) each."""
    return nn.ModuleList(nn.Conv2d(i, o, 1, groups=g) for i, o, g in rows)


def test_a_concatenation_puts_high_parts_first():
    plain = Net(convs((16, 8, 1), (16, 4, 1)), 12, lambda body, x: torch.cat([body[0](x), body[1](x)], 1))
    order = check_moved(plain, 0.5, PLAN)
    assert order.keys() == {"last.weight"}
    rows, columns = order["last.weight"]
    assert rows is None
    assert columns.tolist() == [0, 1, 2, 3, 8, 9, 4, 5, 6, 7, 10, 11]


def test_groups_take_a_chunk_of_each_part():
    order = check_moved(Net(nn.Sequential(*convs((16, 8, 1), (8, 8, 2))), 8), 0.5, PLAN)
    grouped = [0, 1, 4, 5, 2, 3, 6, 7]
    assert order["body.0.weight"][0].tolist() == order["body.0.bias"][0].tolist() == grouped
    assert order["body.1.weight"][0].tolist() == order["body.1.bias"][0].tolist() == grouped
    assert order["last.weight"][1].tolist() == grouped
    assert order["body.0.weight"][1] is order["body.1.weight"][1] is order["last.weight"][0] is None


def pieces(body, x):
    """As methods, which an octave answers without torch."""
    a, b = body[0](x).chunk(2, 1)
    c, d = b.split(8, 1)[0].chunk(2, dim=1)
    return torch.cat([body[1](a), torch.cat([c, d], dim=-3)], 1)


def dense(body, x):
    """The stem's tensor counts as all high; an addition ties two concatenations."""
    a, b = body[0](x), body[1](x)
    return torch.cat([x, torch.cat([a, b], 1) + torch.cat([b, a], 1)], 1)


def gated(body, x):
    """A residual addition before and behind a grouped convolution, and a product of two octaves."""
    y = body[0](x)
    y = y + body[1](y)
    return y * body[2](y).sigmoid()


@pytest.mark.parametrize(
    ("way", "rows", "width"),
    [
        (pieces, [(16, 16, 1), (8, 8, 2)], 16),
        (dense, [(16, 8, 1), (16, 8, 1)], 32),
        (gated, [(16, 16, 1), (16, 16, 4), (16, 16, 4)], 16),
    ],
)
def test_ways_to_meet(way, rows, width):
    check_moved(Net(convs(*rows), width, way), 0.5, PLAN)


class LayerScale(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return x * (self.gamma.view(1, -1, 1, 1) if self.gamma.ndim == 1 else self.gamma)


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.reduce, self.expand = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x):
        return x * self.expand(self.reduce(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]


def sliced(body, x):
    """The first channels meet a shortcut, the others follow, as in RexNet."""
    y = body[0](x)
    y = torch.cat([y[:, :16] + body[1](x), y[:, 16:]], 1)
    z = body[2](y)
    return torch.cat([z[:, :24] + y, z[:, 24:]], 1)


def partly(body, x):
    """A part of the channels is convolved, as in FasterNet."""
    y = body[0](x)
    for _ in range(2):
        a, b = y.split([8, 24], 1)
        y = y + torch.cat([body[1](a), b], 1)
    return y


def resplit_sum(body, x):
    """Sums of maps that are split elsewhere: a slice of one channel changes sides."""
    y = body[0](x)
    a, b = y[:, :6] + body[1](x), y[:, 6:]
    assert not isinstance(y, Octave) or (low_channels(y[:, :6]), low_channels(a)) == (2, 3)
    y = torch.cat([a, b], 1)
    z = body[2](y)
    assert not isinstance(y, Octave) or (low_channels(z[:, :17]), low_channels(y)) == (8, 9)
    return torch.cat([z[:, :17] + y, z[:, 17:]], 1)


def second(body, x):
    """What was joined is cut apart again."""
    return torch.cat([body[0](x), body[1](x)], 1)[:, 8:]


@pytest.mark.parametrize(
    ("way", "rows", "width", "alpha"),
    [
        (sliced, [(16, 24, 1), (16, 16, 1), (24, 32, 1)], 32, 0.25),
        (sliced, [(16, 24, 1), (16, 16, 1), (24, 32, 1)], 32, 0.5),
        (partly, [(16, 32, 1), (8, 8, 1)], 32, 0.25),
        (resplit_sum, [(16, 17, 1), (16, 6, 1), (17, 19, 1)], 19, 0.5),
        (second, [(16, 8, 1), (16, 8, 1)], 8, 0.5),
    ],
)
def test_slices(way, rows, width, alpha):
    plain = Net(convs(*rows), width, way)
    octave = octave_twin(plain, alpha, PLAN)
    octave.load_state_dict(reorder(plain.state_dict(), channel_order(octave)))
    assert difference(plain, octave, constant_picture(size=16)) < 1e-10


def test_a_slice_puts_the_rows_of_what_it_cuts_in_its_order():
    plain = Net(convs((16, 8, 1)), 4, lambda body, x: body[0](x)[:, 4:])
    order = check_moved(plain, 0.5, PLAN)
    assert order["body.0.weight"][0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert "last.weight" not in order


def test_a_slice_of_other_channels_than_the_plain_one_is_refused():
    def way(body, x):  # 8 all high, then 8 of which 4 are low: the first 8 of both are not those
        return torch.cat([x[:, :8], body[0](x)], 1)[:, :8]

    octave = octave_twin(Net(convs((16, 8, 1)), 8, way), 0.5, PLAN)
    with pytest.raises(OctaveError, match=r"^the network \(narrow\): takes 8 channels that are others in the plain"):
        channel_order(octave)


def test_a_whole_grouped_convolution_is_given_the_plain_groups():
    plain = Net(nn.Sequential(*convs((16, 8, 1), (8, 8, 2))), 8)
    assert channel_order(octave_twin(plain, 0.25, [("body.1", "whole"), *PLAN])) == {}


AFTER = {  # layers, their width, how many of their tensors move
    "batch norm": (lambda: [nn.BatchNorm2d(16), nn.ReLU()], 16, 4),
    "layer scale": (lambda: [LayerScale(16), LayerScale(16, 1, 1), LayerScale(1, 16, 1, 1)], 16, 3),
    "squeeze-excite": (lambda: [SqueezeExcite(16)], 16, 3),
    "depthwise": (lambda: [nn.Conv2d(16, 48, 1, groups=16)], 48, 2),
    "grouped again": (lambda: [nn.Conv2d(16, 32, 1, groups=4)], 32, 2),
    "dropped": (lambda: [nn.Dropout(), timm.layers.DropPath(0.5)], 16, 0),
    "pooled": (lambda: [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)], 16, 0),
}


@pytest.mark.parametrize("name", AFTER)
def test_what_follows_a_grouped_convolution_has_its_order(name):
    layers, width, moved = AFTER[name]
    body = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1, groups=4), *layers())
    order = check_moved(constant_exact(Net(body, width)), 0.5, PLAN)
    assert len([key for key in order if not key.startswith(("body.0", "body.1", "last"))]) == moved


def test_a_linear_layer_reads_a_flattened_merged_map():
    def way(body, x):
        joined = merge(torch.cat([body[0](x), body[1](x)], 1))
        return body[2](torch.flatten(F.max_pool2d(joined, 8), 1))[:, :, None, None]

    body = convs((16, 8, 1), (16, 8, 1)).append(nn.Linear(16 * 2 * 2, 3))
    plan = [("body*", "octave"), ("last", "plain")]
    order = check_moved(Net(body, 3, way), 0.5, plan, constant_picture(size=16))
    assert order["body.2.weight"][1][:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert order["body.2.weight"][1][16:20].tolist() == [32, 33, 34, 35]


def test_a_layer_that_runs_twice_has_one_order():
    plain = Net(convs((16, 16, 1), (16, 16, 2)), 16, lambda body, x: body[1](body[0](body[0](x))))
    order = check_moved(plain, 0.5, PLAN)
    grouped = [*range(0, 4), *range(8, 12), *range(4, 8), *range(12, 16)]
    assert order["stem.weight"][0].tolist() == order["body.0.weight"][1].tolist() == grouped


# ---- refusals, and what stays untouched ----------------------------------------------------------------------------

REFUSED = [
    ([(16, 16, 1), (16, 8, 2), (16, 8, 4)], lambda b, x: b[1](y := b[0](x)) + b[2](y), "body.2"),
    ([(16, 8, 1), (16, 8, 1), (16, 8, 4)], lambda b, x: b[2](torch.cat([b[0](x), b[1](x)], 1)), "body.2"),
    ([(16, 16, 1), (16, 8, 2)], lambda b, x: merge(b[1](b[0](x))).roll(1, 1), "the network (roll)"),
    ([(16, 16, 1), (16, 8, 2)], lambda b, x: b[1](b[0](x)) * x.new_ones(8, 1, 1).exp(), "the network (mul)"),
    ([(16, 8, 1)], lambda b, x: b[0](x) + x[:, :8].chunk(1, 1)[0], "the network (chunk): split of a slice"),
]


@pytest.mark.parametrize(("rows", "way", "where"), REFUSED)
def test_no_order_suits(rows, way, where):
    octave = octave_twin(Net(convs(*rows), 8, way), 0.5, PLAN)
    before = {key: t.clone() for key, t in octave.state_dict().items()}
    with pytest.raises(OctaveError, match=re.escape(where)):
        channel_order(octave)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in octave.modules())
    assert all(torch.equal(t, before[key]) for key, t in octave.state_dict().items())
    assert not octave.training


def test_groups_of_a_group_norm_hold_the_same_channels():
    body = nn.Sequential(*convs((16, 16, 1), (16, 16, 2)), nn.GroupNorm(4, 16))
    with pytest.raises(
        OctaveError, match=r"^body\.2: found no order of its 16 channels that suits .* 'plain' row in the plan$"
    ):
        channel_order(octave_twin(Net(body, 16), 0.5, PLAN))


def test_reorder_is_pure_and_passes_what_it_does_not_know():
    state = {"a": torch.arange(6).view(3, 2), "b": torch.arange(3)}
    order = {"a": (torch.tensor([2, 0, 1]), torch.tensor([1, 0])), "gone": (torch.tensor([1, 0]), None)}
    moved = reorder(state, order)
    assert moved["a"].tolist() == [[5, 4], [1, 0], [3, 2]]
    assert moved["b"] is state["b"]
    assert state["a"].tolist() == [[0, 1], [2, 3], [4, 5]]
