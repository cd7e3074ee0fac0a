"""An octave network as the backbone of a detector: timm's features_only inside torchvision's RetinaNet, trained."""

from collections import OrderedDict

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

import octzoo  # noqa: F401  (registers the names)
from octzoo import OctConv2d


class Pyramid(nn.Module):
    """What torchvision's detectors want of a backbone: named maps of equally many channels."""

    def __init__(self, name: str, out_channels: int = 32) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=(2, 3, 4))
        self.pyramid = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.pyramid(OrderedDict((str(i), x) for i, x in enumerate(self.body(images))))


@pytest.mark.parametrize("name", ["oct_resnet26_a0.5", "oct_resnet18_a0.25"])
def test_a_detector_on_an_octave_backbone_trains(name: str) -> None:
    anchors = AnchorGenerator(sizes=((16,), (32,), (64,)), aspect_ratios=((0.5, 1.0, 2.0),) * 3)
    detector = RetinaNet(Pyramid(name), num_classes=3, anchor_generator=anchors, min_size=96, max_size=128)
    images = [torch.rand(3, 96, 112), torch.rand(3, 101, 97)]  # of two sizes, one of them odd
    targets = [
        {"boxes": torch.tensor([[10.0, 12.0, 50.0, 60.0], [30.0, 30.0, 90.0, 80.0]]), "labels": torch.tensor([1, 2])},
        {"boxes": torch.tensor([[5.0, 5.0, 40.0, 44.0]]), "labels": torch.tensor([2])},
    ]
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9)
    convolutions = [module for module in detector.modules() if isinstance(module, OctConv2d)]
    before = [convolution.weight.clone() for convolution in convolutions]
    losses = []
    for _ in range(3):
        loss = sum(detector(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.tensor(losses).isfinite())
    assert losses[-1] < losses[0]
    assert convolutions
    assert all(convolution.weight.grad.abs().sum() > 0 for convolution in convolutions)  # type: ignore[union-attr]
    assert not any(torch.equal(old, new.weight) for old, new in zip(before, convolutions))
    found = detector.eval()(images)
    assert all({"boxes", "labels", "scores"} == set(picture) for picture in found)
