"""Batches normalised as a whole have the bits of timm's transforms, picture by picture."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from octzoo.data.normalize import Normalize, split_transform, unchanged


def pictures(count: int, height: int, width: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    return [Image.fromarray(value) for value in values]


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.sampled_from([None, (0.5,) * 3, (0.1, 0.2, 0.7)]))
def test_every_bit_is_that_of_timms_evaluation_transform(count, height, width, mean) -> None:
    how = {} if mean is None else {"mean": mean, "std": (0.3, 0.9, 0.21)}
    whole = create_transform((3, 24, 17), **how)
    first, last = split_transform(whole)
    images = pictures(count, height, width)
    assert last is not unchanged
    assert torch.equal(last(torch.stack([first(i) for i in images])), torch.stack([whole(i) for i in images]))


def test_every_bit_is_that_of_timms_training_transform_with_its_random_numbers() -> None:
    import random

    whole = create_transform((3, 24, 24), is_training=True, auto_augment="rand-m9-mstd0.5-inc1")
    first, last = split_transform(whole)
    for seed, image in enumerate(pictures(8, 40, 50)):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        expected = whole(image)
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        assert torch.equal(last(first(image)[None])[0], expected)


def test_all_values_of_a_pixel() -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    whole = create_transform((3, 16, 16), crop_pct=1.0, interpolation="nearest")
    first, last = split_transform(whole)
    assert torch.equal(last(first(image)[None])[0], whole(image))


@pytest.mark.parametrize("whole", [create_transform((3, 8, 8), is_training=True, re_prob=0.5), lambda image: None])
def test_what_ends_otherwise_is_left_alone(whole) -> None:
    assert split_transform(whole) == (whole, unchanged)


def test_an_empty_batch_stays_empty_and_pickling_works() -> None:
    first, last = pickle.loads(pickle.dumps(split_transform(create_transform((3, 8, 8)))))
    assert last(torch.empty(0, 3, 1, 1)).shape == (0, 3, 1, 1)
    assert isinstance(last, Normalize)
    assert first(pictures(1, 9, 9)[0]).dtype == torch.uint8
