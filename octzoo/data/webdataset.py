"""WebDataset shards: their samples, labels and class names, and the source `wds` that reads local ones in any order."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from timm.utils.misc import natural_key

from octzoo.data.pictures import PICTURE_SUFFIXES, SPLITS, Decoded, Pictures, SettingError
from octzoo.data.shards import pictures_of, shards_of
from octzoo.data.tars import Entry, Members, index_of, members
from octzoo.errors import some

CLASS_FILES = ("classes.txt", "class_names.txt", "classnames.txt")
INFO = "_info.json"  # timm's name for it
NUMBER = r"-?\d+"
LABEL_FIELDS = ("label", "cls", "class", "target")  # of a sample's JSON


class Group(NamedTuple):
    """One sample of a WebDataset shard; `data` are the picture's bytes where they were asked for."""

    key: str
    picture: tarfile.TarInfo
    label: str
    data: bytes = b""


def webdataset(name: str, root: str | None, split: str, download: bool) -> Pictures | None:
    """Shards with members <key>.jpg and <key>.cls (or a label in <key>.json, or <key>.txt)."""
    found, named = shards_of(root, split)
    if not found or not (named or split == "train"):
        return None
    index = index_of(found, group_entries)
    names, targets = numbered(index.label, names_in(Path(str(root))), str(root))
    return pictures_of(found, index, names, targets)


def groups(shard: tarfile.TarFile, with_data: bool) -> Iterator[Group]:
    """The samples of a WebDataset shard: members that follow each other and are called alike up to the first dot."""
    key, picture, data = "", None, b""
    labels: dict[str, str] = {}
    for member in members(shard):
        path, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        this, suffix = f"{path}/{stem}" if path else stem, suffix.lower()
        if this != key:
            if key:
                yield _group(key, picture, data, labels)
            key, picture, data, labels = this, None, b"", {}
        if f".{suffix}" in PICTURE_SUFFIXES and picture is None:
            picture, data = member, _bytes(shard, member) if with_data else b""
        elif suffix in ("cls", "json", "txt"):
            labels[suffix] = _bytes(shard, member).decode("utf-8", "replace").strip()
    if key:
        yield _group(key, picture, data, labels)


def group_entries(shard: tarfile.TarFile) -> Iterator[Entry]:
    """The index entries of a WebDataset shard."""
    for group in groups(shard, with_data=False):
        yield Entry(group.key, group.picture.offset_data, group.picture.size, group.label)


def numbered(labels: np.ndarray, names: list[str] | None, where: str) -> tuple[list[str], np.ndarray]:
    """Class names, and the class index of each label [N].

    Without names these are the numbers from 0 to the largest, or the sorted labels where they are not numbers.
    """
    distinct, position = np.unique(labels, return_inverse=True)
    texts = [text.decode() for text in distinct]
    if names is None and not all(re.fullmatch(NUMBER, text) for text in texts):
        names = sorted(texts, key=natural_key)
        classes = [names.index(text) for text in texts]
    else:
        names = names or [str(i) for i in range(max(map(int, texts)) + 1)]
        classes = [class_index(text, names, where) for text in texts]
    return names, np.array(classes, np.int64)[position]


def class_index(label: str, names: Sequence[str], where: str) -> int:
    """The class that a label says, by its number, or else by its name; a number below 0 is no class (-1)."""
    if re.fullmatch(NUMBER, label) and int(label) < len(names):
        return max(int(label), -1)
    if label in names:
        return names.index(label)
    raise SettingError(f"data.root: label {label!r} in {where} is none of the {len(names)} classes {some(names)}")


def names_in(root: Path) -> list[str] | None:
    """The class names that a folder of shards says: a file with one a line, or class_names in its _info.json."""
    folder = root if root.is_dir() else root.parent
    for file in (folder / name for name in CLASS_FILES):
        if file.is_file():
            return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    info = folder / INFO
    return fields_of(info.read_bytes(), str(info)).get("class_names") if info.is_file() else None


def fields_of(text: bytes, where: str) -> dict[str, Any]:
    """What a JSON object says."""
    try:
        fields = json.loads(text)
    except ValueError as problem:
        raise SettingError(f"data.root: {where} is no JSON ({problem})") from problem
    if not isinstance(fields, dict):
        raise SettingError(f"data.root: {where} is no JSON object")
    return fields


def write_info(root: str) -> Path:
    """Writes root/_info.json: what wds-stream needs to know of shards that it reads from elsewhere."""
    splits, class_names = {}, None
    for split in SPLITS:
        if (pictures := webdataset("", root, split, False)) is not None:
            reader = cast(Members, cast(Decoded, pictures.dataset).reader)
            lengths = np.bincount(reader.index.shard, minlength=len(reader.shards)).tolist()
            files = [str(path.relative_to(root)) for path in reader.shards]
            class_names = class_names or pictures.class_names
            splits[split] = {"name": split, "filenames": files, "shard_lengths": lengths, "num_samples": sum(lengths)}
    path = Path(root) / INFO
    path.write_text(json.dumps({"class_names": class_names, "splits": splits}, indent=1), "utf-8")
    return path


def _group(key: str, picture: tarfile.TarInfo | None, data: bytes, labels: dict[str, str]) -> Group:
    if picture is None:
        raise SettingError(f"data.root: sample {key!r} has no picture ({', '.join(PICTURE_SUFFIXES)})")
    fields = fields_of(labels["json"].encode(), f"{key}.json") if "json" in labels else {}
    label = labels.get("cls") or next((str(fields[f]) for f in LABEL_FIELDS if f in fields), labels.get("txt"))
    if not label:
        fields_known = " or ".join(LABEL_FIELDS)
        raise SettingError(f"data.root: sample {key!r} has no label (.cls, {fields_known} in .json, or .txt)")
    return Group(key, picture, label, data)


def _bytes(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = shard.extractfile(member)
    return file.read() if file else b""
