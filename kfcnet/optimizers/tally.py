"""What the steps of an optimizer add up on the device until somebody reads it."""

from typing import NamedTuple


class Reading(NamedTuple):
    """Sums since the reading before: of losses in nats, wrong examples, clipped steps.

    nu: the sum of the steps' nu, KfcPre's measure of a step before its clip, since the latest
    `restart`; NaN where one of them had none. nonfinite_step: the first step, counted from 0, whose
    loss was not finite, or None.
    """

    losses: float
    errors: float
    clipped: int
    nu: float
    nonfinite_step: int | None


class Tally:
    """Sums over steps, and a word that sticks: the first step whose loss was not finite.

    From then on no update moves a parameter. The word names no layer: one forward pass of that
    step's mini-batch on the parameters, which are still those that it met, finds it. A reading
    waits for the device; between two readings nothing does.
    """

    def __init__(self, ops):
        self.ops = ops
        self.sums, self.nonfinite_step = ops.zeros((4,)), ops.counter(-1)

    def add(self, step, totals, clip_scale=None, nu=None):
        """Take up a step's results, before its update; step: its number, a counter."""
        self.ops.tally(totals, clip_scale, nu, step, self.sums, self.nonfinite_step)

    def read(self):
        """A Reading; the sums then start again, all but that of nu.

        That one is rounded at every step: were it split at readings, its last digits would tell
        when they fell, and a run that went on after an interruption from one that had none.
        """
        losses, errors, clipped, nu = self.ops.to_numpy(self.sums).tolist()
        first = int(self.ops.to_numpy(self.nonfinite_step)[0])
        self.ops.write(self.sums[:3], 0.0)
        return Reading(losses, errors, int(clipped), nu, None if first < 0 else first)

    def restart(self, nu=0.0):
        """Let the sum of nu start again, or go on from that of a reading."""
        self.ops.write(self.sums[3:], nu)
