"""Importing this package registers every octave network with timm."""

from octzoo.models import oct_resnetv2 as oct_resnetv2
from octzoo.models import oct_timm as oct_timm
