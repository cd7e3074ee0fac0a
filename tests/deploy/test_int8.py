"""Files in int8: the answers stay, and the command says how many."""

import json
import statistics
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from timm.data import create_transform

from octzoo.cli import export as verb
from octzoo.data.pictures import Pictures
from octzoo.deploy.export import Target
from octzoo.deploy.int8 import Agreement, agreement, export_int8
from octzoo.deploy.metadata import data_config_of
from octzoo.deploy.samples import Samples, draw_samples, open_samples
from octzoo.errors import RunError, UserError
from octzoo.models.named import build

NAME = "oct_cifar_resnet20_a0.25.oz_digits"


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_trained_network_keeps_its_answers(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert verb.main(["export", NAME, "--int8", "--calibrate", "digits", "--format", form]) == 0
    said = capsys.readouterr().out
    (figures,) = tmp_path.glob("*.json")
    facts = json.loads(figures.read_text())
    assert facts["pictures"] == 359  # those that were held out of its training
    assert facts["same class"] >= 0.99
    assert min(facts["right in float32 and int8"]) >= 0.98
    median = statistics.median(facts["milliseconds"]["8"]["int8"])
    assert f"{median:.2f} ms a batch of 8" in said
    assert "/" not in facts["command"]
    assert str(tmp_path) not in figures.read_text()
    assert said.splitlines()[-1].startswith(f"{figures.name.removesuffix('.json')}: ")
    if form == "onnx":
        looks_quantised(onnx.load(figures.with_suffix("")))


def looks_quantised(model: onnx.ModelProto) -> None:
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    inputs = {node.op_type: {made_by.get(name) for name in node.input[:2]} for node in model.graph.node}
    assert inputs["Conv"] == inputs["Add"] == {"DequantizeLinear"}
    assert inputs["Gemm"] != {"DequantizeLinear"}
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    maps = {kinds[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert maps == {onnx.TensorProto.UINT8}  # with a sign ONNX Runtime would be slower than in float32
    assert {node.domain for node in model.graph.node} == {""}
    assert {p.key for p in model.metadata_props} == {"network", "labels", "preprocessing"}


def test_nothing_is_left_of_a_file_that_changes_the_answers(tmp_path: Path) -> None:
    """Calibrated on a black picture, a network is blind."""
    black = Samples(Pictures([(Image.new("L", (8, 8)), 0)], [], lambda: [0]), [0], None)
    network = build(NAME, pretrained=True)
    transform = create_transform(**data_config_of(network), is_training=False)
    _, measuring = open_samples("digits", None, (1, 200))
    target = Target(tmp_path / "network.onnx", "onnx", (3, 16, 16))
    with pytest.raises(RunError, match="in int8 .*% of 200 pictures get another class; calibrate on pictures like"):
        export_int8(network, target, transform, [black, measuring])
    assert list(tmp_path.iterdir()) == []


def test_agreement_counts_answers() -> None:
    x = np.zeros((4, 1))
    before = lambda x: np.eye(3)[[0, 1, 2, 0]]  # noqa: E731
    after = lambda x: np.eye(3)[[0, 1, 1, 0]]  # noqa: E731
    assert agreement(before, after, [x], [0, 1, 1, 2]) == Agreement(4, 0.75, (0.5, 0.75))
    assert agreement(before, after, [x, x], None) == Agreement(8, 0.75, None)


def test_pictures_are_drawn_from_all_of_a_place(tmp_path):
    assert len(draw_samples("digits", 5000)) == 1797
    few = draw_samples("digits", 10)
    assert few.indices == draw_samples("digits", 10).indices
    assert len(set(few.indices)) == 10
    with pytest.raises(UserError, match="none there"):
        draw_samples(str(tmp_path), 10)
