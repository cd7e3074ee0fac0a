"""The plug-in behind ``--trainer.sync_batchnorm true``. Its arithmetic is in tests/test_sync_batchnorm.py."""

import timm
import torch

import octzoo
from octzoo.layers import OctBatchNorm2d, OctBatchNormAct2d
from octzoo.train.sync import OctaveSync


def test_every_norm_is_synchronised_and_back() -> None:
    model = octzoo.octavize(timm.create_model("resnet10t"), 0.25).eval()
    x = torch.randn(1, 3, 64, 64)
    before, keys = model(x), list(model.state_dict())
    OctaveSync().apply(model)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(m, OctBatchNorm2d | OctBatchNormAct2d) and m.sync for m in norms)
    torch.testing.assert_close(model(x), before)
    OctaveSync().revert(model)
    assert not any(m.sync for m in norms)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), before)
