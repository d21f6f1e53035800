"""Checksums: MD5 of files, as data sets publish them, and SHA-256 of the arrays they hold."""

import hashlib

import numpy as np

from kfcnet.data.dataset import DataError


def md5_of(path):
    """MD5 of a file, in hexadecimal digits. Raises DataError if it cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def sha256_of(arrays):
    """SHA-256 of names, types, shapes and contents of `Arrays`, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, array in arrays._asdict().items():
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
