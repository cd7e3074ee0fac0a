"""Pictures without labels: what `octzoo predict` reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from octzoo.data.loading import UNREADABLE
from octzoo.data.pictures import PICTURE_SUFFIXES, SettingError


class PictureFolder(Dataset):
    """Unlabelled pictures at any depth below `root` (or one picture file), in order of their paths.

    Item i is {"image": [3, H, W], "path": relative path, "error": ""}; a picture that does not open has a black image
    and the reason in "error".
    """

    def __init__(self, root: str, transform: Callable) -> None:
        self.root, self.transform = Path(root), transform
        if not self.root.exists():
            raise SettingError(f"data.pictures: no such folder: {root}")
        found = [self.root] if self.root.is_file() else self.root.rglob("*")
        self.paths = sorted(p for p in found if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        if not self.paths:
            raise SettingError(f"data.pictures: no pictures ({', '.join(PICTURE_SUFFIXES)}) in {root}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        name = path.name if path == self.root else str(path.relative_to(self.root))
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
            error = ""
        except UNREADABLE as problem:
            image, error = Image.new("RGB", (32, 32)), f"{type(problem).__name__}: {problem}"
        return {"image": self.transform(image), "path": name, "error": error}
