"""Memory of large arrays, used again by the next array of the same size.

An allocator gives the pages of large arrays back to the system, and each first touch of a new page
waits for it: a training step makes and drops hundreds of megabytes.
"""

import collections
import math

import numpy as np

LARGE = 1 << 20
"""Bytes from which on memory is kept: the allocator itself keeps what is smaller."""

KEPT = 1 << 31
"""Bytes of dropped arrays. With more, all are given back before new memory is taken: a program
whose arrays have ever other sizes would keep them all.
"""

_dropped = collections.defaultdict(collections.deque)  # by size; its methods are atomic


class _Memory:
    """The memory of an array, kept for another one when its last view is gone."""

    def __init__(self, block, kept, shape, dtype):
        """block (bytes,) uint8: the memory; kept: where it goes when it is dropped."""
        self._block, self._kept = block, kept
        pointer, _ = block.__array_interface__["data"]
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (pointer, False),
        }

    def __del__(self):
        self._kept.append(self._block)


def _new(size):
    if sum(size * len(kept) for size, kept in list(_dropped.items())) > KEPT:
        _dropped.clear()
    return np.empty(size, np.uint8)


def empty(shape, dtype):
    """numpy.empty(shape, dtype), from kept memory where there is some of its size."""
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    kept = _dropped[size]
    try:
        block = kept.pop()
    except IndexError:
        block = _new(size)
    return np.asarray(_Memory(block, kept, shape, dtype))
