"""Running sums over the steps of an optimizer, kept on the device."""

from typing import NamedTuple

from kfcnet.ops.primitives import StepCount


class Reading(NamedTuple):
    """Sums over the steps since the latest `restart`.

    losses: in nats; errors: wrong examples; clipped: steps; nu: KfcPre's measure of a step before
    its clip, NaN where one of the steps had none. nonfinite_step: the first step, counted from 0,
    whose loss was not finite, or None; a restart leaves it alone.
    """

    losses: float
    errors: float
    clipped: int
    nu: float
    nonfinite_step: int | None


class RunningSums:
    """Sums over steps, and a flag that stays set: the first step with a non-finite loss.

    From then on no update moves a parameter, until `forget_nonfinite`. The flag names no layer: one
    forward pass of that step's mini-batch on the parameters, which are still those that it met,
    finds it. A reading waits for the device; between two readings nothing does. It changes nothing:
    sums are rounded at every step, so that one that started again at readings would tell when they
    fell.
    """

    def __init__(self, ops):
        self.ops = ops
        self.sums, self.nonfinite_step = ops.zeros((4,)), ops.counter(-1)

    def of(self, step, totals, clip_scale=None, nu=None):
        """The StepCount that adds a step's results here; step: its number, a counter."""
        return StepCount(totals, clip_scale, nu, step, self.sums, self.nonfinite_step)

    def read(self):
        """A Reading."""
        losses, errors, clipped, nu = self.ops.to_numpy(self.sums).tolist()
        first = int(self.ops.to_numpy(self.nonfinite_step)[0])
        return Reading(losses, errors, int(clipped), nu, None if first < 0 else first)

    def forget_nonfinite(self):
        """Lower the flag: the parameters are others now."""
        self.ops.write(self.nonfinite_step, -1)

    def restart(self, clipped=0, nu=0.0):
        """Let the sums start again, those of clipped steps and of nu from what is given."""
        self.ops.write(self.sums, self.ops.asarray([0.0, 0.0, clipped, nu]))
