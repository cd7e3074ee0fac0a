"""The `octzoo` command as its user meets it: real runs in real processes, and the exact text of every mistake."""

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import octzoo_cli

REPOSITORY = Path(octzoo_cli.__file__).parent
DIGITS = str(REPOSITORY / "configs" / "digits.yaml")


def octzoo(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, in `folder`."""
    command = [sys.executable, str(REPOSITORY / "octzoo_cli.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_help_imports_neither_torch_nor_timm_nor_lightning() -> None:
    code = "import octzoo_cli, sys; print(octzoo_cli.main(['--help']), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    code_and_modules = done.stdout.splitlines()[-1].split()
    assert code_and_modules[0] == "0"
    assert not {"torch", "timm", "lightning", "octzoo", "numpy"} & set(code_and_modules)
    assert "octzoo fit --config configs/digits.yaml" in done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """README's first command, from start to end; the run's folder."""
    place = tmp_path_factory.mktemp("first")
    done = octzoo("fit", "--config", DIGITS, folder=place)
    assert done.returncode == 0, done.stderr
    assert "next         octzoo test --ckpt_path runs/digits/0" in done.stdout
    return place / "runs" / "digits" / "0"


class TestARun:
    def test_it_learns_the_digits(self, run: Path) -> None:
        with (run / "metrics.csv").open() as file:
            top1 = [float(row["val/top1"]) for row in csv.DictReader(file) if row["val/top1"]]
        assert top1[-1] >= 0.97

    def test_its_folder_says_everything(self, run: Path) -> None:
        names = {path.name.split("=")[0].split(".out.")[0] for path in run.iterdir()}
        papers = {"config.yaml", "environment.json", "metrics.csv", "hparams.yaml", "events", "logs", "summary.json"}
        assert names == papers | {"curves.png", "confusion.png", "confusion.csv", "last.ckpt", "epoch"}
        assert json.loads((run / "environment.json").read_text())["command"] == f"octzoo fit --config {DIGITS}"
        assert Image.open(run / "curves.png").format == "PNG"

    def test_its_last_checkpoint_is_of_the_last_epoch(self, run: Path) -> None:
        epochs = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"]
        assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == epochs - 1

    def test_its_metrics_have_loss_accuracy_rate_and_speed(self, run: Path) -> None:
        header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
        assert {"train/loss", "val/loss", "val/top1", "val/top5", "train/images_per_second"} <= set(header)
        assert any(name.startswith("lr-SGD") for name in header)

    def test_its_best_checkpoint_is_named_after_epoch_and_accuracy(self, run: Path) -> None:
        (best,) = run.glob("epoch=*.ckpt")
        epoch, top1 = best.stem.split("-")
        assert epoch.removeprefix("epoch=").isdigit()
        assert 0.97 <= float(top1.removeprefix("top1=")) <= 1

    def test_its_config_is_complete_and_belongs_to_no_run(self, run: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["model"]["name"] == "oct_cifar_resnet20_a0.25"
        assert config["seed_everything"] == 0
        assert config["ckpt_path"] is config["run_dir"] is config["checkpoint"]["dirpath"] is None
        assert "num_classes" not in config["model"]

    def test_test_measures_the_checkpoint_with_the_runs_config(self, run: Path) -> None:
        with (run / "metrics.csv").open() as file:
            top1 = [row["val/top1"] for row in csv.DictReader(file) if row["val/top1"]][-1]
        config, checkpoint = str(run / "config.yaml"), str(run / "last.ckpt")
        done = octzoo("test", "--config", config, "--ckpt_path", checkpoint, folder=run.parents[2])
        assert done.returncode == 0, done.stderr
        assert top1[:8] in done.stdout

    def test_measuring_writes_nothing(self, run: Path) -> None:
        before = sorted(run.parents[2].rglob("*"))
        assert octzoo("validate", "--ckpt_path", str(run), folder=run.parents[2]).returncode == 0
        assert sorted(run.parents[2].rglob("*")) == before

    def test_predict_labels_pictures_and_names_the_broken_one(self, run: Path, tmp_path: Path) -> None:
        digits = load_digits()
        (tmp_path / "new" / "deep").mkdir(parents=True)
        for i in range(20):
            pixels = (digits.images[i] * 255 / 16).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "new" / "deep" / f"{i:02}-{digits.target[i]}.png")
        (tmp_path / "new" / "broken.jpg").write_bytes(b"no picture")
        done = octzoo(
            *["predict", "--ckpt_path", str(run), "--data.pictures", "new", "--predictions.out", "out/labels"],
            folder=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "20 pictures labelled, 1 not readable: out/labels.csv, out/labels.json" in done.stdout
        assert "not a readable picture: broken.jpg: UnidentifiedImageError" in done.stderr
        rows = json.loads((tmp_path / "out" / "labels.json").read_text())
        with (tmp_path / "out" / "labels.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [row["path"] for row in rows] == [row["path"] for row in table]
        assert rows[0]["path"] == "broken.jpg"
        assert rows[0]["top"] == []
        assert table[0]["label_1"] == ""
        assert "UnidentifiedImageError" in rows[0]["error"]
        right = sum(row["top"][0]["label"] == row["path"][-5] for row in rows[1:])
        assert right >= 18
        for row, line in zip(rows[1:], table[1:], strict=True):
            probabilities = [best["probability"] for best in row["top"]]
            assert len(probabilities) == 5
            assert probabilities == sorted(probabilities, reverse=True)
            assert sum(probabilities) <= 1 + 1e-5
            assert line["label_1"] == row["top"][0]["label"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["octzoo"])  # the command puts its own arguments there
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's log may write to an earlier test's stderr
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and last line on stderr of the command, run in this process."""
    try:
        code = octzoo_cli.main(list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(lines) <= 1, lines
    return code, lines[0] if lines else ""


MISTAKES = {
    "unknown verb": (["ft"], "error: no verb 'ft'; did you mean 'fit'?"),
    "unknown flag": (
        ["fit", "--config", DIGITS, "--model.optimizer.lrr", "3"],
        "error: unrecognized arguments: --model.optimizer.lrr 3; did you mean --model.optimizer.lr?",
    ),
    "wrong type": (
        ["fit", "--config", DIGITS, "--model.optimizer.lr", "high"],
        "error: Parser key \"model.optimizer.lr\": Expected a <class 'float'>. Got value: high",
    ),
    "missing config": (
        ["fit", "--config", "nope.yaml"],
        "error: Parser key \"config\": File does not exist: '{here}/nope.yaml'",
    ),
    "no network": (["fit"], "error: the following arguments are required: fit.model.name"),
    "unknown network": (
        ["fit", "--config", DIGITS, "--model.name", "oct_cifar_resnet2_a0.25"],
        "error: model.name: no network 'oct_cifar_resnet2_a0.25'; did you mean 'oct_cifar_resnet20_a0.25'?",
    ),
    "wrong num_classes": (
        ["fit", "--config", DIGITS, "--data.num_classes", "12"],
        "error: data.num_classes is 12, but there are 10 classes: 0, 1, 2, 3, 4 ...",
    ),
    "linked flag": (
        ["fit", "--config", DIGITS, "--model.num_classes", "7"],
        'error: Linked "model.num_classes" must be given via "data.num_classes".',
    ),
    "missing root": (
        ["fit", "--config", DIGITS, "--data.source", "folder", "--data.root", "nowhere"],
        "error: data.root: no such folder: nowhere",
    ),
    "no weights to measure": (
        ["test", "--config", DIGITS],
        "error: no weights: give a run, a checkpoint or a published name",
    ),
    "no weights to predict with": (
        ["predict", "--config", DIGITS],
        "error: no weights: give a run, a checkpoint or a published name",
    ),
    "missing checkpoint": (
        ["test", "--config", DIGITS, "--ckpt_path", "gone.ckpt"],
        "error: ckpt_path: no such file or run folder: gone.ckpt",
    ),
    "neither run nor name": (
        ["predict", "runs/gone", "photos"],
        "error: no such file, run folder or network: runs/gone",
    ),
    "overlay without its base": (
        ["fit", "--config", str(REPOSITORY / "configs" / "r101.yaml"), "--data.root", "nowhere"],
        f"error: {REPOSITORY}/configs/r101.yaml is an overlay: give its base before it, --config configs/r50.yaml "
        f"--config {REPOSITORY}/configs/r101.yaml",
    ),
    "run folder in use": (
        ["fit", "--config", DIGITS, "--run_dir", str(REPOSITORY / "configs")],
        f"error: run_dir: {REPOSITORY}/configs is not empty; resume the run in it with --ckpt_path last, or take "
        "another",
    ),
    "nothing to resume": (
        ["fit", "--config", DIGITS, "--run_dir", "runs/digits/0", "--ckpt_path", "last"],
        "error: ckpt_path: nothing to resume in runs/digits/0: no checkpoint that loads",
    ),
    "average of shards": (
        ["fit", "--config", DIGITS, "--trainer.strategy", "fsdp2", "--trainer.devices", "2", "--ema.decay", "0.9"],
        "error: ema.decay: no average of sharded weights (fsdp2); set it to 0, or trainer.strategy to ddp",
    ),
    "shards on one device": (
        ["fit", "--config", DIGITS, "--trainer.strategy", "fsdp2", "--trainer.devices", "1"],
        "error: trainer.strategy: fsdp2 shards over several devices; set trainer.devices, or take auto",
    ),
    "nothing to continue": (
        ["fit", "--config", DIGITS, "--ckpt_path", "last"],
        "error: ckpt_path: last needs --run_dir, the folder of the run to resume",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, text = MISTAKES[mistake]
    assert said(capsys, *arguments) == (2, text.replace("{here}", str(here)))
    assert list(here.iterdir()) == []


YAML_MISTAKES = {
    "unknown key": (
        "model: {optimiser: {lr: 1.0}}",
        "error: Subcommand 'fit' does not accept option 'model.optimiser.lr'; did you mean model.optimizer.lr?",
    ),
    "key that the data set": (
        "model: {num_classes: 7}",
        "error: more.yaml: model.num_classes is found by the data; take it out (data.num_classes has it checked)",
    ),
    "reference to nothing": (
        'model: {label_smoothing: "${data.smooth}"}',
        "error: Interpolation key '..data.smooth' not found (resolved to 'fit.data.smooth')",
    ),
    "unknown callback": (
        "trainer: {callbacks: {class_path: EarlyStoping}}",
        "error: trainer.callbacks: no class EarlyStoping; did you mean EarlyStopping?",
    ),
    "no YAML": ("model: [", "error: Problems parsing config: while parsing a flow node"),
}


@pytest.mark.parametrize("mistake", YAML_MISTAKES)
def test_a_mistake_in_a_file_is_one_line_too(mistake: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, text = YAML_MISTAKES[mistake]
    (here / "more.yaml").write_text(content)
    code, line = said(capsys, "fit", "--config", DIGITS, "--config", "more.yaml")
    assert code == 2
    assert line.startswith(text)


def test_published_weights_of_other_classes_are_not_measured(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm.create_model("test_resnet.r160_in1k").state_dict(), here / "published.pth")
    published = ("--model.name", "test_resnet.r160_in1k", "--model.pretrained", "true")
    file = ("--model.model_args", '{"pretrained_cfg_overlay": {"file": "published.pth"}}')
    assert said(capsys, "test", "--config", DIGITS, *published, *file) == (
        2,
        "error: data: classes that the network was not given: 0, 1, 2, 3, 4",
    )


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """The configuration that the arguments come to."""
    with pytest.raises(SystemExit) as stop:
        octzoo_cli.main([*arguments, "--print_config"])
    assert not stop.value.code
    return yaml.safe_load(capsys.readouterr().out)


def test_files_refer_to_each_other_later_ones_win_and_flags_win_wherever_they_stand(here, capsys) -> None:
    (here / "more.yaml").write_text('trainer: {log_every_n_steps: "${data.batch_size}"}\nmodel: {optimizer: {lr: 0.5}}')
    config = printed(capsys, "fit", "--data.batch_size", "48", "--config", DIGITS, "--config=more.yaml")
    assert config["trainer"]["log_every_n_steps"] == config["data"]["batch_size"] == 48
    assert config["model"]["optimizer"]["lr"] == 0.5
    assert config["model"]["optimizer"]["momentum"] == 0.9


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_every_verb_has_help_with_an_example(verb: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        octzoo_cli.main([verb, "--help"])
    assert not stop.value.code
    assert f"\nexample: octzoo {verb} " in capsys.readouterr().out


def test_two_steps_of_everything_leave_no_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = said(capsys, "fit", "--config", DIGITS, "--trainer.fast_dev_run", "true")
    assert code == 0
    assert list(here.iterdir()) == []


class TestFineTuning:
    """configs/finetune.yaml on a folder of pictures, without its download."""

    arguments = ("fit", "--config", str(REPOSITORY / "configs" / "finetune.yaml"), "--data.root", "pictures")
    small = (
        *("--model.name", "test_resnet.r160_in1k", "--model.pretrained", "false", "--model.freeze_backbone", "true"),
        *("--data.num_workers", "0", "--data.batch_size", "4", "--data.preprocess.image_size", "32"),
        *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
    )

    def pictures(self, folder: Path) -> None:
        for name, colour in (("ant", "red"), ("bee", "blue")):
            (folder / "pictures" / name).mkdir(parents=True)
            for i in range(5):
                Image.new("RGB", (40, 40), colour).save(folder / "pictures" / name / f"{i}.png")

    def test_a_run_repeats_into_a_new_folder_and_a_failure_leaves_its_traceback(self, here: Path, capsys) -> None:
        self.pictures(here)
        assert said(capsys, *self.arguments, *self.small) == (0, "")
        assert said(capsys, "fit", "--config", "runs/finetune/0/config.yaml") == (0, "")
        first, second = ((here / "runs" / "finetune" / n / "config.yaml").read_text() for n in "01")
        assert first == second
        (here / "pictures" / "ant" / "0.png").write_bytes(b"broken")
        code, line = said(capsys, *self.arguments, *self.small, "--model.optimizer.opt", "adamww")
        assert (code, line) == (
            2,
            "error: model.optimizer.opt: timm has no optimizer 'adamww'; did you mean 'adamw'?",
        )
        assert "SettingError" in (here / "runs" / "finetune" / "2" / "error.txt").read_text()

    def test_a_run_continues_in_a_new_folder_where_it_ended(self, here: Path, capsys) -> None:
        self.pictures(here)
        assert said(capsys, *self.arguments, *self.small) == (0, "")
        again = ("fit", "--ckpt_path", "runs/finetune/0", "--trainer.max_epochs", "2")
        assert said(capsys, *again) == (0, "")
        with (here / "runs" / "finetune" / "1" / "metrics.csv").open() as file:
            assert {row["epoch"] for row in csv.DictReader(file) if row["epoch"]} == {"1"}
        assert yaml.safe_load((here / "runs" / "finetune" / "1" / "config.yaml").read_text())["ckpt_path"] is None

    def test_a_run_predicts_without_its_training_pictures(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.pictures(here)
        assert said(capsys, *self.arguments, *self.small) == (0, "")
        (here / "pictures").rename(here / "new")
        run = ("--ckpt_path", "runs/finetune/0")
        assert said(capsys, "predict", *run, "--data.pictures", "new") == (0, "")
        rows = json.loads((here / "predictions.json").read_text())
        assert len(rows) == 10
        assert {best["label"] for row in rows for best in row["top"]} == {"ant", "bee"}
        assert said(capsys, "predict", *run)[1] == (
            "error: data.pictures: say which folder of pictures to label (--data.pictures FOLDER)"
        )

    def test_an_empty_class_is_named(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.pictures(here)
        (here / "pictures" / "cow").mkdir()
        code, line = said(capsys, *self.arguments, *self.small)
        assert code == 2
        assert line.startswith("error: data.root: class folder pictures/cow holds no pictures (.png, .jpg, ")

    def test_debug_shows_the_traceback(self, here: Path) -> None:
        with pytest.raises(ValueError, match="no such folder"):
            octzoo_cli.main([*self.arguments, *self.small, "--debug"])


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["false", "true"])
def test_two_processes_share_one_run_folder(tmp_path: Path, sync: str) -> None:
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "1")
    done = octzoo("fit", "--config", DIGITS, *two, "--trainer.sync_batchnorm", sync, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs" / "digits").iterdir()] == ["0"]
    assert done.stdout.count("run folder") == 1
