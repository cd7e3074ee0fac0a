"""Two real processes side by side, for tests of torch.distributed."""

import os
import subprocess
import sys
from pathlib import Path


def run_two(arguments, folder):
    """``python *arguments RANK FOLDER`` as ranks 0 and 1; fails with what they said."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    ranks = [
        subprocess.Popen(
            [sys.executable, *arguments, str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=Path(__file__).parent.parent,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
