"""Hessian-free optimization (Martens 2010) with KFC as the preconditioner (section 3.2)."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from kfcnet.curvature.operators import FisherOperator
from kfcnet.optimizers.base import Step, check_batch
from kfcnet.optimizers.levenberg_marquardt import LevenbergMarquardt
from kfcnet.ranks import of_all

HALVINGS = 5  # of a step that raises the objective, before it is given up


class HessianFree(LevenbergMarquardt):
    """Each step minimises M by conjugate gradients on products with the exact Fisher matrix.

    The gradient is the mini-batch's, the Fisher matrix that of its first part. The step is halved
    while it raises the mini-batch's objective; `learning_rate` is the share that is left. SciPy
    works on the host with vectors of theta's size, whatever the device.
    """

    def _has_factors(self):
        return self.config.preconditioner == "kfc"

    def step(self, batch):
        check_batch(batch)
        M, due = self.ops.ranks.whole(batch.size), self.steps + 1
        with self.phase("gradient"):
            predictive, dz, totals = self._forward(batch)
        if self.blocks:
            self._update_preconditioner(predictive, M, due)
        with self.phase("gradient"):
            self._objective_gradient(dz, totals)
            before = self.objective(totals, self.network.theta, M)
        with self.phase("preconditioning"):
            update, change = self._solve(batch)
        with self.phase("clip"):
            scale = self._line_search(batch, update, before, change)
        with self.phase("gradient"):
            self.ops.write(self.direction, -update)
            self._apply(scale, 0.0, totals, M)
        return Step(totals, None)

    def _update_preconditioner(self, predictive, M, due):
        if due % self.config.statistics_period == 0:
            self._update_statistics(predictive, self._factor_decay(M))
        if due % self.config.inverse_period == 0:
            self.factor_damping = self.damping
            with self.phase("inverses"):
                self._update_inverses()

    def _solve(self, batch):
        """(d (n,), M(d) - M(0)) after at most `cg_iterations` steps of conjugate gradients.

        Raises FloatingPointError where a number is not finite.
        """
        c = self.config
        m = self.ops.ranks.part(c.fisher_fraction, batch.size)
        curvature = FisherOperator(
            self.network,
            self.loss,
            batch.inputs[:m],
            self.decay_vector,
            self.damping,
            step=self.steps,
        )
        to_numpy = self.ops.to_numpy
        gradient = to_numpy(self.network.gradient).astype(np.float64)
        d, _ = cg(
            curvature,
            -gradient,
            x0=c.warm_start * to_numpy(self.velocity),
            maxiter=c.cg_iterations,
            atol=c.cg_tolerance * np.linalg.norm(gradient),
            M=self.preconditioner() if self.blocks else None,
        )
        change = float(gradient @ d + d @ (curvature @ d) / 2)
        if not np.isfinite(change):  # no share of such a step, not even none of it, is a number
            raise of_all(FloatingPointError("the quadratic model of the step is not finite"))
        return d, change

    def preconditioner(self):
        """The inverse of KFC's damped matrix as a LinearOperator, for SciPy's solvers."""

        def precondition(v):
            out = self.ops.zeros(self.network.theta.shape)
            self._precondition(self.ops.asarray(np.ravel(v)), out)
            return self.ops.to_numpy(out)

        n = len(self.network.theta)
        return LinearOperator(
            (n, n), matvec=precondition, rmatvec=precondition, dtype=self.ops.dtype
        )

    def _line_search(self, batch, update, before, change):
        """The first of 1, 1/2, 1/4 ... times the update that does not raise the objective, or zero.

        The damping is adapted by what the whole update did.
        """
        ops, theta = self.ops, self.network.theta
        start, d = ops.copy(theta), ops.asarray(update)
        for halvings in range(HALVINGS + 1):
            scale = 0.5**halvings
            ops.axpy(scale, d, theta)
            actual_change = self._objective_after(batch, self.steps) - before
            ops.write(theta, start)
            if halvings == 0:
                self._adapt_damping(actual_change, change, updates=1)
            if actual_change <= 0:
                return scale
        return 0.0
