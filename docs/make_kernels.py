"""Asks each engine how long its own kernels take, and writes docs/kernels.json and a table in docs/speed.md.

The engines' times, not a clock's around them: what convolutions alone take of an octave network is the least that it
can take in this engine, whatever is done about the rest.

command  python docs/make_kernels.py [--table: of the figures that are there]
"""

import json
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from octzoo.deploy.engines import ENGINES, TRAINING, Setting
from octzoo.deploy.export import write_onnx
from octzoo.fused import fuse
from octzoo.models.named import build
from octzoo.train.environment import environment, package_version
from octzoo.weights.card import markdown

DOCS = Path(__file__).parent
PLAIN, OCTAVE = "resnet50", ("resnet50@0.125", "resnet50@0.25", "resnet50@0.5", "resnet50@0.75")
THREADS, ROUNDS, SIZE = 2, 10, (3, 224, 224)
BEGIN, END = "<!-- kernels: made by docs/make_kernels.py -->", "<!-- end of kernels -->"
Kernels = Counter[str]  # kind of kernel -> milliseconds of a batch


def in_onnx(name: str, batch: int) -> Kernels:
    """By ONNX Runtime's profile."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as place:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.log_severity_level = 3
        options.enable_profiling, options.profile_file_prefix = True, f"{place}/profile"
        options.add_free_dimension_override_by_name("batch", batch)
        write_onnx(fuse(build(name)), path := Path(place) / "network.onnx", SIZE)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        x = Setting(batch, SIZE, THREADS).pictures().numpy()
        for _ in range(2 + ROUNDS):
            session.run(None, {session.get_inputs()[0].name: x})
        events = json.loads(Path(session.end_profiling()).read_text())
    times, kinds = defaultdict(list), {}
    for event in events:
        if event["name"].endswith("kernel_time"):
            times[event["name"]].append(event["dur"] / 1000)
            kinds[event["name"]] = event["args"]["op_name"]
    return summed({node: (kinds[node], found[2:]) for node, found in times.items()})


def in_openvino(name: str, batch: int) -> Kernels:
    """By OpenVINO's counters."""
    import openvino

    x = Setting(batch, SIZE, THREADS).pictures().numpy()
    with tempfile.TemporaryDirectory() as place:
        write_onnx(fuse(build(name)), path := Path(place) / "network.onnx", SIZE)
        core = openvino.Core()
        network = core.read_model(path)
        network.reshape(list(x.shape))
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS}
        request = core.compile_model(network, "CPU", {**hints, "PERF_COUNT": True}).create_infer_request()
    times, kinds = defaultdict(list), {}
    for _ in range(2 + ROUNDS):
        request.infer([x])
        for node in request.get_profiling_info():
            times[node.node_name].append(1000 * node.real_time.total_seconds())
            kinds[node.node_name] = node.node_type
    return summed({node: (kinds[node], found[2:]) for node, found in times.items()})


def summed(nodes: dict[str, tuple[str, list[float]]]) -> Kernels:
    """The medians of all nodes of a kind."""
    found: Kernels = Counter()
    for kind, times in nodes.values():
        found[kind] += statistics.median(times)
    return found


def in_pytorch(mode: str, train: bool = False) -> Callable[[str, int], Kernels]:
    """By torch's profiler."""

    def kernels(name: str, batch: int) -> Kernels:
        run = (TRAINING if train else ENGINES)[mode](build(name), Setting(batch, SIZE, THREADS)).run
        rounds = []
        for _ in range(2 + ROUNDS):
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                run()
            rounds.append({event.key: event.self_cpu_time_total / 1000 for event in seen.key_averages()})
        return summed({key: (key, [r.get(key, 0) for r in rounds[2:]]) for key in rounds[-1]})

    return kernels


ROWS: dict[str, tuple[Callable[[str, int], Kernels], int]] = {
    "fused, batch 8": (in_pytorch("fused"), 8),
    "fused, batch 1": (in_pytorch("fused"), 1),
    "compile, batch 8": (in_pytorch("compile"), 8),
    "compile, batch 1": (in_pytorch("compile"), 1),
    "onnx, batch 8": (in_onnx, 8),
    "onnx, batch 1": (in_onnx, 1),
    "openvino, batch 8": (in_openvino, 8),
    "openvino, batch 1": (in_openvino, 1),
    "eager, training, batch 8": (in_pytorch("eager", train=True), 8),
}


def convolutions(kernels: dict[str, float]) -> float:
    """Milliseconds in kernels that convolve."""
    return sum(ms for kind, ms in kernels.items() if "conv" in kind.lower())


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Shares of all of the plain network's kernels: an octave network's convolutions, and its other kernels."""
    lines = []
    for row, networks in rows.items():
        plain = sum(networks[PLAIN].values())
        alone = [convolutions(networks[name]) / plain for name in networks]
        rest = [sum(networks[name].values()) / plain - share for name, share in zip(networks, alone)]
        lines.append([row, f"{plain:.1f}", *(f"**{a:.2f}** + {r:.2f}" for a, r in zip(alone, rest))])
    head = ["engine", f"`{PLAIN}`, ms", *(f"`{name}`" for name in (PLAIN, *OCTAVE))]
    return markdown(head, ["---", *["--:"] * (len(head) - 1)], lines)


def write(found: dict) -> None:
    """Puts the table between its marks in docs/speed.md."""
    packages = found["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "onnxruntime", "openvino"))
    where = f"Measured on {found['cpu']}, {found['cpus']} cores, {found['threads']} threads, {versions}; medians of "
    page = DOCS / "speed.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [BEGIN, "", table(found["rows"]), "", f"{where}{ROUNDS} rounds. Command: `{found['command']}`.", "", END]
    page.write_text(before + "\n".join(lines) + after)


def main() -> None:
    """Measures every row, one network after the other: each engine's kernels do not wait for one another's."""
    torch.set_num_threads(THREADS)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for row, (kernels, batch) in ROWS.items():
        rows[row] = {}
        for name in (PLAIN, *OCTAVE):
            print(f"{row}: {name}", file=sys.stderr)
            rows[row][name] = {k: round(ms, 4) for k, ms in kernels(name, batch).most_common() if ms >= 0.001}
    facts = environment()
    facts["packages"] |= {name: package_version(name) for name in ("onnxruntime", "openvino")}
    found = {**facts, "command": "python docs/make_kernels.py", "threads": THREADS, "rows": rows}
    (DOCS / "kernels.json").write_text(json.dumps(found, indent=1) + "\n")
    write(found)


if __name__ == "__main__":
    write(json.loads((DOCS / "kernels.json").read_text())) if "--table" in sys.argv else main()
