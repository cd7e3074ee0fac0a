"""`octzoo import`: a published file of weights becomes a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

if TYPE_CHECKING:
    from octzoo.weights.records import Record


def main(arguments: list[str]) -> int:
    """Imports one file; returns the exit code."""
    parser = Parser(
        "import",
        "Turns a file of the authors' (.tar or .params, MXNet) or of d-li14's (PyTorch) into a checkpoint folder that\n"
        "timm and transformers read. Checked before anything is written: every array is used once, every parameter\n"
        "filled, shapes and alpha are the network's, all numbers are finite; under a published tag, the checksum too.",
        "octzoo import a03_resnet-50_alpha-0.250.tar --name oct_resnet50_a0.25.fb_in1k",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help=".tar, .params, or what torch.save wrote")
    parser.add_argument(
        "--name", required=True, metavar="NAME.TAG", help="network, alpha and a tag, yours or published"
    )
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints")
    options = parser.parse_args(arguments[1:])
    return report(lambda: import_file(options.file, options.name, options.out), options.debug)


def import_file(file: Path, full_name: str, out: Path) -> None:
    """Writes OUT/NAME.TAG and says what it holds. Raises UserError if the file is not what its name says."""
    from octzoo.models.convert import read_name, read_published
    from octzoo.weights.folder import check_new, write_folder
    from octzoo.weights.records import published

    read_name(full_name)
    folder = out / full_name
    check_new(folder)
    found = read_published(full_name, file)
    check_published(file, published(full_name))
    write_folder(folder, found.state, found.config, found.card)
    print(f"{folder}: {found.arrays} arrays of {file.name} are all the parameters of {full_name}")
    print(f'next   timm.create_model("local-dir:{folder}", pretrained=True)')


def check_published(file: Path, record: Record | None) -> None:
    """Holds a file under a published tag to that record's checksum, where it is known."""
    from octzoo.errors import UserError
    from octzoo.weights.download import sha256_of

    if record is None or record.sha256 is None:
        return
    if (found := sha256_of(file)) != record.sha256:
        raise UserError(
            f"{file} has the SHA-256 {found}, the published {record.full_name} has {record.sha256}: if you want it all "
            f"the same, give it a tag of your own, such as {record.name}.mine"
        )
