"""Asks each engine how long its own kernels take, and writes docs/kernels.json and a table in docs/speed.md.

The engines' times, not a clock's around them: what convolutions alone take of an octave network is the least that it
can take in this engine, whatever is done about the rest.

command  python docs/make_kernels.py [NETWORK...: these alone are measured; --table: none are]
"""

import json
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile

from octzoo.deploy.engines import ENGINES, TRAINING, Setting
from octzoo.deploy.export import write_onnx
from octzoo.fused import fuse
from octzoo.models.named import build
from octzoo.train.environment import environment, package_version
from octzoo.weights.card import markdown

DOCS = Path(__file__).parent
ALPHAS = ("0.125", "0.25", "0.5", "0.75")
NETWORKS = {  # plain network -> beside it
    "resnet50": tuple(f"resnet50@{alpha}" for alpha in ALPHAS),
    "oct_mobilenetv2_100_a0.0": tuple(f"oct_mobilenetv2_100_a{alpha}" for alpha in ALPHAS),
    "oct_densenet121_a0.0": tuple(f"oct_densenet121_a{alpha}" for alpha in ("0.25", "0.5")),
    "oct_cifar_resnet20_a0.0": tuple(f"oct_cifar_resnet20_a{alpha}" for alpha in ("0.25", "0.5", "0.75")),
}
THREADS, ROUNDS = 2, 10
PACKAGES = ("torch", "onnxruntime", "openvino")
BEGIN, END = "<!-- kernels: made by docs/make_kernels.py -->", "<!-- end of kernels -->"
Kernels = Counter[str]  # kind of kernel -> milliseconds of a batch
Size = tuple[int, int, int]
Measure = Callable[[str, int, Size], Kernels]


def in_onnx(name: str, batch: int, size: Size) -> Kernels:
    """By ONNX Runtime's profile."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as place:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.log_severity_level = 3
        options.enable_profiling, options.profile_file_prefix = True, f"{place}/profile"
        options.add_free_dimension_override_by_name("batch", batch)
        write_onnx(fuse(build(name)), path := Path(place) / "network.onnx", size)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        x = Setting(batch, size, THREADS).pictures().numpy()
        for _ in range(2 + ROUNDS):
            session.run(None, {session.get_inputs()[0].name: x})
        events = json.loads(Path(session.end_profiling()).read_text())
    times, kinds = defaultdict(list), {}
    for event in events:
        if event["name"].endswith("kernel_time"):
            times[event["name"]].append(event["dur"] / 1000)
            kinds[event["name"]] = event["args"]["op_name"]
    return summed({node: (kinds[node], found[2:]) for node, found in times.items()})


def in_openvino(name: str, batch: int, size: Size) -> Kernels:
    """By OpenVINO's counters."""
    import openvino

    x = Setting(batch, size, THREADS).pictures().numpy()
    with tempfile.TemporaryDirectory() as place:
        write_onnx(fuse(build(name)), path := Path(place) / "network.onnx", size)
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


def in_pytorch(mode: str, train: bool = False) -> Measure:
    """By torch's profiler."""

    def kernels(name: str, batch: int, size: Size) -> Kernels:
        run = (TRAINING if train else ENGINES)[mode](build(name), Setting(batch, size, THREADS)).run
        rounds = []
        for _ in range(2 + ROUNDS):
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                run()
            rounds.append({event.key: event.self_cpu_time_total / 1000 for event in seen.key_averages()})
        return summed({key: (key, [r.get(key, 0) for r in rounds[2:]]) for key in rounds[-1]})

    return kernels


RUNTIMES: dict[str, tuple[Measure, int]] = {
    "onnx, batch 8": (in_onnx, 8),
    "onnx, batch 1": (in_onnx, 1),
    "openvino, batch 8": (in_openvino, 8),
    "openvino, batch 1": (in_openvino, 1),
}
FUSED: dict[str, tuple[Measure, int]] = {
    "fused, batch 8": (in_pytorch("fused"), 8),
    "fused, batch 1": (in_pytorch("fused"), 1),
}
COMPILED: dict[str, tuple[Measure, int]] = {
    "compile, batch 8": (in_pytorch("compile"), 8),
    "compile, batch 1": (in_pytorch("compile"), 1),
}
TRAINED = in_pytorch("eager", train=True)
ROWS: dict[str, dict[str, tuple[Measure, int]]] = {
    "resnet50": {**FUSED, **COMPILED, **RUNTIMES, "eager, training, batch 8": (TRAINED, 8)},
    "oct_mobilenetv2_100_a0.0": {**FUSED, **RUNTIMES},
    "oct_densenet121_a0.0": {**FUSED, **RUNTIMES},
    "oct_cifar_resnet20_a0.0": {"eager, training, batch 128": (TRAINED, 128)},
}


def convolutions(kernels: dict[str, float]) -> float:
    """Milliseconds in kernels that convolve."""
    return sum(ms for kind, ms in kernels.items() if "conv" in kind.lower())


def table(network: str, rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Shares of all of the plain network's kernels: a network's convolutions, and its other kernels."""
    names = (network, *NETWORKS[network])
    lines = []
    for row, found in rows.items():
        whole = sum(found[network].values())
        alone = [convolutions(found[name]) / whole for name in names]
        rest = [sum(found[name].values()) / whole - share for name, share in zip(names, alone)]
        lines.append([row, f"{whole:.1f}", *(f"**{a:.2f}** + {r:.2f}" for a, r in zip(alone, rest))])
    head = ["engine", "all, ms", *(f"`{name}`" for name in names)]
    return markdown(head, ["---", *["--:"] * (len(head) - 1)], lines)


def write(found: dict) -> None:
    """Puts the table between its marks in docs/speed.md."""
    packages = found["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in PACKAGES)
    where = f"Measured on {found['cpu']}, {found['cpus']} cores, {found['threads']} threads, {versions}; medians of "
    page = DOCS / "speed.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [table(network, rows) for network, rows in found["networks"].items()]
    lines = [BEGIN, *tables, f"{where}{ROUNDS} rounds. Command: `{found['command']}`.", END]
    page.write_text(before + "\n\n".join(lines) + after)


def same_place(found: dict) -> None:
    """One line under the tables says where all of them were measured: SystemExit if some would be of another place."""
    here = environment()
    packages = {name: version for name, version in found["packages"].items() if name in PACKAGES}
    if here["cpu"] != found["cpu"] or any(package_version(name) != version for name, version in packages.items()):
        raise SystemExit("the other networks were measured elsewhere, or with other versions: measure all of them")


def main(arguments: list[str]) -> None:
    """Measures every row, one network after the other: each engine's kernels do not wait for one another's."""
    torch.set_num_threads(THREADS)
    file = DOCS / "kernels.json"
    found = json.loads(file.read_text()) if file.exists() else {"networks": {}}
    measured = arguments or list(NETWORKS)
    if found["networks"] and "--table" not in arguments and set(measured) != set(NETWORKS):
        same_place(found)
    for plain in [] if "--table" in arguments else measured:
        rows: dict[str, dict[str, dict[str, float]]] = {}
        for row, (kernels, batch) in ROWS[plain].items():
            rows[row] = {}
            for name in (plain, *NETWORKS[plain]):
                print(f"{row}: {name}", file=sys.stderr)
                model = build(name, device="meta")
                size = cast(Any, model).pretrained_cfg["input_size"]
                counted = kernels(name, batch, size).most_common()
                rows[row][name] = {kind: round(ms, 4) for kind, ms in counted if ms >= 0.001}
        facts = environment() | {"command": "python docs/make_kernels.py", "threads": THREADS}
        facts["packages"] |= {name: package_version(name) for name in ("onnxruntime", "openvino")}
        commits = {**found.get("commits", {}), plain: facts.pop("folder_commit")}
        found = {**facts, "commits": commits, "networks": {**found["networks"], plain: rows}}
        file.write_text(json.dumps(found, indent=1) + "\n")
    write(found)


if __name__ == "__main__":
    main(sys.argv[1:])
