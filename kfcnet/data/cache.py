"""Data sets as HDF5 files: uint8, chunked, with a checksum that every reading verifies.

A cache is named after the checksums of what it was made from, so it cannot be stale: other files
have another cache. A damaged one is made again from its source.
"""

import io
import logging
import os

from kfcnet.data.checksum import sha256_of
from kfcnet.data.dataset import Arrays, DataError

FORMAT = 1
CHUNK_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def cached(path, build):
    """The arrays stored at `path` and their SHA-256; where there are none, `build()` them first.

    Raises DataError if the cache cannot be written.
    """
    if path.exists():
        try:
            return read(path)
        except DataError as error:
            logger.warning("%s It is made again.", error)
    arrays = build()
    return arrays, write(path, arrays)


def read(path):
    """Arrays of the HDF5 file at `path` and their SHA-256; raises DataError if it is damaged."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            arrays = Arrays(*(file[name][()] for name in Arrays._fields))
            expected = file.attrs["sha256"]
    except Exception as error:  # a damaged HDF5 file can raise nearly anything
        raise DataError(f"{path} cannot be read as a data set ({error}).") from error
    if sha256_of(arrays) != expected:
        raise DataError(f"{path} is damaged: its checksum does not match its contents.")
    return arrays, expected


def write(path, arrays, compression=None, **attributes):
    """Store arrays at `path` in one atomic move; returns their SHA-256.

    `attributes` are kept beside the checksum. Raises DataError if that fails (a full disk, a
    directory that cannot be written); then nothing is left behind.
    """
    # No fsync: after a power failure the checksum tells, and the cache is made again.
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    sha256 = sha256_of(arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _SteadyFile(partial, "w+") as raw:
                _write_arrays(raw, arrays, compression, {"sha256": sha256, **attributes})
                raw.raise_failure()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"The cache {path} cannot be written: {error.strerror or error}.\n"
            "Make room there, or set KFCNET_DATA to a directory that can be written to."
        ) from error
    return sha256


class _SteadyFile(io.FileIO):
    """A file that keeps a failed write to itself until asked.

    The HDF5 library does not survive a full disk: objects it could not flush crash the process
    when it ends. So it is never told; whoever closed its file asks here.
    """

    failure = None

    def write(self, content):
        rest = memoryview(content).cast("B")
        while rest and not self.failure:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.failure = error
        return len(content)

    def truncate(self, size=None):
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error

    def raise_failure(self):
        """Raise the first OSError that was kept."""
        if self.failure:
            raise self.failure


def _write_arrays(raw, arrays, compression, attributes):
    import h5py

    with h5py.File(raw, "w", track_order=True) as file:
        file.attrs["format"] = FORMAT
        file.attrs.update(attributes)
        for name, array in arrays._asdict().items():
            rows = max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
            chunks = (min(rows, len(array)), *array.shape[1:])
            file.create_dataset(name, data=array, chunks=chunks, compression=compression)
