"""The `octzoo` command: finds the verb, then imports what that verb needs.

Standard library only, and outside the package on purpose: `octzoo --help` answers in a twentieth of a second,
where importing torch, timm and Lightning first would take ten.
"""

import difflib
import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version

# verb -> (one line for the help, "module:function"); the function takes the arguments, returns the exit code
VERBS: dict[str, tuple[str, str]] = {
    "fit": ("train a network; leaves one folder with everything about the run", "octzoo.cli.lightning:main"),
    "validate": ("measure a checkpoint on the validation pictures", "octzoo.cli.lightning:main"),
    "test": ("measure a checkpoint on the test pictures", "octzoo.cli.lightning:main"),
    "predict": (
        "label a folder of pictures: CSV and JSON of the likeliest classes",
        "octzoo.cli.lightning:main",
    ),
    "list": ("the networks: cost, weights, accuracy and whose", "octzoo.cli.list_networks:main"),
    "info": ("one network, stage by stage: where its octaves are, what it costs", "octzoo.cli.info:main"),
    "weights": ("a checkpoint's weights as one safetensors file", "octzoo.cli.weights:main"),
    "import": ("turn a published file of weights into a checkpoint folder", "octzoo.cli.import_weights:main"),
    "pack": ("make a checkpoint folder of a run, measured again", "octzoo.cli.pack:main"),
    "publish": ("put checkpoint folders on the Hugging Face Hub", "octzoo.cli.publish:main"),
    "pull": ("fetch a checkpoint folder from the Hub", "octzoo.cli.pull:main"),
    "verify": ("check the weights on this machine", "octzoo.cli.verify:main"),
    "octavize": ("make an octave network of a pretrained plain one, in minutes", "octzoo.cli.octavize:main"),
    "plan": ("which layers pay for their octaves, from a budget of arithmetic", "octzoo.cli.plan:main"),
    "compare": ("several runs in one table and one picture", "octzoo.cli.compare:main"),
    "bench": ("speed, measured here: of networks, of the data loader, of the training loop", "octzoo.cli.bench:main"),
    "profile": ("why a network is slow or fast here: time, arithmetic, bound", "octzoo.cli.profile:main"),
    "export": ("a network as ONNX, OpenVINO or torch.export, checked; int8 too", "octzoo.cli.export:main"),
    "plan-run": ("hours and cost of a training on paper", "octzoo.cli.plan_run:main"),
}


def usage() -> str:
    """The text of `octzoo --help`."""
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:<{width}}  {line}" for verb, (line, _) in VERBS.items())
    return (
        "usage: octzoo VERB [options]\n\n"
        f"Octave Convolution networks: train, measure and use them.\n\nverbs:\n{rows}\n\n"
        "  octzoo VERB --help    the options of one verb, with an example\n"
        "  octzoo --version\n\n"
        "example:\n  octzoo fit --config configs/digits.yaml\n"
    )


def installed_version() -> str:
    """The version of the installed package; "unknown" in a source tree that was never installed."""
    try:
        return version("octzoo")
    except PackageNotFoundError:
        return "unknown"


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns its exit code; 2 for a verb that does not exist."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments and arguments[0] == "--version":
        print(f"octzoo {installed_version()}")
        return 0
    if not arguments:
        print(usage(), end="", file=sys.stderr)
        return 2
    if arguments[0] not in VERBS:
        near = difflib.get_close_matches(arguments[0], VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the verbs are {', '.join(VERBS)}"
        print(f"error: no verb '{arguments[0]}'; {hint}", file=sys.stderr)
        return 2
    # Before torch is loaded: its waiting threads sleep instead of spinning. With one other busy process on two cores a
    # training step took 0.12 s instead of 1.8 s; data loading processes are such processes too. What measures networks
    # alone on the machine leaves it as a user's own program has it: at batch 1 sleeping costs an octave network half
    # as much again.
    if arguments[:2] != ["bench", "model"] and arguments[0] != "profile":
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module, function = VERBS[arguments[0]][1].split(":")
    return getattr(importlib.import_module(module), function)(arguments)


if __name__ == "__main__":
    sys.exit(main())
