"""Pictures for training: where they come from, in which order, what is done to them, and the loaders of them.

Sources open the data sets, timm's transforms prepare the pictures; the loaders are PyTorch's own.
"""

from octzoo.data.module import ImageData
from octzoo.data.order import held_out
from octzoo.data.pictures import SettingError
from octzoo.data.settings import Augment, BrokenPictures, Preprocess, Splits
from octzoo.data.sources import open_split
from octzoo.data.unlabelled import PictureFolder

__all__ = [
    "Augment",
    "BrokenPictures",
    "ImageData",
    "PictureFolder",
    "Preprocess",
    "SettingError",
    "Splits",
    "held_out",
    "open_split",
]
