"""Files in int8: static quantisation after training, calibrated on real pictures, measured on other ones.

Measured before it was settled on (``docs/deploy.md``): the extremes of the maps serve as well as their percentiles or
entropy, 8 bits without a sign for maps (with one, ONNX Runtime has no fast convolution on x86), a scale for each output
channel of a weight, and the classifier in float32, which costs nothing and takes a tenth off the error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from octzoo.deploy.bench import ROUNDS, in_turns
from octzoo.deploy.engine_files import Run, need, open_onnx, open_openvino
from octzoo.deploy.export import Target, drafts, export, openvino_from_onnx
from octzoo.deploy.samples import Samples, Transform
from octzoo.errors import RunError, UserError

CALIBRATION = 128  # pictures; 32 to 1,024 made no difference
MEASURED = 2000  # pictures
BATCH = 8
LEAST = 0.9  # of the pictures have to keep their class
IN_FLOAT = ("Gemm", "MatMul")
ENGINES: dict[str, Callable[[Path], Run]] = {"onnx": open_onnx, "openvino": open_openvino}


class Agreement(NamedTuple):
    """What becomes of a network's answers in int8.

    Attributes:
        pictures: how many were asked about.
        same: the share of them whose likeliest class stays.
        accuracy: the share that is right, before and after; None where the right class is not known.
    """

    pictures: int
    same: float
    accuracy: tuple[float, float] | None


class Quantized(NamedTuple):
    """What was written.

    Attributes:
        files: the file, and what lies beside it.
        float_difference: of the file in float32 that it was made of, from PyTorch; see ``Exported``.
        agreement: with that file.
        milliseconds: pictures in a batch -> "float32" and "int8" -> of a batch, measured in turns.
    """

    files: tuple[Path, ...]
    float_difference: float
    agreement: Agreement
    milliseconds: dict[int, dict[str, list[float]]]


def export_int8(
    model: nn.Module,
    target: Target,
    transform: Transform,
    samples: Sequence[Samples],
    say: Callable[[str], None] = lambda text: None,
) -> Quantized:
    """Write a network in int8; nothing is left of a file that changes too many answers.

    Args:
        model: the network as it was trained, on the CPU.
        target: the file; its format is one of ``ENGINES``.
        transform: from a picture to the network's input.
        samples: pictures to calibrate on, other ones to measure on; from ``open_samples``.
        say: is told how far it has come.

    Raises:
        UserError: as of ``export``, or the format has no int8 here.
        RunError: the file in float32 is not the network, or that in int8 answers otherwise too often.
    """
    if target.form not in ENGINES:
        raise UserError(f"no int8 in the format {target.form!r}; there is in {', '.join(ENGINES)}")
    calibration, measuring = samples
    with tempfile.TemporaryDirectory() as folder, drafts(target.path) as draft:
        plain = Path(folder) / "float32.onnx"
        say("in float32 first, compared with PyTorch")
        written = export(model, replace(target, path=plain, form="onnx"), next(measuring.batches(transform, 3)))
        say(f"in int8, calibrated on {len(calibration)} pictures")
        whole = draft if target.form == "onnx" else Path(folder) / "int8.onnx"
        quantize(plain, whole, (x.numpy() for x in calibration.batches(transform, BATCH)), target.metadata)
        if target.form == "openvino":
            openvino_from_onnx(whole, draft, target.metadata)
        before, after = (ENGINES[target.form](path) for path in (plain, draft))
        say(f"answers to {len(measuring)} other pictures, before and after")
        found = agreement(before, after, (x.numpy() for x in measuring.batches(transform, BATCH)), measuring.targets)
        if found.same < LEAST:
            raise RunError(
                f"{target.path.name} is not written: in int8 {1 - found.same:.0%} of {found.pictures} pictures get "
                "another class; calibrate on pictures like those that the network was trained on"
            )
        say("speed, in turns")
        milliseconds = {batch: _milliseconds(before, after, (batch, *target.size)) for batch in (1, 8)}
        names = sorted(path.name for path in draft.parent.iterdir())
    return Quantized(tuple(target.path.parent / name for name in names), written.difference, found, milliseconds)


def _milliseconds(before: Run, after: Run, shape: tuple[int, ...]) -> dict[str, list[float]]:
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    seconds = in_turns({"float32": lambda: before(x), "int8": lambda: after(x)}, ROUNDS)
    return {name: [1000 * value for value in values] for name, values in seconds.items()}


def quantize(source: Path, out: Path, batches: Iterable[np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write an ONNX file in int8.

    Args:
        source: an ONNX file in float32, of one input.
        out: the file; QuantizeLinear and DequantizeLinear around ordinary nodes, which engines fuse.
        batches: [B, C, H, W], of pictures as the network is given them.
        metadata: the model's metadata_props.
    """
    need("onnx", "onnxruntime")
    import onnx
    import onnx_ir as ir
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quant_pre_process, quantize_static

    from octzoo.deploy.graph import tidy_for_int8

    with tempfile.TemporaryDirectory() as folder:
        convolutions, prepared = (Path(folder) / f"{name}.onnx" for name in ("convolutions", "prepared"))
        float32 = ir.load(source)
        tidy_for_int8(float32)
        ir.save(float32, convolutions)
        quant_pre_process(convolutions, prepared, skip_optimization=True, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        quantize_static(
            prepared,
            out,
            _reader(model.graph.input[0].name, batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[node.name for node in model.graph.node if node.op_type in IN_FLOAT],
        )
        made = onnx.load(out)
        del made.metadata_props[:]
        onnx.helper.set_model_props(made, dict(metadata))
        onnx.save(made, out)


def _reader(name: str, batches: Iterable[np.ndarray]) -> Any:
    """The batches as onnxruntime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, np.ndarray]] = ({name: batch} for batch in batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    return Reader()


def agreement(before: Run, after: Run, batches: Iterable[np.ndarray], targets: Sequence[int] | None) -> Agreement:
    """How a network answers before and after. Arguments: both, pictures [B, C, H, W], and their classes if known."""
    answers = [[run(batch).argmax(1) for run in (before, after)] for batch in batches]
    was, now = (np.concatenate(column) for column in zip(*answers))
    right = None if targets is None else tuple(float((found == targets).mean()) for found in (was, now))
    return Agreement(len(was), float((was == now).mean()), right)  # type: ignore[arg-type]
