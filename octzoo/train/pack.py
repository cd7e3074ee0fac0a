"""From a run to a checkpoint folder: the weights, what they scored when measured again, the recipe and the log."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import Tensor, nn

from octzoo.errors import UserError
from octzoo.models.convert import read_name
from octzoo.models.describe import family, plan_table
from octzoo.summary import stages
from octzoo.train.environment import PACKAGES, environment, package_version
from octzoo.train.metrics import METRICS as RUN_METRICS
from octzoo.train.runs import CONFIG as RUN_CONFIG
from octzoo.train.task import make_model
from octzoo.weights.card import make_card
from octzoo.weights.folder import LOG, METRICS, RECIPE, check_new, make_config, write_folder
from octzoo.weights.golden import GOLDEN, differs, golden_logits
from octzoo.weights.names import FullName

KEPT_OUT = (
    "run_dir",
    "ckpt_path",
    "weights_only",
    "group_timeout",
)  # of the recipe: this machine's, not the training's


@dataclass(frozen=True)
class Measured:
    """A run's network, measured now.

    Attributes:
        run: its folder.
        checkpoint: the file that was measured.
        epoch: that its weights are of, counted from 0.
        model: the network with these weights.
        data_config: how the pictures were prepared, as timm's resolve_data_config has it.
        class_names: of the classifier's outputs.
        split: of which pictures.
        pictures: how many.
        top1, top5, loss: means over them.
        command: that measured.
    """

    run: Path
    checkpoint: Path
    epoch: int
    model: nn.Module
    data_config: Mapping[str, Any]
    class_names: Sequence[str]
    split: str
    pictures: int
    top1: float
    top5: float
    loss: float
    command: Sequence[str]


@dataclass(frozen=True)
class About:
    """What nobody can measure: what the pictures are, and whose the weights are. None where it is not said."""

    dataset: str | None = None
    dataset_url: str | None = None
    owner: str | None = None
    licence: str | None = None
    limits: str | None = None


def check_run(full_name: str, settings: Mapping[str, Any]) -> FullName:
    """The parts of a name. UserError where a run with these settings trained another network, or it is none."""
    name, model = read_name(full_name), settings["model"]
    trained: Any = make_model(model["name"], 10, False, {**(model.get("model_args") or {}), "device": "meta"})
    network, alpha = trained.pretrained_cfg["architecture"].removesuffix("_a0"), getattr(trained, "octave_alpha", 0.0)
    if (network, alpha) != (name.network, name.alpha):
        raise UserError(f"--name {full_name}: the run trained {network} at alpha {alpha:g}")
    return name


def check_repeats(runs: Sequence[Path]) -> None:
    """UserError unless all runs are the first one's recipe, each with a seed of its own."""
    first, *others = ({**recipe(read_settings(run)), "data": None} for run in runs)
    seeds = {first["seed_everything"]}
    for run, other in zip(runs[1:], others):
        keys = [key for key in {*first, *other} - {"seed_everything"} if first.get(key) != other.get(key)]
        if keys or other["seed_everything"] in seeds:
            what = f"differs in {', '.join(sorted(keys))}" if keys else "has the same seed as another"
            raise UserError(f"--repeats {run} is no repetition of {runs[0]}: it {what}")
        seeds.add(other["seed_everything"])


def read_settings(run: Path) -> dict[str, Any]:
    """A run's config. UserError if it has none."""
    path = run / RUN_CONFIG
    if not path.is_file():
        raise UserError(f"{run} is no run folder: it has no {RUN_CONFIG}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pack(
    full_name: str,
    measured: Measured,
    repeats: Sequence[Measured],
    state: Mapping[str, Tensor],
    about: About,
    out: Path,
) -> Path:
    """Write OUT/NAME.TAG, wholly or not at all.

    Args:
        full_name: "oct_resnet50_a0.25.mine".
        measured: the run whose weights are packed.
        repeats: runs with other seeds, for their figures alone.
        state: the weights.
        about: what the card says beside what was measured.
        out: the folder's place.

    Raises:
        UserError: it exists; the run trained another network; built by its name it is not the run's network.
    """
    folder = out / full_name
    check_new(folder)
    settings = read_settings(measured.run)
    name = check_run(full_name, settings)
    config = config_of(name, measured)
    check_loads(name, config, state)
    metrics = metrics_of(name, measured, repeats, settings, about)
    if about.licence:
        config["pretrained_cfg"]["license"] = about.licence
    card = make_card(
        full_name,
        name.alpha,
        config=config,
        metrics=metrics,
        plan=plan_table(_meta(name, len(measured.class_names)), metrics["image_size"]),
        family=family(full_name, out, config, metrics),
    )
    files = {
        METRICS: json.dumps(metrics, indent=1) + "\n",
        RECIPE: yaml.safe_dump(recipe(settings), sort_keys=False),
        LOG: (measured.run / RUN_METRICS).read_text(encoding="utf-8"),
    }
    write_folder(folder, state, config, card, files)
    return folder


def config_of(name: FullName, measured: Measured) -> dict[str, Any]:
    """config.json: the network, how pictures are prepared, the classes, and its answer to the golden picture."""
    model: Any = copy.copy(measured.model)  # its pretrained_cfg is replaced, the run's is left alone
    size = tuple(measured.data_config["input_size"])
    with torch.inference_mode():
        pool_size = _meta(name, model.num_classes).forward_features(torch.zeros(1, *size, device="meta")).shape[-2:]
    prepared = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        **{key: measured.data_config[key] for key in prepared},
        "architecture": f"{name.network}_a0",
        "input_size": size,
        "pool_size": tuple(pool_size),
        "label_names": list(measured.class_names),
    }
    config = make_config(model, name.alpha, f"{name.digits}.{name.tag}", None)
    return {**config, "label_names": list(measured.class_names), GOLDEN: golden_logits(measured.model, size)}


def check_loads(name: FullName, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """UserError unless the network that the name means is the run's: the same weights, the same answers."""
    fresh = timm.create_model(name.untagged, num_classes=config["num_classes"])
    try:
        fresh.load_state_dict(dict(state))
    except RuntimeError as problem:
        raise UserError(f"{name.untagged} built by its name has no place for these weights: {problem}") from problem
    if problem_found := differs(config, fresh):
        raise UserError(
            f"{name.untagged} built by its name is another network than the run's, whose model.model_args changed it: "
            f"{problem_found}"
        )


def metrics_of(
    name: FullName,
    measured: Measured,
    repeats: Sequence[Measured],
    settings: Mapping[str, Any],
    about: About,
) -> dict[str, Any]:
    """metrics.json: what was measured, on what, by which command; and of the training what the run says."""
    size, classes = measured.data_config["input_size"][1], len(measured.class_names)
    here, papers, came_out = environment(), _read(measured.run, "environment.json"), _read(measured.run, "summary.json")
    dataset = about.dataset or default_dataset(settings["data"])
    best = measured.checkpoint.name.startswith("epoch=")
    trained = settings["trainer"]["max_epochs"]
    of_best = f"of epoch {measured.epoch}, the best of {trained} on these same pictures"
    return {
        "name": f"{name.untagged}.{name.tag}",
        "network": name.network,
        "alpha": name.alpha,
        "tag": name.tag,
        "image_size": size,
        "parameters": sum(p.numel() for p in measured.model.parameters()),
        "macs": _macs(name, classes, size),
        "plain_macs": _macs(name._replace(digits="0"), classes, size),
        "dataset": dataset,
        "dataset_id": re.sub(r"[^a-z0-9.-]+", "_", dataset.lower()).strip("_"),
        "dataset_url": about.dataset_url,
        "split": measured.split,
        "pictures": measured.pictures,
        **figures(measured),
        "weights": of_best if best else f"of the last epoch, {measured.epoch}",
        "ema": bool((settings.get("ema") or {}).get("decay")),
        "seed": settings["seed_everything"],
        "repeats": [{"seed": read_settings(other.run)["seed_everything"], **figures(other)} for other in repeats],
        "began_with": began_with(settings["model"]),
        "owner": about.owner,
        "licence": about.licence,
        "limits": about.limits,
        "measured": {
            "by": "octzoo",
            "command": shlex.join(map(last_part, measured.command)),
            "precision": "32-true",
            "hardware": hardware(here),
            "packages": {key: package_version(key) for key in PACKAGES},
        },
        "training": {
            "epochs": came_out.get("epochs"),
            "seconds": came_out.get("seconds"),
            "images_per_second": came_out.get("images_per_second"),
            "hardware": hardware(papers) if papers else None,
            "precision": settings["trainer"].get("precision") or "32-true",
            "batch_size": settings["data"]["batch_size"],
            "packages": papers.get("packages"),
        },
    }


def figures(measured: Measured) -> dict[str, float]:
    """What was measured, as shares of the pictures and a mean."""
    return {key: round(float(getattr(measured, key)), 6) for key in ("top1", "top5", "loss")}


def default_dataset(data: Mapping[str, Any]) -> str:
    """What the pictures are called where nobody says: the source's own name, or that of their folder."""
    source = str(data["source"])
    if data.get("root") and not source.startswith("torch/"):
        return Path(str(data["root"])).name
    return {"digits": "scikit-learn digits"}.get(source, source.removeprefix("torch/"))


def recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config without what is this machine's alone: `octzoo fit --config recipe.yaml --data.root PATH`."""
    kept = {key: copy.deepcopy(value) for key, value in settings.items() if key not in KEPT_OUT}
    for group, key in (("data", "root"), ("data", "pictures"), ("model", "init_from")):
        if (kept.get(group) or {}).get(key):
            kept[group][key] = last_part(kept[group][key])
    teacher = (kept.get("model") or {}).get("teacher") or {}
    if teacher.get("checkpoint"):
        teacher["checkpoint"] = last_part(teacher["checkpoint"])
    kept["trainer"].pop("default_root_dir", None)
    (kept.get("checkpoint") or {}).pop("dirpath", None)
    return kept


def began_with(model: Mapping[str, Any]) -> str | None:
    """What other weights a training began with, or learned from; None without any."""
    teacher = model.get("teacher") or {}
    told = [f"the weights of {last_part(model['init_from'])}"] if model.get("init_from") else []
    if model.get("pretrained") and not told:
        told.append(f"the published weights of {model['name']}")
    if taught_by := teacher.get("name") or teacher.get("checkpoint"):
        told.append(f"{last_part(taught_by)} as its teacher")
    return " and ".join(told) or None


def last_part(word: str) -> str:
    """An absolute path's last part, which says nothing of this machine; any other word as it is."""
    return Path(word).name if Path(word).is_absolute() else word


def hardware(papers: Mapping[str, Any]) -> str:
    """ "AMD EPYC, 2 CPUs, no GPU", of a run's environment.json."""
    gpus = papers.get("gpus") or []
    kinds = ", ".join(f"{gpus.count(gpu)} x {gpu}" for gpu in sorted(set(gpus)))
    return f"{papers.get('cpu') or 'unknown processor'}, {papers.get('cpus')} CPUs, {kinds or 'no GPU'}"


def _macs(name: FullName, num_classes: int, size: int) -> int:
    return sum(stage.macs for stage in stages(_meta(name, num_classes), size))


def _meta(name: FullName, num_classes: int) -> Any:
    return timm.create_model(name.untagged, num_classes=num_classes, device="meta").eval()


def _read(run: Path, file: str) -> dict[str, Any]:
    """A JSON file of a run; {} where it has none."""
    path = run / file
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
