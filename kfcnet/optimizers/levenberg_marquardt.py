"""Steps that minimise a quadratic model of the objective, damped as the model deserves trust.

    M(d) = h + g^T d + 1/2 d^T (F + diag(weight decay) + damping*I) d

with h the mini-batch's mean loss plus weight decay, g its gradient and F the exact Fisher matrix.
"""

import numpy as np

from kfcnet.optimizers.kronecker import KroneckerOptimizer
from kfcnet.ranks import of_all


def minimise_quadratic(curvature, slope):
    """(x (k,), least value) of slope^T x + 1/2 x^T curvature x, for a PSD matrix (k, k) in float64.

    Directions without curvature are left out. The matrix is scaled to a unit diagonal first, so
    that vectors of very different lengths do not count as one that vanishes. Raises
    FloatingPointError where a number is not finite.
    """
    if not (np.isfinite(curvature).all() and np.isfinite(slope).all()):
        # Where processes share a mini-batch all of them have these numbers.
        raise of_all(FloatingPointError("the quadratic model of the step is not finite"))
    diagonal = np.diag(curvature)
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1)), 0)
    scaled = np.linalg.lstsq(scale[:, None] * curvature * scale, -scale * slope, rcond=1e-6)[0]
    x = scale * scaled
    return x, float(slope @ x + x @ curvature @ x / 2)


def adapted_damping(damping, ratio, factor):
    """The Levenberg-Marquardt rule: less damping, by factor < 1, where the model does well.

    ratio: the objective's actual change over the model's. Above 3/4 damping*factor, below 1/4, or
    where there is no number, damping/factor.
    """
    if ratio > 0.75:
        return damping * factor
    return damping if ratio >= 0.25 else damping / factor


class LevenbergMarquardt(KroneckerOptimizer):
    """What K-FAC and Hessian-free optimization share: the objective and the damping's adaptation.

    `damping` is that of the model. Every step finds its own `learning_rate`, and waits for the
    device, which the numbers that decide come from.
    """

    learning_rate = 0.0  # before the first step

    def __init__(self, network, loss, config):
        super().__init__(network, loss, config)
        self.damping = config.damping

    @property
    def previous_learning_rate(self):
        """That of the latest update."""
        return self.learning_rate

    def _objective_gradient(self, dz, totals):
        """As always; raises what `step` does where the loss is not finite: what follows decides by
        numbers, and would take a NaN for a step that is not worth taking.
        """
        super()._objective_gradient(dz, totals)
        if not np.isfinite(self._read(totals)).all():
            self.ops.write(self.running_sums.nonfinite_step, self.steps)
        self.require_finite()

    def _read(self, *scalars):
        """Device scalars as a float64 array."""
        return np.array([self.ops.to_numpy(scalar)[0] for scalar in scalars], np.float64)

    def _objective_after(self, batch, step):
        """h at theta on a mini-batch, with the dropout masks of the step that led here."""
        z = self.network.forward(batch.inputs, training=True, step=step)
        totals = self.loss.evaluate(z, batch.targets).totals
        self.ops.ranks.sum(totals)
        return self.objective(totals, self.network.theta, self.ops.ranks.whole(batch.size))

    def _adapt_damping(self, actual_change, predicted_change, updates):
        """The rule above, with a factor for each of the updates since it was applied last."""
        if predicted_change < 0:
            factor = self.config.damping_decay**updates
            ratio = actual_change / predicted_change
            self.damping = max(
                adapted_damping(self.damping, ratio, factor), self.config.min_damping
            )

    def _apply(self, learning_rate, momentum, totals, examples):
        """velocity <- momentum*velocity - learning_rate*direction, and along it."""
        self.learning_rate = learning_rate
        with self._moving(examples) as averaging_decay:
            self.ops.momentum_update(
                self.network.theta,
                self.velocity,
                self.average,
                self.direction,
                learning_rate,
                momentum,
                None,
                averaging_decay,
                self.running_sums.of(self.step_counter, totals),
            )
        self._count(examples)

    STATE = ("learning_rate", "damping", "factor_damping")

    def state(self):
        return {**super().state(), **{name: getattr(self, name) for name in self.STATE}}

    def load_state(self, state):
        super().load_state(state)
        for name in self.STATE:
            setattr(self, name, float(state[name]))
