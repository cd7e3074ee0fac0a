"""What we ask of Hugging Face's `datasets`: splits, and the columns with the pictures and their classes."""

from pathlib import Path
from typing import Any

from octzoo.data.pictures import SettingError


def builder(root: str | None, download: bool = True) -> Any:
    """The DatasetBuilder of a local folder, or with `download` of a name of the Hub (owner/name).

    Raises:
        SettingError: `datasets` is not installed, or finds nothing at `root`
    """
    if root is None:
        raise SettingError("data.root: say where the pictures are")
    try:
        import datasets
    except ImportError as problem:
        raise SettingError("data.source: hfds needs the `datasets` package: pip install datasets") from problem
    if not Path(root).is_dir() and not download:
        raise SettingError(f"data.root: no such folder: {root} (a set of the Hub: --data.download true)")
    try:
        return datasets.load_dataset_builder(root)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
        raise SettingError(f"data.root: `datasets` finds no pictures at {root} ({problem})") from problem


def has_split(builder: Any, split: str) -> bool:
    """Whether there is such a split."""
    return split in (builder.info.splits or builder.config.data_files or {})


def columns(builder: Any) -> tuple[str, str]:
    """The names of the picture's column and of the class's."""
    import datasets

    features = builder.info.features or next(iter(builder.as_streaming_dataset().values())).features or {}
    image = next((k for k, f in features.items() if isinstance(f, datasets.Image)), None)
    label = next((k for k, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise SettingError(
            f"data.root: {builder.base_path} needs an Image and a ClassLabel column, it has {dict(features)}"
        )
    return image, label


def column(dataset: Any, name: str) -> list[int]:
    """All of one column."""
    return list(dataset[name])


def name(reader: Any, split: str, index: int) -> str:
    """What a message calls a picture: its path where the set has one, and its place in the split."""
    return " ".join(filter(None, [split, str(index), reader.filename(index)]))
