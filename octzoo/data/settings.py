"""What can be set of the pictures, beside where they come from."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from timm.data import resolve_data_config


@dataclass
class Splits:
    """Which split of the source serves what.

    Args:
        train: the split to train on
        val: the split to validate on; null takes the source's own, and where it has none `holdout` of train
        test: the split of `octzoo test`; null takes the validation pictures
        holdout: the part of each class of train that is held out (always the same pictures)
    """

    train: str = "train"
    val: str | None = None
    test: str | None = None
    holdout: float = 0.2


@dataclass
class Preprocess:
    """How a picture becomes the network's input. null takes the value of the network's own pretrained_cfg.

    Args:
        image_size: height and width in pixels
        mean: one value a channel, for pixels in 0..1
        std: one value a channel
        interpolation: bilinear, bicubic, nearest ... (a training picture has its own, see augment)
        crop_pct: the part of the resized picture's side that the centre crop keeps
        crop_mode: center, squash or border, as in timm
    """

    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None

    def resolve(self, pretrained_cfg: dict[str, Any] | None) -> dict[str, Any]:
        """timm's data config: these values, else the network's, else ImageNet's."""
        values = asdict(self)
        values["img_size"] = values.pop("image_size")
        return resolve_data_config(values, pretrained_cfg=pretrained_cfg)


@dataclass
class BrokenPictures:
    """What becomes of a picture that does not decode. Each is named, and counted every epoch.

    Args:
        train: replace takes the picture of the next position in the epoch's order that decodes; fail ends the run
        val: fail ends the run; skip leaves it out of validation and test
    """

    train: Literal["replace", "fail"] = "replace"
    val: Literal["fail", "skip"] = "fail"


@dataclass
class Augment:
    """What is done to a training picture: arguments of timm's create_transform, with timm's names and values.

    Args:
        scale: the crop's part of the picture's area, from .. to
        ratio: the crop's width by height, from .. to
        hflip: probability of a horizontal flip
        vflip: probability of a vertical flip
        color_jitter: strength of brightness, contrast and saturation jitter; null is off
        auto_augment: a policy such as rand-m9-mstd0.5-inc1
        re_prob: probability that a rectangle is erased
        train_crop_mode: rrc, rkrc or rkrr; null is rrc (random resized crop)
        interpolation: of the training crop; random draws bilinear or bicubic
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | None = 0.4
    auto_augment: str | None = None
    re_prob: float = 0.0
    train_crop_mode: str | None = None
    interpolation: str = "random"
