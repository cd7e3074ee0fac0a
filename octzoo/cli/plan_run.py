"""`octzoo plan-run`: hours and cost of a training on paper."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

IMAGENET = 1_281_167  # training pictures of ImageNet-1k


@dataclass(frozen=True)
class Plan:
    """A data-parallel training: every device has the whole network and its own part of each batch.

    Attributes:
        images_per_second: what one device trains, measured on one device
        devices: how many
        epochs: over the training pictures
        images: training pictures
        batch_size: pictures a step and device
        parameters: of the network
        bandwidth: bytes a second that a device sends to the next one
        gradient_bytes: of one number of the gradient: 4, or 2 where it is sent in half precision
        price: of one device for one hour, in any currency
    """

    images_per_second: float
    devices: int = 1
    epochs: int = 120
    images: int = IMAGENET
    batch_size: int = 128
    parameters: int = 0
    bandwidth: float = math.inf
    gradient_bytes: int = 4
    price: float = 0.0

    @property
    def steps(self) -> int:
        """Of the whole training; the last incomplete batch of an epoch is dropped, as octzoo fit does."""
        return self.epochs * (self.images // (self.batch_size * self.devices))

    @property
    def compute(self) -> float:
        """Seconds of a step that a device computes: t_c = B / X."""
        return self.batch_size / self.images_per_second

    @property
    def exchange(self) -> float:
        """Seconds that the gradients of a step travel in a ring: t_e = 2 (N - 1) / N * b P / W."""
        share = 2 * (self.devices - 1) / self.devices
        return share * self.gradient_bytes * self.parameters / self.bandwidth

    def hours(self, step: float) -> float:
        """Of the whole training, with steps of so many seconds."""
        return self.steps * step / 3600

    @property
    def best(self) -> float:
        """Hours, if the gradients travel while the device computes: max(t_c, t_e) a step."""
        return self.hours(max(self.compute, self.exchange))

    @property
    def worst(self) -> float:
        """Hours, if the device waits for them: t_c + t_e a step."""
        return self.hours(self.compute + self.exchange)

    def cost(self, hours: float) -> float:
        """Of all devices."""
        return hours * self.devices * self.price


def main(arguments: list[str]) -> int:
    """Prints the plan; returns the exit code."""
    parser = Parser(
        "plan-run",
        "Hours and cost of a training on N devices, from the pictures per second that one device was measured to\n"
        "train. Two bounds: gradients travel while the device computes, or it waits for them. docs/plan-run.md has\n"
        "the formula.",
        "octzoo plan-run --images-per-second 850 --devices 8 --name oct_resnet50_a0.25 --bandwidth 12 --price 2.5",
    )
    number: dict[str, Any] = {"type": float, "metavar": "X"}
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--images-per-second", **number, required=True, help="of one device, measured")
    parser.add_argument("--devices", **whole, default=1, help="default: 1")
    parser.add_argument("--epochs", **whole, default=120, help="default: 120")
    parser.add_argument("--images", **whole, default=IMAGENET, help=f"training pictures; default: {IMAGENET}")
    parser.add_argument("--batch-size", **whole, default=128, help="of one device; default: 128")
    parser.add_argument("--parameters", **number, help="of the network, such as 25.6e6; or give --name")
    parser.add_argument("--name", metavar="NETWORK", help="what timm.create_model takes; its parameters are counted")
    parser.add_argument("--bandwidth", **number, help="GB/s (10^9 bytes) from a device to the next; for N > 1")
    parser.add_argument("--gradient-bytes", type=int, choices=(2, 4), default=4, help="of one number; default: 4")
    parser.add_argument("--price", **number, default=0.0, help="of one device for one hour")
    options = parser.parse_args(arguments[1:])
    return report(lambda: print("\n".join(lines(read(options), options.name))), options.debug)


def read(options: argparse.Namespace) -> Plan:
    """The plan that the options mean. Raises UserError for numbers that cannot be, or that are missing."""
    from octzoo.errors import UserError

    for key in ("images_per_second", "devices", "epochs", "images", "batch_size", "parameters", "bandwidth"):
        value = getattr(options, key)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{key.replace('_', '-')} {value:g}: it must be above zero")
    if not 0 <= options.price < math.inf:
        raise UserError(f"--price {options.price:g}: it cannot be below zero")
    if options.parameters and options.name:
        raise UserError("--parameters or --name, not both")
    if options.devices > 1 and not (options.bandwidth and (options.parameters or options.name)):
        missing = "--bandwidth GB/s" if options.parameters or options.name else "--parameters P or --name NETWORK"
        raise UserError(f"--devices {options.devices}: gradients travel between them; give {missing}")
    if options.batch_size * options.devices > options.images:
        raise UserError(
            f"--batch-size {options.batch_size} on {options.devices} devices is more than --images {options.images}"
        )
    return Plan(
        images_per_second=options.images_per_second,
        devices=options.devices,
        epochs=options.epochs,
        images=options.images,
        batch_size=options.batch_size,
        parameters=count_parameters(options.name) if options.name else int(options.parameters or 0),
        bandwidth=1e9 * options.bandwidth if options.bandwidth else math.inf,
        gradient_bytes=options.gradient_bytes,
        price=options.price,
    )


def count_parameters(name: str) -> int:
    """Of a network. Raises UserError for a name that timm does not know."""
    import timm

    import octzoo  # noqa: F401 (registers the names)
    from octzoo.errors import UserError

    if not timm.is_model(name):
        raise UserError(f"--name: timm knows no network {name!r}; `octzoo list` has ours")
    return sum(p.numel() for p in timm.create_model(name, device="meta").parameters())


def lines(plan: Plan, name: str | None = None) -> list[str]:
    """What the terminal shows."""
    network = f"{plan.parameters / 1e6:.2f} M parameters" + (f" ({name})" if name else "")
    told = [
        f"training      {plan.epochs} epochs of {plan.images:,} pictures, {plan.steps:,} steps of {plan.batch_size} x "
        f"{plan.devices} = {plan.batch_size * plan.devices:,}",
        f"computing     {1000 * plan.compute:.1f} ms a step ({plan.images_per_second:,g} images/s a device)",
    ]
    if plan.devices > 1:
        size, speed = f"{plan.gradient_bytes * plan.parameters / 1e6:.1f} MB", f"{plan.bandwidth / 1e9:g} GB/s"
        told += [
            f"gradients     {1000 * plan.exchange:.1f} ms a step ({network}, {size}, {speed})",
            f"at best       {result(plan, plan.best)}: gradients travel while the devices compute",
            f"at worst      {result(plan, plan.worst)}: the devices wait for them",
        ]
    else:
        told.append(f"in all        {result(plan, plan.best)}")
    return [*told, "not counted   validation, start-up, and a loader that is slower than the device"]


def result(plan: Plan, hours: float) -> str:
    """Hours, pictures a second of all devices, and the cost where there is a price."""
    speed = plan.steps * plan.batch_size * plan.devices / (3600 * hours)
    cost = f", cost {plan.cost(hours):,.2f}" if plan.price else ""
    return f"{hours:,.1f} h{cost}, {speed:,.0f} images/s"
