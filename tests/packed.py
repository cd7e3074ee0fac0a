"""Small data sets in the formats that octzoo reads: each picture's colour says which it is."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image


def png(value: int, broken: bool = False) -> bytes:
    """A 6x5 picture of grey level `value`, or the begin of its file."""
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value,) * 3).save(file, "PNG")
    return file.getvalue()[: 46 if broken else None]


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    """A tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def shards(
    root: Path, lengths: list[int], split: str = "train", classes: int = 3, broken: tuple[int, ...] = ()
) -> Path:
    """WebDataset shards root/<split>-0000.tar ...: picture i has grey level i and class i modulo `classes`."""
    number = 0
    for shard, length in enumerate(lengths):
        files = {}
        for _ in range(length):
            files[f"{number:04}.png"] = png(number, number in broken)
            files[f"{number:04}.cls"] = str(number % classes).encode()
            number += 1
        tar_of(root / f"{split}-{shard:04}.tar", files)
    return root


def classes_file(root: Path, names: list[str]) -> Path:
    """root/classes.txt."""
    path = root / "classes.txt"
    path.write_text("\n".join(names) + "\n")
    return path


def info_file(root: Path, fields: dict) -> Path:
    """root/_info.json."""
    path = root / "_info.json"
    path.write_text(json.dumps(fields))
    return path


def parquet(root: Path, lengths: dict[str, int], group: int = 1000) -> Path:
    """A Hugging Face folder root/<name>.parquet ...: picture i has grey level i, classes ant and bee by turns."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])})
    root.mkdir(parents=True, exist_ok=True)
    number = 0
    for name, length in lengths.items():
        values = range(number, number + length)
        rows = {"img": [{"bytes": png(v), "path": None} for v in values], "kind": [v % 2 for v in values]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f"{name}.parquet", batch_size=group)
        number += length
    return root
