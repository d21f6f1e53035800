"""A runtime that launches nothing and notes what it was asked to: which kernels a program takes."""

from contextlib import nullcontext

import numpy as np


class DryRun:
    """Allocates without touching the memory; `launched` says what would have to be compiled.

    launched: {(file, constants): {kernel: (threads, bytes of dynamic shared memory)}}, the most of
    both over all launches.
    """

    array_type, capturing = np.ndarray, False

    def __init__(self, shared_limit):
        self.launched, self.shared_limit = {}, shared_limit

    def launch(self, file, kernel, constants, grid, block, values, shared):
        kernels = self.launched.setdefault((file, tuple(sorted(constants.items()))), {})
        threads, most = kernels.get(kernel, (0, 0))
        kernels[kernel] = max(threads, int(np.prod(block))), max(most, shared)

    def empty(self, shape, dtype):
        small = np.prod(shape) <= 16  # device scalars, which Python calculates with
        # A counter is negative: no step was one whose loss is not finite.
        value = -1 if np.dtype(dtype) == np.int64 else 1
        return np.full(shape, value, dtype) if small else np.empty(shape, dtype)

    zeros = empty

    def asarray(self, x, dtype):
        if np.size(x) == 1:  # what the host may read back
            return np.array(x, dtype)
        return self.empty(np.shape(x), dtype)

    def copy(self, array):
        return self.empty(array.shape, array.dtype)

    def copy_into(self, target, source):
        pass

    def to_numpy(self, array):
        return array

    def new_pool(self):
        return None

    def allocating_from(self, pool):
        return nullcontext()

    def capture(self, function):
        return None, function()

    def replay(self, graph):
        pass

    def beside(self):
        return nullcontext()

    def join_branch(self):
        pass

    def spd_inverse(self, matrix, shift):
        return matrix, np.zeros(1, np.int32)
