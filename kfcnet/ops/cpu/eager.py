"""Captured graphs, futures and events on a device that does everything at once."""

import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np


class Future:
    """Work that was submitted, and whose result is taken at a later, fixed step.

    inputs: the arrays it works on, as they were when it was submitted.
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


class Eager:
    """What `kfcnet/ops/cuda/graphs.py` does with graphs and streams, at once on the host."""

    phases_measured = "by the clock of the host"

    @cached_property
    def _side_thread(self):
        return ThreadPoolExecutor(1, "kfcnet-side")

    def captured(self, function, *owners):
        """A function of arrays that a device may capture and replay; here it runs every time.

        A function that it yields is called between two graphs, by the host. owners: objects in
        whose `saved` it leaves arrays.
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

    def submit(self, function, *arrays, on_host=True):
        """Start function(ops, *arrays) beside what follows; a Future of the arrays it returns.

        It works on copies of the arrays as they are now: `Future.inputs`.
        """
        inputs = [self.copy(array) for array in arrays]
        return Future(inputs, self._side_thread.submit(function, self, *inputs).result)

    def event(self):
        """A moment on the device; on a GPU None within a captured graph."""
        return time.perf_counter()

    def seconds_between(self, start, end):
        """Seconds between two events that the device has passed."""
        return end - start

    def to_device(self, x):
        """x on the device, in the type it has: a data set that stays there."""
        return x

    def scalar(self, value):
        """A number in device memory, which a captured graph reads at every replay: (1,)."""
        return self.asarray([value])

    def counter(self, value):
        """A step number that a captured graph can advance: int64 (1,)."""
        return np.array([value], np.int64)

    def advance(self, step):
        """step += 1."""
        step += 1

    def write(self, target, value):
        """Write a number or an array into the memory of `target`."""
        target[...] = value
