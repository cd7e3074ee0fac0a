"""Files that other programs run: ONNX, OpenVINO, torch.export; each compared with PyTorch before it takes its place."""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from octzoo.deploy.engine_files import Run, need, open_onnx, open_openvino, open_torch
from octzoo.errors import RunError, UserError
from octzoo.fused import fuse
from octzoo.weights.folder import replace_file

if TYPE_CHECKING:
    import onnx_ir as ir

Size3 = tuple[int, int, int]  # (C, H, W)

INPUT, OUTPUT = "pixel_values", "logits"  # [batch, C, H, W] and [batch, classes], float32
TOLERANCE = 1e-4  # of a batch's outputs, relative, L2
WHOLE = 2**31  # bytes: however large a constant is, what is done to it is done once, in the file
STAMPS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")  # hold paths of this machine


class Form(NamedTuple):
    """A format of files.

    Attributes:
        suffix: of the file's name.
        write: (fused network, path, (C, H, W), metadata, multiple) -> a file.
        open: path -> what runs it.
    """

    suffix: str
    write: Callable[[nn.Module, Path, Size3, Mapping[str, str], int | None], None]
    open: Callable[[Path], Run]


@dataclass(frozen=True)
class Target:
    """A file that is to be written.

    Attributes:
        path: where; a file that exists is replaced.
        form: of ``FORMS``.
        size: (C, H, W) of the pictures.
        multiple: None for pictures of that size only; else of every size that is a multiple of it.
        metadata: what the file says of itself, see ``octzoo.deploy.metadata``.
    """

    path: Path
    form: str
    size: Size3
    multiple: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class Exported(NamedTuple):
    """What was written.

    Attributes:
        files: the file, and what lies beside it.
        difference: of the outputs from PyTorch's, relative, L2, the largest of all batches.
        batches: how many were compared.
    """

    files: tuple[Path, ...]
    difference: float
    batches: int


def export(model: nn.Module, target: Target, pictures: Tensor | None = None) -> Exported:
    """Fuse a network and write it as a file; nothing is left of a file that computes something else.

    Compared are batches of 1 and 3 pictures: random ones, and real ones where there are any.

    Args:
        model: the network as it was trained, on the CPU.
        target: the file.
        pictures: [N, C, H, W], real ones, as the network is given them.

    Raises:
        UserError: no such format, a package is missing, or the network cannot be written in it.
        RunError: the file computes something else than the network.
    """
    if target.form not in FORMS:
        raise UserError(f"no format {target.form!r}; there are {', '.join(FORMS)}")
    form, batches = FORMS[target.form], list(_batches(target, pictures))
    model.eval()
    with drafts(target.path) as draft:
        form.write(fuse(model), draft, target.size, target.metadata, target.multiple)
        run = form.open(draft)
        found = [difference(model, run, x) for x in batches]
        if not all(value <= TOLERANCE for value in found):  # nor is a NaN
            raise RunError(
                f"{target.path.name} is not written: its outputs are {max(found):.2g} off PyTorch's, relative, "
                f"more than {TOLERANCE:g}"
            )
        names = sorted(path.name for path in draft.parent.iterdir())
    return Exported(tuple(target.path.parent / name for name in names), max(found), len(batches))


def difference(model: nn.Module, run: Run, x: Tensor) -> float:
    """How far a file's outputs for a batch are off the network's: relative, L2."""
    with torch.no_grad():
        expected = model(x)
    given = torch.from_numpy(np.array(run(x.numpy())))
    return float((given - expected).norm() / expected.norm()) if given.shape == expected.shape else float("inf")


def _batches(target: Target, pictures: Tensor | None) -> Iterator[Tensor]:
    """Batches of 1 and 3 pictures; where many sizes will do, of another one as well."""
    generator = torch.Generator().manual_seed(0)
    (c, h, w), step = target.size, target.multiple
    sizes = [(c, h, w), (c, h + step, w + 2 * step)] if step else [(c, h, w)]
    for count in (1, 3):
        yield from (torch.randn(count, *each, generator=generator) for each in sizes)
        if pictures is not None and len(pictures) >= count:
            yield pictures[:count]


@contextmanager
def drafts(out: Path) -> Iterator[Path]:
    """A path like ``out`` in a folder beside it; all that is there when the block ends well takes its place.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as problem:
        raise UserError(f"{out.parent} cannot be written: {problem.strerror}") from problem
    try:
        yield folder / out.name
        for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):  # the file itself last
            path.replace(out.parent / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- torch.export --------------------------------------------------------------------------------------------------


def trace(fused: nn.Module, size: Size3, multiple: int | None = None) -> ExportedProgram:
    """The network as a program of torch.export, for batches of any size. Arguments as of ``write_onnx``.

    Raises:
        UserError: the network decides by values what it does, or does not take such pictures.
    """
    c, h, w = size
    if multiple:
        h, w = (max(n, 3 * multiple) for n in (h, w))  # an example of 0 or 1 multiples would be taken for the rule
    example = (torch.zeros(2, c, h, w),)
    try:
        with torch.no_grad():
            return torch.export.export(_contiguous(fused), example, dynamic_shapes=_dynamic(multiple))
    except Exception as problem:  # torch.export raises a dozen kinds, and whatever the network raises
        sizes = f"all multiples of {multiple}" if multiple else f"{h}x{w}"
        raise UserError(f"torch.export cannot trace the network for pictures of {sizes}: {problem}") from problem


def _dynamic(multiple: int | None) -> tuple[dict[int, Any]]:
    """Which dimensions of the input may vary, as torch.export takes them."""
    free: dict[int, Any] = {0: Dim("batch")}
    return (free | {2: multiple * Dim("rows"), 3: multiple * Dim("columns")} if multiple else free,)


def write_torch(
    fused: nn.Module,
    path: Path,
    size: Size3,
    metadata: Mapping[str, str] | None = None,
    multiple: int | None = None,
) -> None:
    """Write a .pt2 file that ``torch.export.load`` reads, without octzoo; the metadata are its extra files."""
    program = trace(fused, size, multiple)
    for node in program.graph.nodes:
        for stamp in STAMPS:
            node.meta.pop(stamp, None)
    torch.export.save(program, path, extra_files=dict(metadata or {}))


def _contiguous(model: nn.Module) -> nn.Module:
    """A copy whose weights lie in the ordinary order: of others the exporter makes gathers by index arithmetic."""
    model = copy.deepcopy(model).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return model


# ---- ONNX ----------------------------------------------------------------------------------------------------------


def write_onnx(
    fused: nn.Module,
    path: Path,
    size: Size3,
    metadata: Mapping[str, str] | None = None,
    multiple: int | None = None,
) -> None:
    """Write an ONNX file of ordinary nodes, for batches of any size; wholly or not at all.

    Args:
        fused: a network that ``fuse`` made, on the CPU.
        path: the file.
        size: (C, H, W) of the pictures.
        metadata: the model's metadata_props.
        multiple: see ``Target``.

    Raises:
        UserError: a package is missing, or the network has what ONNX has no node for.
    """
    model = onnx_model(fused, size, multiple)
    import onnx_ir as ir

    model.metadata_props.update(metadata or {})
    replace_file(path, ir.to_proto(model).SerializeToString())


def onnx_model(fused: nn.Module, size: Size3, multiple: int | None = None) -> ir.Model:
    """The network as an ONNX model, tidied for inference engines. Arguments and errors as of ``write_onnx``."""
    need("onnxscript")
    from onnxscript import optimizer

    from octzoo.deploy.graph import tidy

    program = trace(fused, size, multiple)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations within the exporter
            exported = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=_dynamic(multiple),  # for the names of these dimensions
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as problem:
        raise UserError(f"the network cannot be written as ONNX: {problem.__cause__ or problem}") from problem
    assert exported is not None
    model = exported.model
    optimizer.optimize_ir(model, input_size_limit=WHOLE, output_size_limit=WHOLE)
    tidy(model)
    if other := sorted({f"{node.domain}::{node.op_type}" for node in model.graph if node.domain}):
        raise UserError(f"the network cannot be written in ONNX's own nodes: {', '.join(other)}")
    return model


# ---- OpenVINO ------------------------------------------------------------------------------------------------------


def write_openvino(
    fused: nn.Module,
    path: Path,
    size: Size3,
    metadata: Mapping[str, str] | None = None,
    multiple: int | None = None,
) -> None:
    """Write OpenVINO's .xml, and its .bin beside it, through ONNX; the metadata are rt_info below "octzoo"."""
    need("openvino")
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "network.onnx"
        write_onnx(fused, onnx, size, None, multiple)
        openvino_from_onnx(onnx, path, metadata or {})


def openvino_from_onnx(onnx: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file as OpenVINO's .xml and .bin, weights in float32."""
    import openvino

    try:
        model = openvino.convert_model(onnx)
    except RuntimeError as problem:
        raise UserError(f"OpenVINO cannot convert the network: {problem}") from problem
    for key, value in metadata.items():
        model.set_rt_info(value, ["octzoo", key])
    openvino.save_model(model, path, compress_to_fp16=False)


# ---- the formats ---------------------------------------------------------------------------------------------------

FORMS: dict[str, Form] = {
    "onnx": Form(".onnx", write_onnx, open_onnx),
    "openvino": Form(".xml", write_openvino, open_openvino),
    "torch-export": Form(".pt2", write_torch, open_torch),
}
