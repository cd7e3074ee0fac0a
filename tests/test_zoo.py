"""What was trained here: tables, page, pictures and cards are what the metrics say, losses too."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from huggingface_hub import ModelCard

from octzoo.errors import UserError
from octzoo.models.catalogue import catalogue
from octzoo.models.describe import family, network_of, plan_table
from octzoo.weights.card import Sibling, sibling, with_repo
from tests.measured import config_of, metrics, write

ROOT = Path(__file__).parent.parent

specification = importlib.util.spec_from_file_location("make_zoo", ROOT / "docs" / "make_zoo.py")
make_zoo = importlib.util.module_from_spec(specification)
specification.loader.exec_module(make_zoo)

PICTURES = [  # two datasets; octave is worse, and equal
    metrics(0.0, "fake_cifar", (0.91, 0.912, 0.914)),
    metrics(0.25, "fake_cifar", (0.905, 0.911)),
    metrics(0.5, "fake_cifar", (0.892,)),
]
DIGITS = [
    metrics(alpha, "fake_digits", (0.9916,), 16, dataset="digits", dataset_url=None, pictures=359, limits=None)
    for alpha in (0.0, 0.25)
]


def run(root, *arguments):
    return make_zoo.main([str(root / "checkpoints"), "--docs", str(root / "docs"), *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository's checkpoints and docs, and all that is made of them."""
    root = tmp_path_factory.mktemp("zoo")
    (root / "docs").mkdir()
    (root / "docs" / "zoo.md").write_text(f"# Zoo\n\n{make_zoo.START}\n{make_zoo.END}\n\nThe end.\n")
    for measured in PICTURES + DIGITS:
        write(root / "checkpoints", measured)
    assert run(root) == 0
    return root


@pytest.fixture
def zoo(made, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "zoo"))


def test_the_repository_is_what_its_metrics_say():
    assert list((ROOT / "checkpoints").glob("*/metrics.json")), "no checkpoint folders: pack the runs"
    subprocess.run([sys.executable, str(ROOT / "docs" / "make_zoo.py"), "--check"], check=True)


# ---- what the metrics say ------------------------------------------------------------------------------------------


def test_the_tables(made):
    page, overview = (made / "docs" / "zoo.md").read_text(), (made / "checkpoints" / "README.md").read_text()
    rows = [
        ("oct_cifar_resnet20_a0.0.fake_cifar", "0 (control) | 40.8 | 1.00 | 91.20 (91.00 to 91.40, 3 seeds)"),
        ("oct_cifar_resnet20_a0.25.fake_cifar", "0.25 | 32.4 | 0.79 | 90.80 (90.50 to 91.10, 2 seeds)"),
        ("oct_cifar_resnet20_a0.5.fake_cifar", "0.5 | 26.2 | 0.64 | 89.20 (1 seed)"),
        ("oct_cifar_resnet20_a0.0.fake_digits", "0 (control) | 10.2 | 1.00 | 99.16 (1 seed)"),
        ("oct_cifar_resnet20_a0.25.fake_digits", "0.25 | 8.1 | 0.79 | 99.16 (1 seed)"),
    ]
    for name, figures in rows:
        assert f"| `{name}` | {figures} | apache-2.0 |" in page
        assert f"| [`{name}`]({name}/README.md) | {figures} | apache-2.0 |" in overview
    assert page.count("\n| `") == overview.count("\n| [`") == len(rows)
    assert page.startswith("# Zoo\n\n<!-- zoo: made")
    assert page.endswith("<!-- end of zoo -->\n\nThe end.\n")


def test_the_page_says_on_what_by_whom_and_with_what(made):
    page = (made / "docs" / "zoo.md").read_text()
    assert "## CIFAR-10 as JPEG copies\n\nTrained and measured by octzoo on [CIFAR-10 as JPEG copies](https" in page
    assert "32x32; top-1 on the 10,000 pictures of its split test. Each run: 15 epochs, in precision bf16-mixed" in page
    assert "23 minutes, on AMD EPYC, 2 CPUs, no GPU. Weights of the last epoch." in page
    assert page.count("Limits: Pictures of 32x32; JPEG copies of CIFAR-10, not the original pixels.") == 1
    for target in re.findall(r"\]\(([^)#\s]+)", page):
        assert target.startswith("https:") or (made / "docs" / target).is_file()


def test_losses_are_told(made):
    page = (made / "docs" / "zoo.md").read_text()
    assert "`oct_cifar_resnet20` against its control, the ordinary network: octave is worse at every alpha." in page
    line = "- alpha {}: {} points worse ({} % against 91.20 %) at {} of the multiply-accumulates; n = {} against 3{}\n"
    assert line.format(0.25, "0.40", "90.80", 0.79, 2, "; the ranges of the seeds overlap") in page
    assert line.format(0.5, "2.00", "89.20", 0.64, 1, "") in page
    assert "Seeds alone differ by up to 0.60 points (`oct_cifar_resnet20_a0.25.fake_cifar`)" in page
    assert (
        "- alpha 0.25: equal (99.16 % against 99.16 %) at 0.79 of the multiply-accumulates; n = 1 against 1\n" in page
    )
    assert "One seed each: how much seeds differ was not measured" in page


def row(alpha, *seeds):
    return Sibling(f"net_a{alpha}", alpha, 50, 100, seeds[0], seeds, "octzoo")


def test_better_worse_and_equal_each_have_their_alphas():
    octaves = [row(0.125, 92), row(0.25, 90), row(0.5, 91), row(0.75, 89)]
    told = "octave is worse at alpha 0.25 and 0.75, better at alpha 0.125, equal at alpha 0.5"
    assert make_zoo.sides(octaves, row(0.0, 91)) == told
    assert make_zoo.sides([row(0.5, 80)], row(0.0, 91)) == "octave is worse at alpha 0.5"
    assert make_zoo.against(row(0.5, 93, 94), row(0.0, 91, 92)).endswith(
        "n = 2 against 2; the ranges of the seeds do not overlap"
    )
    assert "1.50 points better (92.50 % against 91.00 %)" in make_zoo.against(row(0.5, 92.5), row(0.0, 91))


def test_without_a_control_nothing_is_compared():
    assert "no control" in make_zoo.outcome(PICTURES[1:])
    assert "no other alpha than 0" in make_zoo.outcome(PICTURES[:1])


def test_pictures_show_every_seed(made):
    shown = json.loads(make_zoo.shown_by(made / "docs" / "img" / "zoo_fake_cifar.png"))
    assert shown["title"] == "CIFAR-10 as JPEG copies, test, 10,000 pictures; measured by octzoo"
    assert shown["networks"] == {
        "oct_cifar_resnet20": [[m["alpha"], m["macs"], list(sibling(m).seeds)] for m in PICTURES]
    }
    assert sorted(p.name for p in (made / "docs" / "img").iterdir()) == ["zoo_fake_cifar.png", "zoo_fake_digits.png"]


def test_every_card_knows_the_others(made):
    for measured in PICTURES:
        text = (made / "checkpoints" / measured["name"] / "README.md").read_text()
        for other in PICTURES:
            assert f"`{other['name']}`" in text
        assert "| `oct_cifar_resnet20_a0.125` | 0.125 | 36.3 | 0.89 |  |  |" in text
        assert "91.20 (91.00 to 91.40, 3 seeds)" in text
        assert ModelCard(text).data.eval_results[0].metric_value == measured["top1"]
    digits = (made / "checkpoints" / DIGITS[0]["name"] / "README.md").read_text()
    assert "| `oct_cifar_resnet20_a0.5` | 0.5 | 6.5 | 0.64 |  |  |" in digits  # counted for pictures of 16x16
    assert "| stages.0 | 6 |  | 16x16x16 |" in digits


# ---- what is stale -------------------------------------------------------------------------------------------------


def test_nothing_is_stale_once_made(made, capsys):
    assert run(made, "--check") == 0
    assert capsys.readouterr().out == "\n"


def test_what_is_stale_is_named_and_left(zoo, capsys):
    card = zoo / "checkpoints" / PICTURES[0]["name"] / "README.md"
    texts = [zoo / "docs" / "zoo.md", zoo / "checkpoints" / "README.md", card]
    for path in texts:
        path.write_text(path.read_text().replace("91.20", "94.20"))
    (zoo / "docs" / "img" / "zoo_fake_digits.png").unlink()
    shutil.copy(zoo / "docs" / "img" / "zoo_fake_cifar.png", zoo / "docs" / "img" / "zoo_gone.png")
    before = {path: path.read_bytes() for path in zoo.rglob("*.*") if path.is_file()}
    assert run(zoo, "--check") == 1
    named = [line.split(" is not")[0] for line in capsys.readouterr().out.splitlines()]
    pictures = [zoo / "docs" / "img" / f"zoo_{name}.png" for name in ("fake_digits", "gone")]
    assert sorted(named) == sorted(map(str, texts + pictures))
    assert before == {path: path.read_bytes() for path in zoo.rglob("*.*") if path.is_file()}
    assert run(zoo) == 0
    assert run(zoo, "--check") == 0
    assert not pictures[1].exists()


def test_new_metrics_make_the_table_the_card_the_picture_stale(zoo, capsys):
    path = zoo / "checkpoints" / PICTURES[2]["name"] / "metrics.json"
    path.write_text(json.dumps(PICTURES[2] | {"top1": 0.95}))
    assert run(zoo, "--check") == 1
    named = capsys.readouterr().out
    for stale in ("docs/zoo.md", "checkpoints/README.md", "img/zoo_fake_cifar.png", *(m["name"] for m in PICTURES)):
        assert stale in named
    assert "fake_digits" not in named


def test_a_card_that_has_been_on_the_hub_still_says_where(zoo):
    card = zoo / "checkpoints" / PICTURES[0]["name"] / "README.md"
    card.write_text(with_repo(card.read_text(), "org/name"))
    published = card.read_text()
    assert run(zoo, "--check") == 0
    assert run(zoo) == 0
    assert card.read_text() == published
    assert 'timm.create_model("hf-hub:org/name", pretrained=True)' in published


def test_other_pictures_under_one_tag_are_refused():
    with pytest.raises(ValueError, match=r"weights of the tag fake_cifar differ in pictures: \[10000, 9000\]"):
        make_zoo.by_tag([PICTURES[0], PICTURES[1] | {"pictures": 9000}])


def test_without_checkpoints_there_are_none_yet(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "docs" / "zoo.md").write_text(f"{make_zoo.START}\nold\n{make_zoo.END}\n")
    assert run(tmp_path) == 0
    assert (tmp_path / "docs" / "zoo.md").read_text() == f"{make_zoo.START}\nNone yet.\n{make_zoo.END}\n"


# ---- what cards are made with --------------------------------------------------------------------------------------


def test_plan_of_a_config_is_that_of_its_network_at_its_size():
    measured = DIGITS[1]
    head, *stages, total = plan_table(network_of(config_of(measured)))
    assert head[:3] == ["stage", "convs", "octave"]
    assert stages[1][:5] == ["stages.0", "6", "6", "12x16x16", "4x8x8"]
    assert total[0] == "all"
    assert total[6:8] == [f"{measured['macs'] / 1e6:.1f}", f"{measured['macs'] / measured['plain_macs']:.2f}"]
    other = plan_table(timm.create_model("oct_cifar_resnet20_a0.25", num_classes=10, device="meta"), 16)
    assert other == [head, *stages, total]


def test_family_of_published_weights_has_what_the_authors_report():
    rows = {row.alpha: row for row in family("oct_resnet50_a0.25.fb_in1k", None)}
    assert list(rows) == [0.0, 0.125, 0.25, 0.5, 0.75]
    assert rows[0.0] == Sibling("oct_resnet50_a0.0", 0.0, *[4089184256] * 2, 77.0, (), "the authors")
    assert rows[0.5][:2] == ("oct_resnet50_a0.5.fb_in1k", 0.5)
    assert rows[0.5][4:] == (77.4, (), "the authors")


def test_family_of_a_tag_of_ones_own():
    rows = {row.alpha: row for row in family("oct_resnet50_a0.3.mine", None)}
    assert list(rows) == [0.0, 0.125, 0.25, 0.3, 0.5, 0.75]
    assert rows[0.3].name == "oct_resnet50_a0.3.mine"
    assert rows[0.25].macs > rows[0.3].macs > rows[0.5].macs
    assert {row.top1 for row in rows.values()} == {None}
    entry = next(e for e in catalogue() if e.name == "oct_resnet50_a0.25.fb_in1k")
    assert (rows[0.25].macs, rows[0.25].plain_macs) == (entry.macs, entry.plain_macs)


def test_family_reads_the_folders_of_its_tag_alone(made):
    folders = made / "checkpoints"
    rows = {row.alpha: row for row in family("oct_cifar_resnet20_a0.25.fake_digits", folders, config_of(DIGITS[1]))}
    assert [alpha for alpha in rows if rows[alpha].top1] == [0.0, 0.25]
    assert rows[0.0] == sibling(DIGITS[0])
    assert rows[0.5].macs < rows[0.25].macs == DIGITS[1]["macs"]
    assert rows[0.5].plain_macs == DIGITS[1]["plain_macs"]


def test_a_folder_under_a_wrong_name_is_nobody(tmp_path):
    write(tmp_path, DIGITS[1])
    (tmp_path / DIGITS[1]["name"]).rename(tmp_path / "oct_cifar_resnet20_a0.25.mine")
    assert {row.top1 for row in family("oct_cifar_resnet20_a0.5.mine", tmp_path)} == {None}


def test_damaged_metrics_are_named(tmp_path):
    path = tmp_path / "oct_resnet50_a0.5.mine" / "metrics.json"
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(UserError, match=r"oct_resnet50_a0.5.mine/metrics.json is damaged \(JSONDecodeError: "):
        family("oct_resnet50_a0.25.mine", tmp_path)
