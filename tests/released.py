"""The published files' parameters by the goldens' formula, and files of them in the formats that were published."""

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import torch

from octzoo.weights.mxnet import write_params
from tests.golden import formula

GOLDEN = Path(__file__).parent / "golden"
RECORDS = json.loads((GOLDEN / "goldens.json").read_text())
with gzip.open(GOLDEN / "params.json.gz") as file:
    PARAMETERS = json.load(file)  # key -> [[foreign name, shape], ...]
GAINS = [["conv3", 0.15], ["", 1.0]]  # where no golden says other ones


def parameters(key):
    """Foreign name -> array of the released file ``key``, such as "resnet-26_alpha-0.250" or "d-li14/oct_resnet50"."""
    make = dli14_parameter if key.startswith("d-li14/") else authors_parameter
    return {name: make(key, name, shape) for name, shape in PARAMETERS[key]}


def authors_parameter(key, name, shape):
    gains = RECORDS.get(key, {}).get("gains", GAINS)
    return formula.param(key, re.sub("^(arg|aux):", "", name), shape, gains)


def dli14_parameter(key, name, shape):
    s = 2 * formula.uniform(f"{key}/{name}", int(np.prod(shape))) - 1
    kind = name.split(".")[-1]
    if kind == "weight" and len(shape) > 1:
        s = s * np.sqrt(3 * (0.3 if ".conv3." in name else 1) / np.prod(shape[1:]))
    elif kind in ("weight", "running_var"):
        s = 1 + (0.25 if kind == "weight" else 0.3) * s
    else:
        s = {"running_mean": 0.3, "bias": 0.2 if name.startswith("fc.") else 0.4}[kind] * s
    return s.reshape(shape).astype(np.float32)


def write_released(key, folder, name):
    """Write the file ``name`` as it was published: .params, or a .tar with a graph and .params in a folder."""
    path = Path(folder) / name
    inner = path.with_suffix(".params")
    write_params(inner, parameters(key))
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo(f"{path.stem}/checkpoint-0-symbol.json"), io.BytesIO())
            archive.add(inner, f"{path.stem}/checkpoint-0-0000.params")
        inner.unlink()
    return path


def write_dli14(key, path, prefix="module."):
    """Write what d-li14's training script saves: a dict with the state dict in it, names behind "module."."""
    state = {prefix + name: torch.from_numpy(array) for name, array in parameters(key).items()}
    torch.save({"epoch": 120, "state_dict": state, "best_acc1": 0.0}, path)
    return path
