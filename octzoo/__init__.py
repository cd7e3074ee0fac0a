"""Octave Convolution for PyTorch: ``import octzoo`` registers the octave networks with timm."""

from octzoo import models as models
from octzoo.adaptation import adapt
from octzoo.channels import channel_order
from octzoo.geometry import OctaveError
from octzoo.layers import OctConv2d, sync_batchnorm
from octzoo.octave import Octave, drop, merge, octave_conv2d
from octzoo.surgery import octavize, set_alpha

__all__ = [
    "OctConv2d",
    "Octave",
    "OctaveError",
    "adapt",
    "channel_order",
    "drop",
    "merge",
    "octave_conv2d",
    "octavize",
    "set_alpha",
    "sync_batchnorm",
]
