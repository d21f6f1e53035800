"""K-FAC (Martens & Grosse 2015) with KFC's factors: appendix B.2, the algorithm in full."""

from typing import NamedTuple

import numpy as np

from kfcnet.optimizers.base import Step, check_batch
from kfcnet.optimizers.levenberg_marquardt import LevenbergMarquardt, minimise_quadratic

FIRST_UPDATES = 3  # each of which inverts


class Proposal(NamedTuple):
    """Where M is least among -learning_rate*direction + momentum*velocity, and M - M(0) there."""

    learning_rate: float
    momentum: float
    change: float


class KFAC(LevenbergMarquardt):
    """The natural gradient and the previous update, combined to minimise M on the mini-batch.

    Of Martens & Grosse (2015), lambda is `damping` and gamma^2 is `factor_damping`; weight decay,
    which is lambda elsewhere in this project, is added to both. `velocity` is the previous update,
    so that learning_rate and momentum mean what they mean elsewhere, only that each step finds its
    own.
    """

    def _initial_factor_damping(self):
        given = self.config.factor_damping
        return super()._initial_factor_damping() if given is None else given

    def step(self, batch):
        check_batch(batch)
        c, M, due = self.config, self.ops.ranks.whole(batch.size), self.steps + 1
        with self.phase("gradient"):
            predictive, dz, totals = self._forward(batch)
        if due % c.statistics_period == 0:
            self._update_statistics(predictive, self._factor_decay(M))
        with self.phase("gradient"):
            self._objective_gradient(dz, totals)

        proposal = self._best_proposal(predictive, due)
        adapt = due % c.damping_period == 0
        if adapt:
            before = self.objective(totals, self.network.theta, M)
        with self.phase("gradient"):
            self._apply(proposal.learning_rate, proposal.momentum, totals, M)
        if adapt:
            with self.phase("clip"):
                after = self._objective_after(batch, step=due - 1)
                self._adapt_damping(after - before, proposal.change, c.damping_period)
        return Step(totals, None)

    def _best_proposal(self, predictive, due):
        """The Proposal of the factor damping in use; now and then the best of three."""
        c, current = self.config, self.factor_damping
        if due % c.factor_damping_period:
            return self._propose(
                predictive, current, invert=due % c.inverse_period == 0 or due <= FIRST_UPDATES
            )
        factor = c.damping_decay**c.factor_damping_period
        others = max(current * factor, c.min_damping), current / factor
        # The current one comes last: where it is the best, its inverses are in place.
        candidates = [other for other in others if other != current] + [current]
        proposals = {
            candidate: self._propose(predictive, candidate, invert=True) for candidate in candidates
        }
        best = min(candidates, key=lambda candidate: proposals[candidate].change)
        if best != candidates[-1]:
            return self._propose(predictive, best, invert=True)
        return proposals[best]

    def _propose(self, predictive, factor_damping, invert):
        """Set `direction` for a factor damping; what the model says of it."""
        self.factor_damping = factor_damping
        if invert:
            with self.phase("inverses"):
                self._update_inverses()
        with self.phase("preconditioning"):
            self._natural_gradient()
        with self.phase("clip"):
            curvature, slope = self._model(predictive, [self.direction, self.velocity])
            (along_direction, momentum), change = minimise_quadratic(curvature, slope)
        return Proposal(-along_direction, momentum, change)

    def _model(self, predictive, vectors):
        """V^T (F + diag(decay) + damping*I) V and V^T g for the vectors (n,) in V, in float64.

        F is the exact Fisher matrix on the first part of the mini-batch: tangents R(z) = J v, and
        J v_i . F_R J v_j between them.
        """
        ops, k = self.ops, len(vectors)
        m = ops.ranks.part(self.config.fisher_fraction, len(predictive))
        tangents = [self.network.tangent(v, m) for v in vectors]
        curvature = np.empty((k, k))
        for i in range(k):
            for j in range(i + 1):
                fisher, decay, identity = self._read(
                    self.fisher_form(predictive[:m], tangents[i], tangents[j]),
                    ops.weighted_dot(self.decay_vector, vectors[i], vectors[j]),
                    ops.dot(vectors[i], vectors[j]),
                )
                curvature[i, j] = curvature[j, i] = fisher + decay + self.damping * identity
        return curvature, self._read(*(ops.dot(self.network.gradient, v) for v in vectors))
