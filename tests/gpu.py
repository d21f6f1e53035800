"""Launches of the kernel tests on a GPU, in place of those on the CPU."""

import numpy as np


def _alone(size):
    """Memory of its own, not a part of a pool: compute-sanitizer knows where it ends."""
    from cupy.cuda import memory

    return memory.MemoryPointer(memory.Memory(size), 0)


def launch_twice(ops, file, kernel, grid, block, values, constants, shared=0):
    """What `launch_in_all_orders` does on the CPU: the arrays are NumPy's, changed in place.

    The launch is made twice from the same contents; raises AssertionError where a bit differs.
    """
    from cupy.cuda import using_allocator

    arrays = {id(value): value for value in values if isinstance(value, np.ndarray)}
    results = []
    for _ in range(2):
        with using_allocator(_alone):
            there = {key: ops.to_device(array) for key, array in arrays.items()}
            ops.launch(
                file,
                kernel,
                grid,
                *(there.get(id(value), value) for value in values),
                block=block,
                shared=shared,
                **constants,
            )
            results.append([ops.to_numpy(array) for array in there.values()])
    for array, first, second in zip(arrays.values(), *results, strict=True):
        assert first.tobytes() == second.tobytes(), f"{kernel} differs from launch to launch"
        if array.flags.writeable:
            array[...] = first
