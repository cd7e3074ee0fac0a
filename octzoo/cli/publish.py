"""`octzoo publish`: checkpoint folders go to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report


def main(arguments: list[str]) -> int:
    """Publishes the folders; returns the exit code."""
    parser = Parser(
        "publish",
        "Puts checkpoint folders on the Hugging Face Hub, each as ORG/NAME.TAG: creates the repository, uploads what\n"
        "differs in one commit, tags it, reads every file back and compares SHA-256. A second run uploads nothing and\n"
        "finishes an interrupted one. Needs a token that may write: HF_TOKEN, or `hf auth login`.",
        "octzoo publish checkpoints/oct_cifar_resnet20_a0.25.mine --org my-lab --tag v1",
    )
    parser.add_argument(
        "folders",
        metavar="DIR",
        type=Path,
        nargs="+",
        help="a checkpoint folder, named NAME.TAG; one of octzoo octavize may have any name",
    )
    parser.add_argument("--org", required=True, metavar="ORG", help="a user or organisation of the Hub")
    parser.add_argument("--private", action="store_true", help="of new repositories; those that exist stay as they are")
    parser.add_argument("--tag", metavar="TAG", help="for this state, such as v1")
    parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and upload nothing")
    options = parser.parse_args(arguments[1:])
    return report(
        lambda: publish_all(options.folders, options.org, options.private, options.tag, options.dry_run), options.debug
    )


def publish_all(folders: list[Path], org: str, private: bool, tag: str | None, dry_run: bool) -> None:
    """Publishes one folder after the other, all of them checked first."""
    from octzoo.weights.publish import check_folder, publish

    for folder in folders:
        check_folder(folder, org)
    for folder in folders:
        commit = publish(folder, org, private, tag, dry_run)
        if not dry_run:
            name = f"{org}/{folder.resolve().name}"
            print(f'next   timm.create_model("hf-hub:{name}", pretrained=True)  # commit {commit[:7]}')
