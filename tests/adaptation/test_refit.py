"""Layers that are fitted to the plain network's, norms that keep the function, channels in the order of their cost."""

import copy

import pytest
import timm
import torch
from torch import nn

import octzoo
from octzoo.adaptation.budget import plain_strides
from octzoo.adaptation.cost import pooling_costs
from octzoo.adaptation.norms import settle
from octzoo.adaptation.refit import absorb, input_of, layers_of, output_of, refit_layer
from octzoo.adaptation.residuals import residual_blocks
from octzoo.channels import channel_groups, channel_order, reorder
from octzoo.fused import NORMS
from octzoo.octave import pool, upsample
from octzoo.plan import default_plan

# A ResNet, a MobileNet, a DenseNet and a ResNeXt, small and with random weights.
KINDS = {
    "resnet": lambda: timm.create_model("resnet10t", num_classes=7, channels=(64, 64, 128, 128)),
    "mobilenet": lambda: timm.create_model("mobilenetv2_035", num_classes=7),
    "densenet": lambda: timm.models.densenet.DenseNet(growth_rate=16, block_config=(2, 2, 2, 2), num_classes=7),
    "resnext": lambda: timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, layers=(1, 1, 1, 1), cardinality=4, base_width=8, num_classes=7
    ),
}
SIZE = (3, 64, 64)


def smooth_pictures(n: int, seed: int = 0) -> torch.Tensor:
    """Blobs and some noise: slow and fast changes."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 8, 8, generator=g)
    return nn.functional.interpolate(coarse, SIZE[1:], mode="bilinear") + 0.1 * torch.randn(n, *SIZE, generator=g)


def batches(n: int = 4, size: int = 6) -> list[torch.Tensor]:
    return list(smooth_pictures(n * size).split(size))


def trained(kind: str) -> nn.Module:
    """The network with norms whose statistics are its own, as after training."""
    torch.manual_seed(0)
    model = KINDS[kind]().train()
    for _ in range(3):
        with torch.no_grad():
            model(smooth_pictures(12))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval().requires_grad_(False)


def octave_of(plain: nn.Module, alpha: float = 0.25, costs: dict | None = None) -> tuple:
    plan = plain_strides(default_plan(sized(copy.deepcopy(plain))))
    octave = octzoo.octavize(copy.deepcopy(plain), alpha, plan, input_size=SIZE).eval()
    order = channel_order(octave, costs)
    octave.load_state_dict(reorder(plain.state_dict(), order))
    return octave, order


def sized(model: nn.Module) -> nn.Module:
    model.octave_input_size = SIZE
    return model


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        ("resnet", {"layer1.0"}),
        ("densenet", set()),
        ("mobilenet", {f"blocks.{i}" for i in ("1.1", "2.1", "2.2", "3.1", "3.2", "3.3", "4.1", "4.2", "5.1", "5.2")}),
        ("resnet18", {"layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"}),
    ],
)
def test_residual_blocks_are_those_that_add_their_input(kind: str, blocks: set) -> None:
    model = trained(kind) if kind in KINDS else timm.create_model(kind).eval()
    last = "conv_pwl" if kind == "mobilenet" else "conv2"
    assert residual_blocks(sized(model)) == {f"{block}.{last}": block for block in blocks}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_layer_makes_up_for_what_the_trunk_has_lost(groups: int) -> None:
    """A branch that sees what is missing can give it: with a 1x1 convolution of the trunk nothing stays missing."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 1, bias=False, groups=groups), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) + x

    plain = nn.Sequential(nn.Conv2d(3, 8, 1), Block()).eval()
    nn.init.uniform_(plain[1].norm.weight, 0.5, 1.5)
    worse = copy.deepcopy(plain)
    with torch.no_grad():
        worse[0].weight.mul_(0.5)  # what the trunk has lost, and the branch reads too
    pictures = [torch.randn(4, 3, 6, 6) for _ in range(5)]
    unaware = copy.deepcopy(worse)
    with torch.no_grad():
        refit_layer("1.conv", "1.norm", worse, plain, pictures, {}, 20, block="1")
        refit_layer("1.conv", "1.norm", unaware, plain, pictures, {}, 20)
        x = torch.randn(8, 3, 6, 6)
        missed, without = ((model(x) - plain(x)).square().mean() for model in (worse, unaware))
    assert missed < 0.01 * without if groups == 1 else missed < without


@pytest.mark.parametrize("kind", KINDS)
def test_refitting_never_makes_a_layer_worse_and_helps_most(kind: str) -> None:
    plain = trained(kind)
    octave, order = octave_of(plain, costs=pooling_costs(plain, batches()))
    found = []
    for name, norm in layers_of(octave).items():
        found += refit_layer(name, norm, octave, plain, batches(), order, 24)
    assert all(row.after <= row.before for row in found)
    assert sum(row.after < 0.999 * row.before for row in found) > len(found) / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_refitting_brings_the_answers_nearer_to_the_plain_networks(kind: str) -> None:
    plain, other = trained(kind), smooth_pictures(16, seed=1)
    octave, order = octave_of(plain, costs=pooling_costs(plain, batches()))
    wanted = plain(other)
    before = (octave(other) - wanted).square().mean()
    for name, norm in layers_of(octave).items():
        refit_layer(name, norm, octave, plain, batches(), order, 24)
    assert (octave(other) - wanted).square().mean() < before


def test_what_needs_no_fitting_stays() -> None:
    plain = trained("resnet")
    twin = copy.deepcopy(plain)
    conv = twin.layer2[0].conv1
    old = conv.weight.clone()
    (row,) = refit_layer("layer2.0.conv1", "layer2.0.bn1", twin, plain, batches(), {}, 24)
    assert row.before == pytest.approx(0, abs=1e-6)
    assert (conv.weight - old).abs().max() < 1e-3 * old.abs().max()
    x = batches()[0]
    torch.testing.assert_close(twin(x), plain(x), rtol=1e-3, atol=1e-3)


def test_a_layer_whose_weights_were_lost_finds_them_again() -> None:
    plain = trained("resnet")
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.layer2[0].conv1.weight.mul_(torch.rand_like(twin.layer2[0].conv1.weight))
    (row,) = refit_layer("layer2.0.conv1", "layer2.0.bn1", twin, plain, batches(8), {}, 48)
    assert row.before > 0.1
    assert row.after < 0.3 * row.before


def test_the_norm_behind_takes_the_constant_and_the_statistics() -> None:
    plain = trained("resnet")
    octave, order = octave_of(plain)
    name, norm = next((n, m) for n, m in layers_of(octave).items() if m)
    refit_layer(name, norm, octave, plain, batches(), order, 24)
    outputs = output_of(octave, name, torch.cat(batches()))
    statistics = octave.get_submodule(norm)
    mean = torch.cat([part.mean((0, 2, 3)) for part in (outputs.high, outputs.low)])
    spread = torch.cat([part.std((0, 2, 3)) for part in (outputs.high, outputs.low)])
    assert ((statistics.running_mean - mean).abs() < 0.35 * spread + 1e-3).all()


def test_a_norm_that_shares_a_layers_output_takes_no_constant() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(self.stem(x))
            return self.last(self.norm(y) + y)

    plan = [("conv", "octave"), ("last", "zero"), ("stem", "plain")]
    octave = octzoo.octavize(Shared(), 0.25, plan, input_size=SIZE)
    assert layers_of(octave) == {"conv": None, "last": None}


def test_absorb_keeps_the_function_in_evaluation() -> None:
    norm = nn.BatchNorm2d(4).eval()
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 5, 5)
    before = norm(x)
    with torch.no_grad():
        absorb(norm, slice(None), torch.randn(4), torch.rand(4) + 0.5)
    torch.testing.assert_close(norm(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_settled_norms_have_the_statistics_of_their_inputs_and_the_network_stays(kind: str) -> None:
    plain = trained(kind)
    octave, _ = octave_of(plain)
    x = smooth_pictures(8)
    before = octave(x)
    settle(octave, [x[:4], x[4:]])
    torch.testing.assert_close(octave(x), before, rtol=1e-3, atol=1e-3)
    norms = [n for n, m in octave.named_modules() if type(m) in NORMS]
    given = input_of(octave, norms[-1], x)
    given = given if isinstance(given, torch.Tensor) else octzoo.merge(given)
    mean = octave.get_submodule(norms[-1]).running_mean
    torch.testing.assert_close(mean, given.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)


class TestCosts:
    def test_are_what_the_output_loses(self) -> None:
        conv = nn.Conv2d(3, 5, 1, bias=False)
        net = nn.Sequential(nn.Identity(), conv)
        x = torch.randn(200, 3, 8, 8)
        (cost,) = pooling_costs(net, [x[:100], x[100:]]).values()
        for c in range(3):
            rough = x.clone()
            rough[:, c] = upsample(pool(x[:, c : c + 1]), (8, 8))[:, 0]
            lost = (conv(x) - conv(rough)).var() / conv(x).var(dim=(0, 2, 3)).mean()
            assert float(cost[c]) == pytest.approx(float(lost), rel=0.1)

    def test_of_a_flat_channel_are_nothing(self) -> None:
        x = torch.randn(4, 3, 8, 8)
        x[:, 1] = 1.0
        (cost,) = pooling_costs(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)), [x]).values()
        assert cost[1] == 0 < cost[0]


class TestOrder:
    @pytest.mark.parametrize("kind", ["resnet", "mobilenet"])  # others join or group in an order of their own
    def test_the_permuted_plain_network_gives_what_it_gave(self, kind: str) -> None:
        plain = trained(kind)
        octave, _ = octave_of(plain, 0.5)
        order = channel_order(octave, pooling_costs(plain, batches()))
        moved = copy.deepcopy(plain)
        moved.load_state_dict(reorder(plain.state_dict(), order))
        x = batches()[0]
        assert order
        torch.testing.assert_close(moved(x), plain(x), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_cheapest_channels_are_low(self, kind: str) -> None:
        plain = trained(kind)
        octave, _ = octave_of(plain)
        costs = pooling_costs(plain, batches())
        order = channel_order(octave, costs)
        found = 0
        for group in channel_groups(octave, costs):
            rows = order.get(f"{group.layers[0]}.weight", (None,))[0]
            if group.costs is None or rows is None or len(rows) != len(group.costs):
                continue
            low = getattr(octave.get_submodule(group.layers[0]), "low_out", 0)
            if not low:
                continue
            assert group.costs[rows[-low:]].max() <= group.costs[rows[:-low]].min()
            found += 1
        assert found or kind == "resnext"
