"""The data set in memory, and the error for one that cannot be loaded."""

from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class DataError(Exception):
    """A data set is absent, damaged or cannot be stored; the text names the file and what to do."""


class Arrays(NamedTuple):
    """Images uint8 (N, H, W, C) and labels uint8 (N,) of the training and of the test set."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: pixels as they were published, labels and the mean training image.

    `provenance` is what a run records about its data: base names, sizes and checksums of the files,
    and the SHA-256 of the arrays. It consists of JSON types only.
    """

    name: str
    train_images: NDArray[np.uint8]  # (N, H, W, C)
    train_labels: NDArray[np.int32]  # (N,)
    test_images: NDArray[np.uint8]  # (N', H, W, C)
    test_labels: NDArray[np.int32]  # (N',)
    mean: NDArray[np.float32]  # (H, W, C), in pixel values
    classes: int
    provenance: dict[str, Any] = field(repr=False)


def make_dataset(name: str, arrays: Arrays, classes: int, provenance: dict[str, Any]) -> Dataset:
    """The `Dataset` of checked arrays; computes the mean training image."""
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


def pixel_mean(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean image: uint8 (N, H, W, C) -> float32 (H, W, C).

    The sum of integers is exact; only the quotient is rounded, to float64 and then to float32.
    """
    return (images.sum(axis=0, dtype=np.int64) / len(images)).astype(np.float32)


def wrong_label(labels: NDArray[Any], lowest: int, highest: int) -> int | None:
    """Index of the first label (N,) that is no whole number from lowest to highest, or None."""
    if labels.dtype.kind in "iuf":
        wrong = np.flatnonzero(~np.isin(labels, np.arange(lowest, highest + 1)))
    else:
        wrong = np.arange(len(labels))
    return int(wrong[0]) if wrong.size else None


def check_labels(
    labels: NDArray[Any], lowest: int, highest: int, source: str | PathLike[str]
) -> None:
    """Raise DataError naming the first label outside lowest..highest; `source` names the file."""
    wrong = wrong_label(labels, lowest, highest)
    if wrong is not None:
        raise DataError(
            f"{source}: the label of image {wrong} is {labels[wrong]}, "
            f"not one of {lowest} to {highest}. The file is damaged: fetch it again."
        )
