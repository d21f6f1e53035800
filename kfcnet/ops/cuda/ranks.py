"""Processes with a GPU each: sums and broadcasts are queued on it, all else goes by the host."""

from kfcnet.ranks import Ranks


class DeviceRanks(Ranks):
    """The ranks of a host, whose `sum` and `broadcast` take arrays of a runtime.

    They are queued like a launch, on the main stream and in one group each, and can be part of a
    captured graph: nothing waits for them. `runtime` has `sum_over_ranks` and
    `broadcast_over_ranks`.
    """

    def __init__(self, host, runtime):
        self.rank, self.count = host.rank, host.count
        self._host, self._runtime = host, runtime

    def sum(self, *arrays):
        self._runtime.sum_over_ranks(arrays)

    def broadcast(self, owner, *arrays):
        self._runtime.broadcast_over_ranks(owner, arrays)

    def max(self, *numbers):
        return self._host.max(*numbers)

    def allgather(self, value):
        return self._host.allgather(value)

    def abort(self, status):
        self._host.abort(status)

    def _from_first(self, value):
        return self._host._from_first(value)
