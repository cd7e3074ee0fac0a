"""`octzoo bench`: finds what is to be measured, then imports what that needs."""

from __future__ import annotations

import difflib
import importlib
import sys

from octzoo.cli.errors import MISTAKE

# what -> (one line for the help, "module:function"); the function takes the arguments from `what` on
BENCHES = {
    "data": ("pictures a second and core, against timm's own loader", "octzoo.cli.bench_data:main"),
    "model": ("how fast networks run, against their peers and the arithmetic", "octzoo.cli.bench_model:main"),
    "loop": ("what `octzoo fit` adds to a step, against a bare PyTorch loop", "octzoo.cli.bench_loop:main"),
}


def main(arguments: list[str]) -> int:
    """Measures what the first word says; returns the exit code."""
    words = arguments[1:]
    width = max(map(len, BENCHES))
    rows = "\n".join(f"  {what:<{width}}  {line}" for what, (line, _) in BENCHES.items())
    usage = f"usage: octzoo bench WHAT [options]\n\n{rows}\n\nexample:\n  octzoo bench data photos\n"
    if not words or words[0] in ("-h", "--help"):
        print(usage, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else MISTAKE
    if words[0] not in BENCHES:
        near = difflib.get_close_matches(words[0], BENCHES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there is {', '.join(BENCHES)}"
        print(f"error: nothing to measure called '{words[0]}'; {hint}", file=sys.stderr)
        return MISTAKE
    module, function = BENCHES[words[0]][1].split(":")
    return getattr(importlib.import_module(module), function)(words)
