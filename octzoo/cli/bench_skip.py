"""`octzoo bench data --skip`: how fast a resumed run passes over the used samples of a stream, undecoded."""

from __future__ import annotations

import io
import json
import tarfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

PICTURES_A_SHARD = 100


def measure_skipping(root: str, made: Path, options: Namespace) -> None:
    """Packs a folder as shards and as parquet files, and passes over each stream; prints and writes the rates."""
    from rich.progress import track

    from octzoo.cli.bench_data import spread
    from octzoo.cli.tables import print_table
    from octzoo.data import open_split
    from octzoo.data.stream_sources import open_stream
    from octzoo.train.environment import environment

    pictures = open_split("folder", root, "train")
    pack_shards(pictures, made / "wds-stream")
    pack_parquet(pictures, made / "hfds-stream")
    rates: dict[str, dict[str, list[float]]] = {}
    for source in ("wds-stream", "hfds-stream"):
        stream = open_stream(source, str(made / source), "train")
        for number in track(range(options.rounds + 1), source, transient=True):
            for what, decode in (("skipped", False), ("decoded", True)):
                rate = pass_over(stream, decode)
                if number:
                    rates.setdefault(source, {}).setdefault(what, []).append(rate)
    rows = [[source, what, *spread(values, 0)] for source in rates for what, values in rates[source].items()]
    print_table(["source", "samples", "per second", "lowest", "highest"], rows)
    options.json.write_text(json.dumps({"environment": environment(), "rates": rates}, indent=1) + "\n")
    print(f"\nwritten   {options.json}")


def pass_over(stream: Any, decode: bool) -> float:
    """Samples a second of one process that passes over a whole stream, in a shuffled order."""
    from octzoo.data.streams import Part

    count, start = 0, time.perf_counter()
    for sample in stream.part(Part(0, 0, 0, 1, 0, 1)):
        count += 1
        if decode:
            sample.decode()
    return count / (time.perf_counter() - start)


def pack_shards(pictures: Any, out: Path) -> None:
    """WebDataset shards of a folder's `Pictures`."""
    out.mkdir()
    (out / "classes.txt").write_text("\n".join(pictures.class_names))
    targets = pictures.targets()
    for first in range(0, len(targets), PICTURES_A_SHARD):
        with tarfile.open(out / f"train-{first // PICTURES_A_SHARD:05}.tar", "w") as tar:
            for i in range(first, min(first + PICTURES_A_SHARD, len(targets))):
                path = Path(pictures.name(i))
                for suffix, data in ((path.suffix, path.read_bytes()), (".cls", str(targets[i]).encode())):
                    member = tarfile.TarInfo(f"{i:08}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def pack_parquet(pictures: Any, out: Path) -> None:
    """Parquet files of a folder's `Pictures`, as `datasets` writes them."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=pictures.class_names)})
    targets = pictures.targets()
    out.mkdir()
    datasets.disable_progress_bars()
    for first in range(0, len(targets), PICTURES_A_SHARD):
        chosen = range(first, min(first + PICTURES_A_SHARD, len(targets)))
        images = [{"bytes": Path(pictures.name(i)).read_bytes(), "path": None} for i in chosen]
        rows = datasets.Dataset.from_dict({"image": images, "label": [targets[i] for i in chosen]}, features=features)
        rows.to_parquet(out / f"train-{first // PICTURES_A_SHARD:05}.parquet")
