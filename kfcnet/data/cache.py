"""Data sets as HDF5 files: uint8, chunked, with a checksum that every reading verifies.

The name of a cache contains a hash of its source's checksums, so it cannot be stale: other files
have another cache. A damaged cache is built again from its source.
"""

import contextlib
import glob
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kfcnet.data.checksum import sha256_of
from kfcnet.data.dataset import Arrays, DataError
from kfcnet.runs.locks import locked

FORMAT = 1
CHUNK_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def cached(paths: Sequence[Path], build: Callable[[], Arrays]) -> tuple[Arrays, str]:
    """The arrays stored at one of `paths` and their SHA-256; where they are not, `build()`'s.

    These are stored at the first path that can be written, so that shared data which may only be
    read have their cache elsewhere; a notice says so. Raises what `build` raises.
    """
    for path in paths:
        _tidy(path)
        if os.path.exists(path):
            try:
                return read(path)
            except DataError as error:
                logger.warning("%s It is made again.", error)
    arrays = build()
    return arrays, _store(paths, arrays)


def _tidy(path):
    """Remove what killed processes left of a cache. A living one holds the lock of its folder."""
    if left := list(path.parent.glob(f".{glob.escape(path.name)}.*")):
        with contextlib.suppress(OSError), locked(path.parent, wait=True):
            for folder in left:
                with contextlib.suppress(OSError), locked(folder) as is_dead:
                    if is_dead:
                        shutil.rmtree(folder, ignore_errors=True)


def _store(paths, arrays):
    """Write the arrays to the first of `paths` that can be written, if any; their SHA-256."""
    failures = []
    for path in paths:
        try:
            sha256 = write(path, arrays)
        except DataError as error:
            failures.append(str(error))
            continue
        if failures:
            logger.warning("%s It is %s instead.", failures[0], path)
        return sha256
    logger.warning(
        "%s Nor is there another place for it: the next run reads the data set anew, unless "
        "XDG_CACHE_HOME names a directory that can be written to.",
        failures[0],
    )
    return sha256_of(arrays)


def read(path: Path) -> tuple[Arrays, str]:
    """Arrays of the HDF5 file at `path` and their SHA-256; raises DataError if it is damaged."""
    import h5py

    try:
        # Opened by Python: HDF5's own locks are refused by some file systems.
        with open(path, "rb") as raw, h5py.File(raw, "r") as file:
            arrays = Arrays(*(file[name][()] for name in Arrays._fields))
            expected = file.attrs["sha256"]
    except Exception as error:  # a damaged HDF5 file can raise nearly anything
        raise DataError(f"{path} cannot be read as a data set ({error}).") from error
    if sha256_of(arrays) != expected:
        raise DataError(f"{path} is damaged: its checksum does not match its contents.")
    return arrays, expected


def write(path: Path, arrays: Arrays, compression: str | None = None, **attributes: Any) -> str:
    """Store arrays at `path` atomically; returns their SHA-256.

    `attributes` are stored beside the checksum. Raises DataError if writing fails (a full disk, a
    read-only directory) and then leaves no file behind.
    """
    # No fsync: after a power failure the checksum does not match, and the cache is built again.
    sha256 = sha256_of(arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may write it at once: each has a folder of its own for its part.
        with contextlib.ExitStack() as stack:
            with locked(path.parent, wait=True):  # nobody finds the folder before it is locked
                own = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
                own = stack.enter_context(own)
                stack.enter_context(locked(own))
            partial = Path(own, path.name)
            with _DeferredErrorFile(partial, "w+") as raw:
                _write_arrays(raw, arrays, compression, {"sha256": sha256, **attributes})
                raw.raise_failure()
            os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"The cache {path} cannot be written: {error.strerror or error}."
        ) from error
    return sha256


class _DeferredErrorFile(io.FileIO):
    """A file whose failed writes raise nothing until `raise_failure`.

    The HDF5 library does not survive a full disk: objects that it could not flush crash the process
    at exit. So the library sees no error; the caller raises it once the HDF5 file is closed.
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
        """Raise the first OSError of a write, if there was one."""
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
