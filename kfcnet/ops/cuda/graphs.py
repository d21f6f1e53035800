"""Steps that are captured once and replayed, and work on a side stream."""

import contextlib
from functools import cached_property

from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cpu.threads import Threads
from kfcnet.ops.cuda.inverse import Factorizations
from kfcnet.ops.deferred import Future, as_generator


class CapturedGraph:
    """A function of device arrays whose launches are captured and replayed.

    The first call runs the function eagerly, so that its kernels are compiled and its memory is
    allocated; the second captures it; from then on a call is one launch. Whatever the function does
    on the host happens in the first two calls only, and a number that it passes by value keeps the
    value of the second: what changes from call to call must lie in device memory. The results are
    the same arrays every time. They hold until the next call of this graph or of any other of the
    same ops: all take their memory from one pool, one after the other.

    Work that the host must do every time, such as a factorization, a function yields: a function
    without arguments, called between two graphs.

    Inputs are arrays on the device or the host, tuples of them, or other hashable values that a
    capture depends on. Other shapes and other values are captured apart.

    `owners` are layers: what a pass leaves in their `saved`, every replay binds there again,
    whatever else has used them meanwhile.
    """

    def __init__(self, runtime, function, within, owners=()):
        """within: makes the context that the function runs in."""
        self._arguments = runtime, function, within, owners
        self._captures = {}  # {what the inputs are: _Capture}

    def __call__(self, *inputs):
        """The function's result for the contents of the inputs."""
        key = _signature(inputs)
        if key not in self._captures:
            self._captures[key] = _Capture(*self._arguments)
        return self._captures[key](*inputs)


class _Capture:
    """A CapturedGraph for inputs of one signature."""

    def __init__(self, runtime, function, within, owners):
        self._runtime, self._function = runtime, function
        self._within, self._owners = within, owners
        self._inputs = None  # copies of the inputs, where the graphs find them
        self._saved = []  # for each part of the function what it leaves in `saved` of the owners
        self._parts = []  # (graph, what the host does then)

    def __call__(self, *inputs):
        if self._inputs is None:
            self._inputs = self._kept(inputs)
            try:
                return self._run(lambda part: part())
            except BaseException:
                self._inputs = None  # the next call is the first one again
                raise
        self._refill(self._inputs, inputs)
        if not self._parts:
            return self._capture()
        for (graph, work), left in zip(self._parts, self._saved, strict=True):
            self._runtime.replay(graph)
            for owner, saved in zip(self._owners, left, strict=True):
                owner.saved = saved
            if work:
                work()
        return self._result

    def _capture(self):
        graphs = []

        def capture(part):
            graph, outcome = self._runtime.capture(part)
            self._runtime.replay(graph)
            graphs.append((graph, outcome[0]))
            return outcome

        self._result = self._run(capture)
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


def _signature(value):
    """What captures differ by: shapes and types of arrays, other values as they are."""
    if isinstance(value, tuple):
        return tuple(map(_signature, value))
    return (value.shape, value.dtype) if _is_array(value) else value


class Graphs(Factorizations):
    """The order in which things happen on the device: graphs, the side stream, events."""

    phases_measured = (
        "by events on the device between graphs; a captured step counts as gradient "
        "whole, with its statistics, preconditioning and clip"
    )

    @cached_property
    def _memory(self):
        return self.runtime.new_pool()

    @cached_property
    def _host(self):
        """One thread and the primitives of the CPU, for factorizations there."""
        return Threads(1, "kfcnet-host"), CpuOps(self.dtype, shards=1)

    def captured(self, function, *owners):
        return CapturedGraph(self.runtime, function, self._in_graph, owners)

    @contextlib.contextmanager
    def _in_graph(self):
        """Arrays come from memory that captured graphs alone use, in turn; there are no events,
        because a graph is measured whole.
        """
        self.is_in_graph = True
        try:
            with self.runtime.allocating_from(self._memory):
                yield
        finally:
            self.is_in_graph = False

    def submit(self, function, *arrays, on_host=False):
        """On the side stream of the GPU, or in a thread of the CPU."""
        inputs = [self.copy(array) for array in arrays]
        return (self._submit_to_host if on_host else self._submit_to_side_stream)(function, inputs)

    def _submit_to_side_stream(self, function, inputs):
        with self._unasked() as failures:
            result, event = self.runtime.on_side_stream(lambda: function(self, *inputs))

        def take():
            self.runtime.wait(event)
            for failed in failures:
                self._raise_if(failed)
            return result

        return Future(inputs, take)

    def _submit_to_host(self, function, inputs):
        thread, host = self._host
        arrays = self.runtime.to_host_later(inputs)
        future = thread.submit(lambda: function(host, *arrays()))
        return Future(inputs, lambda: tuple(map(self.asarray, future.result())))

    def event(self):
        return None if self.is_in_graph else self.runtime.event()

    def seconds_between(self, start, end):
        return self.runtime.seconds_between(start, end)
