"""IDX, the format of MNIST and of the sets made like it: four files, compressed by gzip or not."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kfcnet.data.dataset import DataError
from kfcnet.data.own import Images, checked

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
UNSIGNED_BYTES = 8  # the one type of elements that the published files have


def files_in(folder: Path) -> list[Path]:
    """The paths of FILES in a folder, with .gz or without. Raises DataError naming what lacks."""
    if not folder.is_dir():
        raise DataError(f"data.path: {folder} is no folder; name the one of the four IDX files")
    found = []
    for name in FILES:
        # Some programs write a dot for the hyphen when they unpack.
        names = [f"{n}{end}" for n in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
        there = [folder / each for each in names if (folder / each).is_file()]
        if not there:
            raise DataError(f"{folder}: lacks {name} (or {name}.gz)")
        found.append(there[0])
    return found


def read(paths: list[Path]) -> tuple[Images, Images]:
    """(training Images, test Images) of the four files in the order of FILES.

    Raises DataError naming the file, and the index of a wrong label.
    """
    train_images, train_labels, test_images, test_labels = paths
    return read_part(train_images, train_labels), read_part(test_images, test_labels)


def read_part(images: Path, labels: Path) -> Images:
    """The Images of a file of images (N, H, W) and one of labels (N,)."""
    return checked(read_array(images, 3), read_array(labels, 1), labels)


def read_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The bytes of an IDX file as an array of so many dimensions.

    Its header: two zero bytes, the type of the elements, the number of dimensions, and the length
    of each as a 32-bit number, the most significant byte first.
    """
    content = _content(path)
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]) or len(content) < header:
        raise DataError(
            f"{path}: is no IDX file of unsigned bytes with {dimensions} dimensions "
            f"(it begins with {content[:4].hex(' ') or 'nothing'})"
        )
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path}: is cut short or too long: it has {len(content) - header:,} bytes for an "
            f"array of shape {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _content(path):
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
