"""KFC-pre: SGD with the approximate natural gradient in place of the gradient (appendix B.1)."""

import math

from kfcnet.curvature.structures import build_block
from kfcnet.optimizers.base import Step
from kfcnet.optimizers.kronecker import KroneckerOptimizer


class KfcPre(KroneckerOptimizer):
    """The algorithm that all of the paper's reported results come from.

    `step` is its algorithm box: statistics every T_s steps, inverses every T_f, the gradient, the
    natural gradient, the clip, and a momentum step whose iterates are averaged.
    """

    def _block(self, layer, weight_decay):
        return build_block(self.config.structure, layer, self.ops, weight_decay)

    def step(self, batch):
        c, M = self.config, len(batch.inputs)
        due = self.steps + 1
        with self.phase("gradient"):
            predictive, dz, totals = self._forward(batch)

        if due % c.statistics_period == 0:
            with self.phase("statistics"):
                self._update_statistics(predictive)
        with self.phase("inverses"):
            self._take_due_inverses()
            if due % c.inverse_period == 0:
                if c.inverse_delay:
                    self._begin_inverses(self.steps + c.inverse_delay, c.inverse_on == "host")
                else:
                    self._update_inverses()

        with self.phase("gradient"):
            self._backward(dz)
        with self.phase("preconditioning"):
            self._precondition(self.network.gradient, self.direction)
        clip_scale = None
        if c.clip is not None:
            with self.phase("clip"):
                clip_scale = self._clip_scale(predictive)
        with self.phase("gradient"):
            self._move(self.direction, clip_scale, M)
        return Step(totals, clip_scale)

    def _clip_scale(self, predictive):
        """What takes nu = v^T F v + lambda |v|^2 of the step v = -learning_rate*direction to C.

        F is the exact Fisher matrix, not the Kronecker one, on the first quarter of the mini-batch:
        nu is about twice the KL divergence between the predictions before and after the step. One
        where nu <= C.
        """
        c, ops = self.config, self.ops
        m = math.ceil(c.clip_fraction * len(predictive))
        r = self.network.tangent(self.direction, m)
        quadratic = self.loss.fisher_quadratic(predictive[:m], r, scale=1 / m)
        ops.axpy(1.0, ops.weighted_dot(self.decay, self.direction, self.direction), quadratic)
        return ops.clip_scale(quadratic, self.learning_rate, c.clip)
