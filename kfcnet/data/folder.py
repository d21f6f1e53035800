"""Images in folders, one a class: `train/CLASS/*.png` and `test/CLASS/...`, or `CLASS/...`.

The test part may also be called `val`, `valid` or `validation`.
"""

import logging
import warnings
from pathlib import Path

import numpy as np

from kfcnet.data.dataset import DataError, as_float32
from kfcnet.data.own import MOST_CLASSES, Images, reading

TYPES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
GREY = ("1", "L")
TEST_PARTS = ("test", "val", "valid", "validation")
"""Names of the folder of the test part, the first one that is there."""

TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")

logger = logging.getLogger(__name__)


def listing(root: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """(names of the classes, {"train": [(file, label), ...], "test": the same if it is there}).

    Classes are folders in the order of their names; a notice tells how many other files they hold.
    Raises DataError naming the folder.
    """
    if not root.is_dir():
        raise DataError(f"data.path: {root} is no folder; name one of images in a folder a class")
    parts = _parts(root)
    folders = {name: _folders(place) for name, place in parts.items()}
    classes = sorted({folder.name for of_part in folders.values() for folder in of_part})
    if len(classes) < 2:
        raise DataError(
            f"{parts['train']}: holds {len(classes)} folders; there must be one for each of at "
            "least 2 classes"
        )
    if len(classes) > MOST_CLASSES:
        raise DataError(
            f"{parts['train']}: holds {len(classes)} folders; there may be at most "
            f"{MOST_CLASSES} classes"
        )
    files = {
        name: [(file, classes.index(folder.name)) for folder in of_part for file in _images(folder)]
        for name, of_part in folders.items()
    }
    for label, name in enumerate(classes):
        if label not in {label for _, label in files["train"]}:
            raise DataError(f"{parts['train'] / name}: {_why_empty(parts['train'] / name)}")
    if "test" in files and not files["test"]:
        raise DataError(f"{parts['test']}: holds no image in a folder of a class")
    _tell_left_aside(root, folders.values())
    return classes, files


def _parts(root):
    """{"train": folder, "test": the same if it is there}; all is for training without `train/`,
    and where that is a class like the others beside it.
    """
    train = root / "train"
    if not train.is_dir() or (_images(train) and not _folders(train)):
        return {"train": root}
    found = [root / name for name in TEST_PARTS if (root / name).is_dir()]
    unread = [folder.name for folder in _folders(root) if folder not in (train, *found[:1])]
    if unread:
        logger.warning("%s: not read, beside train: %s", root, ", ".join(unread))
    return {"train": train} | ({"test": found[0]} if found else {})


def _why_empty(folder):
    """What to say of a folder of a class that has no image."""
    if folder.is_dir() and _folders(folder):
        return (
            "holds folders, but no image; parts are named train and test, and the folder of a "
            "class holds its images themselves"
        )
    return f"holds no image; images end in {', '.join(TYPES)}"


def _tell_left_aside(root, parts):
    """Log a line where folders of classes hold what is not read as an image."""
    aside = [
        path
        for of_part in parts
        for folder in of_part
        for path in _shown(folder)
        if path.suffix.lower() not in TYPES
    ]
    if aside:
        logger.warning(
            "%s: %d files or folders are left aside, such as %s: images end in %s",
            root,
            len(aside),
            min(aside).relative_to(root).as_posix(),
            ", ".join(TYPES),
        )


def _folders(place):
    return sorted(path for path in _shown(place) if path.is_dir())


def _images(folder):
    return sorted(path for path in _shown(folder) if path.suffix.lower() in TYPES)


def _shown(folder):
    """What a folder holds, but for hidden files, such as those that macOS leaves elsewhere."""
    return (path for path in folder.iterdir() if path.name[0] != ".")


def read(
    files: dict[str, list[tuple[Path, int]]], size: tuple[int, int] | None
) -> tuple[Images, Images | None]:
    """(training Images, test Images or None) of what `listing` found, grey only if all are.

    size: (height, width) to resize to. Raises DataError naming the first file that is damaged,
    transparent, or of another size or depth than the first one. Of a file with several pages the
    first is read, and a notice counts such files.
    """
    paged = []
    pictures = {
        path: _read_one(path, size, paged) for listed in files.values() for path, _ in listed
    }
    if paged:
        logger.warning(
            "%d files hold several pages or frames, such as %s: the first one is read",
            len(paged),
            paged[0],
        )
    first, expected = next(iter(pictures.items()))
    for path, picture in pictures.items():
        if picture.shape[:2] != expected.shape[:2]:
            raise DataError(
                f"{path}: is {_sides(picture)}, but {first} is {_sides(expected)}; for one size "
                f"set data.size to [height, width], such as {list(expected.shape[:2])}"
            )
        if picture.dtype != expected.dtype:
            raise DataError(
                f"{path}: has {_depth(picture)} a pixel, but {first} {_depth(expected)}; "
                "they must have one depth"
            )
    channels = max(picture.shape[2] for picture in pictures.values())

    def stacked(listed):
        images = [np.broadcast_to(pictures[p], (*expected.shape[:2], channels)) for p, _ in listed]
        return Images(np.stack(images), np.array([label for _, label in listed], np.int32))

    return stacked(files["train"]), stacked(files["test"]) if "test" in files else None


def _read_one(path, size, paged):
    """uint8 (H, W, 1) or (H, W, 3), upright; float32 (H, W, 1) of grey with more than 8 bits.

    The path of a file with several pages is appended to the list `paged`.
    """
    from PIL import Image, ImageOps

    with reading(path, "an image"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as picture:
            # A telephone's JPEG is MPO, of one photograph in several sizes.
            if getattr(picture, "is_animated", False) and picture.format != "MPO":
                paged.append(path)
            if any("RGB;16" in str(tile) for tile in picture.tile):  # which Pillow cuts to 8
                raise DataError(
                    f"{path}: has colours of 16 bits, of which only 8 would be read: convert it to "
                    "8 bits a channel"
                )
            picture = ImageOps.exif_transpose(picture)
            if picture.mode in TRANSPARENT or "transparency" in picture.info:
                raise DataError(f"{path}: has transparency; flatten it onto a background first")
            if picture.mode.startswith(("I", "F")):  # grey with 16 or 32 bits
                values, wrong = as_float32(np.asarray(picture))
                if wrong is not None:
                    raise DataError(f"{path}: a pixel is not finite")
                picture = Image.fromarray(values)
            else:
                picture = picture.convert("L" if picture.mode in GREY else "RGB")
            if size is not None and (picture.height, picture.width) != tuple(size):
                picture = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)
            array = np.asarray(picture)
    return array.reshape(*array.shape[:2], -1)


def _depth(picture):
    return "8 bits" if picture.dtype == np.uint8 else "more than 8 bits"


def _sides(picture):
    return f"{picture.shape[0]} x {picture.shape[1]}"
