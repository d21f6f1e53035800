"""A user's own images: checked, split where there is no test part, named after their file."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kfcnet.data.dataset import Arrays, DataError, as_float32, check_labels
from kfcnet.philox import SPLIT, permutation

MOST_CLASSES = 1000
VERSION = 2
"""Part of the cache's name: raise it when the same files give other arrays."""

NUMBERED = ", as numpy.unique(labels, return_inverse=True) does"

logger = logging.getLogger(__name__)


class Images(NamedTuple):
    """Images (N, H, W, C), uint8 or float32, and labels int32 (N,) from 0 on."""

    images: NDArray
    labels: NDArray[np.int32]


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a parser raises about a damaged file into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a parser can raise nearly anything
        raise DataError(
            f"{path}: cannot be read as {what} ({type(error).__name__}: {error})"
        ) from error


def checked(images: NDArray, labels: NDArray, source: object) -> Images:
    """Images (N, H, W, C) or (N, H, W) and labels (N,) as Images.

    Pixels are uint8 or any floating type, which becomes float32; channels are as many as there are.
    Raises DataError, which begins with `source` and names the index of what is wrong.
    """
    images, labels = _array(images, "images", source), _array(labels, "labels", source)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not images.size:
        raise DataError(
            f"{source}: images of shape {images.shape}; they must be (N, H, W, C) or (N, H, W)"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(
            f"{source}: pixels are {images.dtype}; they must be uint8 or floating: "
            "images.astype('uint8') where they are 0 to 255, else images.astype('float32')"
        )
    _check_channels(images.shape, source)
    if labels.ndim == 2 and 1 in labels.shape:  # a column or a row, as MATLAB writes them
        labels = labels.reshape(-1)
    if labels.shape != images.shape[:1]:
        hint = ""
        if labels.ndim == 2 and len(labels) == len(images):
            hint = ": of a row for each image, such as one-hot labels, take labels.argmax(axis=1)"
        raise DataError(
            f"{source}: {len(images)} images and labels of shape {labels.shape}; there must be one "
            f"label for each image{hint}"
        )
    if images.dtype != np.uint8:
        images, wrong = as_float32(images)
        if wrong is not None:
            raise DataError(f"{source}: a pixel of image {wrong} is not finite in float32")
    way_out = f"Number the classes from 0{NUMBERED}; there may be {MOST_CLASSES:,} of them."
    check_labels(labels, 0, MOST_CLASSES - 1, source, way_out)
    return Images(np.ascontiguousarray(images), labels.astype(np.int32))


def _check_channels(shape, source):
    """Log how images (N, H, W, C) are read where they are neither grey nor of three colours.

    Raises DataError where channels must come first: square images of 1 or 3 rows and many channels.
    """
    _, H, W, C = shape
    if H in (1, 3) and W == C > 4:
        raise DataError(
            f"{source}: images of {H} x {W} pixels and {C} channels; channels come last: "
            "numpy.moveaxis(images, 1, -1)"
        )
    if C not in (1, 3):
        logger.warning(
            "%s: images are read as %d x %d pixels of %d channels, the last axis; transparency is "
            "a channel too",
            source,
            H,
            W,
            C,
        )


def _array(values, name, source):
    """values as an array; DataError where they have no common shape, or hidden entries."""
    if np.ma.is_masked(values):
        raise DataError(
            f"{source}: {name} are a masked array, whose hidden entries would be read: fill them"
        )
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(
            f"{source}: {name} are of several shapes; they must make up one array"
        ) from error


def together(train: Images, test: Images | None, share: float, seed: int, source: object) -> Arrays:
    """Arrays of both parts; without a test part, `share` of the images is one.

    Raises DataError where the two do not fit together or a class has no training image.
    """
    if test is None:
        train, test = _split(train, share, seed, source)
        logger.warning(
            "%s has no test part: %d of its %d images, drawn at random (data.split_seed), are one",
            source,
            len(test.labels),
            len(train.labels) + len(test.labels),
        )
    return joined(train, test, source)


def joined(train: Images, test: Images, source: object) -> Arrays:
    """Arrays of a training and a test part. Raises DataError like `together`."""
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{source}: training images are {train.images.shape[1:]}, test images "
            f"{test.images.shape[1:]}; they must have one shape"
        )
    if train.images.dtype != test.images.dtype:
        raise DataError(
            f"{source}: training pixels are {train.images.dtype}, test pixels {test.images.dtype}"
        )
    arrays = Arrays(*train, *test)
    classes = classes_of(arrays)
    if classes < 2:
        raise DataError(f"{source}: there is one class only, 0; there must be at least 2")
    missing = np.flatnonzero(np.bincount(train.labels, minlength=classes) == 0)
    if missing.size:
        raise DataError(
            f"{source}: no training image has label {missing[0]}, though labels go up to "
            f"{classes - 1}; number the classes from 0 without gaps{NUMBERED}"
        )
    return arrays


def classes_of(arrays: Arrays) -> int:
    """The number of classes: labels go from 0 to one below it."""
    return 1 + max(int(arrays.train_labels.max()), int(arrays.test_labels.max()))


def _split(whole, share, seed, source):
    """(rest, part): `share` of the images, at least one, drawn at random.

    The image of each class that is drawn last stays in the rest, so that no class goes without.
    """
    order = permutation(seed, SPLIT, 0, len(whole.labels))
    _, last = np.unique(whole.labels[order][::-1], return_index=True)
    free = np.delete(order, len(order) - 1 - last)
    if not free.size:
        raise DataError(
            f"{source}: every class has one image only, so that none can be held out; more images, "
            "or a test part of their own, are needed"
        )
    part = np.sort(free[: max(1, round(share * len(order)))])
    rest = np.setdiff1d(np.arange(len(order)), part)
    return (
        Images(whole.images[rest], whole.labels[rest]),
        Images(whole.images[part], whole.labels[part]),
    )


def title(path: Path) -> str:
    """The name under which a run shows the data of a file or folder."""
    return path.resolve().stem
