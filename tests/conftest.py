"""What every test starts from: one thread (pytest runs two processes), the same random numbers."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded, and for the processes that tests start

import pytest
import torch
from hypothesis import settings

settings.register_profile("octzoo", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("octzoo")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
