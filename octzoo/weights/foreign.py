"""Published weight files as they come: MXNet's ``.params``, alone or in a ``.tar``, or what ``torch.save`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octzoo.errors import UserError
from octzoo.weights.mxnet import read_params, sniff


def read_foreign(path: Path) -> dict[str, np.ndarray]:
    """Name -> array, from an untrusted file; its kind shows in its first bytes, not in its name.

    Raises:
        UserError: no such file, or it is not of these kinds, or damaged.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    arrays = read_params(path) if sniff(path) else _read_torch(path)
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating) or not array.ndim:
            raise UserError(f"{path}: {name} is {array.dtype} of shape {list(array.shape)}, which no parameter is")
    return arrays


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    """A dict of tensors, or a training script's dict with one under "state_dict"; no code in it is run."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch.load raises half a dozen kinds for what is not a checkpoint
        kind = type(problem).__name__
        raise UserError(
            f"{path} is neither MXNet's .params (or a .tar with it) nor a PyTorch checkpoint of plain tensors ({kind})"
        ) from problem
    state = saved.get("state_dict", saved) if isinstance(saved, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(map(_is_entry, state.items())):
        raise UserError(f"{path} is a PyTorch file, but holds no state dict (also not under 'state_dict')")
    return {name: _array(t) for name, t in state.items() if not name.endswith("num_batches_tracked")}


def _is_entry(item: tuple[Any, Any]) -> bool:
    """Whether this is a name and an ordinary tensor with values."""
    name, t = item
    ordinary = isinstance(t, torch.Tensor) and t.layout == torch.strided and t.device.type == "cpu"
    return isinstance(name, str) and ordinary


def _array(t: torch.Tensor) -> np.ndarray:
    """Types that numpy has not become float32, which holds them."""
    t = t.detach().resolve_neg()
    known = (torch.float16, torch.float32, torch.float64)
    return (t.float() if t.is_floating_point() and t.dtype not in known else t).numpy()
