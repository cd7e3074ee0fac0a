"""``octzoo list`` and ``octzoo info``: the table says what the networks are, and every mistake has its line."""

import json

import pytest
import timm
import torch

import octzoo_cli
from octzoo.models.catalogue import catalogue
from octzoo.summary import stages
from octzoo.weights.records import records
from tests.test_architecture import loaded_by


def octzoo(capsys, *arguments):
    """Exit code, stdout, stderr of the command."""
    try:
        code = octzoo_cli.main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_every_name_and_every_record_has_a_row():
    tags = set(timm.list_models("oct_*_a0.*", include_tags=True))
    untagged = {name for name in tags if name.partition("_a0.")[2].isdigit()}
    assert {f"{e.network}_a{e.alpha}" for e in catalogue()} == untagged
    assert {r.full_name for r in records()} == {e.name for e in catalogue() if e.weights}


def test_a_row_has_the_cost_of_its_network():
    for name in ("oct_cifar_resnet56_a0.5", "oct_mobilenetv2_100_a0.375.fb_in1k"):
        entry = next(e for e in catalogue() if e.name == name)
        network = stages(timm.create_model(name, device="meta"))
        plain = stages(timm.create_model(entry.network, alpha=0.0, device="meta"))
        assert (entry.parameters, entry.macs) == tuple(
            sum(getattr(s, k) for s in network) for k in ("parameters", "macs")
        )
        assert entry.plain_macs == sum(s.macs for s in plain)


def test_list_as_table_markdown_and_json(capsys):
    code, out, err = octzoo(capsys, "list", "oct_resnet50")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert " ".join(lines[0].split()) == "name alpha size params M MACs M ratio top-1 top-5 on measured by weights from"
    assert [line.split()[0] for line in lines[1:]] == [
        "oct_resnet50_a0.0",
        *(f"oct_resnet50_a0.{a}.fb_in1k" for a in ("125", "25", "5", "75")),
    ]
    rest = "0.25 224x224 25.55 3,104 0.76 78.0 93.8 imagenet-1k the authors github.com/facebookresearch/OctConv"
    assert " ".join(lines[3].split()[1:]) == rest
    code, out, _ = octzoo(capsys, "list", "oct_resnet50_a0.25", "--format", "md")
    assert out.splitlines()[2].startswith(
        "| oct_resnet50_a0.25.fb_in1k | 0.25 | 224x224 | 25.55 | 3,104 | 0.76 | 78.0 |"
    )
    code, out, _ = octzoo(capsys, "list", "oct_resnet50_a0.*", "--format", "json", "--pretrained")
    rows = json.loads(out)
    assert [row["alpha"] for row in rows] == [0.125, 0.25, 0.5, 0.75]
    assert rows[1]["accuracy"] == {
        "top1": 78.0,
        "top5": 93.8,
        "measured_by": "the authors",
        "how": "reported in their README: ImageNet-1k validation, single centre crop",
    }


def test_info_stage_by_stage(capsys):
    code, out, err = octzoo(capsys, "info", "oct_resnet50_a0.25")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}
    assert rows["stages.1"] == ["13", "13", "384x28x28", "128x14x14", "1.219", "721.1", "0.70", "2.53", "0.81"]
    assert rows["stages.3"] == ["10", "2", "2048x7x7", "14.961", "790.0", "0.98", "0.63", "1.00"]
    assert rows["all"] == ["53", "44", "25.553", "3,103.5", "0.76", "9.30", "0.84"]
    assert "one picture of 96x96" in octzoo(capsys, "info", "oct_resnet18", "--image-size", "96")[1]
    assert octzoo(capsys, "info", "resnet18")[1].splitlines()[-1].split()[:4] == ["all", "20", "0", "11.690"]


def test_stages_add_up_and_do_not_touch_a_network_with_weights():
    model = timm.create_model("oct_seresnet50_a0.5", device="meta")
    found = stages(model)
    assert sum(s.parameters for s in found) == sum(p.numel() for p in model.parameters())
    assert [s.low for s in found if s.name.startswith("stages")] == [(128, 28, 28), (256, 14, 14), (512, 7, 7), None]
    real = timm.create_model("oct_cifar_resnet20_a0.5")
    with pytest.raises(ValueError, match="make the network with device='meta'"):
        stages(real)
    assert next(real.parameters()).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["list", "nosuch"], "no network matches 'nosuch'; `octzoo list` has them all"),
        (
            ["list", "oct_resnet18", "--pretrained"],
            "no network with weights matches 'oct_resnet18'; `octzoo list` has ",
        ),
        (["list", "--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["list", "--nosuch"], "unrecognized arguments: --nosuch (octzoo list --help tells more)"),
        (["info"], "the following arguments are required: NAME (octzoo info --help tells more)"),
        (["info", "nosuch"], "timm knows no network 'nosuch'; `octzoo list` has ours"),
        (["info", "oct_resnet50_a0.25.nosuch"], "oct_resnet50_a0.25.nosuch: Invalid pretrained tag (25.nosuch)"),
        (["info", "oct_resnext50_32x4d_a0.125"], "32 groups do not divide the parts (112 high out, 16 low out)"),
        (["info", "oct_resnet18", "--image-size", "0"], "--image-size 0 is not a number of pixels"),
        (["import", "nosuch.tar", "--name", "oct_resnet50_a0.25.x"], "no such file: nosuch.tar"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, text):
    code, out, err = octzoo(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("verb", ["list", "info", "import"])
def test_help_has_an_example(capsys, verb):
    code, out, _ = octzoo(capsys, verb, "--help")
    assert code == 0
    assert f"example:\n  octzoo {verb} " in out


def test_list_does_not_import_lightning():
    modules = loaded_by("import octzoo_cli; octzoo_cli.main(['list', 'oct_resnet50'])")
    assert not modules & {"lightning", "pytorch_lightning", "torchmetrics", "omegaconf", "jsonargparse"}
