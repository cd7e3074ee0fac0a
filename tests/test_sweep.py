"""The sweep of timm's convolutional networks: what its page says is in its JSON, and what that says is so."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from octzoo import octavize
from octzoo.plan import default_plan

DOCS = Path(__file__).parent.parent / "docs"
RECORDS = {record["module"]: record for record in json.loads((DOCS / "sweep.json").read_text())}

specification = importlib.util.spec_from_file_location("make_sweep", DOCS / "make_sweep.py")
make_sweep = importlib.util.module_from_spec(specification)
specification.loader.exec_module(make_sweep)

# Slices, splits, attention, standardised weights, blocks over several maps; and one that is refused.
QUICK = ["byobnet", "nfnet", "resnest", "rexnet", "fasternet", "maxxvit", "focalnet"]


def test_the_page_is_what_the_json_says():
    subprocess.run([sys.executable, str(DOCS / "make_sweep.py"), "--check"], check=True)


def test_a_stale_page_is_found(tmp_path, monkeypatch, capsys):
    page = tmp_path / "sweep.md"
    page.write_text(make_sweep.PAGE.read_text().replace("| resnet |", "| resent |"))
    monkeypatch.setattr(make_sweep, "PAGE", page)
    assert make_sweep.main(["--check"]) == 1
    assert "run docs/make_sweep.py" in capsys.readouterr().out
    assert "| resent |" in page.read_text()


def test_54_modules_are_swept_and_at_least_40_work():
    assert len(RECORDS) == 54
    assert {record["status"] for record in RECORDS.values()} <= {"works", "refused"}
    assert sum(record["status"] == "works" for record in RECORDS.values()) >= 40


@pytest.mark.parametrize("module", RECORDS)
def test_a_network_works_in_every_respect_or_is_refused_at_a_layer_of_its(module):
    record = RECORDS[module]
    if record["status"] == "refused":
        names = dict(make_sweep.build(record["network"]).named_modules())
        layer, reason = record["reason"].split(": ", 1)
        assert layer in names
        assert reason
    else:
        assert record["octave layers"] > 0
        assert record["macs"]["octave"] < record["macs"]["plain"]
        constant = record["checks"].pop("constant pictures", "")
        assert (
            constant is True or constant.startswith("agree at") or constant in ("not kept constant", "no channel order")
        )
        assert all(passed is True for passed in record["checks"].values())
        record["checks"]["constant pictures"] = constant


@pytest.mark.parametrize("module", QUICK)
def test_swept_again(module):
    assert make_sweep.sweep(module, RECORDS[module]["network"]) == RECORDS[module]


@pytest.mark.slow
@pytest.mark.parametrize("module", [m for m in RECORDS if m not in QUICK and RECORDS[m]["status"] == "refused"])
def test_all_refusals_again(module):
    assert make_sweep.sweep(module, RECORDS[module]["network"]) == RECORDS[module]


# ---- the checks themselves fail where something is wrong -----------------------------------------------------------


class Small(nn.Module):
    """A stem, two octave layers whose channels are joined, a last stage."""

    pretrained_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(16, 4, 3, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.last(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3))


def test_constant_pictures_agree_and_a_wrong_order_is_found(monkeypatch):
    assert make_sweep.same_on_constant_pictures(Small(), 16) is True
    monkeypatch.setattr(make_sweep, "channel_order", lambda model: {})
    assert make_sweep.same_on_constant_pictures(Small(), 16) is False


def test_alpha_zero_is_the_plain_network_and_another_network_is_found(monkeypatch):
    x = torch.randn(2, 3, 16, 16)
    assert make_sweep.same_at_alpha_zero(Small(), x)
    monkeypatch.setattr(make_sweep, "octavize", lambda model, alpha, plan: octavize(Small(), alpha, plan))
    assert not make_sweep.same_at_alpha_zero(Small(), x)
    monkeypatch.setattr(make_sweep, "octavize", lambda model, alpha, plan: octavize(model, alpha, default_plan(model)))
    assert not make_sweep.same_at_alpha_zero(Small(), x)  # pooled strides


def test_parameters_that_the_backward_pass_misses_are_found():
    model = octavize(Small(), 0.5)
    names = {name for name, _ in model.named_parameters()}
    assert make_sweep.reached(model, torch.randn(2, 3, 16, 16)) == names
    model.a.requires_grad_(False)
    assert make_sweep.reached(model, torch.randn(2, 3, 16, 16)) == names - {"a.weight", "a.bias"}
