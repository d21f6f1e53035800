"""What a GPU does with graphs and a second stream, on a device that does everything at once."""

import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np


class Pending:
    """Work that has been begun and whose result is taken up later, at a step that is fixed.

    inputs: the arrays it works on, as they were then.
    """

    def __init__(self, inputs, take):
        self.inputs, self._take = inputs, take

    def result(self):
        """The arrays; raises what the work raised, numpy.linalg.LinAlgError for an inverse."""
        return self._take()


def as_generator(function):
    """`function` if its calls are generators, else one that yields nothing and returns the same."""
    if inspect.isgeneratorfunction(function):
        return function

    def generator(*inputs):
        yield from ()
        return function(*inputs)

    return generator


class Immediate:
    """The part of CpuOps that `kfcnet/ops/cuda/graphs.py` is for CudaOps."""

    @cached_property
    def _beside(self):
        return ThreadPoolExecutor(1, "kfcnet-beside")

    def program(self, function, *owners):
        """A function of arrays that may be recorded and repeated; here it runs every time.

        Where it yields a function, that one is called: work of the host between two recordings.
        owners: objects in whose attributes it leaves arrays for others to use.
        """

        def run(*inputs):
            parts = as_generator(function)(*inputs)
            while True:
                try:
                    work = next(parts)
                except StopIteration as end:
                    return end.value
                work()

        return run

    def begin(self, function, *arrays, on_host=True):
        """Start function(ops, *arrays) in a thread; a Pending of the arrays it returns.

        It works on copies of the arrays as they are now: `Pending.inputs`.
        """
        inputs = [self.copy(array) for array in arrays]
        return Pending(inputs, self._beside.submit(function, self, *inputs).result)

    phases_measured = "by the clock of the host"

    def mark(self):
        """A moment; on other devices None within a program."""
        return time.perf_counter()

    def seconds_between(self, start, end):
        """Between two marks that the device has passed."""
        return end - start

    def place(self, x):
        """x on the device, in the type it has: a data set that stays there."""
        return x

    def scalar(self, value):
        """A number that a program reads every time: (1,)."""
        return self.asarray([value])

    def counter(self, value):
        """A step number that a program can advance: int64 (1,)."""
        return np.array([value], np.int64)

    def advance(self, step):
        """step += 1."""
        step += 1

    def write(self, target, value):
        """Put a number or an array into the memory of `target`."""
        target[...] = value
