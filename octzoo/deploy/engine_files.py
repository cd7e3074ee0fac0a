"""Files of networks, opened in the engine that runs them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from octzoo.errors import UserError

Run = Callable[[np.ndarray], np.ndarray]  # [B, C, H, W] -> [B, classes], float32


def need(*packages: str) -> None:
    """Raise UserError if a package of the extra ``export`` is not installed."""
    for package in packages:
        if not importlib.util.find_spec(package):
            raise UserError(f'{package} is not installed: pip install "octzoo[export]"')


def open_onnx(path: Path, threads: int | None = None, batch: int | None = None) -> Run:
    """An ONNX file in ONNX Runtime, on the CPU; its threads stop spinning when a batch is done.

    Args:
        path: the file.
        threads: how many; None: as many as the engine takes.
        batch: pictures in one, where that is always the same; None: any number.
    """
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or it would while another engine works
    options.log_severity_level = 3
    if batch:
        options.add_free_dimension_override_by_name("batch", batch)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def open_openvino(
    path: Path, threads: int | None = None, shape: Sequence[int] | None = None, precision: str = "f32"
) -> Run:
    """An .xml or .onnx file in OpenVINO, on the CPU.

    Args:
        path: the file.
        threads: how many; None: as many as the engine takes.
        shape: of all batches, [B, C, H, W], where that is always the same (at B = 1 it is much faster then).
        precision: of the arithmetic, "f32" or "bf16".
    """
    need("openvino")
    import openvino

    hints: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    hints |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    core = openvino.Core()
    network = core.read_model(path)
    if shape:
        network.reshape(list(shape))
    request = core.compile_model(network, "CPU", hints).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True)[0]


def open_torch(path: Path, threads: int | None = None) -> Run:
    """A .pt2 file in PyTorch, whose threads are the process's."""
    import torch

    network = torch.export.load(path).module()

    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(x)).numpy()

    return run
