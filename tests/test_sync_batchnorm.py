"""sync_batchnorm: two real processes with unequal batches compute what one does on the whole batch."""

import sys

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.testing import assert_close

from octzoo import sync_batchnorm
from octzoo.octave import Octave, drop
from tests.processes import run_two

MAKE = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(6),
    "BatchNormAct2d": lambda: BatchNormAct2d(6, act_layer=nn.SiLU, inplace=False),
    "momentum None": lambda: nn.BatchNorm2d(6, momentum=None),
    "affine False": lambda: nn.BatchNorm2d(6, affine=False),
    "bias False": lambda: nn.BatchNorm2d(6, bias=False),
    "without statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
}
LOW = {"Tensor": 0, "Octave": 2, "all low": 6}
STEPS = 2
BATCHES = [slice(0, 2), slice(2, 5)]  # unequal
WHOLE = slice(0, 5)


def make(kind):
    """A norm in float64, no parameter or statistic of which is that of a fresh one."""
    torch.manual_seed(3)
    norm = MAKE[kind]().double()
    with torch.no_grad():
        for t in norm.state_dict().values():
            if t.is_floating_point():
                t.uniform_(0.5, 1.5)
    return norm


def pictures(step):
    generator = torch.Generator().manual_seed(step)
    return 3 * torch.randn(5, 6, 5, 4, generator=generator, dtype=torch.float64) + 100


def train(norm, low, batch):
    """Two steps on a part of the pictures: outputs and input gradients, then statistics and parameter gradients."""
    record = []
    for step in range(STEPS):
        x = pictures(step)[batch].requires_grad_()
        y = norm(drop(x, low))
        tensors = [p for p in (y.high, y.low) if p.shape[1]] if isinstance(y, Octave) else [y]
        sum((t.sin() * t).sum() for t in tensors).backward()
        record.append([t.detach() for t in tensors] + [x.grad])
    norm.eval()
    return record, {n: b.clone() for n, b in norm.named_buffers()}, [p.grad for p in norm.parameters()]


def main(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {
        (k, w): train(sync_batchnorm(nn.Sequential(make(k)))[0], c, BATCHES[rank]) for k in MAKE for w, c in LOW.items()
    }
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What both ranks got for every kind of norm and of input."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two(["-m", "tests.test_sync_batchnorm"], folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("what", LOW)
@pytest.mark.parametrize("kind", MAKE)
def test_two_processes_are_one_on_the_whole_batch(two_processes, kind, what):
    """One process: two independent plain norms of sliced parameters, so nothing of ours is in the expectation."""
    (first, second), low = (results[kind, what] for results in two_processes), LOW[what]
    x_steps, plain = [pictures(step).requires_grad_() for step in range(STEPS)], make(kind)
    close = {"rtol": 1e-10, "atol": 1e-10}
    cuts = [cut for cut in (slice(0, 6 - low), slice(6 - low, 6)) if cut.stop > cut.start]
    parts = [part_of(plain, kind, cut) for cut in cuts]
    for step, x in enumerate(x_steps):
        y = drop(x, low)
        inputs = [p for p in (y.high, y.low) if p.shape[1]] if isinstance(y, Octave) else [y]
        outputs = [part(p) for part, p in zip(parts, inputs)]
        sum((t.sin() * t).sum() for t in outputs).backward()
        for *got, gradient, batch in ((*first[0][step], BATCHES[0]), (*second[0][step], BATCHES[1])):
            for actual, expected in zip(got, outputs):
                assert_close(actual, expected[batch].detach(), **close)
            assert_close(gradient, x.grad[batch], **close)
    for name in first[1]:
        expected = [dict(part.named_buffers())[name] for part in parts]
        expected = torch.cat(expected) if expected[0].ndim else expected[0]
        assert_close(first[1][name], expected, **close)
        assert torch.equal(first[1][name], second[1][name])
    parameters = [torch.cat([p.grad for p in ps]) for ps in zip(*(part.parameters() for part in parts))]
    for mine, theirs, expected in zip(first[2], second[2], parameters):
        assert_close(mine + theirs, expected, **close)
    assert len(first[2]) == len(parameters)


def part_of(plain, kind, cut):
    """A plain norm that holds a slice of another's parameters and statistics."""
    part = make(kind)
    for name, t in plain.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        module = part.get_submodule(owner)
        old = getattr(module, leaf)
        value = t[cut].clone() if t.ndim else t.clone()
        setattr(module, leaf, nn.Parameter(value) if isinstance(old, nn.Parameter) else value)
    return part


def test_eval_needs_no_other_process(two_processes):
    """A synchronised norm in eval mode is the plain one."""
    plain = make("BatchNorm2d").eval()
    synced = sync_batchnorm(nn.Sequential(make("BatchNorm2d")))[0].eval()
    assert torch.equal(synced(pictures(0)), plain(pictures(0)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
