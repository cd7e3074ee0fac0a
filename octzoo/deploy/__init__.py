"""From a trained network to one that is fast where it runs: fused, measured, exported."""

from octzoo.fused import fuse

__all__ = ["fuse"]
