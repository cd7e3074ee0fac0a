"""The paper's figures that can be counted (docs/claims.md)."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import octzoo
from octzoo.models.catalogue import catalogue
from octzoo.summary import stages


@pytest.mark.parametrize(
    ("alpha", "macs", "memory"),
    [(0.125, 82, 91), (0.25, 67, 81), (0.5, 44, 63), (0.75, 30, 44), (0.875, 26, 35), (1.0, 25, 25)],
)
def test_table_1_cost_of_a_layer_in_percent_of_the_ordinary_one(alpha, macs, memory):
    x = octzoo.drop(torch.zeros(1, 64, 32, 32, device="meta"), int(64 * alpha))
    layer = octzoo.OctConv2d(64, 64, 3, padding=1, alpha=alpha, device="meta")
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    assert 100 * counter.get_total_flops() / (2 * 64 * 64 * 9 * 32 * 32) == pytest.approx(macs, abs=0.5)
    found = 100 * (y.high.numel() + y.low.numel()) / (64 * 32 * 32)
    assert found == pytest.approx(memory, abs=0.5 if alpha != 0.875 else 0.63)  # 34.4, which the paper calls 35


def test_table_2_gflops_of_resnet50():
    counted = {e.alpha: e.macs for e in catalogue() if e.network == "oct_resnet50"}
    assert {alpha: round(n / 1e9, 1) for alpha, n in counted.items()} == {
        0: 4.1,
        0.125: 3.6,
        0.25: 3.1,
        0.5: 2.4,
        0.75: 1.9,
    }


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("oct_mobilenetv1_075_a0.375", 213e6),
        ("oct_mobilenetv1_100_a0.5", 321e6),
        ("oct_mobilenetv2_100_a0.375", 256e6),
        ("oct_mobilenetv2_112_a0.5", 295e6),
        ("oct_resnet152_a0.125", 10.9e9),
        ("oct_seresnet152_a0.125", 10.9e9),
    ],
)
def test_the_readmes_flops_to_within_1_5_percent(name, reported):
    counted = next(e.macs for e in catalogue() if e.name == f"{name}.fb_in1k")
    assert counted == pytest.approx(reported, rel=0.015)


def test_abstract_22_2_gflops_of_resnet152_at_320():
    model = timm.create_model("oct_resnet152_a0.125", device="meta")
    assert sum(stage.macs for stage in stages(model, 320)) == pytest.approx(22.2e9, rel=0.01)
