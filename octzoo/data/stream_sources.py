"""Streaming sources: WebDataset shards, local or by http, and sets of the Hugging Face Hub without a download."""

import http.client
import io
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin

import numpy as np
from PIL import Image

from octzoo.data import hf
from octzoo.data.pictures import Decoded, SettingError, aliases, decode
from octzoo.data.streams import Lazy, Shard, Stream
from octzoo.data.tars import Members
from octzoo.data.webdataset import INFO, class_index, fields_of, groups, webdataset

TIMEOUT = 60.0  # seconds without an answer


def webdataset_stream(root: str | None, split: str) -> Stream | None:
    """Shards in a local folder, or below an http(s) address whose _info.json names them, their lengths and classes."""
    if root is not None and root.startswith(("http://", "https://")):
        return _remote(root.rstrip("/") + "/", split)
    pictures = webdataset("", root, split, False)
    if pictures is None:
        return None
    reader = cast(Members, cast(Decoded, pictures.dataset).reader)
    lengths = np.bincount(reader.index.shard, minlength=len(reader.shards)).tolist()
    return _shards([str(path) for path in reader.shards], lengths, pictures.class_names)


def hugging_face_stream(root: str | None, split: str) -> Stream | None:
    """A local folder, or a set of the Hub. Files of parquet are shards; of another format the set is one shard."""
    builder = hf.builder(root)
    if not hf.has_split(builder, split):
        return None
    image, label = hf.columns(builder)
    dataset = builder.as_streaming_dataset(split)
    names = dataset.features[label].names
    lengths = _lengths(builder, dataset, split)
    shards = []
    for number, length in enumerate(lengths):
        shard = f"{root} {split}, shard {number}"
        shards.append(Shard(shard, length, partial(_rows, dataset, image, label, len(lengths), number, shard)))
    return Stream(shards, names)


STREAMS: dict[str, Callable[[str | None, str], Stream | None]] = {
    "hfds-stream": hugging_face_stream,
    "wds-stream": webdataset_stream,
}


def open_stream(source: str, root: str | None, split: str) -> Stream | None:
    """Opens one split of a streaming source; None where the data set has no such split.

    Raises:
        SettingError: the root or its contents are not what is needed.
    """
    return STREAMS[source](root, split)


def _remote(root: str, split: str) -> Stream | None:
    remedy = 'octzoo.data.webdataset.write_info("FOLDER") writes it for a folder of shards, before they are put there'
    try:
        with urllib.request.urlopen(root + INFO, timeout=TIMEOUT) as answer:
            info = fields_of(answer.read(), root + INFO)
    except OSError as problem:
        raise SettingError(f"data.root: {root + INFO} does not come ({problem}); {remedy}") from problem
    names, splits = info.get("class_names"), info.get("splits", {})
    found = next((splits[alias] for alias in aliases(split) if alias in splits), None)
    if found is None:
        return None
    files, lengths = found.get("filenames", []), found.get("shard_lengths", [])
    if not names or not files or len(files) != len(lengths):
        raise SettingError(
            f"data.root: {root + INFO} must say class_names, and filenames and shard_lengths of each split; {remedy}"
        )
    return _shards([urljoin(root, file) for file in files], lengths, names)


def _shards(places: list[str], lengths: list[int], names: list[str]) -> Stream:
    return Stream([Shard(p, n, partial(_groups, p, names)) for p, n in zip(places, lengths)], names)


def _groups(place: str, names: list[str]) -> Iterator[Lazy]:
    """The samples of a shard, read from its begin to its end."""
    try:
        with _opened(place) as file, tarfile.open(fileobj=file, mode="r|") as shard:
            for group in groups(shard, with_data=True):
                target = class_index(group.label, names, place)
                yield Lazy(partial(_decode, group.data), target, f"{place}/{group.key}")
    except SettingError as problem:
        if isinstance(file, http.client.HTTPResponse) and file.isclosed() and file.length:  # what came last is cut
            raise OSError("the connection broke off") from problem
        raise
    except (tarfile.TarError, EOFError, http.client.HTTPException) as problem:
        raise OSError(f"no whole tar file: {problem}") from problem


def _opened(place: str) -> Any:
    return (
        urllib.request.urlopen(place, timeout=TIMEOUT)
        if place.startswith(("http://", "https://"))
        else open(place, "rb")
    )


def _decode(data: bytes) -> Image.Image:
    return decode(io.BytesIO(data))


def _lengths(builder: Any, dataset: Any, split: str) -> list[int]:
    """The length of each shard: from the ends of parquet files, else of one shard as the set's own information says."""
    import fsspec
    import pyarrow.parquet as pq

    files = [str(file) for file in (builder.config.data_files or {}).get(split, [])]
    if files and len(files) == dataset.num_shards and all(Path(file).suffix == ".parquet" for file in files):
        lengths = []
        for file in files:
            with fsspec.open(file, "rb") as opened:
                lengths.append(pq.read_metadata(opened).num_rows)
        return lengths
    if builder.info.splits and builder.info.splits[split].num_examples:
        return [builder.info.splits[split].num_examples]
    raise SettingError(
        f"data.source: {builder.base_path} does not say how many pictures it has, and is not made of parquet files; "
        "take hfds, or folder for a local folder of pictures"
    )


def _rows(dataset: Any, image: str, label: str, shards: int, number: int, name: str) -> Iterator[Lazy]:
    import datasets
    import httpx

    raw = dataset.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    if shards > 1:
        raw = raw.shard(num_shards=shards, index=number)
    place = 0
    try:
        # by iter: in a DataLoader's worker, plain iteration would leave out the shards of the other workers once more
        for rows in raw.iter(batch_size=16):
            for value, target in zip(rows[image], rows[label]):
                where = " ".join(filter(None, [name, str(place), value.get("path")]))
                yield Lazy(partial(_picture, value), -1 if target is None else target, where)
                place += 1
    except httpx.HTTPError as problem:
        raise OSError(f"{type(problem).__name__}: {problem}") from problem


def _picture(value: dict[str, Any]) -> Image.Image:
    import datasets

    image = datasets.Image().decode_example(value)
    return image if image.mode == "RGB" else image.convert("RGB")
