"""Where the time goes: every operation belongs to a layer and a kind of work, and nothing is lost or counted twice."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from octzoo import Octave, OctConv2d, drop, merge, octavize
from octzoo.cli.profile import main
from octzoo.deploy.ceilings import Ceilings, measure
from octzoo.deploy.profile import Profile, Row, by_kind, is_path, multiplies, operations, profile, total
from octzoo.deploy.profile_picture import draw
from octzoo.deploy.profile_report import as_dict, by_kind_table, from_dict, layer_table, sentences
from octzoo.errors import UserError
from octzoo.fused import fuse
from octzoo.models.named import build
from octzoo.octave import pool
from octzoo.summary import stages

ROOT = Path(__file__).parents[2]
NETWORK = "test_resnet.r160_in1k@0.25"
CEILINGS = Ceilings(1e9, "made up", ((1000, 4e9), (1_000_000, 1e9)))


def network(name: str) -> nn.Module:
    return build(name).eval()


def pictures(batch: int = 1, size: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


def convolutions(done) -> dict[str, tuple[int, int]]:
    """Path -> multiply-accumulates and parameters."""
    found: dict[str, list] = {}
    for each in done:
        if is_path(each.kind):
            found.setdefault(each.kind, []).append((each.macs, each.parameters))
    return {kind: tuple(map(sum, zip(*costs))) for kind, costs in found.items()}


# ---- paths ---------------------------------------------------------------------------------------------------------


def equation_4(layer: OctConv2d, low_in: int, size: int) -> dict[str, tuple[int, int]]:
    """What the paper's equation says: multiply-accumulates and numbers of the weight, path by path."""
    k, g, size = layer.kernel_size[0] ** 2, layer.groups, -(-size // layer.stride[0])
    rows = {"h": layer.out_channels - layer.low_out, "l": layer.low_out}
    columns = {"h": layer.in_channels - low_in, "l": low_in}
    if layer.groups == layer.in_channels:  # depthwise: no exchange
        numbers = {f"{part}2{part}": rows[part] * k for part in "hl"}
    else:
        numbers = {f"{a}2{b}": rows[b] * columns[a] // g * k for a in "hl" for b in "hl"}
    pixels = {"h2h": size, "h2l": size // 2, "l2h": size // 2 if layer.stride[0] == 1 else size, "l2l": size // 2}
    return {path: (n * pixels[path] ** 2, n) for path, n in numbers.items() if n}


LAYERS = {
    "a quarter": (dict(in_channels=16, out_channels=32, kernel_size=3, padding=1), 4),
    "both halves of one width": (dict(in_channels=16, out_channels=16, kernel_size=3, padding=1, alpha=0.5), 8),
    "first": (dict(in_channels=16, out_channels=16, kernel_size=1, alpha=0.5), 0),
    "last": (dict(in_channels=16, out_channels=16, kernel_size=1, alpha=0), 8),
    "all low": (dict(in_channels=16, out_channels=8, kernel_size=3, padding=1, alpha=1), 16),
    "pooled": (dict(in_channels=16, out_channels=16, kernel_size=3, padding=1, stride=2, alpha=0.5), 8),
    "strided": (dict(in_channels=8, out_channels=8, kernel_size=3, padding=1, stride=2, stride_mode="conv"), 2),
    "grouped": (dict(in_channels=16, out_channels=16, kernel_size=3, padding=1, groups=4), 4),
    "depthwise": (dict(in_channels=16, out_channels=16, kernel_size=3, padding=1, groups=16, alpha=0.5), 8),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layers_paths_cost_what_equation_4_says(layer):
    arguments, low = LAYERS[layer]
    conv = OctConv2d(**arguments, bias=False)
    n, size = conv.in_channels, 8
    x = Octave(torch.randn(1, n - low, size, size), torch.randn(1, low, size // 2, size // 2))
    done = operations(nn.Sequential(conv), x if low else torch.randn(1, n, size, size))
    expected, found = equation_4(conv, low, size), convolutions(done)
    # One convolution may serve several paths: "l2h+l2l".
    assert sorted("+".join(found).split("+")) == sorted(expected)
    for label, costs in found.items():
        assert costs == tuple(map(sum, zip(*(expected[path] for path in label.split("+"))))), label
    assert sum(parameters for _, parameters in found.values()) == conv.weight.numel()


def test_an_exchange_path_that_is_off_is_not_there():
    conv = OctConv2d(16, 16, 1, alpha=0.5, h2l=False)
    x = Octave(torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4))
    assert set("+".join(convolutions(operations(nn.Sequential(conv), x))).split("+")) == {"h2h", "l2h", "l2l"}


def test_a_plain_network_has_only_high_to_high():
    assert set(convolutions(operations(network("test_resnet.r160_in1k"), pictures()))) == {"h2h"}


class Merges(nn.Module):
    """A module that is given an octave and convolves the merged map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3)

    def forward(self, x: Octave) -> torch.Tensor:
        return self.conv(merge(x))


def test_plain_convolutions_beside_octaves_are_high_to_high():
    done = operations(nn.Sequential(OctConv2d(16, 16, 1, alpha=0.5), Merges()), torch.randn(1, 16, 8, 8))
    assert {each.kind for each in done if each.layer == "1.conv" and each.macs} == {"h2h"}
    squeezed = [each for each in operations(network("test_efficientnet@0.5"), pictures()) if ".se.conv" in each.layer]
    assert {each.kind for each in squeezed if each.macs} == {"h2h"}


class Chain(nn.Module):
    """Convolves twice, then makes an octave of it, whose parts both hold what the first convolution gave."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.first, self.second, self.inside = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), inside

    def forward(self, x: torch.Tensor) -> torch.Tensor | Octave:
        if not self.inside:
            return drop(self.second(self.first(x)), 4)
        y = F.conv2d(F.conv2d(x, self.first.weight), self.second.weight[:4])
        return Octave(y, F.conv2d(pool(y), self.second.weight[4:, :4]))


def test_a_convolution_before_another_is_high_to_high():
    apart, inside = (operations(nn.Sequential(Chain(inside)), pictures(size=8)) for inside in (False, True))
    assert [(e.layer, e.kind) for e in apart if e.macs] == [("0.first", "h2h"), ("0.second", "h2h")]
    assert [(e.layer, e.kind) for e in inside if e.macs] == [("0", "h2h"), ("0", "h2h"), ("0", "h2l")]


# ---- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [NETWORK, "test_resnet.r160_in1k", "oct_cifar_resnet20_a0.25", "test_efficientnet@0.5"]
)
def test_counts_are_the_summarys(name):
    rows, size = stages(build(name, device="meta"), 64), 64
    done = operations(network(name), pictures(size=size))
    assert sum(each.macs for each in done) == sum(stage.macs for stage in rows)
    assert sum(each.parameters for each in done) == sum(p.numel() for p in build(name).parameters())


def test_a_layer_that_is_called_twice_has_its_parameters_once():
    layer = nn.Conv2d(3, 3, 1)
    done = [e for e in operations(nn.Sequential(layer, layer), pictures(size=8)) if e.macs]
    assert [(e.macs, e.parameters) for e in done] == [(9 * 64, 12), (9 * 64, 0)]


def test_a_weight_that_is_standardised_first_counts_where_it_convolves():
    model = network("test_nfnet@0.25")
    done = operations(model, pictures())
    assert sum(each.parameters for each in done) == sum(p.numel() for p in model.parameters())
    assert sum(macs for macs, _ in convolutions(done).values()) == sum(e.macs for e in done if e.kind != "linear")


def test_a_second_picture_doubles_all_but_the_weights():
    one, two = (operations(network(NETWORK), pictures(batch)) for batch in (1, 2))
    assert [(e.layer, e.kind, 2 * e.macs, e.parameters, 2 * e.written) for e in one] == [
        (e.layer, e.kind, e.macs, e.parameters, e.written) for e in two
    ]
    weights = [2 * a.moved - b.moved for a, b in zip(one, two)]
    read = [4 * e.parameters for e in one]  # float32; a norm reads its statistics too
    assert all(w == r for w, r, e in zip(weights, read, one) if is_path(e.kind) and e.parameters)


def test_fusing_keeps_the_arithmetic_and_takes_the_norms():
    model = network(NETWORK)
    before, after = (operations(each, pictures()) for each in (model, fuse(model)))
    macs = [{kind: costs[0] for kind, costs in convolutions(done).items()} for done in (before, after)]
    assert macs[0] == macs[1]
    assert "norm" in {e.kind for e in before}
    assert "norm" not in {e.kind for e in after}


def test_views_and_changes_in_place_are_told_apart():
    model = nn.Sequential(nn.Flatten(2), nn.ReLU(inplace=True), nn.ReLU())
    done = operations(model, torch.randn(1, 3, 4, 4))
    sizes = [(e.name, e.kind, e.written, e.moved) for e in done]
    assert sizes == [
        ("view", "view", 0, 0),
        ("relu_", "activation", 4 * 48, 8 * 48),
        ("relu", "activation", 4 * 48, 8 * 48),
    ]


# ---- time ----------------------------------------------------------------------------------------------------------


class Counted(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_every_operation_of_a_pass_is_in_one_row():
    model, x = network(NETWORK), pictures()
    found = profile({"it": model}, x, CEILINGS, rounds=3)["it"]
    with torch.no_grad(), Counted() as counted:
        model(x)
    whole, kinds = total(found.rows), by_kind(found.rows)
    assert whole.calls == counted.calls == sum(row.calls for row in kinds)
    for figure in ("macs", "parameters", "written", "moved", "ms", "bound"):
        assert sum(getattr(row, figure) for row in kinds) == pytest.approx(getattr(whole, figure))
    assert len({(row.layer, row.kind) for row in found.rows}) == len(found.rows)
    assert all(row.ms > 0 for row in found.rows)
    assert len(found.passes) == 3


class Changes(nn.Module):
    """One more operation at every pass."""

    passes = 0

    def forward(self, x):
        self.passes += 1
        for _ in range(self.passes):
            x = x + 1
        return x


def test_a_network_that_changes_cannot_be_profiled():
    with pytest.raises(UserError, match="fickle cannot be profiled: its operations differ from pass to pass"):
        profile({"fickle": Changes()}, pictures(), CEILINGS, rounds=1)


def test_the_bound_is_the_slower_of_arithmetic_and_memory_at_a_size_that_was_measured():
    assert CEILINGS.seconds(2_000_000, 0) == 0.002
    assert CEILINGS.seconds(0, 4000) == 4000 / 4e9
    assert CEILINGS.seconds(0, 2_000_000) == 0.002
    assert CEILINGS.seconds(1, 10) == 10 / 4e9  # smaller than any: as fast as the fastest


def test_ceilings_are_measured():
    found = measure(torch.device("cpu"), ((1, 16, 8), (3, 16, 8)), (2**12, 2**16))
    assert found.fastest in ("1x1, 16 channels, 8x8", "3x3, 16 channels, 8x8")
    assert [size for size, _ in found.bandwidth] == [2**12, 2**16]
    assert all(rate > 0 for rate in (found.macs, *(rate for _, rate in found.bandwidth)))
    assert found.rate(2**12) >= found.rate(2**16)


# ---- what is said of it --------------------------------------------------------------------------------------------

PLAIN = Profile(
    (
        Row("a", "h2h", 1, 1000, 10, 8, 16, 8.0, 4.0),
        Row("b", "norm", 1, 0, 2, 8, 16, 1.0, 0.5),
        Row("c", "view", 3, 0, 0, 0, 0, 0.5, 0.0),
    ),
    (9.9, 10.0, 10.3),
)
OCTAVE = Profile(
    (
        Row("a", "h2h", 1, 500, 5, 6, 12, 4.4, 2.0),
        Row("a", "l2h+l2l", 1, 250, 5, 2, 4, 3.0, 1.0),
        Row("a", "pooling", 1, 0, 0, 2, 8, 1.5, 0.25),
        Row("b", "norm", 2, 0, 2, 8, 16, 1.0, 0.5),
    ),
    (10.0, 11.0, 12.0),
)


def test_sentences_say_why():
    assert sentences({"oct": OCTAVE, "plain": PLAIN}) == [
        "oct takes 1.10 of the time of plain (11.0 against 10.0 ms a batch) for 0.75 of its arithmetic.",
        "Convolutions and matrix products take 0.93 of the peer's (7.4 against 8.0 ms); everything else went from 2.0 "
        "to 3.6 ms: pooling +1.5, between operations +0.6, view -0.5.",
        "For the same arithmetic its h2h convolutions take 1.10 of the peer's time, the other paths 1.50.",
        "At this machine's ceilings these operations take 0.83 of the peer's at least (3.8 against 4.5 ms), and 0.75 "
        "(3.0 against 4.0 ms) if every other pass over memory became part of a convolution.",
    ]
    assert sentences({"plain": PLAIN})[0] == (
        "plain takes 10.0 ms a batch: convolutions and matrix products 8.0, everything else 2.0 (norm 1.0, view 0.5, "
        "between operations 0.5)."
    )


def test_a_disturbed_measurement_says_so():
    steady, disturbed = PLAIN._replace(passes=(10.0, 10.1, 10.2, 10.3)), PLAIN._replace(passes=(10.0, 10.0, 14.0, 14.0))
    assert sentences({"a": steady, "b": disturbed})[-1] == (
        "Something else ran on this machine (b: quartiles 10.0 and 14.0 ms): measure again."
    )
    assert not any("measure again" in line for line in sentences({"a": steady, "b": steady}))


def test_tables_have_a_row_for_each_kind_and_each_layer():
    head, *rows, whole = by_kind_table(OCTAVE)
    assert [row[0] for row in rows] == ["h2h", "l2h+l2l", "norm", "pooling"]
    assert {len(row) for row in (head, *rows, whole)} == {len(head)}
    assert [row[:2] for row in layer_table(PLAIN)[1:]] == [["a", "h2h"], ["b", "norm"], ["all", ""]]


def test_a_file_gives_back_what_was_measured():
    profiles = {"oct": OCTAVE, "plain": PLAIN}
    assert from_dict(json.loads(json.dumps(as_dict(profiles, CEILINGS)))) == (profiles, CEILINGS)


def test_the_picture_has_bars_of_arithmetic_bound_and_time():
    (axes,) = draw({"oct": OCTAVE, "plain": PLAIN}, "made up").axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{measure}   {name}" for measure in ("arithmetic", "bound", "time") for name in ("plain", "oct")]
    ends = {
        bar.get_y(): max(b.get_x() + b.get_width() for b in axes.patches if b.get_y() == bar.get_y())
        for bar in axes.patches
    }
    assert list(ends.values()) == pytest.approx([100, 75, 100, 3.75 / 4.5 * 100, 100, 110])


def test_the_docs_are_what_was_measured():
    subprocess.run([sys.executable, str(ROOT / "docs" / "make_profile.py"), "--check"], check=True)


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_tables_and_reasons_and_writes_files(tmp_path):
    run = "import sys; from octzoo.cli.profile import main; sys.exit(main(sys.argv[1:]))"
    words = ["profile", NETWORK, "--batch", "1", "--image-size", "64", "--rounds", "2", "--layers", "--fused"]
    files = ["--json", str(tmp_path / "it.json"), "--picture", str(tmp_path / "it.png")]
    done = subprocess.run([sys.executable, "-c", run, *words, "--threads", "1", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first == "1x3x64x64, float32, channels last, fused, cpu, 1 thread, medians of 2"
    assert second.startswith("ceilings, measured here: ")
    for part in ("layer1.0.conv2", "l2h+l2l", "test_resnet.r160_in1k: a whole pass takes", "of its arithmetic."):
        assert part in done.stdout
    text = (tmp_path / "it.json").read_text()
    facts = json.loads(text)
    assert facts["command"] == (f"octzoo profile {NETWORK} --batch 1 --image-size 64 --threads 1 --rounds 2 --fused")
    assert str(tmp_path) not in text
    assert platform.node() not in text
    profiles, _ = from_dict(facts)
    assert list(profiles) == [NETWORK, "test_resnet.r160_in1k"]
    macs = [total(found.rows).macs for found in profiles.values()]
    assert macs == [sum(s.macs for s in stages(build(name, device="meta"), 64)) for name in profiles]
    assert all(multiplies(row) == bool(row.macs) for found in profiles.values() for row in found.rows)
    assert Image.open(tmp_path / "it.png").format == "PNG"


MISTAKES = {
    "unknown network": (["resnet5"], "error: no network 'resnet5'; did you mean 'resnet50'?"),
    "unknown peer": (
        ["test_resnet", "--vs", "test_resnett"],
        "error: no network 'test_resnett'; did you mean 'test_resnet'?",
    ),
    "no pictures": (["resnet50", "--batch", "0"], "error: --batch 0 is less than 1"),
    "no rounds": (["resnet50", "--rounds", "-1"], "error: --rounds -1 is less than 1"),
    "not a number": (
        ["resnet50", "--image-size", "big"],
        "error: argument --image-size: invalid int value: 'big' (octzoo profile --help tells more)",
    ),
    "picture of another kind": (
        ["resnet50", "--picture", "it.jpg"],
        "error: --picture it.jpg: the picture is a PNG; give a name that ends in .png",
    ),
    "no such folder": (["resnet50", "--json", "no/it.json"], "error: --json no/it.json: there is no folder no"),
    "no GPU": (["resnet50", "--device", "cuda"], "error: --device cuda: PyTorch sees no GPU here; take --device cpu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake, tmp_path, monkeypatch, capsys):
    words, text = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        code = main(["profile", *words])
    except SystemExit as stop:
        code = stop.code
    assert (code, capsys.readouterr().err.splitlines()) == (2, [text])
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_a_network_does_not_take_are_a_mistake():
    with pytest.raises(UserError, match="OctResNet does not run on pictures of 1x64x64: "):
        operations(network(NETWORK), torch.randn(1, 1, 64, 64))


def test_an_octave_network_made_elsewhere_is_profiled_as_it_is():
    model = octavize(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)),
        0.5,
        [("1", "octave"), ("2", "zero")],
        (3, 16, 16),
    ).eval()
    assert {e.layer: e.kind for e in operations(model, pictures(size=16)) if e.macs} == {
        "0": "h2h",
        "1": "h2l",
        "2": "l2h",
    }
