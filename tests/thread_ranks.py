"""Ranks that are threads of one process: what processes compute together, without starting any."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kfcnet.ranks import Ranks

PATIENCE = 60  # seconds that a rank waits for the others


class _Meeting:
    """Where `count` threads lay down a value each and take those of all."""

    def __init__(self, count):
        self.count = count
        self._values = [None] * count
        self._barrier = threading.Barrier(count, timeout=PATIENCE)

    def meet(self, rank, name, value):
        """The values of all ranks; fails where they do not all call the same, `name`."""
        self._values[rank] = name, value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        names = [name for name, _ in found]
        assert len(set(names)) == 1, f"the ranks called {names}"
        return [value for _, value in found]

    def leave(self):
        self._barrier.abort()


class ThreadRanks(Ranks):
    """One of them. `calls` are the names of the sums, broadcasts and so on, in their order."""

    def __init__(self, meeting, rank):
        self._meeting, self.rank, self.count = meeting, rank, meeting.count
        self.calls = []

    def _meet(self, name, value):
        self.calls.append(name)
        return self._meeting.meet(self.rank, name, value)

    def sum(self, *arrays):
        parts = self._meet(f"sum of {[a.shape for a in arrays]}", [a.copy() for a in arrays])
        for array, *others in zip(arrays, *parts, strict=True):
            array[...] = sum(others[1:], start=others[0])

    def broadcast(self, owner, *arrays):
        name = f"broadcast from {owner} of {[a.shape for a in arrays]}"
        parts = self._meet(name, [a.copy() for a in arrays])
        for array, value in zip(arrays, parts[owner], strict=True):
            array[...] = value

    def max(self, *numbers):
        return np.max(self._meet("max", [int(number) for number in numbers]), axis=0).tolist()

    def allgather(self, value):
        return self._meet("allgather", copy.deepcopy(value))

    def abort(self, status):
        self._meeting.leave()

    def _from_first(self, value):
        return self._meet("from_first", copy.deepcopy(value))[0]


def on_ranks(count, function):
    """[function(ranks)] of `count` ranks at once; raises what one of them did."""
    meeting = _Meeting(count)

    def run(rank):
        try:
            return function(ThreadRanks(meeting, rank))
        except BaseException:
            meeting.leave()
            raise

    with ThreadPoolExecutor(count) as threads:
        futures = [threads.submit(run, rank) for rank in range(count)]
        errors = [future.exception() for future in futures]
    real = [error for error in errors if error is not None]
    real.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if real:
        raise real[0]
    return [future.result() for future in futures]
