"""Processes that use checkpoint folders and the Hub as users do, and small folders for them.

``python -m tests.clients load WAY:NAME ...`` loads networks with unmodified clients, a line of JSON for each;
``python -m tests.clients commands`` runs the `octzoo` commands that it reads. Both log all there is to log to stderr.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
NAME, ALPHA = "oct_cifar_resnet20_a0.125", 0.125
FULL_NAME = f"{NAME}.test"
NOBODY = "http://127.0.0.1:9"  # the discard port: refused


def checkpoint(parent, seed=0, full_name=FULL_NAME, num_classes=10):
    """A folder as octzoo writes it, with random weights; about 1 MB if not told otherwise."""
    import timm
    import torch

    import octzoo  # noqa: F401 (registers the networks)
    from octzoo.weights.card import make_card
    from octzoo.weights.folder import make_config, write_folder
    from octzoo.weights.golden import GOLDEN, golden_logits
    from octzoo.weights.names import parse

    torch.manual_seed(seed)
    name, tag = parse(full_name), full_name.split(".", 1)[1]
    model = timm.create_model(name.untagged, num_classes=num_classes)
    config = make_config(model, name.alpha, tag, None)
    config[GOLDEN] = golden_logits(model, config["pretrained_cfg"]["input_size"])
    card = make_card(full_name, name.alpha, config=config)
    write_folder(Path(parent) / full_name, model.state_dict(), config, card)
    return Path(parent) / full_name


def contents(folder):
    """Name -> bytes, of a folder's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def digest(state):
    """The SHA-256 of a state dict's names and bits."""
    kept = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        kept.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return kept.hexdigest()


def digest_of(folder):
    """``digest`` of a folder's weights."""
    from safetensors.torch import load_file

    return digest(load_file(folder / "model.safetensors"))


def environment(home, hub=None, token=None, **more):
    """What a process is told: caches of its own in ``home``, and no other server than ``hub``."""
    others = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OCTZOO_", "TORCH_HOME"))}
    where = {"HF_HOME": str(home / "hf"), "TORCH_HOME": str(home / "torch"), "HF_HUB_DISABLE_XET": "1"}
    where |= {"HF_ENDPOINT": hub.url if hub else NOBODY, "OCTZOO_MIRROR": NOBODY}
    return others | where | ({"HF_TOKEN": token} if token else {}) | more


def start(arguments, log=None, **how):
    """``python *arguments`` as a process of its own; ``how`` is ``environment``'s, ``log`` a file for its stderr."""
    pipes = dict(stdout=subprocess.PIPE, stderr=log.open("w") if log else subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=REPOSITORY, env=environment(**how), **pipes)


def finish(process, timeout=200):
    """(Exit code, stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def load(*ways, **how):
    """What one process says of each way to load (``digest`` and ``alpha``, or ``error``), and all of its output."""
    code, out, err = finish(start(["-m", "tests.clients", "load", *ways], **how))
    assert code == 0, err
    said = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(said) == len(ways), out + err
    return said, out + err


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def error(self):
        """The one line that says what went wrong."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self
        return lines[0]


class Session:
    """A process that runs `octzoo` commands, one after the other, since what they import takes seconds."""

    def __init__(self, home, **how):
        self.home, self.how, self.process = home, how, None

    def __call__(self, *arguments, timeout=60, **environment):
        """`octzoo *arguments` in ``home``, with these variables too."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.clients", "commands"],
                cwd=REPOSITORY,
                env=globals()["environment"](home=self.home, **self.how),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(self.home / "log").open("a"),
                text=True,
            )
        print(json.dumps([list(map(str, arguments)), str(self.home), environment]), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.close()
            raise TimeoutError(f"octzoo {' '.join(map(str, arguments))} does not end within {timeout} s")
        return Result(*json.loads(self.process.stdout.readline()))

    @property
    def log(self):
        return (self.home / "log").read_text()

    def close(self):
        if self.process:
            self.process.kill()
            self.process.communicate()


def _commands():
    import octzoo_cli

    before = dict(os.environ)
    for line in sys.stdin:
        arguments, folder, more = json.loads(line)
        os.environ.clear()
        os.environ.update(before | more)
        os.chdir(folder)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = octzoo_cli.main(arguments)
            except SystemExit as stop:
                code = stop.code
            except BaseException as problem:  # --debug shows it
                code = repr(problem)
        print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)


def _load(way, name):
    if way == "timm":
        import timm

        return timm.create_model(name, pretrained=True)
    from transformers import AutoModelForImageClassification

    name, _, revision = name.partition("@")
    return AutoModelForImageClassification.from_pretrained(name, revision=revision or "main").timm_model


def _loads(ways):
    import octzoo  # noqa: F401

    for way in ways:
        try:
            model = _load(*way.split(":", 1))
            said = {"digest": digest(model.state_dict()), "alpha": model.octave_alpha}
        except Exception as problem:
            said = {"error": f"{type(problem).__name__}: {' '.join(str(problem).split())}"}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG)
    _commands() if sys.argv[1] == "commands" else _loads(sys.argv[2:])
