"""The runtime of `kfcnet/ops/cuda/` over NumPy arrays: its launchers run without a GPU."""

import contextlib
import ctypes
import functools
import threading
import time
import weakref

import numpy as np

from cuda_on_cpu.branches import Branches
from cuda_on_cpu.cuda_cpu import missing
from cuda_on_cpu.orders import ORDERS, library, run_in_orders
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda import kernels
from kfcnet.ops.errors import DeviceError

ALIGNMENT = 256  # bytes, as on a GPU
ONE_LAUNCH = threading.Lock()  # the fibers of a launch are those of the process


def _aligned(size):
    """Bytes (size,) at a multiple of ALIGNMENT, all set: NaN as floats."""
    memory = np.full(size + ALIGNMENT, 0xFF, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


class Pool:
    """Memory of captured steps. What nobody refers to any more is given out again, to the same
    step or another, while a recorded launch goes on using its address: as on a GPU.
    """

    def __init__(self):
        self._blocks, self._free = [], {}

    def allocate(self, size):
        """Bytes (size,) that return to the pool with the last array over them."""
        free = self._free.setdefault(size, [])
        if not free:
            free.append(_aligned(size))
            self._blocks.append(free[-1])
        block = free.pop()
        owner = np.frombuffer(memoryview(block), np.uint8)  # an object of its own, to be outlived
        weakref.finalize(owner, free.append, block)
        return owner

    def holds(self, array):
        return any(
            block.ctypes.data <= array.ctypes.data < block.ctypes.data + block.nbytes
            for block in self._blocks
        )


def _borrowed(array):
    """The same memory without a share in its ownership."""
    memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    return np.frombuffer(memory, array.dtype).reshape(array.shape)


class CpuRuntime:
    """Allocates NumPy arrays, launches kernels on the CPU.

    orders: each launch runs once for every one of them, and the results must be equal. New arrays
    are full of NaN, so that an element that no kernel writes shows. While a step is captured
    nothing runs; what is done beside shows its results only after the wait for it.
    """

    array_type = np.ndarray

    def __init__(self, orders=ORDERS[:1], tensor_cores=False):
        if missing():
            raise DeviceError(missing())
        self.orders, self.tensor_cores = orders, tensor_cores
        self.shared_limit = (99 if tensor_cores else 48) * 1024
        self.launches = 0  # kernels run or recorded by name, not replayed ones
        self._host = CpuOps("float32", shards=1, native="off")
        self._captured = None  # the actions of the step that is being captured
        self._branches = None  # their order, by the branches of the graph
        self._pool = None  # where arrays come from, if not from NumPy

    @property
    def capturing(self):
        return self._captured is not None

    def describe(self):
        return {"device": "cuda_on_cpu"}

    def _do(self, action, *values, name, reads=(), length=0):
        """Run action(*values) on the device, or record it.

        reads: numbers of the values that are read and not written; name: for messages.
        """
        if self._captured is None:
            action(*values)
            return
        touched = [
            (value, index not in reads)
            for index, value in enumerate(values)
            if isinstance(value, np.ndarray) and value.size
        ]
        self._branches.add(name, touched, length)
        self._captured.append((action, tuple(map(self._recorded, values))))

    def _recorded(self, value):
        """A recorded launch knows addresses; memory of the pool may get other arrays meanwhile."""
        pooled = isinstance(value, np.ndarray) and value.size and self._pool.holds(value)
        return _borrowed(value) if pooled else value

    def _refuse_in_capture(self, what):
        if self._captured is not None:
            raise RuntimeError(f"a captured step cannot move {what}: it would not be repeated")

    # Arrays

    def empty(self, shape, dtype):
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = int(np.prod(shape)) * dtype.itemsize
        if self._pool is None:
            return _aligned(size).view(dtype).reshape(shape)
        memory = self._pool.allocate(size)
        self._do(lambda memory: memory.fill(0xFF), memory, name="an allocation")
        return memory.view(dtype).reshape(shape)

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        self._do(lambda array: array.fill(0), array, name="zeros")
        return array

    def asarray(self, x, dtype):
        self._refuse_in_capture("data from the host")
        array = self.empty(np.shape(x), dtype)
        array[...] = x
        return array

    def to_numpy(self, array):
        self._refuse_in_capture("an array to the host")
        return array.copy()

    def copy(self, array):
        copy = self.empty(array.shape, array.dtype)
        self.copy_into(copy, array)
        return copy

    def copy_into(self, target, source):
        self._do(np.copyto, target, source, name="a copy", reads={1})

    def synchronize(self):
        self._refuse_in_capture("the host along")

    # Kernels

    def launch(self, file, kernel, constants, grid, block, values, shared):
        compiled = library(file, tuple(sorted(constants.items()))).kernel(kernel)
        self.launches += 1

        def run(*values):
            with ONE_LAUNCH:
                run_in_orders(compiled, grid, block, values, shared, self.orders)

        arguments = enumerate(kernels.signatures(file)[kernel])
        reads = {index for index, argument in arguments if argument.constant}
        self._do(run, *values, name=kernel, reads=reads, length=1)

    # Other processes

    def join(self, ranks):
        self._ranks = ranks

    def sum_over_ranks(self, arrays):
        self._do(self._ranks.sum, *arrays, name="a sum over processes")

    def broadcast_over_ranks(self, owner, arrays):
        broadcast = functools.partial(self._ranks.broadcast, owner)
        self._do(broadcast, *arrays, name="a broadcast")

    # Graphs and the second stream

    def new_pool(self):
        return Pool()

    @contextlib.contextmanager
    def allocating_from(self, pool):
        self._pool = pool
        try:
            yield
        finally:
            self._pool = None

    def capture(self, function):
        self._captured, self._branches = [], Branches()
        graph = self._captured
        try:
            result = function()
            self.join_branch()  # what is still beside
            return graph, result
        finally:
            self._captured = self._branches = None

    @contextlib.contextmanager
    def beside(self):
        if self._captured is None:
            yield
            return
        self._branches.fork()
        try:
            yield
        finally:
            self._branches.back()

    def join_branch(self):
        if self._captured is not None:
            self._branches.join()

    def replay(self, graph):
        for action, values in graph:
            action(*values)

    def on_side_stream(self, function):
        self._refuse_in_capture("work to the second stream")
        result = function()
        hidden = [(array, array.copy()) for array in result]
        for array in result:
            array.fill(np.nan)
        return result, hidden

    def wait(self, event):
        for array, contents in event:
            array[...] = contents

    def to_host_later(self, arrays):
        return lambda: [array.copy() for array in arrays]

    # Measuring

    def event(self):
        return time.perf_counter()

    def seconds_between(self, start, end):
        return end - start

    def library_product(self, a, b, out, tensor_cores, transpose_a=False):
        np.matmul(a.T if transpose_a else a, b, out=out)

    # Factorization

    def spd_inverse(self, matrix, shift):
        """(matrix + shift*I)^-1 and 0, or anything and 1 where it is not positive definite."""
        self._refuse_in_capture("a factorization")
        try:
            inverse = self._host.spd_inverse(matrix, shift)
        except np.linalg.LinAlgError:
            return self.empty(matrix.shape, matrix.dtype), np.ones(1, np.int32)
        return self.asarray(inverse, matrix.dtype), np.zeros(1, np.int32)

    def eigh(self, matrix):
        """(values from the smallest on, vectors in columns), or NaN where there are none."""
        self._refuse_in_capture("a factorization")
        try:
            values, vectors = self._host.eigh(matrix)
        except np.linalg.LinAlgError:
            values, vectors = np.full(len(matrix), np.nan), matrix
        return tuple(self.asarray(array, matrix.dtype) for array in (values, vectors))
