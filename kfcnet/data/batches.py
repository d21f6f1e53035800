"""Which examples make up each mini-batch."""

import numpy as np

from kfcnet.philox import SHUFFLE, words


class BatchSequence:
    """Mini-batches cut from an endless sequence of shuffled epochs, straddling their borders.

    Batch `step` holds positions step*batch_size ... (step+1)*batch_size - 1 of that sequence, so
    every batch is full and any of them can be asked for at any time: resuming needs no state.
    """

    def __init__(self, examples, batch_size, seed):
        """Raises ValueError where `examples` or `batch_size` is not positive."""
        for name, value in (("examples", examples), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self._permutations = {}

    def indices(self, step):
        """Examples of batch `step` (counted from 0): int64 (batch_size,)."""
        begin, end = self._positions(step)
        # Only these are kept; `order` still finds those of the batch before.
        self._permutations = {epoch: self.order(epoch) for epoch in self.epochs(step)}
        return np.concatenate([
            order[max(0, begin - epoch * self.examples) : end - epoch * self.examples]
            for epoch, order in self._permutations.items()
        ])

    def _positions(self, step):
        return step * self.batch_size, (step + 1) * self.batch_size

    def epochs(self, step):
        """Numbers of the epochs that batch `step` takes examples from."""
        begin, end = self._positions(step)
        return range(begin // self.examples, (end - 1) // self.examples + 1)

    def order(self, epoch):
        """The examples as one epoch takes them, int64 (examples,): sorted by a random word each."""
        if epoch in self._permutations:
            return self._permutations[epoch]
        return np.argsort(words(self.seed, SHUFFLE, epoch, self.examples), kind="stable")
