"""Memory of large arrays, used again by the next array of the same size.

An allocator gives the pages of large arrays back to the system, and each first touch of a new page
waits for it: a training step makes and drops hundreds of megabytes.
"""

import collections
import math

import numpy as np

LARGE = 1 << 20
"""Bytes from which on memory is kept: the allocator itself keeps what is smaller."""

KEPT = 64
"""Dropped arrays of one size whose memory is kept; more are seldom alive at a time."""

_dropped = collections.defaultdict(lambda: collections.deque(maxlen=KEPT))


class _Memory:
    """The memory of an array, kept for another one when its last view is gone."""

    def __init__(self, shape, dtype, size):
        self._size = size
        try:
            self._bytes = _dropped[size].pop()
        except IndexError:
            self._bytes = np.empty(size, np.uint8)
        pointer, _ = self._bytes.__array_interface__["data"]
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (pointer, False),
        }

    def __del__(self):
        _dropped[self._size].append(self._bytes)


def empty(shape, dtype):
    """numpy.empty(shape, dtype), from kept memory where there is some of its size."""
    shape = tuple(int(side) for side in np.atleast_1d(shape))
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    return np.asarray(_Memory(shape, dtype, size))
