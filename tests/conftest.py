"""What every test starts from: two threads at most, the same random numbers."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("octzoo", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("octzoo")
torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
