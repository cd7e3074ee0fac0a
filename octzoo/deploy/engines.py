"""How a network is run: one small function an engine, from a network to a callable that runs one batch."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octzoo.deploy.engine_files import open_onnx, open_openvino
from octzoo.errors import UserError
from octzoo.fused import fuse

Run = Callable[[], Any]
Precision = Literal["float32", "bfloat16"]
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}  # engines that are not PyTorch -> their module


@dataclass(frozen=True)
class Setting:
    """What all networks of a comparison are run with.

    Attributes:
        batch: pictures in one.
        size: of a picture, (C, H, W).
        threads: of the processor.
        device: "cpu" or "cuda".
        channels_last: whether PyTorch keeps maps as [B, H, W, C] in memory; the other engines choose for themselves.
        precision: of the arithmetic. PyTorch's own engines take bfloat16 by autocast.
    """

    batch: int
    size: tuple[int, int, int]
    threads: int
    device: str = "cpu"
    channels_last: bool = True
    precision: Precision = "float32"

    def pictures(self) -> Tensor:
        """[B, C, H, W] of random numbers, the same ones every time."""
        x = torch.randn(self.batch, *self.size, generator=torch.Generator().manual_seed(0))
        return x.to(self.device, memory_format=self.memory_format)

    def place(self, model: nn.Module) -> nn.Module:
        """``model`` on the device, its weights laid out as the maps are."""
        return cast(Any, model).to(self.device, memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()


class Ready(NamedTuple):
    """A network that has run once.

    Attributes:
        run: runs one batch. Of an inference engine it returns the outputs, [B, classes]; of training, the loss.
        seconds: from the network as the engine gets it (fused, or written as a file) to its first batch: what a
            compiler or a runtime takes to start.
        held: bytes that stay between batches: weights, and in training the momentum. None where PyTorch cannot tell.
    """

    run: Run
    seconds: float
    held: int | None


Engine = Callable[[nn.Module, Setting], Ready]


# ---- inference -----------------------------------------------------------------------------------------------------


def eager(model: nn.Module, setting: Setting) -> Ready:
    """The network as it is."""
    network = setting.place(model.eval())
    return _ready(lambda: _inference(network, setting), _bytes_of(network))


def fused(model: nn.Module, setting: Setting) -> Ready:
    """``octzoo.deploy.fuse``: norms folded, blocks of the weights cut once."""
    network = setting.place(fuse(model))
    return _ready(lambda: _inference(network, setting), _bytes_of(network))


def compiled(model: nn.Module, setting: Setting) -> Ready:
    """The fused network through torch.compile, weights frozen; a graph break is an error."""
    network = setting.place(fuse(model))
    return _compiled(lambda: _inference(_compile(network, setting), setting), _bytes_of(network), freezing=True)


def onnx(model: nn.Module, setting: Setting) -> Ready:
    """The fused network in ONNX Runtime, from a file whose batch is then fixed."""
    return _from_file(model, setting, lambda path: open_onnx(path, setting.threads, setting.batch))


def openvino(model: nn.Module, setting: Setting) -> Ready:
    """The fused network in OpenVINO, from the same file, the batch fixed too."""
    shape = (setting.batch, *setting.size)
    precision = {"float32": "f32", "bfloat16": "bf16"}[setting.precision]
    return _from_file(model, setting, lambda path: open_openvino(path, setting.threads, shape, precision))


# ---- training ------------------------------------------------------------------------------------------------------


def train_eager(model: nn.Module, setting: Setting) -> Ready:
    """One step: forward, cross entropy, backward, SGD with momentum."""
    step = Step(setting.place(model.train()), setting)
    return _ready(lambda: step, step.held)


def train_compiled(model: nn.Module, setting: Setting) -> Ready:
    """The same step, the network through torch.compile."""
    step = Step(setting.place(model.train()), setting)
    step.network = _compile(step.network, setting)
    return _compiled(lambda: step, step.held)


class Step:
    """A training step on one batch."""

    def __init__(self, network: nn.Module, setting: Setting):
        self.network, self.setting = network, setting
        parameters = list(network.parameters())
        self.optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
        self.held = _bytes_of(network) + sum(p.nbytes for p in parameters)  # momentum is as large as the parameters
        self.pictures = setting.pictures()
        classes = torch.arange(setting.batch) % cast(Any, network).num_classes
        self.targets = classes.to(setting.device)

    def __call__(self) -> Tensor:
        with self.setting.autocast():
            loss = F.cross_entropy(self.network(self.pictures), self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()  # at the end, so that gradients count as memory of the step
        return loss.detach()


ENGINES: dict[str, Engine] = {
    "eager": eager,
    "fused": fused,
    "compile": compiled,
    "onnx": onnx,
    "openvino": openvino,
}
TRAINING: dict[str, Engine] = {"eager": train_eager, "compile": train_compiled}


def engine(mode: str, train: bool, device: str = "cpu", precision: str = "float32") -> Engine:
    """The function of a mode. UserError for one that does not exist, or cannot run here as asked."""
    table = TRAINING if train else ENGINES
    if mode not in table:
        task = "training" if train else "inference"
        raise UserError(f"mode {mode!r}: no such engine for {task}; there are {', '.join(table)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: PyTorch finds none here; leave it out to measure on the CPU")
    if mode in RUNTIMES:
        if device != "cpu":
            raise UserError(f"mode {mode} runs on the CPU only; leave it out where device is {device}")
        for package in ("onnx", RUNTIMES[mode]):
            if not importlib.util.find_spec(package):
                raise UserError(f'mode {mode} needs {package}: pip install "octzoo[export]"')
    if mode == "onnx" and precision != "float32":
        raise UserError(f"mode onnx computes in float32 only; leave it out where precision is {precision}")
    return table[mode]


# ---- what they share -----------------------------------------------------------------------------------------------


def _inference(network: Callable[[Tensor], Any], setting: Setting) -> Run:
    x = setting.pictures()

    def run() -> Any:
        with torch.inference_mode(), setting.autocast():
            return network(x)

    return run


def _from_file(model: nn.Module, setting: Setting, load: Callable[[Path], Callable[[np.ndarray], Any]]) -> Ready:
    from octzoo.deploy.export import write_onnx

    x = setting.pictures().numpy()

    def start(path: Path) -> Run:
        run = load(path)
        return lambda: run(x)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(fuse(model), path, setting.size)
        return _ready(lambda: start(path), None)


def _ready(load: Callable[[], Run], held: int | None) -> Ready:
    """Load, run one batch, and tell how long that took."""
    start = time.perf_counter()
    run = load()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Ready(run, time.perf_counter() - start, held)


def _compile(network: nn.Module, setting: Setting) -> nn.Module:
    """Each network for itself and one batch size only; on a GPU replayed as a CUDA graph."""
    how: dict[str, Any] = dict(fullgraph=True, dynamic=False, isolate_recompiles=True)
    how["options"] = {"triton.cudagraphs": setting.device == "cuda"}
    return cast(nn.Module, torch.compile(network, **how))


def _compiled(load: Callable[[], Run], held: int, freezing: bool = False) -> Ready:
    """``_ready``, with nothing in the compiler's caches that another network or an earlier run has left there.

    Freezing is asked for here, since torch.compile(options={"freezing": True}) comes too late for the tracer, which
    decides whether weights are constants (tried: the graph stays unfrozen, and 1.5 times slower).
    """
    import torch._inductor.config
    from torch._inductor.utils import fresh_cache

    _start_compiler()
    with (
        tempfile.TemporaryDirectory() as folder,  # of the cache, which would stay after an error
        fresh_cache(dir=folder),
        torch._inductor.config.patch(freezing=freezing),
    ):
        return _ready(load, held)


@functools.cache
def _start_compiler() -> None:
    """Compile something small, so that what happens once a process is not the first network's time."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    torch.compile(layers)(torch.zeros(1, 3, 8, 8)).sum().backward()


def _bytes_of(network: nn.Module) -> int:
    return sum(t.nbytes for t in [*network.parameters(), *network.buffers()])
