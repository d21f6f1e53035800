"""What the steps of an optimizer add up on the device until somebody reads it."""

from typing import NamedTuple


class Reading(NamedTuple):
    """Sums since the reading before: of losses in nats, wrong examples, clipped steps.

    nonfinite_step: the first step, counted from 0, whose loss was not finite, or None.
    """

    losses: float
    errors: float
    clipped: int
    nonfinite_step: int | None


class Tally:
    """Sums over steps, and a word that sticks: the first step whose loss was not finite.

    From then on no update moves a parameter, so that the layer where it began can be found. A
    reading waits for the device; between two readings nothing does.
    """

    def __init__(self, ops):
        self.ops = ops
        self.sums, self.nonfinite_step = ops.zeros((3,)), ops.counter(-1)

    def add(self, step, totals, clip_scale=None):
        """Take up a step's results, before its update; step: its number, a counter."""
        self.ops.tally(totals, clip_scale, step, self.sums, self.nonfinite_step)

    def read(self):
        """A Reading; the sums then start again."""
        losses, errors, clipped = self.ops.to_numpy(self.sums).tolist()
        first = int(self.ops.to_numpy(self.nonfinite_step)[0])
        self.ops.write(self.sums, 0.0)
        return Reading(losses, errors, int(clipped), None if first < 0 else first)
