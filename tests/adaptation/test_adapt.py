"""A trained plain network becomes an octave one: as a function, as a command, stopped and gone on with."""

import copy
import json
import shutil
import subprocess
import sys
from contextlib import closing

import pytest
import timm
import torch
from safetensors.torch import load_file

import octzoo
from octzoo.adaptation.adapt import agreement
from octzoo.adaptation.norms import settle
from octzoo.adaptation.residuals import residual_blocks
from octzoo.data.sources import open_split
from octzoo.errors import UserError
from octzoo.surgery import OctaveNetwork
from octzoo.weights.folder import open_folder
from octzoo_cli import main
from tests.clients import Session, contents, digest_of, load
from tests.hubserver import hub

NAME = "oct_cifar_resnet20_a0.0.oz_digits"  # alpha 0: a plain network, trained on digits, which come with scikit-learn


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    return timm.create_model(NAME, pretrained=True).eval()


@pytest.fixture(scope="module")
def pictures(plain: torch.nn.Module) -> list[torch.Tensor]:
    transform = timm.data.create_transform(**timm.data.resolve_data_config(plain.pretrained_cfg))
    digits = open_split("digits", None, "train").dataset
    return list(torch.stack([transform(digits[i][0].convert("RGB")) for i in range(160)]).split(16))


@pytest.fixture(scope="module")
def others(plain: torch.nn.Module) -> list[torch.Tensor]:
    transform = timm.data.create_transform(**timm.data.resolve_data_config(plain.pretrained_cfg))
    digits = open_split("digits", None, "train").dataset
    return list(torch.stack([transform(digits[i][0].convert("RGB")) for i in range(1000, 1200)]).split(50))


@pytest.fixture(scope="module")
def adapted(plain: torch.nn.Module, pictures: list[torch.Tensor]) -> tuple:
    return octzoo.adapt(plain, pictures, 0.25, epochs=1)


def test_it_answers_as_the_plain_network(adapted: tuple, plain: torch.nn.Module, others: list[torch.Tensor]) -> None:
    octave, report = adapted
    assert isinstance(octave, OctaveNetwork)
    assert octave.octave_alpha == report.alpha == 0.25
    assert agreement(octave, plain, others) > 0.9
    raw = octzoo.octavize(timm.create_model(NAME, pretrained=True), 0.25, report.plan).eval()
    assert agreement(octave, plain, others) > agreement(raw, plain, others)


def test_the_report_says_what_was_done(adapted: tuple) -> None:
    _, report = adapted
    assert list(report.agreement) == ["as it is", "refitted", "distilled"]
    assert report.pictures == (144, 16)
    assert 0.5 < report.macs < 0.9
    assert len(report.losses) == 1
    assert all(row.after <= row.before for row in report.layers)
    assert type(report).from_json(json.loads(json.dumps(report.as_json()))) == report


def test_each_step_is_shown(plain: torch.nn.Module, pictures: list, others: list) -> None:
    found = []
    _, report = octzoo.adapt(
        plain,
        pictures,
        0.25,
        epochs=0,
        after=lambda step, octave: found.append((step, agreement(octave, plain, others))),
    )
    assert [step for step, _ in found] == list(report.agreement) == ["as it is", "refitted"]
    assert found[0][1] < found[1][1]


def test_norms_have_the_statistics_of_what_reaches_them(adapted: tuple, pictures: list) -> None:
    found, expected = adapted[0], copy.deepcopy(adapted[0])
    settle(expected, [x for i, x in enumerate(pictures) if i != 5])  # the one that is kept back
    for name, statistics in expected.named_buffers():
        torch.testing.assert_close(found.get_buffer(name), statistics, rtol=1e-3, atol=1e-4)


def test_labels_in_the_batches_are_not_looked_at(plain: torch.nn.Module, pictures: list) -> None:
    few = [x[:2] for x in pictures]
    one, _ = octzoo.adapt(plain, few, 0.25, epochs=1)
    other, report = octzoo.adapt(plain, [(x, torch.zeros(2)) for x in few], 0.25, epochs=1)
    assert same(one, other)
    assert report.pictures == (18, 2)


def test_layers_behind_which_a_residual_connection_is_added_are_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("mobilenetv2_035", num_classes=3).eval()
    found = {}

    def note(name: str, *others: object) -> list:
        found[name] = others[-1]
        return []

    monkeypatch.setattr(sys.modules["octzoo.adaptation.adapt"], "refit_layer", note)
    octzoo.adapt(model, list(torch.randn(6, 3, 64, 64).split(1)), 0.25, epochs=0)
    blocks = residual_blocks(model)
    assert len(blocks) == 10
    assert {name: block for name, block in found.items() if block} == {n: b for n, b in blocks.items() if n in found}
    assert found.keys() > blocks.keys()


def test_the_plain_network_stays_as_it_is(adapted: tuple, plain: torch.nn.Module) -> None:
    fresh = timm.create_model(NAME, pretrained=True)
    assert type(plain) is type(fresh)
    for a, b in zip(plain.state_dict().values(), fresh.state_dict().values()):
        assert torch.equal(a, b)
    assert all(p.requires_grad for p in plain.parameters())


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_the_same_seed_gives_the_same_network(adapted: tuple, plain: torch.nn.Module, pictures: list) -> None:
    again, _ = octzoo.adapt(plain, pictures, 0.25, epochs=1)
    assert same(again, adapted[0])
    other, _ = octzoo.adapt(plain, pictures, 0.25, epochs=1, seed=1)
    assert not same(other, adapted[0])


@pytest.mark.parametrize("word", ["layer 3 ", pytest.param("layer 20 ", marks=pytest.mark.slow), "epoch 1 "])
def test_stopped_it_goes_on_to_the_same_network(
    word: str, adapted: tuple, plain: torch.nn.Module, pictures: list, tmp_path
) -> None:
    state, seen = tmp_path / "state.pt", []

    def stop(text: str) -> None:
        if text.startswith(word):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        octzoo.adapt(plain, pictures, 0.25, epochs=1, state=state, say=stop)
    assert state.is_file()
    again, _ = octzoo.adapt(plain, pictures, 0.25, epochs=1, state=state, say=seen.append)
    assert same(again, adapted[0])
    assert not any(text.startswith("layer 1 ") for text in seen)
    assert not list(tmp_path.iterdir())


def test_a_state_of_another_call_is_refused(plain: torch.nn.Module, pictures: list, tmp_path) -> None:
    state = tmp_path / "state.pt"

    def stop(text: str) -> None:
        if text.startswith("layer 1 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        octzoo.adapt(plain, pictures, 0.25, state=state, say=stop)
    with pytest.raises(UserError, match="of an adaptation with other settings or pictures: remove it to start anew"):
        octzoo.adapt(plain, pictures, 0.5, state=state)
    assert state.is_file()


@pytest.mark.slow
def test_a_budget_chooses_plan_and_alpha(plain: torch.nn.Module, pictures: list) -> None:
    _, report = octzoo.adapt(plain, pictures[:6], macs=0.8, epochs=0)
    assert 0.7 < report.macs <= 0.8
    assert list(report.agreement) == ["as it is", "refitted"]
    with pytest.raises(UserError, match="no plan takes 20% of the multiply-accumulates; the least is"):
        octzoo.adapt(plain, pictures[:6], macs=0.2)


def test_other_pictures_epochs_or_weights_are_not_gone_on_with(
    plain: torch.nn.Module, pictures: list, tmp_path
) -> None:
    state = tmp_path / "state.pt"

    def stop(text: str) -> None:
        if text.startswith("layer 1 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        octzoo.adapt(plain, pictures, epochs=1, state=state, say=stop)
    other = copy.deepcopy(plain)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    for network, given, epochs in ((plain, [-x for x in pictures], 1), (plain, pictures, 2), (other, pictures, 1)):
        with pytest.raises(UserError, match="remove it to start anew"):
            octzoo.adapt(network, given, epochs=epochs, state=state)


def test_pictures_in_another_order_each_time_are_refused(plain: torch.nn.Module, pictures: list) -> None:
    loader = torch.utils.data.DataLoader(torch.cat(pictures), batch_size=8, shuffle=True)
    with pytest.raises(UserError, match="a DataLoader that does not shuffle"):
        octzoo.adapt(plain, loader)


def test_a_budget_and_a_plan_do_not_go_together(plain: torch.nn.Module) -> None:
    with pytest.raises(UserError, match="macs chooses the plan; give one of the two"):
        octzoo.adapt(plain, [], plan=[("*", "octave")], macs=0.8)


@pytest.mark.parametrize("given", [[], "few", "iterator"])
def test_pictures_that_cannot_do(given, plain: torch.nn.Module, pictures: list) -> None:
    given = pictures[:3] if given == "few" else iter(pictures) if given == "iterator" else given
    with pytest.raises(UserError, match="it takes more than 5, and the same ones each time"):
        octzoo.adapt(plain, given)


class TestCommand:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory):
        out = tmp_path_factory.mktemp("octavized") / "digits"
        arguments = ["octavize", NAME, "--data", "digits", "--pictures", "160", "--epochs", "1", "--out", str(out)]
        assert main([*arguments, "--debug"]) == 0
        return out

    def test_the_folder_loads_by_timm_and_answers(self, folder, plain, others) -> None:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert model.octave_alpha == 0.25
        assert agreement(model, plain, others) > 0.9
        assert list(model.pretrained_cfg["label_names"]) == list(plain.pretrained_cfg["label_names"])

    def test_its_config_names_a_network_that_timm_makes(self, folder) -> None:
        config = json.loads((folder / "config.json").read_text())
        model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
        model.load_state_dict(load_file(folder / "model.safetensors"))

    def test_the_time_of_both_networks_is_told(self, folder) -> None:
        times = json.loads((folder / "adaptation.json").read_text())["milliseconds"]
        assert {"fused, batch 1", "fused, batch 8"} <= times.keys()
        for engine, found in times.items():
            assert found.keys() == {"plain", "octave"}
            assert len(found["plain"]) == len(found["octave"]) == 10
            assert f"| {engine} |" in (folder / "README.md").read_text()

    def test_it_is_a_checkpoint_folder_with_a_report_and_a_picture(self, folder) -> None:
        assert open_folder(folder).alpha == 0.25
        report = json.loads((folder / "adaptation.json").read_text())
        assert report["network"] == NAME
        assert (
            report["command"]
            == f"octzoo octavize {NAME} --alpha 0.25 --data digits --pictures 160 --epochs 1 --out DIR"
        )
        assert (folder / "adaptation.png").read_bytes().startswith(b"\x89PNG")
        assert "digits" in (folder / "README.md").read_text()
        assert [path.name for path in folder.parent.iterdir()] == ["digits"]

    @pytest.mark.parametrize(
        ("more", "text"),
        [
            (["--alpha", "0.5", "--macs", "0.5"], "the budget chooses alpha"),
            (["--alpha", "1"], "--alpha 1 is not between 0 and 1"),
            (["--macs", "1.5"], "--macs 1.5 is not between 0 and 1"),
            (["--macs", "0.1"], "no plan takes 10% of the multiply-accumulates; the least is 25"),
            (["--minutes", "0"], "--minutes 0 is no time"),
            (["--pictures", "40"], "40 pictures; it takes more than 40"),
            (["--checkpoint", __file__], "does not hold weights of oct_cifar_resnet20_a0.0.oz_digits"),
            (["--pictures", "0"], "--pictures 0 is no number of pictures"),
            (["--data", "nowhere"], "pictures 'nowhere': no such folder"),
            (["--checkpoint", "nowhere.pth"], "--checkpoint nowhere.pth: no such file"),
        ],
    )
    def test_mistakes_are_told_before_anything_is_done(self, more, text, tmp_path, capsys) -> None:
        out = tmp_path / "out"
        assert main(["octavize", NAME, "--data", "digits", "--out", str(out), *more]) == 2
        assert text in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_verify_knows_it_and_finds_another_plan(self, folder, tmp_path, capsys) -> None:
        assert main(["verify", str(folder)]) == 0
        other = shutil.copytree(folder, tmp_path / "other")
        config = json.loads((other / "config.json").read_text())
        config["model_args"]["plan"] = [["stem.*", "plain"], ["*", "zero"]]
        (other / "config.json").write_text(json.dumps(config))
        assert main(["verify", str(other)]) != 0
        assert "golden picture" in capsys.readouterr().out

    def test_it_goes_to_the_hub_under_its_own_name_and_comes_back(self, folder, tmp_path) -> None:
        mine, pulled = shutil.copytree(folder, tmp_path / "mine"), tmp_path / "out" / "mine"
        with hub({"hf_token": ["lab"]}) as server, closing(Session(tmp_path, hub=server, token="hf_token")) as octzoo:
            done = octzoo("publish", mine, "--org", "lab")
            assert done.code == 0, done
            assert "not uploaded" not in done.out
            done = octzoo("pull", "lab/mine", "--out", pulled.parent)
            assert done.code == 0, done
            said, _ = load("timm:hf-hub:lab/mine", home=tmp_path, hub=server)
        assert said == [{"digest": digest_of(folder), "alpha": 0.25}]
        assert contents(pulled) == contents(mine)
        assert 'timm.create_model("hf-hub:lab/mine"' in (pulled / "README.md").read_text()

    @pytest.mark.slow
    def test_killed_it_goes_on_to_the_same_weights(self, folder, tmp_path) -> None:
        out = tmp_path / "digits"
        arguments = [NAME, "--data", "digits", "--pictures", "160", "--epochs", "1", "--out", str(out)]
        command = [sys.executable, "-m", "octzoo_cli", "octavize", *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if line.startswith("layer 5 "):
                    process.kill()
                    break
        assert not out.exists()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "layer 6 of" in done.stderr
        assert "layer 1 of" not in done.stderr
        again, fresh = (open_folder(place).sha256 for place in (out, folder))
        assert again == fresh
        assert [path.name for path in tmp_path.iterdir()] == ["digits"]

    def test_an_octave_network_is_refused(self, tmp_path, capsys) -> None:
        name = "oct_cifar_resnet20_a0.25.oz_digits"
        assert main(["octavize", name, "--data", "digits", "--out", str(tmp_path / "out")]) == 2
        assert f"{name} is an octave network already; give a plain one" in capsys.readouterr().err
