"""Engines that run octave networks by other means give what eager mode gives."""

import copy
import operator

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from octzoo import OctConv2d, octavize
from octzoo.layers import OctBatchNorm2d
from octzoo.octave import Octave, drop, merge
from tests.processes import run_two


def build(name="resnet10t", alpha=0.5, **kwargs):
    torch.manual_seed(0)
    return octavize(timm.create_model(name, num_classes=10, **kwargs), alpha)


class Block(nn.Module):
    """Both exchanges, both strides, a shortcut of a Tensor and an odd size, in few operations."""

    def __init__(self, alpha=0.5, stride_mode="pool"):
        super().__init__()
        self.first = OctConv2d(8, 8, 3, padding=1, alpha=alpha)
        self.norm = OctBatchNorm2d(8)
        self.second = OctConv2d(8, 16, 3, 2, 1, alpha=alpha, stride_mode=stride_mode)
        self.last = OctConv2d(16, 4, 1, alpha=0)

    def forward(self, x):
        y = F.relu(self.norm(self.first(x)) + x)
        return self.last(F.max_pool2d(self.second(y), 3, 2, 1))


def pictures(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def run(model, x):
    """Outputs, and the gradients of every parameter and of the input."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    out.float().square().mean().backward()
    return out.detach(), {"input": x.grad, **{n: p.grad.clone() for n, p in model.named_parameters()}}


# ---- compile and export --------------------------------------------------------------------------------------------

CASES = {
    "block": lambda: (Block(), torch.randn(2, 8, 13, 10)),
    "block, convolved strides": lambda: (Block(stride_mode="conv"), torch.randn(2, 8, 13, 10)),
    "block, all low": lambda: (Block(alpha=1), torch.randn(2, 8, 13, 10)),
    "resnet": lambda: (build(), pictures()),
    "squeeze-excite, depthwise": lambda: (build("mobilenetv3_small_050"), pictures()),
    "groups, norm-act": lambda: (build("regnetx_002"), pictures()),
    "layer norm": lambda: (build("convnext_atto", depths=(1, 1, 1, 1)), pictures()),
    "standardised weights, attention": lambda: (build("test_nfnet"), pictures()),
    "whole modules": lambda: (build("test_coatnet"), pictures(size=160)),
    "selective kernels": lambda: (build("skresnet18", layers=(1, 1, 1, 1)), pictures()),
    "split attention": lambda: (build("resnest14d"), pictures()),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(model, x, **options):
    """Two steps, so that the second begins with moved statistics."""
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, **options)
    for _ in range(2):
        out, gradients = run(model, x)
        got = compiled(y := x.clone().requires_grad_())
        other.zero_grad()
        got.float().square().mean().backward()
        assert_close(got, out, rtol=1e-4, atol=1e-5)
        for name, p in [("input", y), *other.named_parameters()]:
            assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-5)
    assert_close(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("case", CASES)
def test_compiled_forward_and_backward_equal_eager(case):
    check_compiled(*CASES[case](), backend="aot_eager")


@pytest.mark.parametrize("case", ["block", "resnet"])
def test_compiled_in_eval(case):
    model, x = CASES[case]()
    check_compiled(model.eval(), x, backend="aot_eager")


def test_compiled_with_inductor():
    check_compiled(Block(), torch.randn(2, 8, 13, 10))


VALUES = {
    "octave": lambda: drop(torch.randn(2, 8, 6, 6), 4),
    "tensor": lambda: torch.randn(2, 8, 6, 6),
    "[B, C, 1, 1]": lambda: torch.randn(2, 8, 1, 1).exp(),
    "scalar": lambda: 1.5,
}
SUMS, PRODUCTS = [operator.add, operator.iadd, operator.sub], [operator.mul, operator.imul, operator.truediv]
OPERATIONS = [(f, *pair) for f in SUMS for pair in [("octave", "tensor"), ("tensor", "octave")]]
OPERATIONS += [(f, "octave", other) for f in SUMS + PRODUCTS for other in ("octave", "[B, C, 1, 1]", "scalar")]
OPERATIONS += [(f, other, "octave") for f in SUMS + PRODUCTS for other in ("[B, C, 1, 1]", "scalar")]


@pytest.mark.parametrize(("function", "first", "second"), OPERATIONS, ids=lambda x: getattr(x, "__name__", x))
def test_compiled_operators_equal_eager(function, first, second):
    """The compiler asks for other spellings of the same operators than eager mode."""
    x, y = VALUES[first](), VALUES[second]()
    expected = function(copy.deepcopy(x), y)
    got = torch.compile(lambda x, y: function(x, y), fullgraph=True, backend="eager")(x, y)
    assert isinstance(got, Octave)
    assert_close((got.high, got.low), (expected.high, expected.low))


ACTIVATIONS = [
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
]


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
def test_compiled_activations_equal_eager(activation, inplace):
    """Inside a network made by surgery, which may exchange leaves."""
    torch.manual_seed(0)
    middle = nn.Sequential(nn.Conv2d(4, 4, 1), activation(inplace=inplace), nn.Conv2d(4, 4, 1))
    model = octavize(nn.Sequential(nn.Conv2d(3, 4, 1), middle, nn.Conv2d(4, 4, 3, 2, 1)), 0.5)
    x = torch.randn(1, 3, 8, 8)
    assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


FUNCTIONS = {
    "cat": lambda x: torch.cat([x, x], 1),
    "split": lambda x: torch.cat(torch.split(x, 4, 1), 1),
    "unequal split": lambda x: torch.cat(list(x.split([2, 6], 1)), 1),
    "slice": lambda x: x[:, 3:7],
    "sum of two splits": lambda x: x[:, :4] + torch.cat([x[:, :3], x[:, 7:]], 1),
    "power": lambda x: x**2,
    "enlargement": nn.Upsample(scale_factor=2),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "amax": lambda x: x.amax((2, 3)),
    "max pool": nn.MaxPool2d(3, 2, 1),
    "average pool": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "global average pool": nn.AdaptiveAvgPool2d(1),
    "global max pool": nn.AdaptiveMaxPool2d(1),
    "gelu": nn.GELU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "dropout": nn.Dropout(0.5).eval(),
    "identity": nn.Identity(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_functions_equal_eager(name):
    x = VALUES["octave"]()
    expected = FUNCTIONS[name](x)
    got = torch.compile(FUNCTIONS[name], fullgraph=True, backend="eager")(x)
    assert type(got) is type(expected)
    assert_close(merge(got), merge(expected))


def test_compiled_with_sizes_that_change():
    model = Block().eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for size in (12, 13, 21):
        x = torch.randn(2, 8, size, size + 3)
        assert_close(compiled(x), model(x))


def test_an_octave_goes_in_and_out_of_a_compiled_function():
    conv = OctConv2d(8, 8, 3, padding=1)
    x = drop(torch.randn(1, 8, 7, 6), 2)
    y, expected = torch.compile(conv, fullgraph=True, backend="aot_eager")(x), conv(x)
    assert isinstance(y, Octave)
    assert_close(merge(y), merge(expected))


@pytest.mark.parametrize("case", CASES)
def test_exported_equals_eager(case):
    model, x = CASES[case]()
    program = torch.export.export(model.eval(), (x,))
    assert_close(program.module()(x), model(x))


def test_exported_with_a_free_batch():
    model = build().eval()
    program = torch.export.export(model, (pictures(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for batch in (1, 5):
        assert_close(program.module()(pictures(batch)), model(pictures(batch)))


def test_an_octave_crosses_the_border_of_an_exported_program(tmp_path):
    conv = OctConv2d(8, 8, 3, padding=1)
    x = drop(torch.randn(1, 8, 7, 6), 2)
    torch.export.save(torch.export.export(conv, (x,)), tmp_path / "conv.pt2")
    y = torch.export.load(tmp_path / "conv.pt2").module()(x)
    assert isinstance(y, Octave)
    assert_close(merge(y), merge(conv(x)))


# ---- precision and memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_autocast_to_bfloat16(case):
    model, x = CASES[case]()
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        out.float().square().mean().backward()
    expected = model(x)
    assert (out - expected).norm() < 0.05 * expected.norm()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_autocast_keeps_both_parts_in_one_precision():
    for alpha in (0.5, 1):
        with torch.autocast("cpu", torch.bfloat16):
            y = OctConv2d(8, 8, 1, alpha=alpha)(drop(torch.randn(1, 8, 4, 4), 8))
        assert y.high.dtype == y.low.dtype == merge(y).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    model = build().eval()
    expected = model(pictures())
    out = model.to(dtype)(pictures().to(dtype))
    assert out.dtype == dtype
    assert (out.float() - expected).norm() < (1e-5 if dtype == torch.float64 else 0.05) * expected.norm()


@pytest.mark.parametrize("case", CASES)
def test_channels_last_gives_the_same_values(case):
    model, x = CASES[case]()
    expected, gradients = run(copy.deepcopy(model), x)
    out, others = run(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        assert_close(others[name], gradient, rtol=1e-3, atol=1e-4)


def test_channels_last_stays_channels_last():
    layer = OctConv2d(8, 16, 3, padding=1).to(memory_format=torch.channels_last)
    y = layer(
        layer(torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last)).map(
            lambda p: p[:, ::2].contiguous(memory_format=torch.channels_last)
        )
    )
    for part in (y.high, y.low):
        assert part.is_contiguous(memory_format=torch.channels_last)


# ---- checkpointing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "regnetx_002"])
def test_checkpointing_gives_the_same_gradients(name):
    model = build(name)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    (out, gradients), (got, others) = run(model, pictures()), run(other, pictures())
    assert_close(got, out)
    for key, gradient in gradients.items():
        assert_close(others[key], gradient)


def test_an_octave_crosses_the_border_of_a_checkpoint():
    conv, x = OctConv2d(8, 8, 3, padding=1), torch.randn(1, 8, 7, 6, requires_grad=True)
    gradients = []
    for f in (conv, lambda y: checkpoint(conv, y, use_reentrant=False)):
        merge(f(drop(x, 2))).square().sum().backward()
        gradients.append((x.grad, conv.weight.grad))
        x.grad = conv.weight.grad = None
    assert_close(*gradients)


# ---- many processes ------------------------------------------------------------------------------------------------

DDP = """
import sys, torch, timm
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from octzoo import octavize

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(rank)  # DDP gives both processes the parameters of the first
model = octavize(timm.create_model("resnet10t", num_classes=10), 0.5).double().eval()
model.load_state_dict(torch.load(f"{folder}/state.pt")) if rank == 0 else None
x = torch.load(f"{folder}/x.pt")
ddp = DistributedDataParallel(model)
for _ in range(2):  # the second step would fail if a parameter had been left without a gradient
    model.zero_grad()
    ddp(x[2 * rank : 2 * rank + 2]).square().mean().backward()
torch.save({n: p.grad for n, p in model.named_parameters()}, f"{folder}/gradients{rank}.pt")
dist.destroy_process_group()
"""


def test_two_ddp_processes_give_the_gradients_of_one_on_the_joint_batch(tmp_path):
    model, x = build().double().eval(), pictures(4).double()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(x, tmp_path / "x.pt")
    run_two(["-c", DDP], tmp_path)
    model(x).square().mean().backward()
    for rank in range(2):
        gradients = torch.load(tmp_path / f"gradients{rank}.pt")
        for name, parameter in model.named_parameters():
            assert isinstance(gradients[name], Tensor)
            assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)
