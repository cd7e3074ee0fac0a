"""Weights that training starts from: a checkpoint or run of ours, a checkpoint folder, a state dict."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file
from torch import Tensor, nn

from octzoo.data import SettingError
from octzoo.errors import some
from octzoo.train.checkpoints import read_whole
from octzoo.train.runs import find_checkpoint
from octzoo.weights.folder import CONFIG, MODEL


def init_from(model: nn.Module, path: str, name: str) -> None:
    """Loads the network's weights from `path`. A classifier of another size stays as it is; all else must fit.

    Raises:
        SettingError: there are no weights, or they are another network's.
    """
    weights, facts = read_weights(Path(path), "model.init_from")
    load(model, weights, f"model.init_from: {path}", new_head=True)
    if facts.get("name"):  # an octave network's weights fit any alpha, so it is said whose these are
        whose = " ".join([facts["name"], *(f"{key}={value}" for key, value in (facts.get("model_args") or {}).items())])
        rank_zero_info(f"{name} starts from the weights of {whose} in {path}")


def read_weights(path: Path, setting: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(a network's state dict, what is known of it: name, num_classes, model_args, class_names) of

    a Lightning checkpoint of ours (which holds the EMA's weights where there is an EMA), a run folder (its best, else
    last checkpoint), a checkpoint folder, a .safetensors file or a state dict saved by torch.

    Raises:
        SettingError: naming `setting`, where there are no weights.
    """
    if (path / MODEL).is_file():
        config = json.loads((path / CONFIG).read_text()) if (path / CONFIG).is_file() else {}
        return read_weights(path / MODEL, setting)[0], {
            "name": config.get("architecture"),
            "num_classes": config.get("num_classes"),
            "model_args": config.get("model_args"),
        }
    try:
        path = find_checkpoint(path)
    except SettingError as problem:
        raise SettingError(str(problem).replace("ckpt_path", setting, 1)) from None
    try:
        if path.suffix == ".safetensors":
            return load_file(path), {}
        saved = read_whole(path)
    except Exception as problem:  # no such format, damaged, or objects that only a trusted file may hold
        line = str(problem).strip().splitlines()[:1]
        raise SettingError(f"{setting}: {path} is no file of weights: {' '.join(line)[:200]}") from problem
    if "pytorch-lightning_version" in saved:
        network = {k.removeprefix("model."): v for k, v in saved["state_dict"].items() if k.startswith("model.")}
        return network, dict(saved.get("hyper_parameters", {}))
    weights = saved.get("state_dict", saved)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise SettingError(f"{setting}: {path} is no state dict, nor a checkpoint that has one")
    return weights, {}


def load(model: nn.Module, weights: dict[str, Tensor], what: str, new_head: bool = False) -> None:
    """As load_state_dict, with an error that begins with `what` and lists the keys.

    With `new_head` a classifier of another size is left as it is.
    """
    own = model.state_dict()
    unlike = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    if new_head:
        head = head_keys(model)
        weights = {key: value for key, value in weights.items() if not (key in unlike and key in head)}
        unlike = [key for key in unlike if key not in head]
        own = {key: value for key, value in own.items() if key not in head or key in weights}
    problems = {
        "missing": sorted(own.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(unlike),
    }
    if any(problems.values()):
        said = "; ".join(f"{kind}: {some(keys)}" for kind, keys in problems.items() if keys)
        raise SettingError(f"{what} does not fit the network: {said}")
    model.load_state_dict(weights, strict=False)


def head_keys(model: Any) -> set[str]:
    """The keys of a timm network's classifier(s)."""
    names = model.pretrained_cfg.get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    return {key for key in model.state_dict() if any(key.startswith(f"{name}.") for name in names)}
