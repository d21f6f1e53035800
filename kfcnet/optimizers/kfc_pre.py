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

    def __init__(self, network, loss, config, seed=0):
        super().__init__(network, loss, config, seed)
        # What a device may record once and repeat: everything between the decisions of `step`.
        layers = network.layers
        self._forward = self.ops.program(self._forward, *layers)
        self._descend = self.ops.program(self._descend, *layers)
        if all(block.RECORDABLE for block in self.blocks):
            self._sample_statistics = self.ops.program(self._sample_statistics, *layers)

    def _block(self, layer, weight_decay):
        return build_block(self.config.structure, layer, self.ops, weight_decay)

    def step(self, batch):
        c, due = self.config, self.steps + 1
        with self.phase("gradient"):
            self.predictive, self.dz, totals = self._forward(*batch)

        if due % c.statistics_period == 0:
            with self.phase("statistics"):
                self._update_statistics(self.predictive)
        with self.phase("inverses"):
            self._take_due_inverses()
            if due % c.inverse_period == 0:
                if c.inverse_delay:
                    self._begin_inverses(self.steps + c.inverse_delay, c.inverse_on == "host")
                else:
                    self._update_inverses()

        clip_scale = self._descend()
        self._count(len(batch.inputs))
        return Step(totals, clip_scale)

    def _descend(self):
        """The gradient at the true targets, its natural gradient, the clip, and the move."""
        with self.phase("gradient"):
            self._backward(self.dz)
        with self.phase("preconditioning"):
            self._precondition(self.network.gradient, self.direction)
        clip_scale = None
        if self.config.clip is not None:
            with self.phase("clip"):
                clip_scale = self._clip_scale(self.predictive)
        with self.phase("gradient"):
            self._move(self.direction, clip_scale, len(self.predictive))
        return clip_scale

    def _clip_scale(self, predictive):
        """What takes nu = v^T F v + lambda |v|^2 of the step v = -learning_rate*direction to C.

        F is the exact Fisher matrix, not the Kronecker one, on the first quarter of the mini-batch:
        nu is about twice the KL divergence between the predictions before and after the step. One
        where nu <= C.

        As published, nu is blind to examples that are predicted wrongly with certainty: their F_R
        vanishes with p(1 - p), and so does their share of Gamma, but not their gradient. On a
        training set that is fitted, such an example can move everything by learning_rate * gradient
        / (lambda + damping) past a silent clip, and the run diverge. Weight decay keeps predictions
        from becoming so certain, damping bounds the step; a lower rate only delays it.
        """
        c, ops = self.config, self.ops
        m = math.ceil(c.clip_fraction * len(predictive))
        r = self.network.tangent(self.direction, m)
        quadratic = self.loss.fisher_quadratic(predictive[:m], r, scale=1 / m)
        ops.axpy(1.0, ops.weighted_dot(self.decay, self.direction, self.direction), quadratic)
        return ops.clip_scale(quadratic, self.rate, c.clip)
