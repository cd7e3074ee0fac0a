"""`octzoo pull`: a checkpoint folder comes from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report


def main(arguments: list[str]) -> int:
    """Fetches one folder; returns the exit code."""
    parser = Parser(
        "pull",
        "Fetches a checkpoint folder from the Hugging Face Hub, every file held to its hash. It is there wholly or\n"
        "not at all; what was interrupted is resumed by the next run. NAME alone is one of octzoo's own repositories.",
        "octzoo pull my-lab/oct_cifar_resnet20_a0.25.mine --revision v1 --out weights",
    )
    parser.add_argument("name", metavar="NAME", help="NAME.TAG or ORG/NAME.TAG; ORG/ANYTHING for an octavized network")
    parser.add_argument("--revision", metavar="REV", help="a tag, branch or commit; default: main")
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints")
    options = parser.parse_args(arguments[1:])
    return report(lambda: pull_folder(options.name, options.revision, options.out), options.debug)


def pull_folder(name: str, revision: str | None, out: Path) -> None:
    """Writes OUT/NAME.TAG, or says that it is there as it is on the Hub."""
    from octzoo.errors import UserError
    from octzoo.weights.hub import differing, look, pull
    from octzoo.weights.names import check_revision, repository
    from octzoo.weights.records import published

    repo = repository(name)
    if revision is not None:
        check_revision(revision)
    folder = out / repo.split("/")[1]
    record = published(folder.name)
    ours = record.model_sha256 if record and repo == record.hub_id and revision is None else None
    if folder.exists():
        remote = look(repo, revision)
        if others := differing(folder, remote):
            raise UserError(
                f"{folder} exists, and is not {repo} ({', '.join(others)}): remove it, or give another --out"
            )
        print(f"{folder}: as it is on the Hub, commit {remote.commit[:7]}")
        return
    remote = pull(repo, folder, revision, ours)
    print(f"{folder}: {len(list(folder.iterdir()))} files of {repo}, commit {remote.commit[:7]}, each as its hash says")
    print(f'next   timm.create_model("local-dir:{folder}", pretrained=True)')
