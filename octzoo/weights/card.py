"""The model card of a checkpoint folder: text from what the folder's other files say, so that no figure is typed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from octzoo.weights.records import Accuracy, Record

PAPER = "https://arxiv.org/abs/1904.05049"
CITATION = f"""## Citation

The method is of Chen et al., ICCV 2019, [arXiv 1904.05049]({PAPER}):

```bibtex
@inproceedings{{chen2019drop,
  title = {{Drop an Octave: Reducing Spatial Redundancy in Convolutional Neural Networks with Octave Convolution}},
  author = {{Chen, Yunpeng and Fan, Haoqi and Xu, Bing and Yan, Zhicheng and Kalantidis, Yannis and Rohrbach, Marcus and
            Yan, Shuicheng and Feng, Jiashi}},
  booktitle = {{Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)}},
  year = {{2019}},
  eprint = {{1904.05049}}
}}
```"""
HERE = "  # in this folder"
_TIMM = re.compile(rf'(timm\.create_model\(")(?:local-dir:\.|hf-hub:[^"\n]+)(", pretrained=True\)[^\n]*?)(?:{HERE})?\n')
_TRANSFORMERS = re.compile(rf'(AutoModelForImageClassification\.from_pretrained\(")([^"\n]+)("\))(?:{HERE})?\n')


class Sibling(NamedTuple):
    """One alpha of a network, as the tables have it.

    Attributes:
        name: with the tag where there are weights.
        alpha: the low share of the channels.
        macs: multiply-accumulates of convolutions and linear layers for one picture.
        plain_macs: those of the ordinary network.
        top1: of the published weights, in percent; None where nobody measured it.
        seeds: top-1 of every seed that was trained, in percent, the published one first; empty where not known.
        measured_by: whose measurement.
    """

    name: str
    alpha: float
    macs: int
    plain_macs: int
    top1: float | None = None
    seeds: tuple[float, ...] = ()
    measured_by: str | None = None


def sibling(metrics: Mapping[str, Any]) -> Sibling:
    """What a metrics.json says, as a row of a table."""
    seeds = tuple(100 * run["top1"] for run in runs(metrics))
    counts = metrics["macs"], metrics["plain_macs"]
    return Sibling(metrics["name"], metrics["alpha"], *counts, seeds[0], seeds, metrics["measured"]["by"])


def runs(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """seed, top1, top5, loss of every seed in a metrics.json, the published one first."""
    return [metrics, *metrics["repeats"]]


def accuracy(row: Sibling) -> str:
    """Top-1: the mean over seeds, their range and number; one figure where no seeds are known; "" without any."""
    if len(row.seeds) > 1:
        return f"{mean(row.seeds):.2f} ({min(row.seeds):.2f} to {max(row.seeds):.2f}, {len(row.seeds)} seeds)"
    if row.seeds:
        return f"{row.seeds[0]:.2f} (1 seed)"
    return "" if row.top1 is None else str(round(row.top1, 3))


def markdown(head: Sequence[str], align: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, align, *rows])


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def make_card(
    full_name: str,
    alpha: float,
    record: Record | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    plan: Sequence[Sequence[str]] = (),
    family: Sequence[Sibling] = (),
    repo: str | None = None,
) -> str:
    """README.md of a checkpoint folder.

    Args:
        full_name: "oct_resnet50_a0.25.fb_in1k".
        alpha: the low share of the channels.
        record: of published weights, which octzoo finds by their name; None for others.
        config: config.json.
        metrics: metrics.json of weights that octzoo trained and measured; None for imported ones.
        plan: the table of stages, its head first and the sums last (``models.describe.plan_table``).
        family: this network at its other alphas (``models.describe.family``); its own row is made from ``metrics``.
        repo: "org/name" on the Hub, where it is going.
    """
    shape = config["pretrained_cfg"]["input_size"] if config else None
    by_name = record is not None and bool(metrics or record.url)
    place = full_name if by_name else f"hf-hub:{repo}" if repo else "local-dir:."
    parts = [
        f"---\n{_metadata(full_name, record, metrics, transformers=config is not None).to_yaml()}\n---",
        f"# {full_name}",
        _what(alpha, shape, metrics),
        _figures(record, metrics),
        _use(place, shape),
        _transformers(repo) if config else "",
        _family(full_name, family, metrics),
        _plan(plan),
        _training(record, metrics),
        _measurement(metrics) if metrics else "",
        _limits(metrics),
        _whose(record, metrics),
        CITATION,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def with_repo(card: str, repo: str) -> str:
    """``card`` with its snippets loading from "org/name" on the Hub; snippets that load by name stay, and all else."""
    card = _TIMM.sub(lambda m: f"{m[1]}hf-hub:{repo}{m[2]}\n", card, count=1)
    return _TRANSFORMERS.sub(lambda m: f"{m[1]}{repo}{m[3]}\n", card, count=1)


def repo_of(card: str) -> str | None:
    """The "org/name" on the Hub that a card's snippets load from; None for one that has not been there."""
    found = _TRANSFORMERS.search(card)
    return found[2] if found and "/" in found[2] else None


# ---- its parts -----------------------------------------------------------------------------------------------------


def _metadata(
    full_name: str, record: Record | None, metrics: Mapping[str, Any] | None, transformers: bool
) -> ModelCardData:
    """What the Hub reads. Figures that others report do not become results of ours."""
    common: dict[str, Any] = dict(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", *(["transformers"] if transformers else []), "octave-convolution", "image-classification"],
    )
    if metrics is None:
        return ModelCardData(
            license=record.licence if record else None, datasets=[record.dataset] if record else None, **common
        )
    dataset: dict[str, Any] = dict(
        task_type="image-classification",
        dataset_type=metrics["dataset_id"] or metrics["dataset"],
        dataset_name=metrics["dataset"],
        dataset_split=metrics["split"],
    )
    kinds = [("accuracy", "top-1 accuracy", "top1"), ("top_5_accuracy", "top-5 accuracy", "top5")]
    return ModelCardData(
        license=metrics["licence"],
        datasets=[metrics["dataset_id"]] if metrics["dataset_id"] else None,
        metrics=["accuracy"],
        model_name=full_name,
        eval_results=[
            EvalResult(metric_type=kind, metric_name=name, metric_value=metrics[key], **dataset)
            for kind, name, key in kinds
        ],
        **common,
    )


def _what(alpha: float, shape: Sequence[int] | None, metrics: Mapping[str, Any] | None) -> str:
    size = f" for pictures of {shape[1]}x{shape[2]}" if shape else ""
    what = (
        f"An octave network ([Chen et al., 2019]({PAPER})){size}: a share of {alpha:g} of its channels is kept at half "
        "the resolution."
        if alpha
        else f"An ordinary network{size}, the control for octave networks ([Chen et al., 2019]({PAPER})): alpha is 0, "
        "no channel is kept at half the resolution."
    )
    if metrics is None:
        return what
    plain = f", {metrics['macs'] / metrics['plain_macs']:.2f} of the ordinary network's" if alpha else ""
    return (
        f"{what} {metrics['parameters']:,} parameters; {_millions(metrics['macs'])} million multiply-accumulates a "
        f"picture{plain}."
    )


def _figures(record: Record | None, metrics: Mapping[str, Any] | None) -> str:
    if metrics:
        tops = sibling(metrics).seeds
        seeds = (
            f"The mean of {len(tops)} seeds of one recipe is {mean(tops):.2f} % ({min(tops):.2f} to {max(tops):.2f})."
            if len(tops) > 1
            else "One seed was trained (n = 1): how much seeds differ is not known."
        )
        return (
            f"**Top-1 {_percent(metrics['top1'])} %, top-5 {_percent(metrics['top5'])} %** on {_pictures(metrics)}, "
            f"measured by {metrics['measured']['by']}. {seeds}"
        )
    if record:
        reported = [_reported(a) for a in (record.accuracy, record.remeasured) if a]
        return "\n".join([f"Trained on {record.dataset} by {record.owner}.", "", *reported])
    return "Imported with `octzoo import`; whose weights these are, and how good, only the importer knows."


def _use(place: str, shape: Sequence[int] | None) -> str:
    channels, height, width = shape or (3, 224, 224)
    mode = "L" if channels == 1 else "RGB"
    here = HERE if place == "local-dir:." else ""
    return f"""## Use

```python
import octzoo  # makes the network known to timm
import timm
import torch
from PIL import Image

model = timm.create_model("{place}", pretrained=True).eval(){here}
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
picture = Image.new("{mode}", ({width}, {height}), "orange")  # yours: Image.open("picture.jpg").convert("{mode}")
with torch.inference_mode():
    probabilities = model(transform(picture)[None]).softmax(dim=1)[0]
best = int(probabilities.argmax())
names = model.pretrained_cfg.get("label_names") or range(model.num_classes)
print(names[best], float(probabilities[best]))
```"""


def _transformers(repo: str | None) -> str:
    return f"""With transformers:

```python
import octzoo
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("{repo or "."}"){"" if repo else HERE}
```"""


def _family(full_name: str, family: Sequence[Sibling], metrics: Mapping[str, Any] | None) -> str:
    own = [sibling(metrics)] if metrics else []
    others = [row for row in family if not own or row.alpha != own[0].alpha]
    if not others:
        return ""
    rows = []
    for row in sorted(own + others, key=lambda row: row.alpha):
        this = row.name == full_name
        alpha = f"{row.alpha:g}" if row.alpha else "0 (control)"
        costs = [_millions(row.macs), f"{row.macs / row.plain_macs:.2f}"]
        rows.append(
            [f"`{row.name}`{', this one' if this else ''}", alpha, *costs, accuracy(row), row.measured_by or ""]
        )
        if this:
            rows[-1] = [f"**{cell}**" if cell else "" for cell in rows[-1]]
    seeds = any(row.seeds for row in own + others)
    top1 = "top-1, %: mean (range), seeds" if seeds else "top-1, %"
    head = ["network", "alpha", "million multiply-accumulates", "of the ordinary network's", top1, "measured by"]
    blank = "" if all(row.top1 is not None for row in own + others) else "\n\nWhere no accuracy stands, none is known."
    return f"## Other alphas\n\n{markdown(head, ['---', '--:', '--:', '--:', '--:', '---'], rows)}{blank}"


def _plan(plan: Sequence[Sequence[str]]) -> str:
    if not plan:
        return ""
    head, *rows = plan
    return (
        "## Stage by stage\n\nConvolutions and how many of them meet an octave, what comes out of the high and the low "
        "part (channels x height x width), and millions for one picture, each beside the ratio to the ordinary "
        f"network's. Counted by octzoo.\n\n{markdown(head, ['---'] + ['--:'] * (len(head) - 1), rows)}"
    )


def _training(record: Record | None, metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return f"## Training\n\nNot by octzoo; see <{record.source}>." if record else ""
    t = metrics["training"]
    known = {
        "{} epochs": t["epochs"],
        "batches of {}": t["batch_size"],
        "precision {}": t["precision"],
        "seed {}": metrics["seed"],
        "{}": None if t["seconds"] is None else duration(t["seconds"]),
        "on {}": t["hardware"],
    }
    facts = ", ".join(words.format(value) for words, value in known.items() if value is not None)
    return (
        f"## Training\n\n{facts}. {_packages(t['packages'])}\n\n"
        "`recipe.yaml` in this folder is the whole recipe, `log.csv` what the run logged. "
        "`octzoo fit --config recipe.yaml` trains it again (`--data.root` where the pictures are elsewhere)."
    )


def _measurement(metrics: Mapping[str, Any]) -> str:
    by = metrics["measured"]
    rows = [
        [
            str(run["seed"]),
            _percent(run["top1"]),
            _percent(run["top5"]),
            f"{run['loss']:.3f}",
            "these" if run is metrics else "not published",
        ]
        for run in runs(metrics)
    ]
    table = markdown(["seed", "top-1, %", "top-5, %", "loss", "weights"], ["--:", "--:", "--:", "--:", "---"], rows)
    averaged = ", their moving average" if metrics["ema"] else ""
    return f"""## Measurement

Measured by {by["by"]} on {_pictures(metrics)}, with the weights {metrics["weights"]}{averaged}; precision \
{by["precision"]}, {by["hardware"]}. {_packages(by["packages"])}

```bash
{by["command"]}
```

{table}"""


def _limits(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "## Limits\n\nOctzoo measured nothing of these weights."
    told = f"{metrics['limits'].strip()}\n\n" if metrics["limits"] else ""
    return (
        f"## Limits\n\n{told}Not measured: speed, and accuracy on other pictures, other sizes, or pictures that are "
        "noisy or altered."
    )


def _whose(record: Record | None, metrics: Mapping[str, Any] | None) -> str:
    if metrics:
        owner, licence = metrics["owner"], metrics["licence"]
    elif record:
        owner, licence = f"{record.owner} ({record.source})", record.licence
    else:
        owner = licence = None
    by = f"The weights are of {owner}" if owner else "Whose the weights are is not stated"
    first = (metrics or {}).get("began_with")
    more = f" Training began with {first}, whose licence counts too." if first else ""
    return f"## Whose weights\n\n{by}; {f'licence: {licence}' if licence else 'no licence is stated'}.{more}"


# ---- words ---------------------------------------------------------------------------------------------------------


def _reported(a: Accuracy) -> str:
    return f"- top-1 {a.top1:g} %, top-5 {a.top5:g} %, measured by {a.measured_by}, {a.how}; not measured by octzoo"


def _pictures(metrics: Mapping[str, Any]) -> str:
    name, url = metrics["dataset"], metrics["dataset_url"]
    linked = f"[{name}]({url})" if url else name
    return f"{linked} (split {metrics['split']}, {metrics['pictures']:,} pictures)"


def _packages(packages: Mapping[str, str] | None) -> str:
    return f"Packages: {', '.join(f'{name} {version}' for name, version in packages.items())}." if packages else ""


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
