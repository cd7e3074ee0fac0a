"""Files for other programs: they compute what the network computes, say what they are, and need no PyTorch."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_transform
from torch import nn

import octzoo
from octzoo.cli import export as verb
from octzoo.data.sources import Digits
from octzoo.deploy import fuse
from octzoo.deploy.engine_files import need, open_onnx
from octzoo.deploy.export import FORMS, Exported, Target, difference, export, write_onnx
from octzoo.deploy.metadata import data_config_of, describe, labels_of
from octzoo.deploy.samples import Samples, open_samples
from octzoo.errors import RunError, UserError
from octzoo.models.named import build

ROOT = Path(octzoo.__file__).parents[1]
NAME = "oct_cifar_resnet20_a0.25.oz_digits"
FORMATS = list(FORMS)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """In the order of memory that convolutions like, which exporters do not."""
    return build(NAME, pretrained=True).eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def files(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """The network in every format."""
    folder = tmp_path_factory.mktemp("exported")
    metadata = describe(NAME, data_config_of(network), labels_of(network))
    targets = [Target(folder / f"network{FORMS[f].suffix}", f, (3, 16, 16), metadata=metadata) for f in FORMATS]
    return {target.form: export(network, target) for target in targets}


def main_file(found: Exported, form: str) -> Path:
    return next(path for path in found.files if path.suffix == FORMS[form].suffix)


@pytest.mark.parametrize("form", FORMATS)
class TestEveryFormat:
    @pytest.mark.parametrize("batch", [1, 2, 5])
    def test_computes_what_the_network_does(self, network: nn.Module, files: dict, form: str, batch: int) -> None:
        run = FORMS[form].open(main_file(files[form], form))
        assert difference(network, run, torch.randn(batch, 3, 16, 16)) < 1e-5

    def test_is_all_that_is_left(self, files: dict, form: str) -> None:
        folder = main_file(files[form], form).parent
        assert {path.name for path in folder.iterdir()} == {p.name for f in files.values() for p in f.files}

    def test_holds_no_path_of_this_machine(self, files: dict, form: str) -> None:
        for path in files[form].files:
            for place in (ROOT, Path(timm.__file__).parent, path.parent.parent):
                assert str(place).encode() not in path.read_bytes()


class TestOnnx:
    @pytest.fixture(scope="class")
    @classmethod
    def graph(cls, files: dict) -> onnx.GraphProto:
        model = onnx.load(main_file(files["onnx"], "onnx"))
        onnx.checker.check_model(model, full_check=True)
        return model.graph

    def test_its_nodes_are_ordinary_ones(self, graph: onnx.GraphProto) -> None:
        assert {node.domain for node in graph.node} == {""}
        kinds = Counter(node.op_type for node in graph.node)
        assert kinds["Resize"]
        index_arithmetic = {"Gather", "Expand", "Tile", "Where", "Range", "Shape", "Split"}
        assert not kinds.keys() & index_arithmetic

    def test_nothing_is_left_to_do_with_its_constants(self, graph: onnx.GraphProto) -> None:
        constants = {tensor.name for tensor in graph.initializer}
        assert all(set(filter(None, node.input)) - constants for node in graph.node)
        assert constants == {name for node in graph.node for name in node.input} & constants

    def test_nothing_is_computed_twice(self, graph: onnx.GraphProto) -> None:
        """The pooled map that two layers take, for one."""
        calls = [(n.op_type, *n.input, *(a.SerializeToString() for a in n.attribute)) for n in graph.node]
        assert len(set(calls)) == len(calls)

    def test_its_batch_is_free_and_its_names_are_usual(self, graph: onnx.GraphProto) -> None:
        ends = (*graph.input, *graph.output)
        shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in ends}
        assert shapes == {"pixel_values": ["batch", 3, 16, 16], "logits": ["batch", 10]}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_of_any_size_takes_other_sizes(network: nn.Module, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"any{FORMS[form].suffix}"
    export(network, Target(path, form, (3, 16, 16), multiple=4))
    run = FORMS[form].open(path)
    for size in ((16, 16), (24, 36)):
        assert difference(network, run, torch.randn(2, 3, *size)) < 1e-5


@pytest.mark.parametrize("name", ["oct_mobilenetv2_100_a0.125", "seresnet18@0.25", "resnext26ts@0.25"])
def test_every_kind_of_network_can_be_written(name: str, tmp_path: Path) -> None:
    """At an odd size, where upsampled maps are cut."""
    found = export(build(name), Target(tmp_path / "network.onnx", "onnx", (3, 63, 71)))
    assert found.difference < 1e-5


class Other(nn.Module):
    """Computes something else while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) * (1.001 if torch.compiler.is_exporting() else 1)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_computes_something_else_is_not_left(form: str, tmp_path: Path) -> None:
    out = tmp_path / f"network{FORMS[form].suffix}"
    out.write_text("an earlier one")
    with pytest.raises(RunError, match=rf"{out.name} is not written: its outputs are 0.001 off PyTorch's"):
        export(Other(), Target(out, form, (3, 32, 32)))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "an earlier one"


def test_a_network_that_does_not_take_the_size_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot trace the network for pictures of 63x63: Input height"):
        write_onnx(fuse(timm.create_model("vit_tiny_patch16_224")), tmp_path / "vit.onnx", (3, 63, 63))


def test_a_missing_package_is_named_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r'no_such_engine is not installed: pip install "octzoo\[export\]"'):
        need("no_such_engine")


# ---- without PyTorch -----------------------------------------------------------------------------------------------

WITHOUT = """
import runpy, sys
for name in {forbidden}:
    sys.modules[name] = None
sys.argv = {argv}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without(forbidden: list[str], *argv: object) -> str:
    """What a script prints in a process that cannot import some packages."""
    code = WITHOUT.format(forbidden=forbidden, argv=[str(word) for word in argv])
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


EXAMPLE = ROOT / "docs" / "examples" / "classify.py"


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_the_example_of_the_docs_reads_digits_without_pytorch(files: dict, form: str, tmp_path: Path) -> None:
    digits, paths = Digits(), [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        digits[i][0].save(path)
    said = run_without(["torch", "timm", "octzoo"], EXAMPLE, main_file(files[form], form), *paths).splitlines()
    right = [line.startswith(f"{path}: {target}, ") for line, path, target in zip(said, paths, load_digits().target)]
    assert sum(right) >= 19


def test_the_page_shows_the_example_that_is_tested_and_what_was_measured() -> None:
    assert f"```py\n{EXAMPLE.read_text()}```" in (ROOT / "docs" / "deploy.md").read_text()
    subprocess.run([sys.executable, str(ROOT / "docs" / "make_int8.py"), "--check"], check=True)


@pytest.mark.parametrize("how", [dict(crop_mode="center", crop_pct=0.9), dict(crop_mode="squash", crop_pct=0.8)])
@pytest.mark.parametrize("size", [(50, 31), (31, 50), (40, 40)])
def test_the_example_prepares_pictures_as_timm_does(how: dict, size: tuple[int, int]) -> None:
    source = EXAMPLE.read_text().partition("\npath, *pictures")[0]
    example: dict = {}
    exec(compile(source, str(EXAMPLE), "exec"), example)
    config = dict(input_size=(3, 24, 24), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), interpolation="bicubic", **how)
    picture = Image.effect_noise(size, 90).convert("RGB")
    expected = create_transform(**config, is_training=False)(picture)
    given = torch.from_numpy(example["prepare"](picture, config))[0]
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_a_program_of_torch_export_needs_no_octzoo(files: dict, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "extra = {'labels': '', 'preprocessing': '', 'network': ''}\n"
        "network = torch.export.load(sys.argv[1], extra_files=extra).module()\n"
        "print(*network(torch.zeros(7, 3, 16, 16)).shape, extra['labels'])\n"
    )
    said = run_without(["octzoo", "timm"], script, main_file(files["torch-export"], "torch-export"))
    assert said == f"7 10 {json.dumps([str(i) for i in range(10)])}\n"


# ---- metadata and pictures -----------------------------------------------------------------------------------------


def test_metadata_is_what_the_network_is_given(network: nn.Module, files: dict) -> None:
    said = {p.key: json.loads(p.value) for p in onnx.load(main_file(files["onnx"], "onnx")).metadata_props}
    assert said == {
        "network": NAME,
        "labels": [str(i) for i in range(10)],
        "preprocessing": {
            **dict(input_size=[3, 16, 16], mean=[0.3] * 3, std=[0.4] * 3),
            **dict(interpolation="bilinear", crop_pct=1.0, crop_mode="center"),
        },
    }


def test_classes_of_imagenet_have_names() -> None:
    assert labels_of(build("resnet10t", device="meta"))[:2] == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    assert labels_of(build("resnet10t", device="meta", num_classes=7)) is None


def test_pictures_in_folders_of_their_classes_have_them(tmp_path: Path) -> None:
    digits = Digits()
    for i in range(30):
        path = tmp_path / str(digits.targets[i]) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        digits[i][0].save(path)
    calibration, measuring = open_samples(str(tmp_path), [str(d) for d in reversed(range(10))], (100, 100))
    names = [[found.pictures.name(index) for index in found.indices] for found in (calibration, measuring)]
    assert len(set(names[0] + names[1])) == 30
    assert len(names[1]) == 10  # a fifth of each class, one at least
    assert [9 - int(Path(name).parent.name) for name in names[1]] == measuring.targets


def test_pictures_without_classes_are_pictures(tmp_path: Path) -> None:
    for i in range(5):
        Digits()[i][0].save(tmp_path / f"{i}.png")
    calibration, measuring = open_samples(str(tmp_path), ["a", "b"], (2, 2))
    assert (len(calibration), len(measuring), measuring.targets) == (2, 1, None)
    (tmp_path / "0.png").write_bytes(b"no picture")
    whole = Samples(calibration.pictures, range(5), None)
    with pytest.raises(UserError, match="0.png is no readable picture .*: take it out"):
        next(whole.batches(create_transform((3, 8, 8)), 9))


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_says_what_it_wrote(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb.main(["export", str(ROOT / "checkpoints" / NAME), "--image-size", "24"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == f"{NAME}: pictures of 24x24, weights trained"
    assert said.out.startswith(f"{NAME}.onnx: 1.2 MB, its outputs ")
    assert "off PyTorch's (relative, in 4 batches; 0.0001 is the limit)" in said.out
    run = open_onnx(here / f"{NAME}.onnx")
    assert run(torch.zeros(1, 3, 24, 24).numpy()).shape == (1, 10)
    assert verb.main(["export", NAME]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {NAME}.onnx exists already: --force replaces it, --out FILE writes another one"
    )


def test_the_command_says_that_weights_are_random(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb.main(["export", "test_resnet.r160_in1k@0.25", "--no-pretrained", "--image-size", "32"]) == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert said.endswith("weights random, so that the file is good for measuring speed alone")
    (found,) = here.iterdir()
    assert "labels" not in {p.key for p in onnx.load(found).metadata_props}


MISTAKES = {
    "format": (["x", "--format", "tflite"], "--format tflite: no such format; there are onnx, openvino, torch-export"),
    "network": (["oct_cifar_resnet2"], "no network 'oct_cifar_resnet2'; did you mean 'oct_cifar_resnet20'?"),
    "size": ([NAME, "--image-size", "0"], "--image-size 0 is not a number of pixels"),
    "int8 of torch": (
        [NAME, "--int8", "--format", "torch-export"],
        "--int8: not in the format torch-export; take",
    ),
    "no pictures": ([NAME, "--int8"], "--int8 needs pictures like those of the training: --calibrate DIR, or digits"),
    "no int8": ([NAME, "--calibrate", "digits"], "--calibrate goes with --int8"),
    "random": (["resnet10t@0.25", "--int8", "--calibrate", "digits"], "--int8: resnet10t@0.25 has random"),
    "nowhere": ([NAME, "--pictures", "gone"], "pictures 'gone': no such folder, and as SOURCE:ROOT: data.source: no s"),
    "suffix": ([NAME, "--out", "a.pt2"], "--out a.pt2: a file of the format onnx ends in .onnx"),
    "folder": ([NAME, "--out", "a/b.onnx"], "--out a/b.onnx: no such folder"),
    "no weights": (["."], ". has no model.safetensors"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, text = MISTAKES[mistake]
    assert verb.main(["export", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {text}")
    assert list(here.iterdir()) == []
