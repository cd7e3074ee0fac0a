"""What a file says of itself, so that whoever runs it needs nothing else: classes, and how a picture is prepared.

Each value is a JSON text. ``network``: a name; ``labels``: the classes' names, in the order of the outputs;
``preprocessing``: input_size [C, H, W], mean, std, interpolation, crop_pct and crop_mode, as timm defines them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octzoo.data import Preprocess

PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def describe(name: str, data_config: Mapping[str, Any], labels: Sequence[str] | None) -> dict[str, str]:
    """The metadata of a file.

    Args:
        name: of the network.
        data_config: timm's, see ``data_config_of``.
        labels: of the classes, None if nobody knows them.
    """
    found: dict[str, Any] = {"network": name, "preprocessing": {key: data_config[key] for key in PREPROCESSING}}
    if labels is not None:
        found["labels"] = list(labels)
    return {key: json.dumps(value, ensure_ascii=False) for key, value in found.items()}


def data_config_of(model: Any, image_size: int | None = None) -> dict[str, Any]:
    """How pictures are prepared for a timm network; ``image_size`` in place of its own."""
    return Preprocess(image_size=image_size).resolve(model.pretrained_cfg)


def labels_of(model: Any) -> list[str] | None:
    """The names of a trained network's classes: its own, else ImageNet's where their number is one of ImageNet's."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if names := model.pretrained_cfg.get("label_names"):
        return list(names)
    subset = infer_imagenet_subset({"num_classes": model.num_classes})
    info = ImageNetInfo(subset) if subset else None
    return [info.index_to_description(i) for i in range(model.num_classes)] if info else None
