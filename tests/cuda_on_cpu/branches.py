"""The order in which the launches of a captured graph happen, and what memory they share."""

from cuda_on_cpu.cuda_cpu import KernelError

MAIN, SIDE = 0, 1


class Branches:
    """Work queued on two streams: each launch comes after those before it on its stream, and after
    what its stream was told to follow.

    A vector clock a stream: of each stream how much of what was queued there comes before what is
    queued next here. `depth` is the length of the longest chain of launches up to there, each of
    its own length.
    """

    def __init__(self):
        self.stream = MAIN
        self._clocks, self._depths = [[0, 0], [0, 0]], [0, 0]
        self._touched = []  # (first address, end, whether written, stream, time there, what)

    @property
    def depth(self):
        """Of what is queued next on the main stream."""
        return self._depths[MAIN]

    @property
    def is_joined(self):
        """Whether all that was queued beside comes before what is queued next."""
        return self._clocks[MAIN][SIDE] == self._clocks[SIDE][SIDE]

    def fork(self):
        """Queue on the side stream from here on, after what is queued on the main one."""
        self._follow(SIDE, MAIN)
        self.stream = SIDE

    def back(self):
        """Queue on the main stream again."""
        self.stream = MAIN

    def join(self):
        """Let what is queued on the main stream from here on come after all on the side stream."""
        self._follow(MAIN, SIDE)

    def _follow(self, later, earlier):
        self._clocks[later] = list(map(max, self._clocks[later], self._clocks[earlier]))
        self._depths[later] = max(self._depths[later], self._depths[earlier])

    def add(self, what, arrays=(), length=1):
        """Queue a piece of work that reads, or where `True` writes, [(array, whether it writes)].

        Raises KernelError where another one touches the same memory, one of both writes, and
        nothing says which comes first.
        """
        clock = self._clocks[self.stream]
        clock[self.stream] += 1
        self._depths[self.stream] += length
        new = []
        for array, writes in arrays:
            first = array.ctypes.data
            end = first + array.nbytes
            for other in self._touched:
                self._check((first, end, writes, what), other, clock)
            new.append((first, end, writes, self.stream, clock[self.stream], what))
        self._touched = [one for one in self._touched if one[4] > self._known(one[3])] + new

    def _known(self, stream):
        """How much of a stream all streams come after: it can race with nothing any more."""
        return min(clock[stream] for clock in self._clocks)

    @staticmethod
    def _check(this, other, clock):
        first, end, writes, what = this
        other_first, other_end, other_writes, stream, time, other_what = other
        overlap = first < other_end and other_first < end
        if overlap and (writes or other_writes) and clock[stream] < time:
            raise KernelError(
                f"race of branches: {other_what} {'writes' if other_writes else 'reads'} and "
                f"{what} {'writes' if writes else 'reads'} the same memory, and neither comes first"
            )
