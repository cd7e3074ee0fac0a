"""`octzoo export`: a network as a file that other programs run."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

if TYPE_CHECKING:
    from octzoo.deploy.export import Exported, Target
    from octzoo.deploy.int8 import Quantized

FORMATS = ["onnx", "openvino", "torch-export"]


def main(arguments: list[str]) -> int:
    """Writes the files, says what they are; returns the exit code."""
    parser = Parser(
        "export",
        "Fuses a network and writes it as a file for ONNX Runtime, OpenVINO or torch.export, for batches of any size,\n"
        "with its classes and its preprocessing in the metadata. The file is run and compared with PyTorch, on random\n"
        "and on real pictures, before it takes its place. docs/deploy.md shows how to use one without PyTorch.",
        "octzoo export oct_cifar_resnet20_a0.25.oz_digits --format onnx --int8 --calibrate digits",
    )
    places = "a folder, or SOURCE or SOURCE:ROOT as in octzoo fit: digits, hfds:DIR"
    parser.add_argument("name", metavar="NAME|DIR", help="what timm.create_model takes, or a checkpoint folder")
    parser.add_argument("--format", default="onnx", metavar="F", help=f"{', '.join(FORMATS)}; default: onnx")
    parser.add_argument("--int8", action="store_true", help="in 8 bits: needs --calibrate")
    parser.add_argument("--calibrate", metavar="PICTURES", help=f"like those of the training: {places}")
    parser.add_argument("--pictures", default="digits", metavar="PICTURES", help="to compare on; default: digits")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: NAME with the format's ending, here")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    parser.add_argument("--image-size", type=int, metavar="N", help="height and width; default: the network's")
    parser.add_argument("--any-size", action="store_true", help="of pictures: all multiples of the network's stride")
    parser.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        help="published weights, or random ones; default: published ones where there are any",
    )
    options = parser.parse_args(arguments[1:])
    return report(lambda: run(options), options.debug)


def run(options: Namespace) -> None:
    """Exports what the options say. Raises UserError for what cannot be, before anything is computed."""
    check(options)
    import octzoo  # noqa: F401 (registers the names)
    from octzoo.deploy.export import Target, export
    from octzoo.deploy.int8 import CALIBRATION, MEASURED, export_int8
    from octzoo.deploy.metadata import data_config_of, describe, labels_of
    from octzoo.deploy.samples import open_samples
    from octzoo.errors import UserError

    model, name, trained = network(options.name, options.pretrained)
    if options.int8 and not trained:
        raise UserError(f"--int8: {name} has random weights, whose answers tell nothing; give one with weights")
    labels = labels_of(model) if trained else None
    config = data_config_of(model, options.image_size)
    if config["input_size"][0] != 3:
        raise UserError(f"{name} takes pictures of {config['input_size'][0]} channels: only RGB can be exported")
    target = Target(
        path=place(options, name),
        form=options.format,
        size=config["input_size"],
        multiple=stride_of(model) if options.any_size else None,
        metadata=describe(name, config, labels),
    )
    prepare = transform(config)
    weights = "trained" if trained else "random, so that the file is good for measuring speed alone"
    say(f"{name}: {size_text(target)}, weights {weights}")
    if options.int8:
        samples = open_samples(options.calibrate, labels, (CALIBRATION, MEASURED))
        quantized = export_int8(model, target, prepare, samples, say)
        write_figures(options, target, quantized)
        tell_int8(target, quantized)
    else:
        _, pictures = open_samples(options.pictures, most=(1, 3))
        say(f"{options.format}, compared with PyTorch")
        tell(target, export(model, target, next(pictures.batches(prepare, 3))))


def check(options: Namespace) -> None:
    """Raises UserError for options that cannot be."""
    from octzoo.errors import UserError

    if options.format not in FORMATS:
        raise UserError(f"--format {options.format}: no such format; there are {', '.join(FORMATS)}")
    if options.image_size is not None and options.image_size < 1:
        raise UserError(f"--image-size {options.image_size} is not a number of pixels")
    if options.int8 and options.format == "torch-export":
        raise UserError("--int8: not in the format torch-export; take onnx or openvino")
    if options.int8 and not options.calibrate:
        raise UserError("--int8 needs pictures like those of the training: --calibrate DIR, or digits")
    if options.calibrate and not options.int8:
        raise UserError("--calibrate goes with --int8")


def network(name: str, pretrained: bool | None) -> tuple[Any, str, bool]:
    """(The network on the CPU, its name, whether its weights are trained) of a name or a checkpoint folder."""
    import timm

    from octzoo.errors import UserError
    from octzoo.models.named import build
    from octzoo.weights.folder import MODEL, open_folder

    folder = Path(name)
    if folder.is_dir():
        if (folder / "config.yaml").is_file() and not (folder / MODEL).is_file():
            raise UserError(f"{name} is a run: make a checkpoint folder of it, octzoo pack {name} --name NAME.TAG")
        if pretrained is False:
            raise UserError(f"--no-pretrained: {name} is a folder of weights; give a name")
        full_name = open_folder(folder).full_name
        return build(f"local-dir:{folder}", pretrained=True), full_name, True
    there_are = ":" in name or (timm.is_model(name) and timm.models.is_model_pretrained(name))
    trained = there_are if pretrained is None else pretrained
    return build(name, pretrained=trained), name.rpartition("/")[2], trained


def place(options: Namespace, name: str) -> Path:
    """The file to write. Raises UserError if there is one already, or no folder for it."""
    from octzoo.deploy.export import FORMS
    from octzoo.errors import UserError

    suffix = FORMS[options.format].suffix
    path = options.out or Path(f"{name}{'.int8' if options.int8 else ''}{suffix}")
    if path.suffix != suffix:
        raise UserError(f"--out {path}: a file of the format {options.format} ends in {suffix}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: no such folder")
    if path.exists() and not options.force:
        raise UserError(f"{path} exists already: --force replaces it, --out FILE writes another one")
    return path


def stride_of(model: Any) -> int:
    """What the height and width of a picture are to be multiples of."""
    levels = getattr(model, "feature_info", None) or [{"reduction": 32}]
    return max(level["reduction"] for level in levels)


def transform(config: dict[str, Any]) -> Any:
    """From a picture to the network's input, as in validation."""
    from timm.data import create_transform

    return create_transform(**config, is_training=False)


def size_text(target: Target) -> str:
    h, w = target.size[1:]
    return f"pictures of {h}x{w}" + (f" and of all multiples of {target.multiple}" if target.multiple else "")


def tell(target: Target, found: Exported) -> None:
    """Says what was written."""
    from octzoo.deploy.export import TOLERANCE

    print(
        f"{target.path}: {megabytes(found.files)}, its outputs {found.difference:.1g} off PyTorch's (relative, in "
        f"{found.batches} batches; {TOLERANCE:g} is the limit)"
    )


def tell_int8(target: Target, found: Quantized) -> None:
    """Says what was written, how far its answers and its speed are from those in float32."""
    agreement = found.agreement
    print(f"answers   {agreement.same:.2%} of {agreement.pictures:,} pictures keep their class")
    if agreement.accuracy:
        print("          {:.2%} of them right in float32, {:.2%} in int8".format(*agreement.accuracy))
    for batch, times in found.milliseconds.items():
        was, now = (statistics.median(times[key]) for key in ("float32", "int8"))
        ratio = statistics.median(b / a for a, b in zip(times["float32"], times["int8"]))
        print(f"speed     {now:.2f} ms a batch of {batch}, {was:.2f} in float32: {ratio:.2f} of it")
    print(
        f"{target.path}: {megabytes(found.files)}, {agreement.same:.1%} of the answers as in float32, which is "
        f"{found.float_difference:.1g} off PyTorch"
    )


def megabytes(files: tuple[Path, ...]) -> str:
    return f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB"


def write_figures(options: Namespace, target: Target, found: Quantized) -> None:
    """What was measured of int8, as JSON beside the file; no path of this machine is in it."""
    from octzoo.train.environment import environment, package_version
    from octzoo.train.pictures import replace_text

    facts = environment()
    facts["packages"] |= {name: package_version(name) for name in ("onnx", "onnxruntime", "openvino")}
    network = json.loads(target.metadata["network"])
    source, colon, _ = options.calibrate.partition(":")
    source = "DIR" if Path(options.calibrate).is_dir() else f"{source}:DIR" if colon else source
    facts |= {
        "command": f"octzoo export {network} --format {target.form} --int8 --calibrate {source}",
        "network": network,
        "format": target.form,
        "size": list(target.size),
        "float32 off PyTorch": found.float_difference,
        "pictures": found.agreement.pictures,
        "same class": found.agreement.same,
        "right in float32 and int8": found.agreement.accuracy,
        "megabytes": sum(path.stat().st_size for path in found.files) / 1e6,
        "milliseconds": found.milliseconds,
    }
    replace_text(target.path.with_name(f"{target.path.name}.json"), json.dumps(facts, indent=1) + "\n")


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)
