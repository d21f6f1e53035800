"""A run's state in one HDF5 file, replaced as a whole and verified by a checksum when read.

The file begins with a line of text and the SHA-256 sum of the HDF5 data after it. HDF5 allows such
a block before its own data, so any HDF5 tool can open the file:

    kfcnet checkpoint 1
    sha256 <64 hexadecimal digits>
"""

import hashlib
import io
from pathlib import Path

import h5py
import numpy as np

from kfcnet.runs.files import write_bytes

CHECKPOINT = "checkpoint.h5"  # its name in the folder of a run
MAGIC = b"kfcnet checkpoint 1\nsha256 "
START_ANEW = "move the folder of the run away to start it anew"
BLOCK = 512  # bytes ahead of the HDF5 data, the smallest that HDF5 allows


class CheckpointError(RuntimeError):
    """A checkpoint is missing or damaged; the text names the file and says what to do."""


def save_checkpoint(path, state):
    """Write `state`, a nested dict of arrays, numbers, booleans and strings, to `path`.

    Arrays have at least one axis and keep shape and dtype. The old file stays until the new one is
    complete and on the disk. Raises WriteError where it cannot be written.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", userblock_size=BLOCK) as file:
        _write_group(file, state)
    content = memory.getbuffer()
    header = MAGIC + hashlib.sha256(content[BLOCK:]).hexdigest().encode() + b"\n"
    content[:BLOCK] = header.ljust(BLOCK, b"\0")
    write_bytes(path, content)


def load_checkpoint(path):
    """The nested dict given to `save_checkpoint`.

    Raises CheckpointError, naming the file, if it is missing, of another kind, cut or changed.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {error.strerror}; train the "
            "run first, or go on with --resume"
        ) from error
    if not content.startswith(MAGIC):
        raise CheckpointError(f"{path} is no kfcnet checkpoint; {START_ANEW}")
    expected = content[len(MAGIC) : len(MAGIC) + 64].decode(errors="replace")
    if hashlib.sha256(memoryview(content)[BLOCK:]).hexdigest() != expected:
        raise CheckpointError(
            f"{path} is damaged (its content does not match its checksum); "
            f"restore it, or {START_ANEW}"
        )
    with h5py.File(io.BytesIO(content), "r") as file:
        return _read_group(file)


def _write_group(group, state):
    for name, value in state.items():
        if isinstance(value, dict):
            _write_group(group.create_group(name), value)
        else:
            group.create_dataset(name, data=value)


def _read_group(group):
    return {
        name: _read_group(item) if isinstance(item, h5py.Group) else _read_value(item)
        for name, item in group.items()
    }


def _read_value(dataset):
    """An array, or a Python number, boolean or string."""
    if h5py.check_string_dtype(dataset.dtype):
        return dataset.asstr()[()]
    value = dataset[()]
    return value if isinstance(value, np.ndarray) else value.item()
