"""Arrays in a file: `.npz`, HDF5 or MATLAB, with the keys of FIELDS."""

from pathlib import Path

import numpy as np

from kfcnet.data.dataset import DataError
from kfcnet.data.own import Images, checked, reading

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")
TYPES = (".npz", ".h5", ".hdf5", ".mat")


def read(path: Path) -> tuple[Images, Images | None]:
    """(training Images, test Images or None) of a file.

    `train_images` (M, H, W, C) or (M, H, W), uint8 or floating, and `train_labels` (M,) must be
    there, the same for `test_` may be. Raises DataError naming the file and what is wrong.
    """
    found, names = _arrays(path)
    if "train_images" not in found or "train_labels" not in found:
        held = ", ".join(sorted(names)) or "nothing"
        raise DataError(
            f"{path}: expected arrays train_images and train_labels, and perhaps test_images and "
            f"test_labels; it holds {held}"
        )
    if ("test_images" in found) != ("test_labels" in found):
        raise DataError(f"{path}: test_images and test_labels go together; only one is there")
    parts = [
        checked(found[f"{part}_images"], found[f"{part}_labels"], f"{path}, {part} part")
        for part in ("train", "test")
        if f"{part}_images" in found
    ]
    return parts[0], parts[1] if len(parts) > 1 else None


def _arrays(path):
    """({name: array} of those FIELDS that the file has, the names of all that it holds)."""
    kind = path.suffix.lower()
    if kind not in TYPES:
        raise DataError(f"{path}: is no file of arrays; these end in {', '.join(TYPES)}")
    with reading(path, "arrays"):
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: _read(path, file, name) for name in FIELDS if name in file}, [*file]
        if kind == ".mat" and not _is_hdf5(path):
            from scipy.io import loadmat, whosmat

            variables = loadmat(path, variable_names=FIELDS)
            found = {name: variables[name] for name in FIELDS if name in variables}
            return found, [name for name, *_ in whosmat(path)]
        import h5py

        # Opened by Python: HDF5's own locks are refused by some file systems.
        with open(path, "rb") as raw, h5py.File(raw, "r") as file:
            found = {name: _read(path, file, name) for name in FIELDS if name in file}
            names = [*file]
        # MATLAB stores the last axis first.
        return {n: array.T for n, array in found.items()} if kind == ".mat" else found, names


def _read(path, file, name):
    """An array of an open file, .npz or HDF5."""
    with reading(f"{path}, {name}", "an array of numbers"):
        return file[name][()]


def _is_hdf5(path):
    """Whether a MATLAB file is of version 7.3, which is HDF5."""
    with open(path, "rb") as file:
        return b"MATLAB 7.3" in file.read(128)
