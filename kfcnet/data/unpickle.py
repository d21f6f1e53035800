"""Reading the pickles of CIFAR-10 and CIFAR-100 without running code from the file.

A pickle can name any function of any module and have it called. Their files need three
names of NumPy. Here each of them is a passive record of what the file says; every other name is
refused. NumPy never sees the file's state: only the bytes become an array at the end.
"""

import pickle
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class _DataType:
    """In place of numpy.dtype: keeps the name, ignores the state (byte order and the like)."""

    def __init__(self, name, *_):
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state):
        pass


class _Array:
    """In place of numpy.ndarray: keeps shape, type, order and bytes."""

    def __setstate__(self, state):
        _, self.shape, self.data_type, self.fortran_order, self.content = state


def _reconstruct(*_):
    return _Array()


def _encode(text, encoding):
    """The function that Python 3 writes for bytes in an old pickle protocol."""
    return str.encode(text, "latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DataType,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return _NAMES[module, name]


def load_batch(file: BinaryIO, labels: str = "labels") -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """One batch: open binary file -> (data uint8 (N, 3072), the labels of a key, (N,) of any type).

    Raises pickle.UnpicklingError for anything else.
    """
    try:
        batch = _Unpickler(file, encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        return _as_rows(batch["data"]), np.array(batch[labels])
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


def _as_rows(array):
    if array.data_type.name not in ("u1", "|u1", "uint8") or array.fortran_order:
        raise pickle.UnpicklingError("its pixels are not bytes in row-major order")
    return np.frombuffer(array.content, dtype=np.uint8).reshape(array.shape)
