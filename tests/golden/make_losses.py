"""Writes losses.json: the losses of the first five micro-steps of tests/tiny.yaml.

command  python -m tests.golden.make_losses
"""

import json
import tempfile
from pathlib import Path

from tests.faults import TINY, pictures, record, run


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pictures(place / "pictures")
        run("fit", "--config", TINY, "--run_dir", "one", *record(place / "log"), folder=place)
        lines = (place / "log-0").read_text().splitlines()[:5]
    losses = [float.fromhex(line.split()[3]) for line in lines]
    Path(__file__).with_name("losses.json").write_text(json.dumps({"losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    main()
