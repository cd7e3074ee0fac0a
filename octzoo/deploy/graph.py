"""An ONNX graph as inference engines like it: the same function, in nodes that they fuse.

Each pass changes an ``onnx_ir.Model`` in place and leaves its outputs as they were, up to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCK = 16  # channels, or 8: what ONNX Runtime convolves and pools at once
WIDENS = 8  # from so many times the channels on, upsampled maps cost more than their arithmetic
# Nodes of one input that map each number for itself.
ACTIVATIONS = ("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Gelu", "Swish", "Tanh")


def tidy(model: ir.Model) -> None:
    """What every engine profits from; and away with the exporter's notes, which hold paths of this machine."""
    import onnx_ir.passes.common as common

    apply(
        model,
        average_globally,
        pool_by_convolutions,
        part_convolutions,
        upsample_first,
        reorder_sums,
        common.ClearMetadataAndDocStringPass(),
    )


def tidy_for_int8(model: ir.Model) -> None:
    """What an already tidy model needs before it is quantised: engines' int8 is good at convolutions alone."""
    apply(model, partial(pool_by_convolutions, block=math.inf), norms_as_convolutions)


def apply(model: ir.Model, *passes: Callable[[ir.Model], object]) -> None:
    """One pass after the other, and away with the nodes that it has replaced, and their constants."""
    import onnx_ir.passes.common as common

    for step in passes:
        step(model)
        common.RemoveUnusedNodesPass()(model)


# ---- the mean over height and width --------------------------------------------------------------------------------


def average_globally(model: ir.Model) -> None:
    """The mean over height and width as GlobalAveragePool, which engines compute in their convolutions' layout."""
    for node in model.graph:
        if node.op_type == "ReduceMean" and _is_spatial(node):
            node.op_type = "GlobalAveragePool"
            node.resize_inputs(1)
            node.attributes.clear()


def _is_spatial(node: ir.Node) -> bool:
    """Whether a ReduceMean of [B, C, H, W] is over H and W and keeps them as 1."""
    x, axes = node.inputs[0], _constant(node, 1)
    if axes is None or x is None or x.shape is None or len(x.shape) != 4 or not _int(node, "keepdims", 1):
        return False
    return {axis % 4 for axis in axes.tolist()} == {2, 3}


# ---- pooling -------------------------------------------------------------------------------------------------------


def pool_by_convolutions(model: ir.Model, block: float = BLOCK) -> None:
    """2x2 average pooling of a number of channels that fills no whole blocks, as a depthwise convolution.

    ONNX Runtime pools blocks of channels in its convolutions' layout; other numbers of channels leave that layout, are
    pooled slowly, and come back. Its convolutions fill up the last block.
    """
    import onnx_ir as ir

    for pool in list(model.graph):
        channels = _halves(pool)
        if channels % block:
            quarter = np.full((channels, 1, 2, 2), 0.25, np.float32)
            weight = ir.Value(name=f"{pool.outputs[0].name}_quarter", const_value=ir.tensor(quarter))
            model.graph.register_initializer(weight)
            conv = ir.node(
                "Conv", [pool.inputs[0], weight], {"group": channels, "kernel_shape": [2, 2], "strides": [2, 2]}
            )
            _replace(pool, conv)


def _halves(node: ir.Node) -> int:
    """The channels of a map of even height and width that a node averages by 2x2; 0 of any other node."""
    x = node.inputs[0] if node.op_type == "AveragePool" else None
    if x is None or x.shape is None or any(_ints(node, name) != [2, 2] for name in ("kernel_shape", "strides")):
        return 0
    channels, *size = x.shape[1:]
    whole = not _int(node, "ceil_mode", 0) or all(map(_is_even, size))  # no window over the edge
    return channels if isinstance(channels, int) and whole and not any(_ints(node, "pads")) else 0


def _is_even(n: int | ir.SymbolicDim) -> bool:
    """Also of "16*s30"."""
    factor = n if isinstance(n, int) else str(n).partition("*")[0]
    return str(factor).isdigit() and int(factor) % 2 == 0


# ---- convolutions whose channels are split -------------------------------------------------------------------------


class Piece(NamedTuple):
    """Some channels of a map: the value that holds them, and which they are."""

    value: ir.Value
    channels: slice


def part_convolutions(model: ir.Model) -> None:
    """A convolution whose output's channels are split becomes one for each piece; behind an activation, too.

    A split takes maps out of the layout that engines convolve in, and no piece of a map takes part in a fusion.
    """
    for last in list(model.graph):
        chain = _chain_from_conv(last)
        for piece in _pieces(last.outputs[0]) if chain else ():
            _convolve_piece(chain, piece)


def _chain_from_conv(last: ir.Node) -> list[ir.Node]:
    """[convolution, activations ..., ``last``], each used by the next one alone; empty if ``last`` is no such end."""
    chain = [last]
    while chain[0].op_type in ACTIVATIONS:
        x = chain[0].inputs[0]
        before = x.producer() if x is not None and _is_used_once(x) else None
        if before is None:
            return []
        chain.insert(0, before)
    conv = chain[0]
    if conv.op_type != "Conv" or _int(conv, "group", 1) != 1:
        return []
    return chain if all(_constant(conv, i) is not None for i in range(1, len(conv.inputs))) else []


def _pieces(x: ir.Value) -> list[Piece]:
    """What the users of ``x`` [B, C, H, W] take of it, if all they do is to split its channels; else nothing."""
    found: list[Piece] = []
    for node in () if x.is_graph_output() else x.consumers():
        cut = {"Split": _cut_by_split, "Slice": _cut_by_slice}.get(node.op_type)
        pieces = list(cut(node)) if cut and node.inputs[0] is x else []
        if not pieces:
            return []
        found += pieces
    return found


def _cut_by_split(node: ir.Node) -> Iterator[Piece]:
    widths = _constant(node, 1)
    if widths is not None and _int(node, "axis", 0) == 1:
        start = 0
        for value, width in zip(node.outputs, widths.tolist()):
            yield Piece(value, slice(start, start + width))
            start += width


def _cut_by_slice(node: ir.Node) -> Iterator[Piece]:
    starts, ends, axes, steps = ([] if (c := _constant(node, i)) is None else c.tolist() for i in (1, 2, 3, 4))
    if axes == [1] and steps in ([], [1]) and len(starts) == len(ends) == 1:
        yield Piece(node.outputs[0], slice(starts[0], ends[0]))


def _convolve_piece(chain: Sequence[ir.Node], piece: Piece) -> None:
    """Put a chain for these channels alone behind ``chain``, and its output where the piece was used."""
    import onnx_ir as ir

    conv, last = chain[0], chain[-1]
    inputs = [conv.inputs[0]]
    for i, whole in enumerate(conv.inputs[1:], 1):
        rows, held = cast(np.ndarray, _constant(conv, i))[piece.channels], piece.channels
        name = f"{cast(ir.Value, whole).name}[{held.start}:{held.stop}]"
        part = ir.Value(name=name, const_value=ir.tensor(rows.copy()))
        cast(ir.Graph, conv.graph).register_initializer(part)
        inputs.append(part)
    for node in chain:
        inputs = inputs if node is conv else [last.outputs[0], *node.inputs[1:]]
        made = ir.node(node.op_type, inputs, node.attributes)
        made.outputs[0].shape, made.outputs[0].type = piece.value.shape, piece.value.type
        last.append(made)
        last = made
    _take_over(piece.value, last.outputs[0])


# ---- upsampling ----------------------------------------------------------------------------------------------------


def upsample_first(model: ir.Model) -> None:
    """A 1x1 convolution that is upsampled, and has ``WIDENS`` times the channels it is given, of what is upsampled.

    Arithmetic for memory: at alpha .25 the last convolution of a ResNet-50's bottleneck gives 12 times the channels of
    its low part, and to write and read them upsampled takes longer than to compute them there. Measured at batch 8:
    ONNX Runtime .92 -> .85 of plain's time at .25, and where it gives 4 times as many, OpenVINO loses 2 %.
    """
    import onnx_ir as ir

    for up in list(model.graph):
        conv = _upsampled_conv(up)
        if conv is None:
            continue
        channels_out, channels = cast(np.ndarray, _constant(conv, 1)).shape[:2]
        if channels_out < WIDENS * channels:
            continue
        first = ir.node("Resize", [conv.inputs[0], *up.inputs[1:]], up.attributes)
        batch, _, *size = cast(ir.Shape, up.outputs[0].shape)
        first.outputs[0].shape, first.outputs[0].type = ir.Shape([batch, channels, *size]), up.outputs[0].type
        up.append(first)
        then = ir.node("Conv", [first.outputs[0], *conv.inputs[1:]], conv.attributes)
        first.append(then)
        _take_over(up.outputs[0], then.outputs[0])


def _upsampled_conv(up: ir.Node) -> ir.Node | None:
    """The pointwise convolution whose output a node, and nothing else, upsamples to its nearest neighbours."""
    x = up.inputs[0] if up.op_type == "Resize" and len(up.inputs) == 3 else None  # by factors, not to a size
    if x is None or not _is_used_once(x) or up.outputs[0].shape is None or _text(up, "mode") != "nearest":
        return None
    conv = x.producer()
    return conv if conv is not None and _is_pointwise(conv) else None


# ---- norms ---------------------------------------------------------------------------------------------------------


def norms_as_convolutions(model: ir.Model) -> None:
    """Batch norms as depthwise 1x1 convolutions, which engines compute in int8, with the activation behind them."""
    import onnx_ir as ir

    for norm in list(model.graph):
        values = [_constant(norm, i) for i in (1, 2, 3, 4)]
        if norm.op_type != "BatchNormalization" or any(value is None for value in values):
            continue
        weight, bias, mean, var = cast(list[np.ndarray], values)
        scale = weight / np.sqrt(var + norm.attributes["epsilon"].as_float())
        shift = bias - mean * scale
        held = [
            ir.Value(name=f"{norm.outputs[0].name}_{name}", const_value=ir.tensor(value.astype(weight.dtype)))
            for name, value in (("scale", scale.reshape(-1, 1, 1, 1)), ("shift", shift))
        ]
        for value in held:
            model.graph.register_initializer(value)
        conv = ir.node("Conv", [norm.inputs[0], *held], {"group": len(scale), "kernel_shape": [1, 1]})
        _replace(norm, conv)


# ---- sums ----------------------------------------------------------------------------------------------------------


def reorder_sums(model: ir.Model) -> None:
    """Sums of feature maps so that convolutions come last: ``conv_b + (conv_a + (upsampled + shortcut))``.

    An engine's convolution accumulates onto one map that is there already, and applies the activation behind the sum in
    the same pass. ``(conv_a + upsampled) + shortcut`` and its activation are two more passes over memory.
    """
    for node in list(model.graph):
        if node.op_type == "Add" and not _is_inner(node.outputs[0]):
            terms = _terms(node.outputs[0])
            if len(terms) > 2:
                _add_up(node, sorted(terms, key=_accumulates))


def _is_inner(total: ir.Value) -> bool:
    """Whether a sum is but a term of another sum of the same shape."""
    user = total.consumers()[0] if _is_used_once(total) else None
    return user is not None and user.op_type == "Add" and total.shape == user.outputs[0].shape is not None


def _terms(total: ir.Value) -> list[ir.Value]:
    """What a sum adds up, through the inner sums; itself alone where it broadcasts."""
    parts = [cast("ir.Value", part) for part in cast("ir.Node", total.producer()).inputs]
    if any(part.shape is None or part.shape != total.shape for part in parts):
        return [total]
    inner = [part for part in parts if _made_by(part, "Add") and _is_inner(part)]
    return [term for part in parts for term in (_terms(part) if part in inner else [part])]


def _accumulates(value: ir.Value) -> bool:
    """Whether a term is a convolution that nothing else needs, so that it can be added onto the others in place."""
    return _made_by(value, "Conv") and _is_used_once(value)


def _add_up(root: ir.Node, terms: list[ir.Value]) -> None:
    """Make ``root`` the last of a chain of additions of ``terms``, in their order."""
    import onnx_ir as ir

    total, *between, last = terms
    for term in between:
        node = ir.node("Add", [total, term])
        node.outputs[0].shape, node.outputs[0].type = root.outputs[0].shape, root.outputs[0].type
        root.prepend(node)
        total = node.outputs[0]
    root.replace_input_with(0, total)
    root.replace_input_with(1, last)


# ---- changes and questions -------------------------------------------------------------------------------------------


def _replace(old: ir.Node, new: ir.Node) -> None:
    """Put ``new`` behind ``old``, and use its output in place of the old one, which has the same shape."""
    old.append(new)
    _take_over(old.outputs[0], new.outputs[0])


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Use ``new`` wherever ``old`` was used, under its name."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = new.name, old.name


def _is_pointwise(node: ir.Node) -> bool:
    """Whether it is a 1x1 convolution of stride 1, not in groups, whose weights are constant."""
    if node.op_type != "Conv" or any(_constant(node, i) is None for i in range(1, len(node.inputs))):
        return False
    kernel, plain = cast(np.ndarray, _constant(node, 1)).shape[2:], _int(node, "group", 1) == 1
    return kernel == (1, 1) and plain and not any(_ints(node, "pads")) and set(_ints(node, "strides")) <= {1}


def _made_by(value: ir.Value, op_type: str) -> bool:
    node = value.producer()
    return node is not None and node.op_type == op_type


def _is_used_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _constant(node: ir.Node, i: int) -> np.ndarray | None:
    """Input ``i`` of a node, where it is a constant."""
    import onnx_ir as ir

    value = node.inputs[i] if i < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _ints(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else []


def _text(node: ir.Node, name: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else ""
