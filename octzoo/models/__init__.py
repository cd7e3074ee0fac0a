"""Importing this package registers every octave network with timm."""

from octzoo.models import oct_any as oct_any
from octzoo.models import oct_densenet as oct_densenet
from octzoo.models import oct_mobilenet as oct_mobilenet
from octzoo.models import oct_resnet152 as oct_resnet152
from octzoo.models import oct_resnetv2 as oct_resnetv2
from octzoo.models import oct_timm as oct_timm
