"""An octave convolution is linear in what a regression is given of it."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from octzoo import OctConv2d, drop
from octzoo.adaptation.features import features, parts_of, put_weights, targets, weights
from octzoo.octave import Octave

B, C = 2, 16
LAYERS = {
    "1x1": lambda: OctConv2d(C, 24, 1, alpha=0.25),
    "3x3": lambda: OctConv2d(C, 24, 3, padding=1, alpha=0.25),
    "dilated": lambda: OctConv2d(C, 24, 3, padding=2, dilation=2, alpha=0.5),
    "pooled": lambda: OctConv2d(C, 24, 3, stride=2, padding=1, alpha=0.25),
    "strided": lambda: OctConv2d(C, 24, 3, stride=2, padding=1, alpha=0.25, stride_mode="conv"),
    "strided, same": lambda: same(OctConv2d(C, 24, 3, stride=2, padding=1, alpha=0.25, stride_mode="conv")),
    "groups": lambda: OctConv2d(C, 32, 3, padding=1, groups=4, alpha=0.25),
    "depthwise": lambda: OctConv2d(C, C, 3, padding=1, groups=C, alpha=0.25),
    "depthwise, strided": lambda: OctConv2d(C, C, 3, stride=2, padding=1, groups=C, alpha=0.25, stride_mode="conv"),
    "depthwise, pooled": lambda: OctConv2d(C, C, 5, stride=2, padding=2, groups=C, alpha=0.25),
    "depthwise, twice": lambda: OctConv2d(C, 2 * C, 3, padding=1, groups=C, alpha=0.25),
    "to a tensor": lambda: OctConv2d(C, 24, 3, padding=1, alpha=0),
    "to low alone": lambda: OctConv2d(C, 24, 3, padding=1, alpha=1),
    "no exchange": lambda: OctConv2d(C, 24, 3, padding=1, alpha=0.25, h2l=False, l2h=False),
    "plain": lambda: nn.Conv2d(C, 24, 3, stride=2, padding=1),
    "plain, same": lambda: Conv2dSame(C, 24, 3, stride=2),
}


def same(conv: OctConv2d) -> OctConv2d:
    """As surgery makes TensorFlow's padding, which nn.Conv2d refuses at stride 2."""
    conv.padding = "same"
    return conv


def everywhere(size: tuple[int, int]) -> torch.Tensor:
    return torch.arange(size[0] * size[1])


def cases() -> list:
    kinds = [(name, low, size) for name in LAYERS for low in (0, 4, 8) for size in ((12, 8), (9, 7))]
    kinds = [k for k in kinds if not (k[0].startswith("plain") and k[1])]
    return [k for k in kinds if not (k[0] == "no exchange" and not k[1])]


@pytest.mark.parametrize(("layer", "low", "size"), cases())
def test_features_times_weights_is_what_the_layer_gives(layer: str, low: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = LAYERS[layer]().double()
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    x = torch.randn(B, C, *size).double()
    x = drop(x, low)
    y = conv(x)
    parts = parts_of(conv, x)
    given = [y.high, y.low] if isinstance(y, Octave) else [y]
    given = [part for part in given if part.shape[1]]
    assert len(parts) == len(given)
    for part, expected in zip(parts, given):
        assert part.size == tuple(expected.shape[-2:])
        made = features(part, everywhere(part.size)) @ weights(part, conv.weight.detach())
        rows = torch.zeros(B, conv.out_channels, *part.size).double()
        rows[:, part.rows] = expected.detach()
        torch.testing.assert_close(made, targets(part, rows, everywhere(part.size)))


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_go_back_where_they_come_from(layer: str) -> None:
    conv = LAYERS[layer]().double()
    x = torch.randn(B, C, 12, 8).double()
    x = x if layer.startswith("plain") else drop(x, 4)
    new = conv.weight.detach().clone()
    for part in parts_of(conv, x):
        put_weights(part, new, 2 * weights(part, conv.weight.detach()))
    if layer != "no exchange":
        torch.testing.assert_close(new, 2 * conv.weight.detach())


def test_targets_of_the_low_part_are_pooled() -> None:
    conv, x = LAYERS["1x1"](), drop(torch.randn(B, C, 8, 8), 4)
    y = torch.randn(B, 24, 8, 8)
    low = parts_of(conv, x)[1]
    expected = nn.functional.avg_pool2d(y[:, 18:], 2)
    torch.testing.assert_close(targets(low, y, torch.tensor([5]))[0], expected[:, :, 1, 1])
