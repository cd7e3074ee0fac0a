"""Draw the pictures of the docs: ``python docs/make_pictures.py CHECKPOINT``

CHECKPOINT is a file that ``octzoo fit`` left of oct_cifar_resnet20_a0.25. The photograph is one that scikit-learn
carries. Writes docs/img/octave_conv.png and docs/img/feature_maps.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import timm
import torch
import torch.nn.functional as F
from matplotlib.patches import FancyArrowPatch, Rectangle
from sklearn.datasets import load_sample_image

import octzoo

IMAGES = Path(__file__).parent / "img"
HIGH, LOW = "#4c78a8", "#f2a154"


def octave_conv() -> None:
    """The four paths, and the one weight they are cut from."""
    figure, (paths, weight) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2.1, 1))
    for x, prime in ((0.0, ""), (7.0, "'")):
        paths.add_patch(Rectangle((x, 3.2), 2, 2, color=HIGH))
        paths.text(x + 1, 4.2, f"high{prime}\nH x W", ha="center", va="center", color="white", fontsize=12)
        paths.add_patch(Rectangle((x + 0.5, 0.6), 1, 1, color=LOW))
        paths.text(x + 1, 1.1, f"low{prime}", ha="center", va="center", fontsize=12)
        paths.text(x + 1, 0.25, "H/2 x W/2", ha="center", va="center", fontsize=10)
    arrows = (
        ((2.1, 4.4), (6.9, 4.4), "conv W_hh", (4.5, 4.6), 0),
        ((2.1, 3.7), (7.4, 1.4), "pool, conv W_hl", (6.1, 2.2), -23.5),
        ((1.6, 1.3), (6.9, 3.7), "conv W_lh, upsample", (3.0, 2.2), 24.4),
        ((1.6, 0.9), (7.4, 0.9), "conv W_ll", (4.5, 0.55), 0),
    )
    for start, end, text, at, angle in arrows:
        paths.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=15, color="#333333"))
        paths.text(*at, text, ha="center", va="center", rotation=angle, rotation_mode="anchor", fontsize=11)
    paths.set(xlim=(-0.2, 9.2), ylim=(0, 5.4))
    paths.set_title("octave convolution", fontsize=13)

    blocks = (
        (0, 1, 3, 2, "W_hh", HIGH, 0.9),
        (3, 1, 1, 2, "W_lh", "#8f8fae", 0.55),
        (0, 0, 3, 1, "W_hl", "#8f8fae", 0.55),
        (3, 0, 1, 1, "W_ll", LOW, 1),
    )
    for x, y, width, height, text, colour, opacity in blocks:
        weight.add_patch(
            Rectangle((x, y), width, height, facecolor=colour, alpha=opacity, edgecolor="white", linewidth=2)
        )
        weight.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=12)
    weight.text(1.5, 3.15, "high in", ha="center", fontsize=11)
    weight.text(3.5, 3.15, "low in", ha="center", fontsize=11)
    weight.text(-0.15, 2, "high out", ha="right", va="center", fontsize=11)
    weight.text(-0.15, 0.5, "low out", ha="right", va="center", fontsize=11)
    weight.set(xlim=(-1.3, 4.2), ylim=(-0.2, 3.5))
    weight.set_title("one weight, [C_out, C_in, k, k]", fontsize=13)
    for axes in (paths, weight):
        axes.set_aspect("equal")
        axes.axis("off")
    figure.tight_layout()
    figure.savefig(IMAGES / "octave_conv.png", dpi=110)


def feature_maps(checkpoint: str) -> None:
    """A photograph, and the high and low channels that vary most behind the network's second block."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model = timm.create_model("oct_cifar_resnet20_a0.25").eval()
    model.load_state_dict(
        {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    )
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    photo = F.interpolate(photo, (214, 320), mode="area")
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        maps = model.stages[0][:2](model.stem((photo - mean) / std))
    assert isinstance(maps, octzoo.Octave)

    figure = plt.figure(figsize=(12, 4.3))
    grid = figure.add_gridspec(2, 4, width_ratios=(1.7, 1, 1, 1))
    axes = figure.add_subplot(grid[:, 0])
    axes.imshow(photo[0].permute(1, 2, 0))
    axes.set_title("the photograph", fontsize=12)
    axes.axis("off")
    for row, (part, kind) in enumerate(((maps.high[0], "high"), (maps.low[0], "low"))):
        chosen = part.flatten(1).std(1).argsort(descending=True)[:3]
        for column, channel in enumerate(chosen.tolist()):
            axes = figure.add_subplot(grid[row, column + 1])
            axes.imshow(part[channel], cmap="gray", interpolation="nearest")
            axes.set_title(f"{kind} {channel}: {part.shape[1]} x {part.shape[2]}", fontsize=11)
            axes.axis("off")
    figure.tight_layout()
    figure.savefig(IMAGES / "feature_maps.png", dpi=100)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    IMAGES.mkdir(exist_ok=True)
    octave_conv()
    feature_maps(sys.argv[1])
