"""Batch norm over all processes, as Lightning's plug-in: what ``--trainer.sync_batchnorm true`` installs."""

from lightning.pytorch.plugins import LayerSync
from torch import nn

from octzoo.layers import sync_batchnorm


class OctaveSync(LayerSync):
    """``octzoo.sync_batchnorm`` in place of torch's converter, which puts plain norms where octave ones were."""

    def apply(self, model: nn.Module) -> nn.Module:
        return sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """The norms take one process's statistics again; their class, keys and values stay."""
        return sync_batchnorm(model, False)
