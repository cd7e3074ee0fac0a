"""From a trained plain network to an octave network: ``adapt``, and the steps it is made of."""

from octzoo.adaptation.adapt import adapt
from octzoo.adaptation.report import Report

__all__ = ["Report", "adapt"]
