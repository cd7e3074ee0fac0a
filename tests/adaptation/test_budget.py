"""From a budget of multiply-accumulates to a plan."""

import copy
import json
from typing import Any

import pytest
import timm
import torch

import octzoo
from octzoo.adaptation.budget import choose_plan, count, measure, most_octaves, octave_of
from octzoo.adaptation.cost import pooling_costs
from octzoo.channels import channel_groups
from octzoo.data.photos import Photos
from octzoo.plan import Row, default_plan
from octzoo_cli import main

PICTURES = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
NAME = "oct_cifar_resnet20_a0.0.oz_digits"


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    return timm.create_model(NAME, pretrained=True).eval()


@pytest.fixture(scope="module")
def costs(plain: torch.nn.Module) -> dict[str, torch.Tensor]:
    return pooling_costs(plain, PICTURES)


@pytest.fixture(scope="module")
def small() -> Any:
    """A network of few layers."""
    torch.manual_seed(0)
    model: Any = timm.create_model("resnet10t", num_classes=7, channels=(64, 64, 128, 128)).eval()
    model.octave_input_size = (3, 64, 64)
    return model


@pytest.mark.parametrize("macs", [0.9, 0.7])
def test_a_plan_keeps_to_its_budget_and_uses_it(macs: float, small: Any) -> None:
    choice = choose_plan(small, macs, pooling_costs(small, PICTURES), PICTURES, (0.5,))
    octave = octave_of(small, choice.alpha, choice.plan)
    assert measure(small, octave) == choice.macs <= macs
    assert choice.macs > macs - 0.1


@pytest.mark.slow
def test_groups_stay_plain_that_spoil_the_answers_most(plain: torch.nn.Module, costs: dict) -> None:
    spoilt: Any = copy.deepcopy(plain)
    weight = spoilt.get_submodule("stages.0.2.convs.1").weight
    with torch.no_grad():  # only details of what the layer before it gives, and more of them than of all else
        weight.copy_(10 * torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]).expand_as(weight))
    without_it, with_it = (choose_plan(m, 0.85, costs, PICTURES, (0.25,)).plan for m in (spoilt, plain))
    row = Row("stages.0.2.convs.0", "zero", 1, "conv")
    assert row in without_it
    assert row not in with_it


@pytest.mark.slow
def test_of_several_alphas_a_cheap_one_is_taken(plain: torch.nn.Module, costs: dict) -> None:
    told: list[str] = []
    choice = choose_plan(plain, 0.85, costs, PICTURES, (0.25, 0.5, 0.75), say=told.append)
    found = {text.partition(":")[0].removeprefix("alpha "): float(text.rpartition(" ")[2]) for text in told}
    assert {"0.25", "0.5", "0.75"} < found.keys()
    assert choice.cost <= 1.11 * min(found.values())


def test_the_smallest_alpha_is_one_with_which_all_octaves_just_fit(small: Any) -> None:
    choice = choose_plan(small, 0.8, pooling_costs(small, PICTURES), PICTURES, ())
    rows = most_octaves(small)
    assert measure(small, octave_of(small, choice.alpha, rows)) <= choice.macs <= 0.8
    assert measure(small, octave_of(small, choice.alpha - 1 / 64, rows)) > 0.8


def test_octaves_may_be_in_every_stage_and_a_tensor_comes_out(plain: torch.nn.Module) -> None:
    rows = most_octaves(plain)
    assert {row.kind for row in rows} == {"plain", "octave"}
    assert any(row.kind == "zero" for row in default_plan(plain))
    octave: Any = octave_of(plain, 0.5, rows)
    x = torch.zeros(1, 3, 32, 32, device="meta")
    assert isinstance(octave.forward_features(x), torch.Tensor)
    assert measure(plain, octave) < measure(plain, octave_of(plain, 0.5, default_plan(plain)))


@pytest.mark.slow
def test_a_wider_budget_costs_no_more(plain: torch.nn.Module, costs: dict) -> None:
    assert (
        choose_plan(plain, 0.95, costs, PICTURES, (0.25,)).cost
        <= choose_plan(plain, 0.82, costs, PICTURES, (0.25,)).cost
    )


def test_behind_octaves_no_layer_of_single_pixels_is_plain() -> None:
    tiny: Any = timm.create_model("resnet10t", avg_down=False, num_classes=7, channels=(64, 64, 128, 128)).eval()
    tiny.octave_input_size = (3, 32, 32)  # its last maps are single pixels, whose convolutions stay plain
    assert any(row.kind == "zero" for row in most_octaves(tiny))
    choice = choose_plan(tiny, 0.9, pooling_costs(tiny, PICTURES), PICTURES, (0.5,))
    assert choice.macs <= 0.9


def test_layers_of_a_group_go_together(small: Any) -> None:
    costs = pooling_costs(small, PICTURES)
    choice = choose_plan(small, 0.9, costs, PICTURES, (0.75,))
    zero = {row.pattern for row in choice.plan if row.kind == "zero"}
    rows = most_octaves(small)
    groups = channel_groups(octave_of(small, choice.alpha, rows), costs)
    assert any(zero & set(group.layers) for group in groups if len(group.layers) > 1)
    assert all(not zero & set(group.layers) or set(group.layers) <= zero for group in groups if group.costs is not None)


def test_multiply_accumulates_are_counted_of_networks_on_any_device(plain: torch.nn.Module) -> None:
    assert count(plain) == count(timm.create_model(NAME, device="meta"))


def test_photos_are_real_pictures_and_the_same_ones_every_time() -> None:
    photos, again = Photos(6), Photos(6)
    assert len(photos) == 6
    assert all(photos[i].tobytes() == again[i].tobytes() for i in range(6))
    assert all(photos[i].mode == "RGB" and 160 <= photos[i].width == photos[i].height < 400 for i in range(6))
    assert photos[0].tobytes() != photos[2].tobytes()


class TestCommand:
    @pytest.mark.slow
    def test_it_prints_the_plan_and_writes_it(self, tmp_path, capsys) -> None:
        out = tmp_path / "plan.json"
        assert main(["plan", NAME, "--macs", "0.8", "--json", str(out)]) == 0
        text = capsys.readouterr().out
        facts = json.loads(out.read_text())
        assert f"{NAME}: alpha {facts['alpha']:g}, {facts['macs']:.1%} of the multiply-accumulates" in text
        model = octzoo.octavize(timm.create_model(NAME), facts["alpha"], facts["plan"])
        assert measure(timm.create_model(NAME), model) == facts["macs"] <= 0.8

    @pytest.mark.slow
    def test_with_pictures_of_ones_own(self, capsys) -> None:
        assert main(["plan", NAME, "--macs", "0.8", "--data", "digits"]) == 0
        assert "groups of layers are octave" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("macs", "text"), [("0.1", "no plan takes 10% of the multiply-accumulates"), ("2", "--macs 2 is not between")]
    )
    def test_a_budget_that_cannot_be(self, macs: str, text: str, capsys) -> None:
        assert main(["plan", NAME, "--macs", macs]) == 2
        assert text in capsys.readouterr().err
