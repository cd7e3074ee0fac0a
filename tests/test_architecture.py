"""Imports point one way, importing octzoo stays light, and the public list is what is exported."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import octzoo

ROOT = Path(octzoo.__file__).parent

# Each part may import those before it; weights and data know no network, and import octzoo stays clear of training.
CORE = [
    "geometry",
    "resample",
    "octave",
    "rules",
    "narrow",
    "norms",
    "blocks",
    "layers",
    "plan",
    "fused",
    "surgery",
    "channel_flow",
    "channels",
]
TOLD = ["splits", "summary"]  # what can be told of a network
ALLOWED = {part: {"errors", *CORE[:i]} for i, part in enumerate(CORE)} | {
    "errors": set(),
    "weights": {"errors"},
    "data": {"errors"},
    "splits": {*CORE, "weights"},
    "summary": set(CORE),
    "models": {"errors", *CORE, "splits", "summary", "weights"},
    "train": {"errors", *CORE, "summary", "weights", "models", "data"},
    "deploy": {"errors", *CORE, "summary", "weights", "models", "data"},
    "adaptation": {"errors", *CORE, "weights", "models"},
    "cli": {"errors", *CORE, *TOLD, "weights", "models", "data", "train", "deploy", "adaptation"},
    "__init__": {*CORE, "models", "adaptation"},
}


def part_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports_of(path):
    """Names of octzoo's own modules that a file imports, at any level."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "octzoo":
            names = [node.module] if node.module != "octzoo" else [f"octzoo.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("octzoo.")]
        else:
            continue
        yield from (name.removeprefix("octzoo.") for name in names)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = part_of(path)
    for name in imports_of(path):
        assert name.split(".")[0] in ALLOWED[part] | {part}, f"{part} imports octzoo.{name}"


def loaded_by(code):
    """The top-level modules that are loaded after ``code``."""
    script = f"{code}; import sys; print(*(m for m in sys.modules if '.' not in m), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True, text=True)
    return set(run.stderr.split())


def test_import_octzoo_needs_torch_and_timm_only():
    heavy = {
        "lightning",
        "pytorch_lightning",
        "torchmetrics",
        "omegaconf",
        "jsonargparse",
        "sklearn",
        "matplotlib",
        "rich",
    }
    assert not loaded_by("import octzoo") & (heavy | {"tensorboard", "datasets"})


def test_the_command_line_needs_only_the_standard_library_for_its_help():
    modules = loaded_by("import octzoo_cli; octzoo_cli.main(['--help'])")
    assert not modules & {"torch", "timm", "lightning", "octzoo", "numpy"}


def test_the_public_list_is_what_is_exported():
    public = {n for n in vars(octzoo) if not n.startswith("_")}
    modules = {n for n in public if type(getattr(octzoo, n)).__name__ == "module"}
    assert public - modules == set(octzoo.__all__)
    assert list(octzoo.__all__) == sorted(octzoo.__all__)


def test_every_package_is_packed():
    packed = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(("octzoo", *p.parent.relative_to(ROOT).parts)) for p in ROOT.rglob("__init__.py")}
    assert set(packed) == found | {"octzoo.checkpoints"}
