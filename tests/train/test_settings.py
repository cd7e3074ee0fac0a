"""octzoo.train.settings and references: the strategy, the processes, no environment's value in a saved config."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf

from octzoo.data import SettingError
from octzoo.train.references import environment_references, with_references
from octzoo.train.settings import count_processes, find_strategy
from octzoo.train.sharded import Sharded

SECRET = "s3cr3t"


class TestReferences:
    """{dotted key: text} of what configs and flags take from the environment."""

    def test_of_a_config_by_their_dotted_keys(self) -> None:
        text = "a: 1\nmodel:\n  name: x\n  init_from: ${oc.env:WEIGHTS}\ndata: {root: '${oc.env:HOME}/pictures'}"
        assert environment_references([text], []) == {
            "model.init_from": "${oc.env:WEIGHTS}",
            "data.root": "${oc.env:HOME}/pictures",
        }

    def test_of_nothing_there_are_none(self) -> None:
        assert environment_references([], []) == environment_references(["", "# empty", "a: ${b}"], ["--a", "1"]) == {}

    @pytest.mark.parametrize("flag", [["--data.root", "${oc.env:P}"], ["--data.root=${oc.env:P}"]])
    def test_of_a_flag_in_both_spellings(self, flag: list[str]) -> None:
        around = ["--model.name", "x", *flag, "--trainer.max_epochs=3", "--data.download", "true"]
        assert environment_references([], around) == {"data.root": "${oc.env:P}"}

    @pytest.mark.parametrize("flag", [["--data.root", "a=${oc.env:P}"], ["--data.root=a=${oc.env:P}"]])
    def test_of_a_flag_whose_value_has_an_equals_sign(self, flag: list[str]) -> None:
        assert environment_references([], flag) == {"data.root": "a=${oc.env:P}"}

    def test_a_later_config_wins_and_a_flag_over_all(self) -> None:
        configs = ["data: {root: '${oc.env:A}'}", "data: {root: '${oc.env:B}'}"]
        assert environment_references(configs, []) == {"data.root": "${oc.env:B}"}
        assert environment_references(configs, ["--data.root", "/there"]) == {}
        assert environment_references(configs, ["--data.root=${oc.env:C}"]) == {"data.root": "${oc.env:C}"}


def saved(configs: list[str], arguments: list[str], resolved: dict[str, Any]) -> dict[str, Any]:
    return with_references(resolved, environment_references(configs, arguments))


class TestSavedConfig:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"KEY": SECRET, "LR": "0.25", "SMALL": "1e-3", "N": "3", "YES": "true"}.items():
            monkeypatch.setenv(name, value)

    def test_the_reference_stands_in_place_of_its_value(self) -> None:
        resolved = {"a": {"key": SECRET, "other": 1}, "b": f"https://{SECRET}@host"}
        config = "a: {key: '${oc.env:KEY}'}\nb: https://${oc.env:KEY}@host"
        assert saved([config], [], resolved) == {
            "a": {"key": "${oc.env:KEY}", "other": 1},
            "b": "https://${oc.env:KEY}@host",
        }
        assert resolved["a"]["key"] == SECRET  # it makes a copy

    def test_what_is_saved_gives_the_same_when_it_is_read(self) -> None:
        resolved = {"lr": 0.25, "n": 3}
        text = yaml.safe_dump(saved(["lr: ${oc.env:LR}\nn: ${oc.env:N}"], [], resolved))
        again = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(text)), resolve=True)
        assert again == {"lr": "0.25", "n": "3"}  # as text, which jsonargparse gives its type

    @pytest.mark.parametrize(("name", "value"), [("LR", 0.25), ("N", 3), ("SMALL", 0.001), ("YES", True), ("N", 3.0)])
    def test_a_number_or_a_truth_is_no_exception(self, name: str, value: Any) -> None:
        reference = f"${{oc.env:{name}}}"
        assert saved([f"a: {reference}"], [], {"a": value}) == {"a": reference}

    @pytest.mark.parametrize(
        "config",
        [
            "trainer: {logger: [{class_path: W, init_args: {key: '${oc.env:KEY}'}}]}",
            "keys: [x, '${oc.env:KEY}']",
            "one: ${oc.env:KEY}\ntwo: ${one}",
            "a: {one: '${oc.env:KEY}'}\nb: ${a}",
        ],
    )
    def test_a_secret_is_never_saved_also_in_a_list_or_by_another_key(self, config: str) -> None:
        resolved = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(config)), resolve=True)
        assert SECRET in yaml.safe_dump(resolved)
        if "trainer" in resolved:  # type: ignore[operator]
            resolved["trainer"]["logger"][0]["init_args"]["project"] = "a default"  # type: ignore
        assert SECRET not in yaml.safe_dump(saved([config], [], resolved))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "flag", [["--a.b", "${oc.env:KEY}"], ["--a.b=${oc.env:KEY}"], ["--a", "{b: '${oc.env:KEY}'}"]]
    )
    def test_nor_from_a_flag(self, flag: list[str]) -> None:
        assert SECRET not in yaml.safe_dump(saved([], flag, {"a": {"b": SECRET, "c": 0}}))

    def test_what_was_overridden_stays_as_it_is(self) -> None:
        config = "a: ${oc.env:KEY}\nb: {c: '${oc.env:KEY}'}"
        assert saved([config, "a: other"], ["--b.c", "mine"], {"a": "other", "b": {"c": "mine"}}) == {
            "a": "other",
            "b": {"c": "mine"},
        }

    def test_a_decoded_reference_is_kept_and_so_is_one_beside_another_key(self) -> None:
        config = "n: ${oc.decode:${oc.env:N}}\nroot: ${oc.env:KEY}/${source}\nsource: folder"
        resolved = {"n": 3, "root": f"{SECRET}/folder", "source": "folder"}
        assert saved([config], [], resolved) == {
            "n": "${oc.decode:${oc.env:N}}",
            "root": "${oc.env:KEY}/${source}",
            "source": "folder",
        }

    def test_a_reference_that_cannot_be_told_leaks_nothing_and_is_no_error(self) -> None:
        resolved = {"a": f"{SECRET}/x"}
        assert saved(["a: ${oc.env:KEY}/${gone}\ngone: x"], [], resolved) == {"a": "${oc.env:KEY}/x"}

    def test_a_key_that_is_not_there_any_more_is_no_error(self) -> None:
        assert saved(["a: {b: {c: '${oc.env:KEY}'}}"], [], {"a": {"b": None}, "d": 1}) == {"a": {"b": None}, "d": 1}


def trainer(**settings: Any) -> SimpleNamespace:
    plain = {"devices": 1, "num_nodes": 1, "accelerator": "cpu", "strategy": "auto"}
    return SimpleNamespace(**{**plain, **settings})


class TestProcesses:
    @pytest.mark.parametrize(
        ("devices", "processes"),
        [(1, 1), (4, 4), ("4", 4), ([0, 2], 2), ("auto", 1), (-1, 1), ("-1", 1), ("0,2", 2), ("1,", 1)],
    )
    def test_they_are_the_devices_as_lightning_takes_them_on_each_machine(
        self, devices, processes, monkeypatch
    ) -> None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        assert count_processes(trainer(devices=devices)) == processes
        assert count_processes(trainer(devices=devices, num_nodes=3)) == 3 * processes

    def test_all_that_there_are_is_what_torchrun_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert count_processes(trainer(devices="auto", num_nodes=2)) == 8
        assert count_processes(trainer(devices=2)) == 2

    def test_or_the_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
        found = {
            kind: count_processes(trainer(devices="auto", accelerator=kind)) for kind in ("auto", "gpu", "cuda", "cpu")
        }
        assert found == {"auto": 8, "gpu": 8, "cuda": 8, "cpu": 1}


class TestStrategy:
    def test_one_process_has_what_was_asked_for(self) -> None:
        assert find_strategy(trainer(), 60) == "auto"
        assert find_strategy(trainer(strategy="ddp_spawn", devices=2), 60) == "ddp_spawn"
        given = DDPStrategy()
        assert find_strategy(trainer(strategy=given, devices=2), 60) is given

    @pytest.mark.parametrize("settings", [{"strategy": "ddp"}, {"devices": 2}, {"num_nodes": 2}])
    def test_ddp_has_the_time_that_processes_wait(self, settings: dict[str, Any]) -> None:
        strategy = find_strategy(trainer(**settings), 90)
        assert isinstance(strategy, DDPStrategy)
        assert strategy._timeout == timedelta(seconds=90)

    def test_fsdp2_shards_over_all_processes(self) -> None:
        strategy = find_strategy(trainer(strategy="fsdp2", devices=2, num_nodes=2), 90)
        assert isinstance(strategy, Sharded)
        assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (4, 1)
        assert strategy._timeout == timedelta(seconds=90)

    def test_fsdp2_on_one_device_is_refused(self) -> None:
        with pytest.raises(SettingError) as raised:
            find_strategy(trainer(strategy="fsdp2"), 60)
        assert str(raised.value) == (
            "trainer.strategy: fsdp2 shards over several devices; set trainer.devices, or take auto"
        )
