"""`octzoo verify`: whether the weights on this machine are what they were."""

from __future__ import annotations

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report


def main(arguments: list[str]) -> int:
    """Checks the folders; returns the exit code."""
    parser = Parser(
        "verify",
        "Checks the checkpoint folders of this machine: $OCTZOO_CHECKPOINTS, those that come with octzoo,\n"
        "checkpoints/, octzoo's cache and the Hub's. Checksums are compared, then each network answers to the golden\n"
        "picture as config.json says it did. Asks no server; timm's hf-hub: and transformers compare no checksums.",
        "octzoo verify oct_cifar_resnet20_a0.25.oz_cifar10_jpeg",
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="NAME.TAG, ORG/NAME.TAG or a folder; default: all there are"
    )
    options = parser.parse_args(arguments[1:])
    return report(lambda: verify(options.name), options.debug)


def verify(name: str | None) -> None:
    """Prints a row for each folder. Raises RunError if one is damaged, UserError if there is none."""
    import octzoo  # noqa: F401 (registers the names)
    from octzoo.errors import RunError, UserError
    from octzoo.weights.verify import folders, has_golden, problem_of

    bad, count = 0, 0
    for found in folders(name):
        problem = problem_of(found)
        bad, count = bad + (problem is not None), count + 1
        good = "good" if problem is None and has_golden(found) else "good; has no golden picture to answer to"
        print(f"{found.place:<12} {found.label}: {problem or good}", flush=True)
    if not count:
        raise UserError(f"no checkpoint folder{f' of {name}' if name else ''} on this machine")
    if bad:
        raise RunError(f"{bad} of {count} damaged; what is removed from a cache is fetched again when it is needed")
