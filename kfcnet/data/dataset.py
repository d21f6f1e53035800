"""What every data set is once loaded, and the error that says why one could not be."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class DataError(Exception):
    """A data set is absent, damaged or cannot be stored; the text names the file and a way out."""


class Arrays(NamedTuple):
    """Images uint8 (N, H, W, C) and labels uint8 (N,) of the training and of the test set."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: raw pixels, and the training mean that a network's input is taken from.

    `provenance` is what a run records about its data: base names, sizes and checksums of the files
    it came from, and the SHA-256 of the arrays themselves. It is made of JSON types alone.
    """

    name: str
    train_images: np.ndarray  # uint8 (N, H, W, C)
    train_labels: np.ndarray  # int32 (N,)
    test_images: np.ndarray  # uint8 (N', H, W, C)
    test_labels: np.ndarray  # int32 (N',)
    mean: np.ndarray  # float32 (H, W, C), in pixel values
    classes: int
    provenance: dict = field(repr=False)


def make_dataset(name, arrays, classes, provenance):
    """The `Dataset` of arrays that have been checked; computes the training mean."""
    return Dataset(
        name=name,
        train_images=arrays.train_images,
        train_labels=arrays.train_labels.astype(np.int32),
        test_images=arrays.test_images,
        test_labels=arrays.test_labels.astype(np.int32),
        mean=pixel_mean(arrays.train_images),
        classes=classes,
        provenance={
            "name": name,
            "train_examples": len(arrays.train_images),
            "test_examples": len(arrays.test_images),
            **provenance,
        },
    )


def pixel_mean(images):
    """Mean image: uint8 (N, H, W, C) -> float32 (H, W, C).

    The sum is one of integers and therefore exact; only the quotient is rounded, in float64 and
    then once more to float32.
    """
    return (images.sum(axis=0, dtype=np.int64) / len(images)).astype(np.float32)


def check_labels(labels, lowest, highest, source):
    """Raise DataError naming the first label outside lowest..highest; `source` names the file."""
    wrong = np.flatnonzero((labels < lowest) | (labels > highest))
    if wrong.size:
        raise DataError(
            f"{source}: the label of image {wrong[0]} is {labels[wrong[0]]}, "
            f"not one of {lowest} to {highest}. The file is damaged: fetch it again."
        )
