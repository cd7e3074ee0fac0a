"""What a network consists of, stage by stage: where its octaves are, and what each stage costs."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octzoo.layers import OctConv2d
from octzoo.octave import Octave
from octzoo.plan import hooked

Size = tuple[int, ...]


class Stage(NamedTuple):
    """One stage of a network, for one picture.

    Attributes:
        name: of the module.
        convolutions: how many there are, and how many of them give or take an octave.
        high: what comes out, [C, H, W]; of an octave, its high part. [C] behind the pooling.
        low: its low part, None without one.
        parameters: how many.
        macs: multiply-accumulates of convolutions and matrix products.
        activations: numbers that convolutions and linear layers give, in both parts.
    """

    name: str
    convolutions: tuple[int, int]
    high: Size
    low: Size | None
    parameters: int
    macs: int
    activations: int


def stages(model: nn.Module, image_size: int | None = None) -> list[Stage]:
    """The stages of a timm network that is on the meta device, in order of execution.

    A stage is the largest module that has none of the network's ``feature_info`` taps inside; those that hold no
    parameters are left out.

    Args:
        model: made with ``device="meta"``, so that nothing is computed.
        image_size: height and width of the picture; None: the network's own.

    Raises:
        ValueError: ``model`` is on another device.
    """
    if any(t.device.type != "meta" for t in model.parameters()):
        raise ValueError("stages() counts and does not compute: make the network with device='meta'")
    channels, *size = cast(Any, model).pretrained_cfg["input_size"]
    names: list[str] = []  # of stages, as they are entered
    out: dict[str, Any] = {}
    counts: dict[str, list[int]] = {}  # stage -> convolutions, octave convolutions, activations
    taps = [entry["module"] for entry in getattr(model, "feature_info", [])]
    inputs: dict[str, Any] = {}

    def stage_of(name: str) -> str:
        parts = name.split(".")
        prefixes = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
        return next(p for p in prefixes if p == name or not any(tap.startswith(p + ".") for tap in taps))

    def enter(name: str, module: nn.Module, x: Any) -> None:
        inputs[name] = x

    def leave(name: str, module: nn.Module, y: Any) -> None:
        stage = stage_of(name)
        if not any(module.children()):
            if stage not in names:
                names.append(stage)
            counted = counts.setdefault(stage, [0, 0, 0])
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                octave = isinstance(inputs[name], Octave) or isinstance(y, Octave)
                counted[0] += isinstance(module, nn.Conv2d)
                counted[1] += isinstance(module, OctConv2d) and octave
                counted[2] += sum(part.numel() for part in _parts(y))
        out[stage] = y

    counter = FlopCounterMode(display=False)
    with hooked(model, enter, leave), counter, torch.no_grad():
        model.eval()(torch.zeros(1, channels, *([image_size] * 2 if image_size else size), device="meta"))
    flops = counter.get_flop_counts()

    def row(name: str) -> Stage:
        module = model.get_submodule(name)
        high, *low = (tuple(part.shape[1:]) for part in _parts(out[name]))
        macs = sum(flops.get(f"{type(model).__name__}.{name}", {}).values()) // 2
        parameters = sum(p.numel() for p in module.parameters())
        convolutions, octave, activations = counts[name]
        return Stage(name, (convolutions, octave), high, low[0] if low else None, parameters, macs, activations)

    rows = [row(name) for name in names]
    return [stage for stage in rows if stage.parameters]


def _parts(y: Tensor | Octave) -> tuple[Tensor, ...]:
    return (y.high, y.low) if isinstance(y, Octave) else (y,)
