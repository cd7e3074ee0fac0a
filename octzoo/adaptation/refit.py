"""Layer after layer, an octave network learns to give what the plain network gives there, in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from octzoo.adaptation.features import Part, Residual, features, mended, parts_of, put_weights, targets, weights
from octzoo.adaptation.report import Refitted
from octzoo.adaptation.ridge import Sums, fit
from octzoo.channels import ChannelOrder
from octzoo.fused import PLAIN, Seen
from octzoo.layers import OctConv2d
from octzoo.octave import Octave
from octzoo.plan import hooked, trial_run

CHECKED = 5  # one batch of so many chooses the strength of the pull
ROWS = 12  # for each feature, so many rows at least, where the pictures have them
FEWEST, MOST = 16, 256  # positions in a map


class _Reached(Exception):  # noqa: N818 (no error)
    """A layer was reached: the rest of the network need not run."""


def layers_of(octave: nn.Module) -> dict[str, str | None]:
    """The convolutions that can be refitted, in order of execution -> the batch norm that alone takes their output.

    From the first one that gives or takes an octave on; those that standardise their weight are left out.
    """
    order: list[str] = []
    entered: dict[str, Any] = {}
    started = False

    def enter(name: str, module: nn.Module, x: Any) -> None:
        entered[name] = x

    def leave(name: str, module: nn.Module, y: Any) -> None:
        nonlocal started
        if isinstance(module, nn.Conv2d):
            started = started or isinstance(y, Octave) or isinstance(entered[name], Octave)
            if started and type(module) in (*PLAIN, OctConv2d) and name not in order:
                order.append(name)

    with hooked(octave, enter, leave):
        trial_run(octave)
    seen = Seen(octave)

    def behind(name: str) -> str | None:
        norm = seen.norm_of(name)
        return norm if norm and cast(Any, octave.get_submodule(norm)).weight is not None else None

    return {name: behind(name) for name in order}


def refit_layer(
    name: str,
    norm: str | None,
    octave: nn.Module,
    plain: nn.Module,
    batches: Iterable[Tensor],
    order: ChannelOrder,
    pictures: int,
    seed: int = 0,
    block: str | None = None,
) -> list[Refitted]:
    """Refit one convolution of ``octave``, in place, on what reaches it, to what the plain network gives there.

    With a batch norm behind it a constant is learnt too, and the norm takes it: its statistics become those of the new
    outputs, its scale and shift what they have to be for that. Where a residual connection is added behind that, the
    layer learns to give what the trunk has lost too, as He, Zhang and Sun do for residual branches ("Channel pruning
    for accelerating very deep neural networks", ICCV 2017).

    Args:
        name: of the convolution, in both networks.
        norm: of the batch norm behind it; None if there is none.
        octave: the network; its layers before this one are as they will stay.
        plain: the network that it learns from.
        batches: of pictures, [B, C, H, W]; at least two.
        order: ``channel_order`` of ``octave``.
        pictures: in all batches together.
        seed: of the positions that are looked at.
        block: that adds its input to what the norm gives, of ``residual_blocks``; None if there is none.
    """
    conv = cast(nn.Conv2d, octave.get_submodule(name))
    rows = order.get(f"{name}.weight", (None, None))[0]
    parts: list[Part] = []
    sums: list[list[Sums | None]] = [[None, None], [None, None]]  # of each part, to learn from and to check on
    behind: Any = octave.get_submodule(norm) if norm else None
    with torch.inference_mode():
        for i, batch in enumerate(batches):
            with _entering(octave, block) as of_octave, _entering(plain, block) as of_plain:
                x, y = input_of(octave, name, batch), output_of(plain, name, batch)
            parts = parts_of(conv, x)
            y = y if rows is None else y[:, rows]
            residual = None
            if block and behind is not None:
                trunk = of_plain[0] if rows is None else of_plain[0][:, rows]
                scale = behind.weight / (behind.running_var + behind.eps).sqrt()
                residual = Residual(trunk, of_octave[0], scale)
            generator = torch.Generator().manual_seed(seed)
            for part, found in zip(parts, sums):
                at = _positions(part, conv, pictures, generator)
                wanted = targets(part, y, at)
                if residual and residual.fits(parts):
                    wanted = mended(part, wanted, residual, at)
                new, kind = Sums.of(features(part, at), wanted), int(i % CHECKED == 1)
                old = found[kind]
                found[kind] = new if old is None else old + new
    with torch.no_grad():
        return [_solve(name, conv, part, cast(Any, found), behind) for part, found in zip(parts, sums)]


def _solve(name: str, conv: nn.Conv2d, part: Part, sums: Sequence[Sums], norm: Any) -> Refitted:
    old = weights(part, conv.weight)
    constant = norm is not None or conv.bias is not None
    new, shift, before, after = fit(sums[0], sums[1], old, constant)
    put_weights(part, conv.weight, new.to(conv.weight.dtype))
    shift = shift.flatten()
    if conv.bias is not None:
        conv.bias[part.rows] = shift.to(conv.bias.dtype)
    elif norm is not None:
        s = (sums[0] + sums[1]).centred()
        mean = (new * s.x[:, :, None]).sum(1).flatten()
        variance = (new * (s.xx @ new)).sum(1).flatten()
        absorb(norm, part.rows, mean, variance, shift)
    return Refitted(name, "low" if part.rows.start else "high", before, after)


def absorb(norm: Any, rows: slice, mean: Tensor, variance: Tensor, shift: Tensor | float = 0.0) -> None:
    """Give a batch norm other statistics, and the scale and shift with which it gives what it gave before.

    Args:
        norm: any batch norm with statistics.
        rows: the channels.
        mean: what its inputs have, [n].
        variance: the same.
        shift: what is to be added to its inputs, [n].
    """
    was = (norm.running_var[rows].double() + norm.eps).sqrt()
    scale = norm.weight[rows].double() / was
    new = (variance.clamp_min(0) + norm.eps).sqrt()
    bias = norm.bias[rows].double() + scale * (mean + shift - norm.running_mean[rows].double())
    norm.weight[rows], norm.bias[rows] = (scale * new).to(norm.weight.dtype), bias.to(norm.bias.dtype)
    norm.running_mean[rows], norm.running_var[rows] = mean.to(norm.bias.dtype), variance.to(norm.bias.dtype)


def _positions(part: Part, conv: nn.Conv2d, pictures: int, generator: torch.Generator) -> Tensor:
    """[P]: which pixels of an output are looked at, the same ones in every picture."""
    pixels = part.size[0] * part.size[1]
    wanted = math.ceil(ROWS * conv.weight[0].numel() / pictures)
    return torch.randperm(pixels, generator=generator)[: min(max(wanted, FEWEST), MOST)]


def input_of(model: nn.Module, name: str, x: Tensor) -> Any:
    """What a module of ``model`` is given for pictures ``x``; nothing behind it runs."""
    found: list[Any] = []

    def stop(module: nn.Module, args: Any) -> None:
        found.append(args[0])
        raise _Reached

    return _until(model, model.get_submodule(name).register_forward_pre_hook(stop), x, found)


def output_of(model: nn.Module, name: str, x: Tensor) -> Any:
    """What a module of ``model`` gives for pictures ``x``; nothing behind it runs."""
    found: list[Any] = []

    def stop(module: nn.Module, args: Any, y: Any) -> None:
        found.append(y)
        raise _Reached

    return _until(model, model.get_submodule(name).register_forward_hook(stop), x, found)


@contextmanager
def _entering(model: nn.Module, block: str | None) -> Iterator[list[Any]]:
    """What a module of ``model`` is given meanwhile."""
    found: list[Any] = []
    if block is None:
        yield found
        return
    handle = model.get_submodule(block).register_forward_pre_hook(lambda module, args: found.append(args[0]))
    try:
        yield found
    finally:
        handle.remove()


def _until(model: nn.Module, handle: Any, x: Tensor, found: list[Any]) -> Any:
    try:
        model(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]
