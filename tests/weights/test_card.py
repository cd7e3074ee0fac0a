"""The model card: the Hub's metadata, a snippet that runs, and no figure that is not in what it is made from."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from difflib import ndiff

import pytest
import timm
import torch
from huggingface_hub import ModelCard

from octzoo.models.describe import family, network_of, plan_table
from octzoo.weights.card import Sibling, accuracy, duration, make_card, repo_of, with_repo
from octzoo.weights.folder import make_config, write_folder
from octzoo.weights.records import published
from tests.measured import config_of, metrics

NAME = "oct_cifar_resnet20_a0.25.fake"
FAMILY = [
    Sibling("oct_cifar_resnet20_a0.0.fake", 0.0, 40_800_000, 40_800_000, 91.2, (91.2, 90.8), "octzoo"),
    Sibling(NAME, 0.25, 1, 2),  # as an older table has it
    Sibling("oct_cifar_resnet20_a0.5", 0.5, 26_200_000, 40_800_000),
]


def card_of(top1=(0.9051,), family=FAMILY, repo=None, **changes):
    measured = metrics(0.25, "fake", top1, **changes)
    config = config_of(measured)
    plan = plan_table(network_of(config))
    return make_card(NAME, 0.25, config=config, metrics=measured, plan=plan, family=family, repo=repo)


def section(card, title):
    return re.search(rf"## {title}\n(.*?)(\n## |\Z)", card, re.DOTALL)[1]


def snippets(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


# ---- metadata ------------------------------------------------------------------------------------------------------


def test_metadata_as_the_hub_reads_it():
    measured = metrics(0.25, "fake", (0.9051, 0.8))
    data = ModelCard(card_of((0.9051, 0.8))).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", "apache-2.0")
    assert {"timm", "transformers", "octave-convolution"} <= set(data.tags)
    assert (data.datasets, data.metrics, data.model_name) == (["cifar10_jpeg"], ["accuracy"], NAME)
    found = [(r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results]
    assert found == [
        ("accuracy", "top-1 accuracy", 0.9051),
        ("top_5_accuracy", "top-5 accuracy", measured["top5"]),
    ]
    for result in data.eval_results:
        assert (result.dataset_name, result.dataset_type) == ("CIFAR-10 as JPEG copies", "cifar10_jpeg")
        assert (result.dataset_split, result.task_type) == ("test", "image-classification")


def test_what_nobody_states_is_not_made_up():
    card = card_of(licence=None, owner=None, limits=None, dataset_id=None, dataset_url=None)
    data = ModelCard(card).data
    assert (data.license, data.datasets) == (None, None)
    assert data.eval_results[0].dataset_type == "CIFAR-10 as JPEG copies"
    assert "Whose the weights are is not stated; no licence is stated." in card
    assert "None" not in card.replace("(picture)[None]", "")
    training = metrics()["training"] | dict.fromkeys(("epochs", "seconds", "hardware", "packages"))
    assert "batches of 128, precision bf16-mixed, seed 0. \n" in section(card_of(training=training), "Training")


def test_imported_weights_have_figures_of_others_and_no_results_of_ours():
    record = published("oct_resnet50_a0.25.fb_in1k")
    card = make_card(record.full_name, 0.25, record, family=family(record.full_name, None))
    data = ModelCard(card).data
    assert (data.license, data.datasets, data.eval_results, data.metrics) == ("mit", ["imagenet-1k"], None, None)
    assert "- top-1 78 %, top-5 93.8 %, measured by the authors, reported in their README" in card
    assert f"{record.owner} ({record.source}); licence: mit." in card
    others = section(card, "Other alphas")
    assert "| `oct_resnet50_a0.0` | 0 (control) | 4,089.2 | 1.00 | 77.0 | the authors |" in others
    assert "| **`oct_resnet50_a0.25.fb_in1k`, this one** | **0.25** | **3,103.5** | **0.76** | **78.0** |" in others


def test_imported_weights_of_whom_only_the_importer_knows():
    card = make_card("oct_resnet50_a0.25.mine", 0.25, None)
    assert ModelCard(card).data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert "only the importer knows" in card
    assert "Octzoo measured nothing of these weights." in card


# ---- figures -------------------------------------------------------------------------------------------------------


def test_one_seed_is_said_to_be_one():
    card = card_of()
    assert "**Top-1 90.51 %, top-5 99.67 %** on [CIFAR-10 as JPEG copies](https://" in card
    assert "One seed was trained (n = 1)" in card
    assert "**90.51 (1 seed)** | **octzoo** |" in section(card, "Other alphas")


def test_several_seeds_are_told_by_mean_range_and_number():
    card = card_of((0.9051, 0.9, 0.901))
    assert "**Top-1 90.51 %" in card  # of the weights that are in the folder
    assert "The mean of 3 seeds of one recipe is 90.20 % (90.00 to 90.51)." in card
    assert "**90.20 (90.00 to 90.51, 3 seeds)**" in section(card, "Other alphas")
    rows = [line for line in section(card, "Measurement").splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0::4] for row in rows[2:]] == [
        ["| 0", "these |"],
        ["| 1", "not published |"],
        ["| 2", "not published |"],
    ]


def test_the_other_alphas():
    rows = [line for line in section(card_of(), "Other alphas").splitlines() if line.startswith("| ")][2:]
    assert [row.split("`")[1] for row in rows] == [row.name for row in FAMILY]
    assert rows[0].endswith("| 0 (control) | 40.8 | 1.00 | 91.00 (90.80 to 91.20, 2 seeds) | octzoo |")
    assert rows[1].startswith(f"| **`{NAME}`, this one** | **0.25** | **32.4** | **0.79** | **90.51 (1 seed)**")
    assert rows[2].endswith("| 0.5 | 26.2 | 0.64 |  |  |")
    assert "## Other alphas" not in card_of(family=FAMILY[1:2])


def test_accuracy_of_a_row():
    def row(top1, seeds):
        return accuracy(Sibling("a", 0.5, 1, 2, top1, seeds))

    assert row(None, ()) == ""
    assert row(78.0, ()) == "78.0"
    assert row(100 * 0.9051, ()) == "90.51"
    assert row(90.0, (90.0,)) == "90.00 (1 seed)"
    assert row(90.0, (90.0, 92.0)) == "91.00 (90.00 to 92.00, 2 seeds)"


def test_every_number_is_one_of_what_the_card_is_made_from():
    measured = metrics(0.25, "fake", (0.9051, 0.9, 0.901))
    card = card_of((0.9051, 0.9, 0.901))
    prose = re.sub(r"```.*?```", "", card.split("## Citation")[0].split("---", 2)[2], flags=re.DOTALL)

    def numbers(text):
        return set(re.findall(r"\d+(?:[.,]\d+)*", text))

    seeds = [measured, *measured["repeats"]]
    shares = [run[key] for run in seeds for key in ("top1", "top5")] + [0.9020333]
    known = numbers(json.dumps(measured)) | numbers(" ".join(row.name for row in FAMILY))
    known |= numbers(str(plan_table(network_of(config_of(measured)))))
    known |= {f"{100 * share:.2f}" for share in shares} | {f"{run['loss']:.3f}" for run in seeds}
    known |= {f"{measured['macs'] / 1e6:.1f}", f"{measured['parameters']:,}", "10,000", "23", "3"}
    known |= {"40.8", "1.00", "91.00", "90.80", "91.20", "26.2", "0.64", "2"}  # the others'
    known |= {"2019", "1904.05049", "0.79"}
    assert numbers(prose) - known == set()


@pytest.mark.parametrize(
    ("seconds", "text"), [(47.3, "47 seconds"), (1380.2, "23 minutes"), (7199, "120 minutes"), (9000, "2.5 hours")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_stages_recipe_hardware_measurement_and_citation_are_there():
    card = card_of(weights="of epoch 12, the best of 15 on these same pictures", ema=True)
    assert "| stages.0 | 6 | 6 | 12x32x32 | 4x16x16 |" in section(card, "Stage by stage")
    training = section(card, "Training")
    assert "15 epochs, batches of 128, precision bf16-mixed, seed 0, 23 minutes, on AMD EPYC" in training
    assert "`recipe.yaml`" in training
    measurement = section(card, "Measurement")
    assert "weights of epoch 12, the best of 15 on these same pictures, their moving average" in measurement
    assert "octzoo pack runs/cifar10/1" in measurement
    assert "JPEG copies of CIFAR-10, not the original pixels.\n\nNot measured: speed" in section(card, "Limits")
    assert "The weights are of the octzoo authors; licence: apache-2.0." in card
    assert "https://arxiv.org/abs/1904.05049" in section(card, "Citation")


def test_the_control_is_called_the_control():
    measured = metrics(0.0, "fake")
    card = make_card(measured["name"], 0.0, config=config_of(measured), metrics=measured)
    assert "An ordinary network for pictures of 32x32, the control for octave networks" in card


# ---- the snippets --------------------------------------------------------------------------------------------------


def run(code, folder, **environment):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


def test_the_snippets_run_in_the_folder(tmp_path):
    torch.manual_seed(0)
    config = config_of(metrics(0.25, "fake"))
    model = timm.create_model("oct_cifar_resnet20_a0.25", num_classes=10).eval()
    card = card_of()
    write_folder(tmp_path / NAME, model.state_dict(), config, card)
    ours, transformers = snippets(card)
    asked = "\nprint(model.config.architecture, torch.equal(model.timm_model.state_dict()['head.fc.weight'], w))"
    keep = "\nw = model.state_dict()['head.fc.weight']\n"
    first, second = run(ours + keep + transformers + asked, tmp_path / NAME).splitlines()[-2:]
    label, share = first.rsplit(" ", 1)
    assert label in config["label_names"]
    assert 0.1 <= float(share) <= 1
    assert second == "oct_cifar_resnet20_a0.25 True"


def test_the_snippet_of_a_published_name_runs(tmp_path):
    record = published("oct_mobilenetv1_075_a0.375.fb_in1k")
    model = timm.create_model(record.full_name)
    card = make_card(record.full_name, record.alpha, record)
    config = make_config(model, record.alpha, f"375.{record.tag}", record)
    write_folder(tmp_path / "weights" / record.full_name, model.state_dict(), config, card)
    (snippet,) = snippets(card)
    assert f'create_model("{record.full_name}", pretrained=True)' in snippet
    label, _ = run(snippet, tmp_path, OCTZOO_CHECKPOINTS=str(tmp_path / "weights")).split()
    assert 0 <= int(label) < 1000


def test_what_is_only_to_be_fetched_by_hand_loads_from_its_folder():
    record = published("oct_resnet50_v1_a0.5.dli14_in1k")
    assert 'create_model("local-dir:.", pretrained=True).eval()  # in this folder' in make_card(
        record.full_name, record.alpha, record
    )


def test_what_octzoo_trained_loads_by_its_name():
    record = replace(published("oct_resnet50_v1_a0.5.dli14_in1k"), name="oct_cifar_resnet20_a0.25", tag="fake")
    measured = metrics(0.25, "fake")
    card = make_card(NAME, 0.25, record, config=config_of(measured), metrics=measured, repo="org/name")
    assert f'timm.create_model("{NAME}", pretrained=True).eval()\n' in card
    assert 'AutoModelForImageClassification.from_pretrained("org/name")' in card
    assert ModelCard(card).data.eval_results[0].metric_value == 0.9051  # ours, whatever else there is
    assert "not measured by octzoo" not in card


def test_with_repo_is_what_a_card_made_for_it_would_be():
    card = card_of(limits='`timm.create_model("local-dir:.", pretrained=True)` and "hf-hub:a/b" are not meant.')
    there = with_repo(card, "org/name")
    assert there == card_of(
        repo="org/name", limits='`timm.create_model("local-dir:.", pretrained=True)` and "hf-hub:a/b" are not meant.'
    )
    assert with_repo(there, "org/name") == there
    assert with_repo(there, "other/name") == with_repo(card, "other/name")
    changed = [line for line in ndiff(card.splitlines(), there.splitlines()) if line[0] in "+-"]
    assert changed == [
        '- model = timm.create_model("local-dir:.", pretrained=True).eval()  # in this folder',
        '+ model = timm.create_model("hf-hub:org/name", pretrained=True).eval()',
        '- model = AutoModelForImageClassification.from_pretrained(".")  # in this folder',
        '+ model = AutoModelForImageClassification.from_pretrained("org/name")',
    ]
    assert (repo_of(card), repo_of(there)) == (None, "org/name")


def test_with_repo_leaves_a_name_and_a_card_without_a_snippet():
    record = published("oct_resnet50_a0.25.fb_in1k")
    card = make_card(record.full_name, 0.25, record)
    assert with_repo(card, "org/name") == card
    assert with_repo("# Mine\n\nby hand\n", "org/name") == "# Mine\n\nby hand\n"
    old = 'model = timm.create_model("local-dir:.", pretrained=True)  # in this folder\n'
    assert with_repo(old, "org/name") == 'model = timm.create_model("hf-hub:org/name", pretrained=True)\n'
