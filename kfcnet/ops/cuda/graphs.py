"""Steps that are recorded once and repeated, and work beside them on a second stream."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cpu.eager import Pending, as_generator


class Program:
    """A function of device arrays that becomes a graph: what it launches is repeated as it was.

    The first call runs the function as it stands, so that its kernels are compiled and its memory
    is at hand; the second records it; from then on a call is one launch. Whatever the function does
    on the host happens in the first two calls only, and a number that it passes by value stays what
    it was at the second: what changes from call to call must lie in device memory. Its results are
    the same arrays every time, overwritten by the next call.

    What the host has to do in between every time, such as a factorization, a function yields: a
    function without arguments, called between two graphs.

    Inputs are arrays here or on the host, tuples of them, or anything else that can be hashed and
    that a recording depends on. Other shapes and other values are recorded by themselves.

    What the function leaves in the `saved` of `owners`, layers that keep activations there for
    their backward pass, every replay binds there again, whatever else has used them meanwhile.
    """

    def __init__(self, runtime, function, within, owners=()):
        """within: makes the context that the function runs in."""
        self._runtime, self._function, self._within, self._owners = (
            runtime,
            function,
            within,
            owners,
        )
        self._recordings = {}  # {what the inputs are: Recording}

    def __call__(self, *inputs):
        """The function's result for the contents of the inputs."""
        key = _nature(inputs)
        if key not in self._recordings:
            self._recordings[key] = Recording(
                self._runtime, self._function, self._within, self._owners
            )
        return self._recordings[key](*inputs)


class Recording:
    """A Program for inputs of one nature."""

    def __init__(self, runtime, function, within, owners):
        self._runtime, self._function, self._within, self._owners = (
            runtime,
            function,
            within,
            owners,
        )
        self._inputs = None  # copies of the inputs, where the graphs find them
        self._saved = []  # for each part of the function what it leaves in `saved` of the owners
        self._parts = []  # (graph, what the host does then)

    def __call__(self, *inputs):
        if self._inputs is None:
            self._inputs = self._kept(inputs)
            return self._run(lambda part: part())
        self._refill(self._inputs, inputs)
        if not self._parts:
            return self._record()
        for (graph, work), left in zip(self._parts, self._saved, strict=True):
            self._runtime.replay(graph)
            for owner, saved in zip(self._owners, left, strict=True):
                owner.saved = saved
            if work:
                work()
        return self._result

    def _record(self):
        graphs = []

        def record(part):
            graph, outcome = self._runtime.capture(part)
            self._runtime.replay(graph)
            graphs.append((graph, outcome[0]))
            return outcome

        self._result = self._run(record)
        self._parts = graphs
        return self._result

    def _run(self, execute):
        """The function part by part, each by `execute`, and the host's work after each of them."""
        generator, self._saved = as_generator(self._function)(*self._inputs), []
        while True:
            with self._within():
                work, result = execute(lambda: _advance(generator))
            self._saved.append([owner.saved for owner in self._owners])
            if work is None:
                return result
            work()

    def _kept(self, value):
        """The value with copies of its arrays on the device."""
        if isinstance(value, tuple):
            return _like(value, map(self._kept, value))
        return self._runtime.copy(self._here(value)) if _is_array(value) else value

    def _refill(self, kept, value):
        if isinstance(value, tuple):
            for pair in zip(kept, value, strict=True):
                self._refill(*pair)
        elif _is_array(value):
            self._runtime.copy_into(kept, self._here(value))

    def _here(self, array):
        return self._runtime.asarray(array, array.dtype)


def _advance(generator):
    """(what it yields next, None), or (None, what it returns)."""
    try:
        return next(generator), None
    except StopIteration as end:
        return None, end.value


def _is_array(value):
    return hasattr(value, "dtype")


def _like(value, parts):
    """A tuple of the same type."""
    return value._make(parts) if hasattr(value, "_make") else tuple(parts)


def _nature(value):
    """What recordings differ by: shapes and types of arrays, other values as they are."""
    if isinstance(value, tuple):
        return tuple(map(_nature, value))
    return (value.shape, value.dtype) if _is_array(value) else value


class Graphs:
    """The part of CudaOps that is about when things happen."""

    @cached_property
    def _memory(self):
        return self.runtime.new_pool()

    @cached_property
    def _host(self):
        """One thread and the primitives of the CPU, for factorizations there."""
        return ThreadPoolExecutor(1, "kfcnet-host"), CpuOps(self.dtype, shards=1)

    def program(self, function, *owners):
        """`function` of device arrays as a Program that leaves things in the owners' attributes."""
        return Program(self.runtime, function, self._in_program, owners)

    @contextlib.contextmanager
    def _in_program(self):
        """Arrays come from memory that programs alone use, in turn; there are no moments to mark,
        because a graph is measured whole."""
        self._marks = False
        try:
            with self.runtime.allocating_from(self._memory):
                yield
        finally:
            self._marks = True

    def begin(self, function, *arrays, on_host=False):
        """Start function(ops, *arrays) beside what follows; a Pending of the arrays it returns.

        It works on copies of the arrays as they are now: `Pending.inputs`. on_host: in a thread of
        the CPU, else on a second stream of the GPU.
        """
        inputs = [self.copy(array) for array in arrays]
        return (self._begin_on_host if on_host else self._begin_beside)(function, inputs)

    def _begin_beside(self, function, inputs):
        failures, self._failures = self._failures, []
        try:
            result, event = self.runtime.beside(lambda: function(self, *inputs))
            begun = self._failures
        finally:
            self._failures = failures

        def take():
            self.runtime.wait(event)
            for failed in begun:
                self._raise_if(failed)
            return result

        return Pending(inputs, take)

    def _begin_on_host(self, function, inputs):
        thread, host = self._host
        arrays = self.runtime.to_host_later(inputs)
        future = thread.submit(lambda: function(host, *arrays()))
        return Pending(inputs, lambda: tuple(map(self.asarray, future.result())))

    # Time

    _marks = True
    phases_measured = (
        "by events on the device between graphs; a recorded step counts as gradient "
        "whole, with its statistics, preconditioning and clip"
    )

    def mark(self):
        """A moment, when the device comes to it; None within a program."""
        return self.runtime.mark() if self._marks else None

    def seconds_between(self, start, end):
        """Between two marks that the device has passed."""
        return self.runtime.seconds_between(start, end)

    # Factorization

    def spd_inverse(self, matrix, shift):
        """Waits for the device, which alone knows whether the matrix was positive definite; within
        `begin` the question is left to `Pending.result`."""
        inverse, failed = self.runtime.spd_inverse(matrix, shift)
        if self._failures is None:
            self._raise_if(failed)
        else:
            self._failures.append(failed)
        return inverse

    def _raise_if(self, failed):
        if self.to_numpy(failed)[0]:
            raise np.linalg.LinAlgError("matrix is not positive definite after damping")

    # What changes from step to step, in device memory

    def scalar(self, value):
        """A number that a program reads every time: (1,)."""
        return self.runtime.asarray(np.array([value]), self.dtype)

    def counter(self, value):
        """A step number that a program can advance: int64 (1,)."""
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
