"""Sweep timm's convolutional networks through ``octavize``, and write the table: ``python docs/make_sweep.py``

Writes docs/sweep.json (one record a module of timm) and the table between the markers in docs/sweep.md. With names of
timm's modules, only those are swept again. ``--check`` runs no network: it fails if the page is not what the JSON says.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, LayerNormAct2d, RmsNorm2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from octzoo import OctaveError, OctConv2d, channel_order, octavize
from octzoo.channels import reorder
from octzoo.octave import Octave
from octzoo.plan import default_plan
from octzoo.surgery import Whole

HERE = Path(__file__).parent
RECORDS, PAGE = HERE / "sweep.json", HERE / "sweep.md"
START, END = "<!-- sweep: made by docs/make_sweep.py -->", "<!-- end of sweep -->"
ALPHA, OTHER_ALPHAS = 0.25, (0.5, 0.125, 0.75, 1)
REASONS = {
    "does not keep": "a convolution that loses a border, so that the two parts no longer fit each other",
    "groups do not divide": "more groups than there are low channels",
}
SIZES = (64, 96, 128, 160)  # tried in this order, then the network's own


# ---- which networks ------------------------------------------------------------------------------------------------


def build(name: str, device: str = "meta") -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return timm.create_model(name)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def is_convolutional(model: nn.Module) -> bool:
    """More than 8 ``nn.Conv2d`` (subclasses and 1x1 ones too) and at most 3 ``nn.Linear``."""
    convolutions, linears = (sum(isinstance(m, kind) for m in model.modules()) for kind in (nn.Conv2d, nn.Linear))
    return convolutions > 8 and linears <= 3


def networks() -> dict[str, str]:
    """timm's own module -> its network of fewest parameters, where that is convolutional."""
    chosen = {}
    for module in timm.list_modules():
        if not importlib.util.find_spec(f"timm.models.{module}"):
            continue  # one of octzoo's
        sizes = {name: parameters(build(name)) for name in timm.list_models(module=module)}
        smallest = min(sizes, key=lambda name: sizes[name])
        if is_convolutional(build(smallest)):
            chosen[module] = smallest
    return chosen


# ---- one network ---------------------------------------------------------------------------------------------------


def sweep(module: str, name: str) -> dict:
    """The record of one network: what octavize made of it, and how that was checked."""
    plain = build(name)
    record = {
        "module": module,
        "network": name,
        "size": plain.pretrained_cfg["input_size"][1],
        "parameters": parameters(plain),
        "convolutions": sum(isinstance(m, nn.Conv2d) for m in plain.modules()),
        "macs": {"plain": macs(plain)},
    }
    try:
        octave = octavize(plain, ALPHA)
    except OctaveError as error:
        return {**record, "status": "refused", "reason": str(error)}
    record["macs"]["octave"] = macs(octave)
    record["octave layers"] = sum(isinstance(m, OctConv2d) and m.low_out > 0 for m in octave.modules())
    record["whole modules"] = sum(isinstance(m, Whole) for m in octave.modules())
    record["checked at"] = size = legal_size(name)
    checks = {"holds octaves": holds_octaves(octave), **check_values(name, size)}
    failed = [check for check, result in checks.items() if result is False]
    return {**record, "status": "wrong" if failed else "works", "checks": checks}


def macs(model: nn.Module) -> int:
    """Multiply-accumulates of convolutions, linear layers and attention at the network's own size."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta"))
    return counter.get_total_flops() // 2


def holds_octaves(model: nn.Module) -> bool:
    """Whether a layer gives an Octave when the network runs."""
    seen = []
    for module in model.modules():
        if isinstance(module, OctConv2d):
            module.register_forward_hook(lambda m, args, out: seen.append(isinstance(out, Octave)))
    model(torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta"))
    return any(seen)


def check_values(name: str, size: int) -> dict[str, bool | str]:
    """Check -> passed, failed, or why it says nothing about this network."""
    plain = build(name, "cpu")
    octave = octavize(copy.deepcopy(plain), ALPHA)
    x = torch.randn(2, plain.pretrained_cfg["input_size"][0], size, size)
    shapes = [{key: t.shape for key, t in model.state_dict().items()} for model in (plain, octave)]
    outputs = {mode: [model.train(mode)(x) for model in (plain, octave)] for mode in (False, True)}
    return {
        "same state dict": shapes[0] == shapes[1],
        "evaluates": good(*outputs[False]),
        "trains": good(*outputs[True]) and reached(plain, x) <= reached(octave, x),
        "alpha 0 is the plain network": same_at_alpha_zero(plain, x),
        "constant pictures": same_on_constant_pictures(plain, size),
    }


def legal_size(name: str) -> int:
    """The smallest square of SIZES that the network takes, plain and octave, else its own."""
    for size in SIZES:
        try:
            for model in (build(name), octavize(build(name), ALPHA)):
                model(torch.zeros(2, 3, size, size, device="meta"))
        except Exception:  # whatever a network raises that does not fit
            continue
        return size
    return build(name).pretrained_cfg["input_size"][1]


def good(plain: Tensor, octave: Tensor) -> bool:
    return type(octave) is Tensor and octave.shape == plain.shape and bool(octave.isfinite().all())


def reached(model: nn.Module, x: Tensor) -> set[str]:
    """The parameters that a backward pass reaches with a gradient that is finite, and not 0 throughout."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():  # a branch that starts at zero would hide what is before it
        for p in model.parameters():
            if not p.any():
                p.uniform_(0.5, 1)
    model(x).square().sum().backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {key for key, gradient in gradients.items() if gradient.isfinite().all() and gradient.any()}


def same_at_alpha_zero(plain: nn.Module, x: Tensor) -> bool:
    """With the default plan's layers, alpha 0 and real strides, the network is the plain one."""
    plan = [row._replace(stride_mode="conv") for row in default_plan(plain)]
    return difference(plain, octavize(copy.deepcopy(plain), 0, plan), x) < 1e-10


def same_on_constant_pictures(plain: nn.Module, size: int) -> bool | str:
    """Resampling changes no constant map: with the weights in the order that channel_order says, both networks agree.

    Says something of networks which keep constant maps constant, once their convolutions pad by replication and their
    norms are batch norms. An Octave in the wrong order, or a slice of the wrong channels, is far off.
    """
    plain = keeps_constants(copy.deepcopy(plain))
    x = torch.randn(2, plain.pretrained_cfg["input_size"][0], 1, 1).double().expand(-1, -1, size, size)
    with ReplicatesPads():
        for alpha in (ALPHA, *OTHER_ALPHAS):
            with suppress(OctaveError):  # channel_order finds none, or the network cannot have this alpha
                octave = octavize(copy.deepcopy(plain), alpha)
                octave.load_state_dict(reorder(plain.state_dict(), channel_order(octave)))
                if difference(plain, octave, x) < 1e-8:
                    return True if alpha == ALPHA else f"agree at alpha {alpha:g}"
                return "not kept constant" if not constant_throughout(plain, x) else False
    return "no channel order"


class ReplicatesPads(TorchFunctionMode):
    """Pads of zeros, which networks ask for between their layers, repeat the border instead."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.pad and args[0].ndim == 4 and len(args) == 2 and not kwargs.get("value") and min(args[1]) >= 0:
            return func(*args, mode="replicate")
        return func(*args, **kwargs)


def keeps_constants(model: nn.Module) -> nn.Module:
    """``model``, random throughout, with norms, convolutions and average pools that keep a constant map constant."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            setattr(module, name, constant_child(child))
    for key, t in model.state_dict().items():
        if t.ndim <= 1 and t.is_floating_point():  # scales below 1: deep networks must not blow rounding up
            low, high = (0.2, 0.6) if key.endswith(("weight", "gamma")) else (1, 2) if "var" in key else (-0.5, 0.5)
            nn.init.uniform_(t, low, high)
    return model.double().eval()


def constant_child(child: nn.Module) -> nn.Module:
    if isinstance(child, nn.AvgPool2d):
        child.count_include_pad = False
    if type(child) is nn.Conv2d:
        child.padding_mode = "replicate"
    elif isinstance(child, nn.Conv2d):  # one with a class of its own pads with zeros, whatever its mode
        like = {key: getattr(child, key) for key in ("in_channels", "out_channels", "kernel_size", "stride", "groups")}
        pads = tuple((k - 1) * d // 2 for k, d in zip(child.kernel_size, child.dilation))
        return nn.Conv2d(**like, padding=pads, dilation=child.dilation, padding_mode="replicate")
    elif isinstance(child, (nn.GroupNorm, LayerNorm2d, LayerNormAct2d, RmsNorm2d)):
        act = (child.drop, child.act) if hasattr(child, "act") else ()  # an octave one has statistics for each part
        return nn.Sequential(nn.BatchNorm2d(child.weight.numel()), *act)
    return child


def constant_throughout(model: nn.Module, x: Tensor) -> bool:
    """Whether every module gives constant maps."""
    moved = []

    def look(module: nn.Module, args: tuple, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim == 4 and (out - out[..., :1, :1]).abs().max() > 1e-9 * out.abs().max():
            moved.append(module)

    handles = [module.register_forward_hook(look) for module in model.modules()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return not moved


def difference(plain: nn.Module, octave: nn.Module, x: Tensor) -> float:
    """Relative L2 of the outputs, in float64."""
    with torch.no_grad():
        want, got = (model.double().eval()(x.double()) for model in (plain, octave))
    return ((got - want).norm() / want.norm()).item()


# ---- the page ------------------------------------------------------------------------------------------------------


def table(records: list[dict]) -> str:
    """The Markdown table of all networks, and the refusals by reason."""
    head = ["module", "network", "parameters, M", "plain", "octave", "octave layers", "constant pictures", "whole"]
    rows = [head, ["---"] * 2 + ["--:"] * 4 + ["---", "--:"]]
    works = [r for r in records if r["status"] == "works"]
    for r in works:
        result = r["checks"]["constant pictures"]
        numbers = [f"{r['parameters'] / 1e6:.1f}", *(f"{r['macs'][kind] / 1e6:,.0f}" for kind in ("plain", "octave"))]
        layers = f"{r['octave layers']} of {r['convolutions']}"
        said = "agree" if result is True else result
        rows.append([r["module"], f"`{r['network']}`", *numbers, layers, said, str(r["whole modules"] or "")])
    lines = [f"{len(works)} of {len(records)} work.", "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    for title in ("wrong", "refused"):
        others = [r for r in records if r["status"] == title]
        for kind in dict.fromkeys(map(kind_of, others)):
            lines += [f"{title.capitalize()}, {kind}:", ""]
            chosen = [r for r in others if kind_of(r) == kind]
            lines += [f"- {r['module']}, `{r['network']}`: {r.get('reason') or r['checks']}" for r in chosen]
            lines += [""]
    return "\n".join(lines).rstrip()


def kind_of(record: dict) -> str:
    """What kind of reason a refusal has."""
    reason = record.get("reason", "")
    return next((kind for text, kind in REASONS.items() if text in reason), "something that octaves have no rule for")


def with_table(page: str, text: str) -> str:
    """``page`` with ``text`` between the markers."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{text}\n\n{rest[rest.index(END) :]}"


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    records = {r["module"]: r for r in json.loads(RECORDS.read_text())} if RECORDS.exists() else {}
    if not check:
        chosen = {m: records[m]["network"] for m in arguments} if arguments else networks()
        records = {m: r for m, r in records.items() if arguments or m in chosen}
        for module, name in chosen.items():
            records[module] = sweep(module, name)
            print(f"{module}, {name}: {records[module]['status']} {records[module].get('reason', '')}", flush=True)
        text = json.dumps([records[m] for m in sorted(records)], indent=1)
        RECORDS.write_text(text + "\n")
    page = PAGE.read_text()
    made = with_table(page, table([records[m] for m in sorted(records)]))
    if check and made != page:
        print(f"{PAGE} is not what {RECORDS.name} says: run docs/make_sweep.py")
    elif not check:
        PAGE.write_text(made)
    return int(check and made != page)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
