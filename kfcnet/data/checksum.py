"""Checksums: MD5 of files, as data sets publish it, and SHA-256 of arrays."""

import hashlib
from pathlib import Path

import numpy as np

from kfcnet.data.dataset import Arrays, DataError


def md5_of(path: Path) -> str:
    """MD5 of a file, in hexadecimal digits. Raises DataError if it cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def sha256_of(arrays: Arrays) -> str:
    """SHA-256 of the names, dtypes, shapes and contents of `Arrays`, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, array in arrays._asdict().items():
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
