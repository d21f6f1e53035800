"""A run's state in one HDF5 file, replaced as a whole and verified by a checksum when read.

The file begins with a line of text and the SHA-256 sum of the HDF5 data after it. HDF5 allows such
a block before its own data, so any HDF5 tool can open the file:

    kfcnet checkpoint <number of the format>
    sha256 <64 hexadecimal digits>
"""

import hashlib
import io
import re
from pathlib import Path

import h5py
import numpy as np

from kfcnet.runs.files import no_run, read_json, write_bytes

CHECKPOINT = "checkpoint.h5"  # its name in the folder of a run
FORMAT = 3
"""Goes up with every change of the contents; tests/test_resume.py has what they are."""
READABLE = (1, 2, FORMAT)
"""Format 1 lacks the kind of the pixels, which were bytes; 1 and 2 lack the number of processes,
which was one.
"""
HEADER = re.compile(rb"kfcnet checkpoint ([0-9]+)\nsha256 ([0-9a-f]{64})\n")
START_ANEW = "move the folder of the run away to start it anew"
BLOCK = 512  # bytes ahead of the HDF5 data, the smallest that HDF5 allows


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another version; the text says what to do."""

    exit_status = 2


class Contents(dict):
    """The contents of a checkpoint or of a group in it.

    To ask for an entry that is not there raises CheckpointError: another version saved it.
    """

    def __init__(self, items, path, place):
        super().__init__(items)
        self._path, self._place = path, place

    def __missing__(self, name):
        raise CheckpointError(
            f"{self._path} lacks {self._place}{name}: it is of another version of kfcnet. Use "
            f"that, or {START_ANEW}"
        )


def save_checkpoint(path, state):
    """Write `state`, a nested dict of arrays, numbers, booleans and strings, to `path`.

    Arrays have at least one axis and keep shape and dtype. The old file stays until the new one is
    complete and on the disk. Raises WriteError where it cannot be written.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", userblock_size=BLOCK) as file:
        _write_group(file, state)
    content = memory.getbuffer()
    checksum = hashlib.sha256(content[BLOCK:]).hexdigest()
    header = f"kfcnet checkpoint {FORMAT}\nsha256 {checksum}\n"
    content[:BLOCK] = header.encode().ljust(BLOCK, b"\0")
    write_bytes(path, content)


def load_checkpoint(path):
    """The nested dict given to `save_checkpoint`, as Contents.

    Raises CheckpointError, naming the file, if it is missing, of another kind or version, cut or
    changed.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(_missing(path)) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    header = HEADER.match(content)
    if not header:
        raise CheckpointError(f"{path} is no kfcnet checkpoint; {START_ANEW}")
    form, expected = int(header[1]), header[2].decode()
    if form not in READABLE:
        raise CheckpointError(
            f"{path} is of another version of kfcnet (format {form}, here {FORMAT}): use that, or "
            f"{START_ANEW}"
        )
    if hashlib.sha256(memoryview(content)[BLOCK:]).hexdigest() != expected:
        raise CheckpointError(
            f"{path} is damaged (its content does not match its checksum); "
            f"restore it, or {START_ANEW}"
        )
    with h5py.File(io.BytesIO(content), "r") as file:
        return _read_group(file, path)


def _missing(path):
    folder = path.parent
    if not (folder / "metrics.csv").exists():
        return no_run(folder, path.name)
    record = folder / "run.json"
    outcome = read_json(record).get("outcome", {}) if record.exists() else {}
    if outcome.get("state") == "running":
        return (
            f"{folder} holds a run without {path.name} yet: it trains and will write it soon, or "
            "was killed before that and begins anew with --resume"
        )
    return (
        f"{folder} holds the records of a run and no {path.name}: restore it, or train the run "
        f"again, with --config {folder / 'config.yaml'} and another --out"
    )


def _write_group(group, state):
    for name, value in state.items():
        if isinstance(value, dict):
            _write_group(group.create_group(name), value)
        else:
            group.create_dataset(name, data=value)


def _read_group(group, path):
    items = {
        name: _read_group(item, path) if isinstance(item, h5py.Group) else _read_value(item)
        for name, item in group.items()
    }
    place = group.name.strip("/").replace("/", ".")
    return Contents(items, path, f"{place}." if place else "")


def _read_value(dataset):
    """An array, or a Python number, boolean or string."""
    if h5py.check_string_dtype(dataset.dtype):
        return dataset.asstr()[()]
    value = dataset[()]
    return value if isinstance(value, np.ndarray) else value.item()
