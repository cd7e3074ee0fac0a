"""Published weight files as they come: MXNet's ``.params``, alone or in a ``.tar``, or what ``torch.save`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
    return read_params(path) if sniff(path) else _read_torch(path)


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
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise UserError(f"{path} is a PyTorch file, but holds no state dict (also not under 'state_dict')")
    return {name: t.numpy() for name, t in state.items() if not name.endswith("num_batches_tracked")}
