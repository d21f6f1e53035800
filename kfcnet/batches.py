"""Mini-batches: which examples make one up, and how it comes to the device."""

from typing import Any, NamedTuple

import numpy as np

from kfcnet.philox import SHUFFLE, permutation

EVALUATED = 256  # examples that a pass without training takes at a time


class Batch(NamedTuple):
    """A mini-batch on the device: inputs (M, H, W, C), targets (M,) int32 or (M, C).

    Where several processes share it, M are those of this one: see kfcnet/ranks.py.
    """

    inputs: Any
    targets: Any

    @property
    def size(self):
        """M."""
        return len(self.inputs)


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
        return np.concatenate(
            [
                order[max(0, begin - epoch * self.examples) : end - epoch * self.examples]
                for epoch, order in self._permutations.items()
            ]
        )

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
        return permutation(self.seed, SHUFFLE, epoch, self.examples)


class Examples:
    """Images and labels of one part of a data set, turned into mini-batches on the device."""

    def __init__(self, ops, images, labels, mean, input_scale, reconstructs=False):
        """images uint8 (N, H, W, C), on a CPU also float32, labels int32 (N,); inputs are
        (pixel - mean) / input_scale.

        reconstructs: whether the targets are the inputs (M, H*W*C) in place of the labels.
        """
        self.ops, self.images, self.labels = ops, ops.to_device(images), ops.to_device(labels)
        self.reconstructs = reconstructs
        self.mean, self.scale = ops.asarray(mean), 1 / input_scale
        self._gathered = ops.captured(self.gather)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        """The Batch of the examples `indices` (M,); on a GPU the next one may overwrite it."""
        return self._gathered(indices)

    def batches(self, indices):
        """The examples `indices` (n,) in Batches of an evaluation's size, one after the other."""
        for begin in range(0, len(indices), EVALUATED):
            yield self.batch(indices[begin : begin + EVALUATED])

    def gather(self, indices, batch=None, step=0):
        """The Batch of the examples `indices` (M,), or of a part: see Primitives.gather."""
        labels = None if self.reconstructs else self.labels
        inputs, targets = self.ops.gather(
            self.images, labels, indices, self.mean, self.scale, batch, step
        )
        return Batch(inputs, inputs.reshape(len(inputs), -1) if labels is None else targets)


class Loader:
    """The mini-batches of a BatchSequence, by the number of their step.

    `batch` takes one's indices to the device. `draw` finds them there, so that drawing can be part
    of a captured graph: the orders of the epochs that a mini-batch can touch lie on the device as
    a ring, and nothing is moved there between two starts of an epoch. Of a mini-batch, which has
    `size` examples, both take this process's share only.
    """

    def __init__(self, examples, batch_size, seed):
        self.examples, self.size, self.ranks = examples, batch_size, examples.ops.ranks
        self.sequence = BatchSequence(len(examples), batch_size, seed)
        self._held = [None] * (1 + -(-self.size // len(examples)))  # epochs, in their places
        self._ring = examples.ops.to_device(np.zeros(len(self._held) * len(examples), np.int64))

    def batch(self, step):
        """The Batch of a step; on a GPU the next one may overwrite it."""
        return self.examples.batch(self.ranks.share(self.sequence.indices(step)))

    def provide(self, step):
        """Let the ring hold what the batch of `step` needs; before every `draw`."""
        N = len(self.examples)
        for epoch in self.sequence.epochs(step):
            place = epoch % len(self._held)
            if self._held[place] != epoch:
                self.examples.ops.write(
                    self._ring[place * N : (place + 1) * N], self.sequence.order(epoch)
                )
                self._held[place] = epoch

    def draw(self, step):
        """The Batch of a step, a number or a counter on the device: beside the work before the
        first pass through the network.
        """
        with self.examples.ops.beside():
            return self.examples.gather(self._ring, self.size // self.ranks.count, step)
