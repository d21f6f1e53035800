"""What a training step costs one of R processes: its own work, measured, and its messages, counted.

One process alone stands for one of R: it computes its share of a mini-batch and all that every
process does for itself, and counts what it would send. So the work can be measured for an R that
the machine has no cores for; what messages take is modelled from the sums of two processes.
"""

import math
import time
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from kfcnet.batches import Batch
from kfcnet.benchmarks.cpu import example_batch
from kfcnet.ops import get_ops
from kfcnet.ranks import Alone, Ranks
from kfcnet.training.build import build, whole_periods

EXAMPLES = 2560
"""At least so many examples of the whole mini-batch are trained on in a turn."""


class OneOf(Ranks):
    """The first of `count` processes without the others, whose part of every sum is zero.

    It owns the dearest piece of work that owners share: see `ranks.balanced`. `messages` are pairs
    ("sum" or "broadcast", bytes) of what it would have sent.
    """

    def __init__(self, count):
        self.count, self.messages = count, []

    def sum(self, *arrays):
        self.messages += [("sum", array.nbytes) for array in arrays]

    def broadcast(self, owner, *arrays):
        self.messages += [("broadcast", array.nbytes) for array in arrays]

    def max(self, *numbers):
        self.messages.append(("sum", 8 * len(numbers)))
        return list(numbers)

    def allgather(self, value):
        self.messages += [("sum", 8)] * 2  # how long each one's value is, and the values
        return [value]

    def abort(self, status):
        pass

    def _from_first(self, value):
        return value


class OwnWork:
    """The steps of the first of `count` processes, taken in turns; `seconds` of a step, by turn."""

    def __init__(self, config, count, input_shape):
        """config: one whose mini-batch `count` processes can share."""
        ranks = OneOf(count) if count > 1 else Alone()
        ops = get_ops("cpu", config.dtype, 1, config.ops.native, ranks=ranks)
        M = config.optimizer.batch_size
        self._batch = Batch(
            *(
                np.ascontiguousarray(ranks.share(array))
                for array in example_batch(ops, M, input_shape=input_shape)
            )
        )
        self._optimizer = build(config, ops, input_shape)
        self._optimizer.prepare([self._batch])
        self._steps = whole_periods(config, EXAMPLES / M)
        self._ranks, self.seconds = ranks, []

    def turn(self):
        """Take whole periods of steps."""
        if self._ranks.count > 1:
            self._ranks.messages.clear()
        began = time.perf_counter()
        for _ in range(self._steps):
            self._optimizer.step(self._batch)
        self.seconds.append((time.perf_counter() - began) / self._steps)

    def messages(self):
        """[kind, bytes, how many in a step] of the latest turn; none of one process."""
        sent = getattr(self._ranks, "messages", [])
        return [[*each, sent.count(each) / self._steps] for each in dict.fromkeys(sent)]


class MessageCost(NamedTuple):
    """Seconds of a message between two processes: `latency` + bytes * `per_byte`."""

    latency: float
    per_byte: float

    def sum(self, count, size):
        """Seconds of a sum of `size` bytes over `count` processes, the better of two algorithms: a
        ring, which sends each byte twice, and a tree there and back, which sends few messages.
        """
        if count == 1:
            return 0.0
        ring = 2 * (count - 1) * (self.latency + size / count * self.per_byte)
        tree = 2 * math.ceil(math.log2(count)) * self.latency + 2 * size * self.per_byte
        return min(ring, tree)

    def broadcast(self, count, size):
        """Seconds of a broadcast: a tree, or its parts scattered and then gathered in a ring."""
        if count == 1:
            return 0.0
        rounds = math.ceil(math.log2(count))
        tree = rounds * (self.latency + size * self.per_byte)
        sent = 2 * (count - 1) / count * size
        return min(tree, (rounds + count - 1) * self.latency + sent * self.per_byte)

    def of(self, messages, count):
        """Seconds of the messages of a step, as `OwnWork.messages` lists them."""
        return sum(number * getattr(self, kind)(count, size) for kind, size, number in messages)


def fitted(sums):
    """The MessageCost by which sums over two processes take the measured seconds.

    sums: [floats, seconds] pairs. A sum over two takes 2 latency + size per_byte in the model; the
    squares of relative errors are least, both numbers are not negative.
    """
    size, seconds = 4.0 * np.array([floats for floats, _ in sums]), np.array([s for _, s in sums])
    matrix = np.stack([2 / seconds, size / seconds], axis=1)
    scale = np.linalg.norm(matrix, axis=0)
    return MessageCost(*(nnls(matrix / scale, np.ones(len(sums)))[0] / scale).tolist())
