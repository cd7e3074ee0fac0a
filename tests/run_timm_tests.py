"""Run timm's own tests/test_models.py, unedited, over our names: ``python tests/run_timm_tests.py NAME...``

NAME may be a pattern: 'oct_resnet50_a0.25', 'oct_cifar_resnet20*', 'oct_*' (every network and alpha: hours).
The tests come from the sdist of the installed timm, which pip downloads. Only ``test_model_forward_fx_torchscript`` is
deselected: it scripts a graph whose ``nn.ReLU`` TorchScript types as taking a Tensor, so that no pair can pass. The
tests of real weights stay out until there are some. ``--shard 2/5`` takes the second fifth of the names (every
fifth one, so that large networks spread over the shards). Further pytest arguments follow behind ``--``.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

DESELECTED = ("forward_fx_torchscript", "load_pretrained", "features_pretrained", "model_inference")
CONFTEST = '''
"""Narrows timm's lists to the names asked for while the tests are collected, which is when they read them."""
import fnmatch

import timm
import timm.models

import octzoo

PATTERNS = {patterns!r}
SHARD, SHARDS = {shard!r}
names = [n for n in timm.list_models(include_tags=True) if any(fnmatch.fnmatch(n, p) for p in PATTERNS)]
CHOSEN = set(names[SHARD - 1 :: SHARDS])
real = timm.list_models, timm.list_pretrained


def ours(names):
    return [n for n in names if n in CHOSEN]


def list_models(filter="", module="", *args, **kwargs):
    return ours(real[0](filter, "", *args, **{{**kwargs, "include_tags": True}}))


timm.list_models, timm.list_pretrained = list_models, lambda *args, **kwargs: ours(real[1](*args, **kwargs))


def pytest_collection_modifyitems(config, items):
    timm.list_models, timm.list_pretrained = real
    keep = [
        item
        for item in items
        if ours([getattr(item, "callspec", None) and str(item.callspec.params.get("model_name")) or ""])
        and not any(part in item.originalname for part in {deselected!r})
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in keep])
    items[:] = keep
'''
SETTINGS = "[pytest]\nfilterwarnings = ignore\nmarkers =\n" + "".join(
    f"    {name}: timm's\n"
    for name in [
        "base",
        "forward",
        "backward",
        "cfg",
        "cfg_nonstd",
        "torchscript",
        "features",
        "fxforward",
        "fxbackward",
    ]
)


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    patterns, extra = arguments[:split], arguments[split + 1 :]
    shard = (1, 1)
    if "--shard" in patterns:
        at = patterns.index("--shard")
        first, _, last = patterns[at + 1].partition("/")
        shard, patterns = (int(first), int(last)), patterns[:at] + patterns[at + 2 :]
    if not patterns:
        print(__doc__, file=sys.stderr)
        return 2
    release = version("timm")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        download = ["download", "--quiet", "--no-deps", "--no-binary=:all:", f"timm=={release}", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        with tarfile.open(work / f"timm-{release}.tar.gz") as archive:
            source = archive.extractfile(f"timm-{release}/tests/test_models.py")
            assert source is not None
            (work / "test_models.py").write_bytes(source.read())
        (work / "conftest.py").write_text(CONFTEST.format(patterns=patterns, shard=shard, deselected=DESELECTED))
        (work / "pytest.ini").write_text(SETTINGS)
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "test_models.py", *extra]
        return subprocess.run(command, cwd=work).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
