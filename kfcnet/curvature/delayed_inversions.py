"""Inversions that run while training goes on, and are adopted some updates after they began."""


class DelayedInversions:
    """At most one inversion of all blocks under way, each begun by the process that owns the block.

    The step at which it is adopted is fixed when it begins, so that a run repeats bit for bit
    however long the work takes. A state holds the factors that it began with, and begins again.
    """

    def __init__(self, ops, blocks, owners, on_host):
        """owners: the process that inverts each block; on_host: in a thread of the host, not beside
        the step on the device.
        """
        self.ops, self.blocks, self.owners, self.on_host = ops, blocks, owners, on_host
        self._under_way = None  # (step of adoption, an Inversion of each block)

    def begin(self, adoption, damping, factors=None):
        """Start inversions, by default of the present factors, for the step `adoption`.

        damping: gamma, to which each block adds its layer's weight decay.
        """
        factors, rank = factors or [None] * len(self.blocks), self.ops.ranks.rank
        self._under_way = (
            adoption,
            [
                block.begin_inversion(damping, self.on_host, arrays)
                if owner == rank
                else block.inversion_elsewhere(damping, arrays)
                for block, owner, arrays in zip(self.blocks, self.owners, factors, strict=True)
            ],
        )

    def take_due(self, step):
        """The Inversions that are to be adopted at `step`, no longer under way; None without."""
        if not self._under_way or self._under_way[0] != step:
            return None
        (_, due), self._under_way = self._under_way, None
        return due

    def state(self):
        """{"adoption": step, "factors": {layer: {name: array}}}; {} with nothing under way."""
        if not self._under_way:
            return {}
        adoption, pending = self._under_way
        factors = {
            block.layer.name: {
                name: self.ops.to_numpy(array).copy()
                for name, array in zip(block.FACTORS, work.factors, strict=True)
            }
            for block, work in zip(self.blocks, pending, strict=True)
        }
        return {"adoption": adoption, "factors": factors}

    def load_state(self, state, damping):
        """Begin again what `state` had under way."""
        self._under_way = None
        if state:
            factors = [
                [
                    self.ops.asarray(state["factors"][block.layer.name][name])
                    for name in block.FACTORS
                ]
                for block in self.blocks
            ]
            self.begin(int(state["adoption"]), damping, factors)
