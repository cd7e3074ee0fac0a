"""Measures what saves memory in training, and writes docs/memory.json and the table in docs/training.md.

Each row is `octzoo fit` in a process of its own, six steps on made pictures; the peak is the process's resident set,
the time that of a step after the third.

command  python docs/make_memory.py
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from octzoo.cli.bench_pictures import make_pictures
from octzoo.train.environment import environment

DOCS = Path(__file__).parent
NAME = "oct_resnet50_a0.25"
BEGIN, END = "<!-- memory: made by docs/make_memory.py -->", "<!-- end of memory -->"
ROWS = {
    "nothing": [],
    "`--model.channels_last true`": ["--model.channels_last", "true"],
    "`--trainer.precision bf16-mixed`": ["--trainer.precision", "bf16-mixed"],
    "`--model.grad_checkpointing true`": ["--model.grad_checkpointing", "true"],
    "`--data.batch_size 4 --trainer.accumulate_grad_batches 2`": [
        *("--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2")
    ],
    "both of bf16 and checkpointing": ["--trainer.precision", "bf16-mixed", "--model.grad_checkpointing", "true"],
}
COMMON = {
    "model.name": NAME,
    "data.source": "folder",
    "data.batch_size": "8",
    "data.num_workers": "0",
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": "1",
    "trainer.limit_val_batches": "0",
    "trainer.callbacks": "octzoo.train.step_clock.StepClock",
    "trainer.callbacks.first": "3",
}


def child(arguments: list[str]) -> None:
    """One fit; prints its peak and the seconds of its steps."""
    import octzoo_cli
    from octzoo.train.step_clock import StepClock

    code = octzoo_cli.main(arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"code": code, "peak_mib": peak, "seconds": StepClock.seconds}))


def measure(extra: list[str], root: Path) -> dict[str, float]:
    """Peak in MiB and milliseconds a batch of 8."""
    flags = [word for key, value in COMMON.items() for word in (f"--{key}", value)]
    steps = 12 if "--trainer.accumulate_grad_batches" in extra else 6
    limit = ["--data.root", str(root), "--trainer.limit_train_batches", str(steps)]
    command = [sys.executable, __file__, "fit", *flags, *limit, *extra]
    done = subprocess.run(command, cwd=root.parent, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return {"peak_mib": found["peak_mib"], "ms": 1000 * found["seconds"] / (steps - 3) * (steps / 6)}


def main() -> None:
    """Measures every row twice, in turns."""
    with tempfile.TemporaryDirectory() as place:
        root = make_pictures(Path(place) / "pictures")
        rounds = [{name: measure(extra, root) for name, extra in ROWS.items()} for _ in range(2)]
    rows = {name: {k: min(r[name][k] for r in rounds) for k in ("peak_mib", "ms")} for name in ROWS}
    (DOCS / "memory.json").write_text(json.dumps({"network": NAME, "rows": rows, **environment()}, indent=1) + "\n")
    write_table(rows)


def write_table(rows: dict[str, dict[str, float]]) -> None:
    """Puts the table between its marks in docs/training.md."""
    lines = ["| set | peak memory, MiB | ms a batch of 8 |", "| --- | --: | --: |"]
    lines += [f"| {name} | {row['peak_mib']:,.0f} | {row['ms']:,.0f} |" for name, row in rows.items()]
    page = DOCS / "training.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"]))


if __name__ == "__main__":
    child(sys.argv[1:]) if len(sys.argv) > 1 else main()
