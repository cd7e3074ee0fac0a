"""What engines are given: the same function as before, in nodes that they fuse."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from octzoo.deploy import fuse, graph
from octzoo.deploy.export import onnx_model
from octzoo.models.named import build

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.uniform(0.5, 1.5, shape).astype(np.float32)


X = weights(2, 4, 6, 6)
CONSTANTS = {
    **dict(k=weights(4, 4, 1, 1), o=weights(4, 4, 1, 1), shift=weights(4), mean=weights(4), bias=weights(4, 1, 1)),
    **dict(wide=weights(32, 4, 1, 1), b32=weights(32), wide3=weights(32, 4, 3, 3), less=weights(28, 4, 1, 1)),
    **dict(twice=np.array([1, 1, 2, 2], np.float32), size=np.array([2, 32, 12, 12])),
    **{f"n{i}": np.array([i]) for i in range(5)},
    **dict(rows=np.array([2, 3]), three_one=np.array([3, 1]), three_three=np.array([3, 3])),
}


def model(text: str) -> ir.Model:
    """A model of ONNX's text form, from x [2, 4, 6, 6]; the constants that it names become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> g (float[2,4,6,6] x) => {text}')
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in CONSTANTS.items() if k in used)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def outputs(of: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime computes, with nothing fused."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(of)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


def after(step: Callable[[ir.Model], object], text: str) -> ir.Model:
    """A model after a pass, which has changed neither its outputs nor their names."""
    of = model(text)
    before, called = outputs(of, X), [value.name for value in of.graph.outputs]
    graph.apply(of, step)
    assert [value.name for value in of.graph.outputs] == called
    for was, now in zip(before, outputs(of, X), strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-4, atol=1e-5)
    return of


def nodes(of: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in of.graph)


def sums(of: ir.Model) -> list[list[str]]:
    """What each Add adds: the kinds of nodes, or x."""
    made_by = lambda value: value.producer().op_type if value.producer() else value.name  # noqa: E731
    return [sorted(map(made_by, node.inputs)) for node in of.graph if node.op_type == "Add"]


class TestSums:
    def test_convolutions_come_last_one_at_a_time(self) -> None:
        text = """(float[2,4,6,6] y) { a = Conv (x, k)  r = Relu (x)  b = Conv (r, o)
            s = Add (a, r)  t = Add (s, b)  u = Add (t, x)  y = Relu (u) }"""
        assert sums(model(text)) == [["Conv", "Relu"], ["Add", "Conv"], ["Add", "x"]]
        assert sums(after(graph.reorder_sums, text)) == [["Relu", "x"], ["Add", "Conv"], ["Add", "Conv"]]

    def test_a_sum_of_sums_becomes_a_chain(self) -> None:
        text = """(float[2,4,6,6] y) { a = Conv (x, k)  b = Conv (x, o)  r = Relu (x)  c = Conv (r, o)  d = Conv (r, k)
            s = Add (a, b)  t = Add (c, d)  u = Add (s, t)  y = Relu (u) }"""
        assert sums(after(graph.reorder_sums, text)) == [["Conv", "Conv"], ["Add", "Conv"], ["Add", "Conv"]]

    def test_a_sum_that_is_needed_elsewhere_stays_whole(self) -> None:
        text = """(float[2,4,6,6] y, float[2,4,6,6] s)
            { a = Conv (x, k)  b = Conv (x, o)  s = Add (a, x)  t = Add (s, b)  y = Add (t, x) }"""
        assert sums(after(graph.reorder_sums, text)) == [["Conv", "x"], ["Add", "x"], ["Add", "Conv"]]

    def test_a_convolution_that_is_needed_elsewhere_is_not_accumulated_onto(self) -> None:
        text = """(float[2,4,6,6] y) { a = Conv (x, k)  r = Relu (a)  b = Conv (x, o)
            s = Add (b, a)  t = Add (s, x)  y = Add (t, r) }"""
        assert sums(after(graph.reorder_sums, text)) == [["Conv", "x"], ["Add", "Relu"], ["Add", "Conv"]]

    def test_a_sum_with_a_vector_stays(self) -> None:
        text = "(float[2,4,6,6] y) { a = Conv (x, k)  s = Add (a, bias)  t = Add (s, x)  y = Relu (t) }"
        assert sums(after(graph.reorder_sums, text)) == [["Conv", "bias"], ["Add", "x"]]


SPLIT = "p, q = Split <axis=1> (c, three_one)"
SLICES = "p = Slice (c, n0, n3, n1)  q = Slice (c, n3, n4, n1)"


class TestConvolutionsWhoseChannelsAreSplit:
    @pytest.mark.parametrize("start", ["c = Conv (x, k, shift)", "a = Conv (x, k)  c = Relu (a)"])
    @pytest.mark.parametrize("cut", [SPLIT, SLICES], ids=["split", "slices"])
    def test_there_is_one_for_each_piece(self, start: str, cut: str) -> None:
        found = after(graph.part_convolutions, f"(float[2,3,6,6] p, float[2,1,6,6] q) {{ {start}  {cut} }}")
        assert nodes(found)["Conv"] == 2
        assert not nodes(found).keys() & {"Split", "Slice"}

    @pytest.mark.parametrize(
        "text",
        [
            f"(float[2,4,6,6] c, float[2,3,6,6] p, float[2,1,6,6] q) {{ c = Conv (x, k)  {SPLIT} }}",
            f"(float[2,4,6,6] r, float[2,3,6,6] p, float[2,1,6,6] q) {{ c = Conv (x, k)  r = Relu (c)  {SPLIT} }}",
            "(float[2,4,3,6] p, float[2,4,3,6] q) { c = Conv (x, k)  p, q = Split <axis=2> (c, three_three) }",
        ],
        ids=["the whole is an output", "the whole is needed", "rows are split"],
    )
    def test_others_stay(self, text: str) -> None:
        assert nodes(after(graph.part_convolutions, text)) == nodes(model(text))


class TestPooling:
    half = "kernel_shape=[2,2], strides=[2,2], ceil_mode=1, count_include_pad=0"

    def test_of_a_part_of_a_block_is_a_convolution(self) -> None:
        text = f"(float[2,4,3,3] y) {{ y = AveragePool <{self.half}> (x) }}"
        assert nodes(after(graph.pool_by_convolutions, text)) == Counter(Conv=1)

    def test_of_an_odd_size_stays(self) -> None:
        text = f"""(float[2,4,2,2] y)
            {{ h = AveragePool <kernel_shape=[2,2], strides=[2,2]> (x)  y = AveragePool <{self.half}> (h) }}"""
        assert nodes(after(graph.pool_by_convolutions, text)) == Counter(Conv=1, AveragePool=1)

    def test_of_whole_blocks_stays(self) -> None:
        text = f"(float[2,16,3,3] y) {{ c = Concat <axis=1> (x, x, x, x)  y = AveragePool <{self.half}> (c) }}"
        assert nodes(after(graph.pool_by_convolutions, text)) == Counter(Concat=1, AveragePool=1)

    def test_the_mean_over_height_and_width_is_a_global_one(self) -> None:
        text = "(float[2,4,1,1] y) { y = ReduceMean (x, rows) }"
        assert nodes(after(graph.average_globally, text)) == Counter(GlobalAveragePool=1)

    def test_other_means_stay(self) -> None:
        text = "(float[2,4] z) { y = ReduceMean (x, n1)  z = ReduceMean <keepdims=0> (x, rows) }"
        assert nodes(after(graph.average_globally, text)) == Counter(ReduceMean=1)


UP = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'


class TestUpsampling:
    def order(self, of: ir.Model) -> list[str]:
        return [node.op_type for node in of.graph if node.op_type != "Relu"]

    def test_goes_before_a_convolution_that_widens(self) -> None:
        text = f"(float[2,32,12,12] y) {{ c = Conv (x, wide, b32)  y = Resize <{UP}> (c, , twice) }}"
        assert self.order(after(graph.upsample_first, text)) == ["Resize", "Conv"]

    @pytest.mark.parametrize(
        "text",
        [
            f"(float[2,28,12,12] y) {{ c = Conv (x, less)  y = Resize <{UP}> (c, , twice) }}",
            f"(float[2,32,8,8] y) {{ c = Conv (x, wide3)  y = Resize <{UP}> (c, , twice) }}",
            f"(float[2,32,12,12] y) {{ c = Conv (x, wide)  y = Resize <{UP}> (c, , , size) }}",
            f"(float[2,32,12,12] y, float[2,32,6,6] c) {{ c = Conv (x, wide)  y = Resize <{UP}> (c, , twice) }}",
        ],
        ids=["7 times the channels", "3x3", "to a size", "needed elsewhere"],
    )
    def test_else_stays(self, text: str) -> None:
        assert self.order(after(graph.upsample_first, text)) == ["Conv", "Resize"]


def test_before_int8_poolings_of_whole_blocks_become_convolutions_too() -> None:
    text = f"(float[2,16,3,3] y) {{ c = Concat <axis=1> (x, x, x, x)  y = AveragePool <{TestPooling.half}> (c) }}"
    assert nodes(after(graph.tidy_for_int8, text)) == Counter(Concat=1, Conv=1)


def test_before_int8_norms_become_convolutions() -> None:
    text = "(float[2,4,6,6] y) { a = BatchNormalization <epsilon=0.1> (x, shift, shift, mean, mean)  y = Relu (a) }"
    assert nodes(after(graph.tidy_for_int8, text)) == Counter(Conv=1, Relu=1)


class TestInOnnxRuntime:
    """What becomes of a residual octave network whose parts are no whole blocks of channels (alpha .125)."""

    @pytest.fixture(scope="class")
    @classmethod
    def fused_nodes(cls, tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
        optimised = tmp_path_factory.mktemp("engine") / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimised)
        options.log_severity_level = 3
        network = ir.to_proto(onnx_model(fuse(build("resnet26@0.125")), (3, 64, 64)))
        onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(optimised).graph.node)

    def test_no_map_comes_back_into_the_layout_of_the_convolutions(self, fused_nodes: Counter[str]) -> None:
        assert fused_nodes["ReorderInput"] == 0

    def test_no_sum_and_no_activation_is_a_pass_of_its_own(self, fused_nodes: Counter[str]) -> None:
        assert fused_nodes["Add"] == fused_nodes["Relu"] == 0
