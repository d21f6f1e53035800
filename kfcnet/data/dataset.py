"""The data set in memory, and the error for one that cannot be loaded."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class DataError(Exception):
    """A data set is absent, damaged or cannot be stored; the text names the file and what to do."""

    exit_status = 2


class Arrays(NamedTuple):
    """Images (N, H, W, C) and labels (N,) of the training and of the test set.

    Published sets have pixels and labels of uint8; a user's own may be float32 and int32.
    """

    train_images: NDArray
    train_labels: NDArray
    test_images: NDArray
    test_labels: NDArray


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: pixels as they were published, labels and the mean training image.

    `provenance` is what a run records about its data: base names, sizes and checksums of the files,
    and the SHA-256 of the arrays. It consists of JSON types only.
    """

    name: str
    train_images: NDArray  # (N, H, W, C), uint8 or float32
    train_labels: NDArray[np.int32]  # (N,)
    test_images: NDArray  # (N', H, W, C)
    test_labels: NDArray[np.int32]  # (N',)
    mean: NDArray[np.float32]  # (H, W, C), in pixel values
    classes: int
    provenance: dict[str, Any] = field(repr=False)
    class_names: tuple[str, ...] = ()


def make_dataset(
    name: str,
    arrays: Arrays,
    classes: int,
    provenance: dict[str, Any],
    class_names: tuple[str, ...] = (),
) -> Dataset:
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
            **({"classes": list(class_names)} if class_names else {}),
            **provenance,
        },
        class_names=tuple(class_names),
    )


def pixel_mean(images: NDArray) -> NDArray[np.float32]:
    """Mean image: uint8 or float32 (N, H, W, C) -> float32 (H, W, C).

    The sum of integers is exact; only the quotient is rounded, to float64 and then to float32.
    """
    wide = np.int64 if images.dtype == np.uint8 else np.float64
    return (images.sum(axis=0, dtype=wide) / len(images)).astype(np.float32)


def deviation(dataset: Dataset) -> float:
    """The deviation of the training pixels from the mean image, to six digits; 1 for no spread."""
    squares = 0.0
    for begin in range(0, len(dataset.train_images), 1024):
        part = dataset.train_images[begin : begin + 1024] - dataset.mean
        squares += float(np.square(part, dtype=np.float64).sum())
    return float(f"{(squares / dataset.train_images.size) ** 0.5:.6g}") or 1.0


def as_float32(pixels: NDArray) -> tuple[NDArray[np.float32], int | None]:
    """(pixels as float32, index of the first image with one that is not finite then, or None)."""
    with np.errstate(over="ignore"):
        pixels = pixels.astype(np.float32, copy=False)
    finite = np.isfinite(pixels).all(axis=tuple(range(1, pixels.ndim)))
    return pixels, None if finite.all() else int(np.argmin(finite))


def wrong_label(labels: NDArray[Any], lowest: int, highest: int) -> int | None:
    """Index of the first label (N,) that is no whole number from lowest to highest, or None."""
    if labels.dtype.kind in "biuf":
        wrong = np.flatnonzero(~np.isin(labels, np.arange(lowest, highest + 1)))
    else:
        wrong = np.arange(len(labels))
    return int(wrong[0]) if wrong.size else None


def check_labels(
    labels: NDArray[Any],
    lowest: int,
    highest: int,
    source: object,
    way_out: str = "The file is damaged: fetch it again.",
) -> None:
    """Raise DataError naming the first label outside lowest..highest; `source` names the file."""
    if reason := why_no_classes(labels, lowest, highest):
        raise DataError(f"{source}: {reason}. {way_out}")


def why_no_classes(labels: NDArray[Any], lowest: int, highest: int) -> str:
    """Why labels (N,) are not whole numbers from lowest to highest, or ""; in words."""
    if labels.dtype.kind == "O" and all(isinstance(label, int | np.integer) for label in labels):
        return "labels are of dtype object; labels.astype(int) makes numbers of them"
    wrong = wrong_label(labels, lowest, highest)
    if wrong is None:
        return ""
    label = labels[wrong : wrong + 1].tolist()[0]
    return f"the label of image {wrong} is {label!r}, not one of {lowest} to {highest}"
