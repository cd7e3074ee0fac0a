"""Plans: how a table of rows is read, and what the default one says about known networks."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from octzoo.octave import OctaveError
from octzoo.plan import Row, default_plan, find_row, picture_channels, read_plan


def kinds(model):
    """Name of a convolution -> its kind and multiple in the default plan."""
    plan = default_plan(model)
    rows = {name: find_row(plan, name) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    return {name: (row.kind, row.multiple) for name, row in rows.items()}


def build(name):
    with torch.device("meta"):
        return (
            timm.create_model(name) if "torchvision" not in name else torchvision.models.get_model(name.split(".")[1])
        )


# network -> (prefixes of plain layers, of octave layers, of those of alpha 0)
STAGES = {
    "resnet18": ("conv1", "layer1 layer2 layer3", "layer4"),
    "resnet50d": ("conv1", "layer1 layer2 layer3", "layer4"),
    "torchvision.resnet18": ("conv1", "layer1 layer2 layer3", "layer4"),
    "resnetv2_50": ("stem head", "stages.0 stages.1 stages.2", "stages.3"),
    "regnety_004": ("stem", "s1 s2 s3", "s4"),
    "convnext_atto": ("stem", "stages.0 stages.1 stages.2", "stages.3"),
    "mobilenetv2_100": ("conv_stem", "blocks.0 blocks.1 blocks.2 blocks.3 blocks.4", "blocks.5 blocks.6 conv_head"),
    "densenet121": (
        "features.conv0",
        "features.denseblock1 features.transition1 features.denseblock2 features.transition2 features.denseblock3",
        "features.transition3 features.denseblock4",
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_stem_is_plain_and_the_last_stage_of_alpha_zero(name):
    for conv, (kind, multiple) in kinds(build(name)).items():
        if ".se." in conv:
            continue
        inside = [i for i, prefixes in enumerate(STAGES[name]) if any(conv.startswith(p) for p in prefixes.split())]
        assert [kind] == [("plain", "octave", "zero")[i] for i in inside], conv
        assert multiple == 1


@pytest.mark.parametrize("name", ["seresnet50", "regnety_004", "efficientnet_b0", "mobilenetv3_large_100"])
def test_convolutions_of_pooled_vectors_stay_plain(name):
    table = kinds(build(name))
    squeeze = {conv for conv in table if ".se." in conv}
    assert squeeze
    assert {table[conv] for conv in squeeze} == {("plain", 1)}
    assert "octave" in {kind for kind, _ in table.values()}


def test_layers_whose_channels_are_split_get_that_multiple():
    table = kinds(build("res2net50_26w_4s"))
    assert table["layer1.0.conv1"] == table["layer3.5.conv1"] == ("octave", 4)
    assert table["layer1.0.conv3"] == table["layer1.0.convs.0"] == ("octave", 1)


@pytest.mark.parametrize(
    ("name", "conv", "multiple"),
    [("fasternet_t0", "stages.1.downsample.reduction", 4), ("shvit_s1", "stages.1.downsample.conv3.conv", 14)],
)
def test_unequal_pieces_count_as_their_greatest_common_width(name, conv, multiple):
    """80 channels split into 20 and 60 are 4 pieces of 20; 224 into 48 and 176 are 14 of 16."""
    assert multiple in {pieces for _, pieces in kinds(build(name)).values()}


class Tokens(nn.Module):
    """Attention without weights: every pixel becomes the mean of all."""

    def __init__(self):
        super().__init__()
        self.values = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        tokens = self.values(x).flatten(2)
        return tokens.mean(2, keepdim=True).expand_as(tokens).reshape(x.shape)


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.first, self.tokens = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1), Tokens()
        self.second, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x):
        x = self.first(self.stem(x))
        x = self.second(x + self.tokens(x))
        return self.last(x).mean((2, 3))


def test_modules_that_take_maps_apart_are_whole_and_plain_within():
    assert kinds(Attentive()) == {
        "stem": ("plain", 1),
        "first": ("octave", 1),
        "tokens.values": ("plain", 1),
        "second": ("octave", 1),
        "last": ("zero", 1),
    }
    assert [row.pattern for row in default_plan(Attentive()) if row.kind == "whole"] == ["tokens"]


def test_a_convolution_that_reshapes_its_weight_takes_no_map_apart():
    assert "whole" not in {row.kind for row in default_plan(build("test_nfnet"))}
    assert "whole" not in {row.kind for row in default_plan(build("vgg11"))}  # a flattened vector is no map either


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 3), ("tresnet_m", 3)])
def test_pictures_have_the_channels_before_any_pixels_become_channels(name, channels):
    assert picture_channels(build(name)) == channels
    assert picture_channels(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 8, 1))) == 1


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Linear(3, 3), "Linear has no convolution"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1)),
            "Sequential has no convolutions between a stem and a last stage",
        ),
    ],
)
def test_networks_without_stages_have_no_default_plan(model, text):
    with pytest.raises(OctaveError, match=f"^{text}$"):
        default_plan(model)


def test_tracing_changes_nothing():
    """Not the random numbers, the buffers, the training flags or the hooks."""
    model = timm.create_model("resnet10t", drop_path_rate=0.5, drop_rate=0.5)
    model.layer2.eval()
    flags = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    default_plan(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Averaging(nn.Module):
    """Batch norm that averages over all batches needs to read its count."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8, momentum=None)
        self.body, self.last = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)

    def forward(self, x):
        return self.last(self.body(self.norm(self.stem(x)))).mean((2, 3))


def test_batch_norms_with_momentum_none_can_be_traced():
    plan = default_plan(Averaging())
    assert [find_row(plan, name).kind for name in ("stem", "norm", "body", "last")] == [
        "plain",
        "plain",
        "octave",
        "zero",
    ]


def test_rows_may_be_tuples_and_the_first_that_matches_counts():
    plan = read_plan([("layer1.0.*", "plain"), Row("layer?.*", "octave", 4), ("*",), ("fc", "zero", 2, "conv")])
    assert plan == (
        Row("layer1.0.*", "plain", 1, None),
        Row("layer?.*", "octave", 4, None),
        Row("*", "octave", 1, None),
        Row("fc", "zero", 2, "conv"),
    )
    assert [find_row(plan, name) for name in ("layer1.0.conv1", "layer2.0.conv1", "fc")] == list(plan[:3])
    assert find_row(plan[:2], "fc") is None
    assert find_row(plan, "LAYER1.0.conv1") == plan[2]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (("layer1.*", "octav"), "plan row 'layer1.*': kind 'octav' is not 'octave', 'zero', 'plain' or 'whole'"),
        (("layer1.*", "octave", 0), "plan row 'layer1.*': multiple=0 is not a whole number from 1"),
        (("layer1.*", "octave", 1.5), "plan row 'layer1.*': multiple=1.5 is not a whole number from 1"),
        (
            ("layer1.*", "octave", 1, "stride"),
            "plan row 'layer1.*': stride_mode='stride' is neither 'pool' nor 'conv'",
        ),
    ],
)
def test_rows_that_mean_nothing(row, text):
    with pytest.raises(OctaveError) as error:
        read_plan([row])
    assert str(error.value) == text
