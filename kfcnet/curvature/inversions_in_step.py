"""Inversions of all blocks at once within a captured step: the host neither waits nor acts."""

import itertools

import numpy as np


class InversionsInStep:
    """The factors of all blocks in one array, their inverses in another, for `adopt_inverses`.

    Where a layer's damped factors are not positive definite the device keeps its old inverses and
    counts; the host learns of it when it reads the device for other reasons: `tell`.
    """

    def __init__(self, ops, blocks, damping):
        """damping: gamma, to which each block adds its layer's weight decay."""
        self.ops, self.blocks, self.damping = ops, blocks, damping
        pairs = [zip(block.FACTORS, block.INVERSES, strict=True) for block in blocks]
        names = [(block, *pair) for block, both in zip(blocks, pairs, strict=True) for pair in both]
        self.sides = tuple(len(getattr(block, factor)) for block, factor, _ in names)
        ends = list(itertools.accumulate(side**2 for side in self.sides))
        self.factors, self.inverses = ops.zeros((ends[-1],)), ops.zeros((ends[-1],))
        for (block, *both), side, end in zip(names, self.sides, ends, strict=True):
            for name, flat in zip(both, (self.factors, self.inverses), strict=True):
                block.place(name, flat[end - side**2 : end].reshape(side, side))
        self.dampings = ops.asarray(np.array([block.total_damping(damping) for block in blocks]))
        self.failures = ops.to_device(np.zeros(len(blocks), np.int32))
        self._told = np.zeros(len(blocks), np.int64)

    @staticmethod
    def is_possible(ops, blocks):
        """Whether a device can do it, for blocks of these structures."""
        alone = ops.ranks.count == 1
        return ops.adopts_inverses and alone and all(block.inverts_factors for block in blocks)

    def invert(self):
        """Adopt the inverses of the factors as they stand (Eq. 21), layer by layer."""
        self.ops.adopt_inverses(
            self.factors, self.sides, self.dampings, self.inverses, self.failures
        )

    def tell(self, step):
        """Warn of the inversions that failed since the latest call, before `step`; waits."""
        failures = self.ops.to_numpy(self.failures).astype(np.int64)
        for block, count in zip(self.blocks, failures - self._told, strict=True):
            block.tell_failures(int(count), self.damping, step)
        self._told = failures
