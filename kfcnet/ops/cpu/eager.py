"""Captured graphs, work beside the step and events on a device that does everything at once."""

import contextlib
import time
from functools import cached_property

import numpy as np

from kfcnet.ops.cpu.blas import one_blas_thread
from kfcnet.ops.cpu.threads import Threads
from kfcnet.ops.deferred import Future, as_generator
from kfcnet.ops.primitives import Primitives


class Eager(Primitives):
    """What `kfcnet/ops/cuda/graphs.py` does with graphs and streams, at once on the host."""

    def beside(self):
        return contextlib.nullcontext()

    def join(self):
        pass

    phases_measured = "by the clock of the host"

    @cached_property
    def _side_thread(self):
        return Threads(1, "kfcnet-side")

    def captured(self, function, *owners):

        @one_blas_thread
        def run(*inputs):
            parts = as_generator(function)(*inputs)
            while True:
                try:
                    work = next(parts)
                except StopIteration as end:
                    return end.value
                work()

        return run

    def submit(self, function, *arrays, on_host=False):
        inputs = [self.copy(array) for array in arrays]
        function = one_blas_thread(function)
        return Future(inputs, self._side_thread.submit(function, self, *inputs).result)

    def event(self):
        return time.perf_counter()

    def seconds_between(self, start, end):
        return end - start

    def to_device(self, x):
        return x

    def scalar(self, value):
        return self.asarray([value])

    def counter(self, value):
        return np.array([value], np.int64)

    def advance(self, step):
        step += 1

    def write(self, target, value):
        target[...] = value
