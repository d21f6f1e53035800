"""What all launchers of kernels share: the runtime, checked launches, arrays, device scalars.

A *runtime* allocates, compiles and launches: CuPy's on a GPU, and in the tests one that runs the
same kernels on the CPU.
"""

import contextlib

import numpy as np

from kfcnet.ops.cuda import kernels
from kfcnet.ops.primitives import Primitives
from kfcnet.ops.shapes import ceil_div

BLOCK = 256  # threads of a block, where a kernel does not ask for another number
SCALARS_KEPT = 256  # numbers that stay on the device because they may be asked for again
MULTIPROCESSORS = 132  # of the GPU that grids are chosen for: fewer blocks leave some idle


class Launcher(Primitives):
    """Launches kernels of `kernels/` on the arrays of a runtime, in float32.

    A device scalar is an array of shape (1,). Numbers that change from step to step (the step, a
    learning rate, a decay) may also be given as device scalars, so that a captured graph follows
    them.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, runtime, tensor_cores):
        """tensor_cores: whether convolutions and dense layers use TF32 products."""
        self.runtime, self.tensor_cores = runtime, tensor_cores
        self.is_in_graph = False  # whether a captured step is queued or captured
        self._scalars = {}
        self._scalars_of_graphs = {}  # that captured steps read, so that they stay
        self._is_beside, self._held = False, []

    def launch(self, file, kernel, grid, *values, block=BLOCK, shared=0, **constants):
        """Run a kernel of kernels/<file>.cu, compiled with `constants`, on checked arguments.

        grid, block: a number or a tuple. Raises what `kernels.checked` raises.
        """
        arguments = kernels.signatures(file)[kernel]
        values = kernels.checked(kernel, arguments, values, constants, self.runtime.array_type)
        grid, block = (size if isinstance(size, tuple) else (size,) for size in (grid, block))
        self.runtime.launch(file, kernel, constants, grid, block, values, shared)
        if self._is_beside:
            self._held.append(values)

    def _each(self, file, kernel, threads, *values, **constants):
        """Launch at least `threads` threads."""
        self.launch(file, kernel, ceil_div(threads, BLOCK), *values, **constants)

    def _fours(self, file, kernel, count, *values, **constants):
        """Launch with a thread for every four elements."""
        self._each(file, kernel, ceil_div(count, 4), *values, **constants)

    # Branches

    @contextlib.contextmanager
    def beside(self):
        """What the launches within use is held until `join`: memory that came free earlier would be
        given to launches that follow, while those here may still be under way.
        """
        with self.runtime.beside():
            self._is_beside = True
            try:
                yield
            finally:
                self._is_beside = False

    def join(self):
        self.runtime.join_branch()
        self._held.clear()

    # Arrays

    def asarray(self, x):
        """x on the device, in float32."""
        return self._on_device(x, self.dtype)

    def to_device(self, x):
        """x on the device, in the type it has: a data set that stays there."""
        return self._on_device(x, x.dtype)

    def _on_device(self, x, dtype):
        if isinstance(x, self.runtime.array_type) and x.dtype == dtype and x.flags.c_contiguous:
            return x
        return self.runtime.asarray(x, dtype)

    def to_numpy(self, a):
        return self.runtime.to_numpy(a)

    def zeros(self, shape):
        return self.runtime.zeros(shape, self.dtype)

    def empty(self, shape, dtype=np.float32):
        return self.runtime.empty(shape, np.dtype(dtype))

    def copy(self, a):
        return self.runtime.copy(a)

    def _scalar(self, value, dtype=np.float32):
        """A device scalar: the value itself if it is one, else a number moved there."""
        if isinstance(value, self.runtime.array_type):
            return value
        key = float(value) if dtype is np.float32 else int(value), dtype
        if key in self._scalars_of_graphs:
            return self._scalars_of_graphs[key]
        if key not in self._scalars:
            if len(self._scalars) >= SCALARS_KEPT:
                self._scalars.pop(next(iter(self._scalars)))
            self._scalars[key] = self.runtime.asarray(np.array([value]), np.dtype(dtype))
        if self.is_in_graph:  # from its eager call on: a capture cannot move numbers to the device
            self._scalars_of_graphs[key] = self._scalars[key]
        return self._scalars[key]

    def _step(self, step):
        return self._scalar(step, np.int64)

    def _shared(self, width=1):
        """Constants of kernels that find an example's place in the whole mini-batch, `width`
        elements an example; none where one process has all of it.
        """
        if self.ranks.count == 1:
            return {}
        return {"RANKS": self.ranks.count, "RANK": self.ranks.rank, "WIDTH": width}

    # What changes from step to step, in device memory

    def scalar(self, value):
        """A number that a captured graph reads every time: (1,)."""
        return self.runtime.asarray(np.array([value]), self.dtype)

    def counter(self, value):
        """A step number that a captured graph can advance: int64 (1,)."""
        return self.runtime.asarray(np.array([value]), np.dtype(np.int64))

    def write(self, target, value):
        """Put a number or an array of the host or the device into the memory of `target`."""
        if np.ndim(value):
            value = self._on_device(value, target.dtype)
        else:  # passed to a kernel: nothing has to be moved to the device first
            value = target.dtype.type(value).item()
        self.runtime.copy_into(target, value)

    def advance(self, step):
        """step += 1, on the device."""
        self.launch("training_state", "advance_step", 1, step, block=1)


def lanes_of(count):
    """Neighbours that a thread takes at once."""
    return 4 if count % 4 == 0 else 1
