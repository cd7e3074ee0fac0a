"""Where an octave network cuts each of its tensors into high and low, for whoever has them in pieces."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from octzoo.layers import OCTAVE_OF
from octzoo.octave import Octave, low_channels
from octzoo.plan import hooked, trial_run
from octzoo.weights.parts import Split


def splits(model: nn.Module) -> dict[str, Split]:
    """State dict key -> how many of its rows and columns are low, from one run on the meta device.

    Tensors that are whole are left out: all of a plain network, and those that neither take nor give low channels. The
    columns of a depthwise convolution are None, for each row belongs to one channel, high or low.
    """
    found: dict[str, Split] = {}
    entered: dict[str, Any] = {}  # name of a module -> its input

    def note(name: str, module: nn.Module, rows: int, columns: int | None) -> None:
        for key, t in (*module._parameters.items(), *module._buffers.items()):
            if t is not None and t.ndim and (rows or (columns and key == "weight")):
                found[f"{name}.{key}"] = Split(rows, columns if key == "weight" else 0)

    def enter(name: str, module: nn.Module, x: Any) -> None:
        entered[name] = x

    def leave(name: str, module: nn.Module, y: Any) -> None:
        x = entered.get(name)
        if isinstance(module, nn.Conv2d) and isinstance(x, (Tensor, Octave)):
            gated = entered.get(name.rpartition(".")[0])
            if isinstance(gated, Octave) and isinstance(x, Tensor) and x.shape[-2:] == (1, 1):
                # squeeze-excite: a vector of all channels of the map it gates, high ones first
                joins, gates = (c == gated.shape[1] for c in (module.in_channels, module.out_channels))
                note(name, module, low_channels(gated) if gates else 0, low_channels(gated) if joins else 0)
            else:
                depthwise = module.groups == module.in_channels > 1
                columns = None if depthwise else low_channels(x) // module.groups
                note(name, module, low_channels(y), columns)
        elif isinstance(x, Octave) and type(module) in OCTAVE_OF.values():
            note(name, module, low_channels(x), 0)

    with hooked(model, enter, leave):
        trial_run(model)
    return found
