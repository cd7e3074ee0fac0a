"""`octzoo bench model`: every engine computes what eager mode computes, and what is measured is measured in turns."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

import octzoo_cli
from octzoo import octavize
from octzoo.cli import bench_model
from octzoo.deploy import bench, engines
from octzoo.deploy.bench import Entry, entries, in_turns, measure, random_network
from octzoo.deploy.engines import ENGINES, TRAINING, Setting, Step, engine
from octzoo.deploy.memory import peak_bytes
from octzoo.deploy.speed import read
from octzoo.errors import RunError, UserError
from octzoo.models.catalogue import catalogue

NETWORK, PEER = "oct_cifar_resnet20_a0.25", "oct_cifar_resnet20_a0.0"
SETTING = Setting(batch=2, size=(3, 16, 16), threads=1)


class Small(nn.Module):
    """Both strides, both kinds of norm, a shortcut and a head, in few operations."""

    pretrained_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.last = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = self.first(self.stem(x))
        return self.head(self.last(torch.relu(self.second(x) + x)).mean((2, 3)))


def small(alpha=0.5):
    """With norms that are not the identity."""
    torch.manual_seed(0)
    model = octavize(Small(), alpha, [("stem.*", "plain"), ("last.*", "zero"), ("*", "octave")])
    model.train()(torch.randn(8, 3, 16, 16))
    return model


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch.compiler.reset()


# ---- engines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [mode for mode in ENGINES if mode != "compile"])
def test_every_engine_gives_the_outputs_of_the_network(mode):
    model = small()
    expected = model.eval()(SETTING.pictures())
    ready = ENGINES[mode](model, SETTING)
    for _ in range(2):
        assert_close(torch.as_tensor(ready.run()), expected, rtol=1e-4, atol=1e-5)
    assert ready.seconds > 0


def test_the_compiled_network_gives_them_too_and_its_weights_are_frozen(monkeypatch):
    model = small().eval()
    expected = model(SETTING.pictures())
    monkeypatch.setattr(engines, "fuse", lambda model: model)  # so that its weights are at hand
    ready = ENGINES["compile"](model, SETTING)
    assert_close(ready.run(), expected, rtol=1e-4, atol=1e-5)
    for convolution in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        convolution.weight.data.zero_()  # the compiler has its own copies, packed
    assert_close(ready.run(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "other"),
    [
        ("eager", dict(channels_last=False)),
        ("eager", dict(precision="bfloat16")),
        ("openvino", dict(precision="bfloat16")),
    ],
)
def test_layout_and_precision_change_the_outputs_by_rounding_only(mode, other):
    model = small()
    expected = model.eval()(SETTING.pictures())
    out = ENGINES[mode](model, Setting(2, (3, 16, 16), 1, **other)).run()
    assert_close(torch.as_tensor(out).float(), expected, rtol=0.05, atol=0.05)


def test_a_step_in_bfloat16_leaves_weights_in_float32():
    step = Step(small(), Setting(2, (3, 16, 16), 1, precision="bfloat16"))
    step()
    assert {p.dtype for p in step.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", TRAINING)
def test_a_training_step_changes_every_weight_as_a_bare_loop_does(mode):
    model, other = small(), small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ready = TRAINING[mode](model, SETTING)  # it has run once
    ready.run()
    optimizer = torch.optim.SGD(other.train().parameters(), lr=1e-3, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(SETTING.pictures()), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert_close(model.state_dict(), other.state_dict(), rtol=1e-3, atol=1e-5)
    assert all((p != before[name]).any() for name, p in model.named_parameters())


def test_the_command_names_the_engines_that_there_are():
    assert list(ENGINES) == bench_model.MODES
    assert list(TRAINING) == bench_model.TRAINING_MODES


class Breaks(Small):
    """Its graph depends on a value."""

    def forward(self, x):
        return super().forward(x) if x.sum().item() > 1e9 else super().forward(2 * x)


def test_a_graph_break_is_an_error_that_names_mode_and_network(monkeypatch):
    monkeypatch.setattr(bench, "random_network", lambda name, size: Breaks())
    one = Entry("breaks", "breaks", (3, 16, 16), 1)
    with pytest.raises(RunError, match="^mode compile, training: breaks does not run: "):
        measure([one], "compile", True, dict(batch=2, threads=1))


def test_what_an_engine_cannot_is_said():
    with pytest.raises(UserError, match="mode 'fussed': no such engine for inference; there are eager, fused, comp"):
        engine("fussed", train=False)
    with pytest.raises(UserError, match="mode 'onnx': no such engine for training; there are eager, compile$"):
        engine("onnx", train=True)
    with pytest.raises(UserError, match="mode onnx computes in float32 only; leave it out where precision is bfloat16"):
        engine("onnx", train=False, precision="bfloat16")


# ---- turns ---------------------------------------------------------------------------------------------------------


def test_networks_take_turns_and_another_one_begins_each_round():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}

    def clock(run, times):
        run()
        return 1.0 * times

    assert in_turns(runs, rounds=4, warm_up=2, clock=clock) == {name: [1.0] * 4 for name in "abc"}
    assert "".join(calls) == "abcabc" + "abc" + "bca" + "cab" + "abc"


def test_a_quick_run_fills_its_turn_and_a_slow_one_runs_once():
    cost, turns = {"quick": 0.004, "slow": 2.0}, []

    def clock(run, times):
        turns.append((run(), times))
        return cost[run()] * times

    found = in_turns({name: lambda name=name: name for name in cost}, rounds=1, warm_up=1, clock=clock)
    assert turns == [("quick", 1), ("slow", 1), ("quick", 13), ("slow", 1)]
    assert found == {"quick": [pytest.approx(0.004)], "slow": [2.0]}


def test_a_measurement_has_a_time_a_round_for_every_network_and_leaves_the_threads_as_they_were():
    found = entries([NETWORK])
    torch.set_num_threads(2)
    results = measure(found, "eager", False, dict(batch=1, threads=1), rounds=3)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert [(m.network, m.peer, len(m.seconds)) for m in results] == [(PEER, PEER, 3), (NETWORK, PEER, 3)]
    model = timm.create_model(NETWORK)
    assert {m.held_bytes for m in results} == {sum(t.nbytes for t in [*model.parameters(), *model.buffers()])}


# ---- networks ------------------------------------------------------------------------------------------------------


def test_networks_come_with_their_peers_once_and_the_arithmetic_of_the_catalogue():
    names = ["oct_cifar_resnet20_a0.5", NETWORK, PEER]
    counted = {f"{e.network}_a{e.alpha}": e.macs for e in catalogue() if e.size == 32}
    found = entries(names)
    assert [(e.name, e.peer, e.macs) for e in found] == [
        (name, PEER, counted[name]) for name in (PEER, "oct_cifar_resnet20_a0.5", NETWORK)
    ]


def test_a_network_by_surgery_is_beside_the_plain_one_of_the_same_weights():
    found = entries(["resnet10t@0.5"], image_size=64)
    assert [(e.name, e.peer, e.size) for e in found] == [
        ("resnet10t", "resnet10t", (3, 64, 64)),
        ("resnet10t@0.5", "resnet10t", (3, 64, 64)),
    ]
    assert found[1].macs < found[0].macs
    ours, plain = (random_network(e.name, e.size) for e in found[::-1])
    for (name, p), (_, q) in zip(ours.named_parameters(), plain.named_parameters()):
        assert_close(p, q, msg=name)


def test_vs_is_the_peer_of_all():
    assert {(e.name, e.peer) for e in entries([NETWORK, "resnet10t"], "resnet18", 32)} == {
        ("resnet18", "resnet18"),
        (NETWORK, "resnet18"),
        ("resnet10t", "resnet18"),
    }


def test_norms_of_random_networks_let_everything_through():
    model = random_network("resnet10t@0.5", (3, 64, 64))
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    for norm in norms:
        assert norm.weight.abs().min() > 0.1
        assert norm.running_var.min() > 0.1
        assert norm.momentum == 0.1
    assert any((norm.running_mean != 0).any() for norm in norms)
    assert_close(model.state_dict(), random_network("resnet10t@0.5", (3, 64, 64)).state_dict())


# ---- memory --------------------------------------------------------------------------------------------------------


def test_the_peak_is_of_what_lives_at_once():
    x = torch.zeros(1 << 20)  # 4 MiB

    def run():
        y = x + 1
        z = y + 1
        del y
        z += 1

    assert peak_bytes(run) == pytest.approx(2 * x.nbytes, abs=1000)
    assert peak_bytes(lambda: x.add_(1)) < 1000


def test_training_takes_less_memory_the_higher_alpha_is():
    peaks = []
    for alpha in (0.0, 0.25, 0.5, 0.75):
        step = Step(small(alpha), Setting(16, (3, 64, 64), 1))
        step()
        peaks.append(peak_bytes(step))
        assert peak_bytes(step) == peaks[-1]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.8 * peaks[0]


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys, *arguments):
    """Exit code, and what stands on stderr, of the command run in this process."""
    try:
        code = octzoo_cli.main(["bench", "model", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


MISTAKES = {
    "unknown network": (["oct_cifar_resnet2_a0.25"], "error: no network 'oct_cifar_resnet2_a0.25'; did you mean "),
    "unknown peer": ([NETWORK, "--vs", "resnet5"], "error: no network 'resnet5'; did you mean "),
    "no alpha": (["resnet10t@half"], "error: 'resnet10t@half': 'half' behind the @ is not alpha, a number from 0 to 1"),
    "no peer": (["resnet10t"], "error: resnet10t has no octaves, so no peer: name one that has, or --vs NAME"),
    "unknown engine": (
        [NETWORK, "--mode", "eager", "tvm"],
        "error: mode 'tvm': no such engine for inference; there are",
    ),
    "engine that cannot train": ([NETWORK, "--train", "--mode", "fused"], "error: mode 'fused': no such engine for tr"),
    "no batch": ([NETWORK, "--batch", "8", "0"], "error: --batch 0 is less than 1"),
    "no pictures": ([NETWORK, "--image-size", "0"], "error: --image-size 0 is less than 1"),
    "no threads": ([NETWORK, "--threads", "-1"], "error: --threads -1 is less than 1"),
    "no rounds": ([NETWORK, "--rounds", "0"], "error: --rounds 0 is less than 1"),
    "no folder": ([NETWORK, "--json", "gone/x.json"], "error: --json gone/x.json: no such folder"),
    "two sizes": (
        [NETWORK, "--vs", "resnet18"],
        "error: oct_cifar_resnet20_a0.25 takes pictures of 32x32 and resnet18 of 224x224: give both --image-size",
    ),
    "unknown flag": (
        [NETWORK, "--fast"],
        "error: unrecognized arguments: --fast (octzoo bench model --help tells",
    ),
    "no GPU": (
        [NETWORK, "--device", "cuda"],
        "error: device cuda: PyTorch finds none here; leave it out",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake, here, capsys):
    if mistake == "no GPU" and torch.cuda.is_available():
        return
    arguments, text = MISTAKES[mistake]
    code, error = told(capsys, *arguments)
    assert code == 2
    assert error.startswith(text)
    assert error.count("\n") == 1
    assert list(here.iterdir()) == []


def test_one_call_measures_engines_and_batches_into_one_file(here, capsys):
    arguments = [NETWORK, "--mode", "eager", "fused", "--batch", "2", "1", "--rounds", "2", "--threads", "1"]
    assert octzoo_cli.main(["bench", "model", *arguments]) == 0
    printed = capsys.readouterr().out
    facts, results = read(here / "bench_model.json")
    assert [(m.mode, m.batch, m.network) for m in results] == [
        (mode, batch, name) for mode in ("eager", "fused") for batch in (2, 1) for name in (PEER, NETWORK)
    ]
    assert printed.count(NETWORK) == 4
    assert facts["finished"] is True
    assert facts["command"] == " ".join(["octzoo bench model", *arguments])
    assert facts["settings"]["threads"] == 1
    assert facts["packages"]["onnxruntime"]
    text = (here / "bench_model.json").read_text()
    assert str(here) not in text
    assert os.uname().nodename not in text.replace(facts["system"], "")
    with Image.open(here / "bench_model.png") as picture:
        shown = json.loads(picture.text["Description"])
    assert [len(engines) for engines in shown.values()] == [2, 2]  # a panel a batch size, a line an engine


def test_what_was_measured_before_an_engine_failed_is_kept(here, capsys, monkeypatch):
    def fails(model, setting):
        raise RuntimeError("no such\nnode")

    monkeypatch.setitem(engines.ENGINES, "fused", fails)
    code, error = told(capsys, NETWORK, "--mode", "eager", "fused", "--batch", "1", "--rounds", "1")
    assert (code, error.splitlines()[-1]) == (1, f"error: mode fused: {PEER} does not run: no such node")
    facts, results = read(here / "bench_model.json")
    assert facts["finished"] is False
    assert [m.mode for m in results] == ["eager", "eager"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(tmp_path):
    command = [sys.executable, str(Path(octzoo_cli.__file__)), "bench", "model", NETWORK, "--threads", "1"]
    more = ["--mode", "eager", "fused", "--batch", "1", "--rounds", "40"]
    with subprocess.Popen(
        [*command, *more], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        for line in process.stderr:
            if line.startswith(b"fused, batch 1: 2 + 40 rounds"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert (process.returncode, rest) == (130, b"interrupted\n")
    facts, results = read(tmp_path / "bench_model.json")
    assert facts["finished"] is False
    assert {m.mode for m in results} == {"eager"}
    assert {path.name for path in tmp_path.iterdir()} == {"bench_model.json", "bench_model.png"}
