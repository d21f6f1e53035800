"""The same launch under several orders of the threads and blocks: the results must not differ."""

from functools import cache

import numpy as np

from cuda_on_cpu.cuda_cpu import KernelError, Library
from kfcnet.ops.cuda import kernels

ORDERS = (0, 1, 2, 3)  # ascending, descending, two shuffles


@cache
def library(file, constants):
    """kernels/<file>.cu compiled with (macro, value) pairs."""
    return Library(kernels.source(file), dict(constants), file)


def run_in_orders(kernel, grid, block, values, shared=0, orders=ORDERS):
    """Launch once for every order, from the same contents of the arrays.

    Raises KernelError where the results differ in a bit.
    """
    arrays = [value for value in values if isinstance(value, np.ndarray) and value.flags.writeable]
    before = [array.copy() for array in arrays]
    for order in orders:
        if order != orders[0]:
            after = [array.copy() for array in arrays]
            for array, contents in zip(arrays, before, strict=True):
                array[...] = contents
        kernel.launch(grid, block, values, shared, order)
        if order != orders[0] and not all(map(_same_bits, arrays, after)):
            raise KernelError(f"{kernel.name}: the result depends on the order of the threads")


def _same_bits(one, other):
    return one.tobytes() == other.tobytes()


def launch_in_all_orders(file, kernel, grid, block, values, constants, shared=0):
    """Launch a kernel of kernels/<file>.cu under all ORDERS, its arguments checked first.

    Arrays that may begin anywhere begin where no two of their elements could be moved at once, so
    that a kernel which does so all the same fails.
    """
    compiled = library(file, tuple(sorted(constants.items()))).kernel(kernel)
    values = kernels.checked(kernel, compiled.arguments, values, constants, np.ndarray)
    moved = {
        id(value): _off_boundaries(value)
        for argument, value in zip(compiled.arguments, values, strict=True)
        if isinstance(value, np.ndarray) and not argument.aligned
    }
    moved = {id(value): moved.get(id(value), value) for value in values}
    run_in_orders(compiled, grid, block, [moved[id(value)] for value in values], shared)
    for value in values:
        if isinstance(value, np.ndarray) and value.flags.writeable:
            value[...] = moved[id(value)]


def _off_boundaries(array):
    """A copy that begins one element behind a multiple of 16 bytes."""
    memory = np.empty(array.nbytes + 32, np.uint8)
    start = -memory.ctypes.data % 16 + array.itemsize % 16
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = array.flags.writeable
    return copy
