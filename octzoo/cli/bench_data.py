"""`octzoo bench data`: how fast training pictures come, from our loader and from timm's."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from octzoo.cli.arguments import Parser
from octzoo.cli.errors import report

Loaders = dict[str, Iterable[Any]]
COLUMNS = ["loader", "pictures/s and core", "lowest", "highest", "octzoo to it", "lowest", "highest"]
OURS, PLAIN, PREFETCHER = "octzoo", "timm", "timm, prefetcher"


def main(arguments: list[str]) -> int:
    """Measures, prints a table and writes a file; returns the exit code."""
    parser = Parser(
        "bench data",
        "Training pictures a second and core: read, decoded, augmented and made a batch by octzoo's loader (which\n"
        "seeds each picture's random numbers, and says what does not decode), and by timm's create_loader over the\n"
        "same files with the same transforms. timm's prefetcher, its default, hands 8-bit pictures on and normalises\n"
        "whole batches, on a GPU if there is one. All take turns; medians, lowest and highest of the rounds. With\n"
        "--workers 0 it is processor time of one process; else wall time, divided by the cores the workers can have.",
        "octzoo bench data photos --workers 4",
    )
    parser.add_argument("root", nargs="?", metavar="DIR", help="the pictures; default: 400 made ones of 256x256 pixels")
    parser.add_argument("--source", default="folder", metavar="NAME", help="folder (default), tar, wds or hfds")
    for name, default, what in [
        ("workers", 0, "processes that read; default: 0"),
        ("batch-size", 32, "default: 32"),
        ("image-size", 224, "height and width of a crop in pixels; default: 224"),
        ("pictures", 200, "of a loader and round; default: 200"),
        ("rounds", 15, "default: 15"),
    ]:
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=what)
    parser.add_argument("--skip", action="store_true", help="instead: how fast a stream passes over used pictures")
    parser.add_argument(
        "--json", type=Path, default=Path("bench_data.json"), metavar="FILE", help="default: %(default)s"
    )
    options = parser.parse_args(arguments[1:])
    return report(lambda: run(options), options.debug)


def run(options: Namespace) -> None:
    """Measures what the options say. Raises UserError for options or pictures that cannot be measured."""
    from octzoo.cli.bench_pictures import make_pictures
    from octzoo.errors import UserError

    for name, least in (("workers", 0), ("batch_size", 1), ("image_size", 1), ("pictures", 1), ("rounds", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} is less than {least}")
    if not options.json.absolute().parent.is_dir():
        raise UserError(f"--json {options.json}: no such folder")
    with tempfile.TemporaryDirectory() as made:
        if options.root is None and options.source != "folder":
            raise UserError(f"--source {options.source}: say where the pictures are: octzoo bench data DIR")
        root = options.root or str(make_pictures(Path(made) / "pictures"))
        if options.skip:
            from octzoo.cli.bench_skip import measure_skipping

            measure_skipping(root, Path(made), options)
        else:
            compare(loaders(options.source, root, options), options)


def loaders(source: str, root: str, options: Namespace) -> Loaders:
    """Our loader and timm's over the same pictures, with the same transforms."""
    import torch
    from timm.data import ImageDataset, create_loader

    from octzoo.data import ImageData, Preprocess, SettingError, Splits
    from octzoo.data.pictures import Decoded

    data = ImageData(
        source,
        root,
        options.batch_size,
        options.workers,
        splits=Splits(val="train"),  # nothing is held out
        preprocess=Preprocess(image_size=options.image_size),
    )
    ours: Any = data.train_dataloader()
    reader = ours.dataset.pictures.dataset
    if not isinstance(reader, Decoded):
        raise SettingError(f"--source {source} has no files that timm's loader could read: folder, tar, wds, hfds have")
    found: Loaders = {OURS: ours}
    how, augment = data.preprocess.resolve(None), data.augment
    for name, prefetcher in ((PLAIN, False), (PREFETCHER, True)):
        found[name] = create_loader(
            ImageDataset(root, reader=reader.reader),
            how["input_size"],
            options.batch_size,
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or 0.0,
            interpolation=augment.interpolation,
            mean=how["mean"],
            std=how["std"],
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            use_prefetcher=prefetcher,
        )
    return found


def compare(found: Loaders, options: Namespace) -> None:
    """Measures in turns; prints the table and writes the file."""
    import torch
    from rich.progress import track

    from octzoo.cli.tables import print_table
    from octzoo.train.environment import environment

    torch.set_num_threads(1)  # as in a DataLoader's processes
    cores = min(max(options.workers, 1), int(environment()["cpus"]))
    clock = time.perf_counter if options.workers else time.process_time
    names = list(found)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in track(range(options.rounds + 1), "measuring", transient=True):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            rate = pictures_per_second(found[name], options.pictures, clock) / cores
            if number:  # the first round fills the system's file cache
                rates[name].append(rate)
    ratios = {name: [a / b for a, b in zip(rates[OURS], rates[name])] for name in names}
    print_table(COLUMNS, [[name, *spread(rates[name], 1), *spread(ratios[name], 3)] for name in names])
    settings = {key: str(value) for key, value in vars(options).items() if key != "debug"}
    result = {"environment": environment(), "settings": settings, "rates": rates, "ratios": ratios}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten   {options.json}")


def pictures_per_second(batches: Iterable[Any], most: int, clock: Callable[[], float]) -> float:
    """Of one pass over the loader, of at most so many pictures."""
    count, start = 0, clock()
    for images, _ in batches:
        count += len(images)
        if count >= most:
            break
    return count / (clock() - start)


def spread(values: list[float], digits: int) -> list[str]:
    """Median, lowest and highest."""
    return [f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
