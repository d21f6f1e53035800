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

    def __init__(self, network, loss, config):
        super().__init__(network, loss, config)
        self._program = self.ops.program(self._update, *network.layers)

    def _block(self, layer, weight_decay):
        return build_block(self.config.structure, layer, self.ops, weight_decay)

    def step(self, batch):
        c, due = self.config, self.steps + 1
        decay = self._factor_decay(batch.size) if due % c.statistics_period == 0 else None
        self._take_due_inverses()
        with self.phase("gradient"):
            step = self._program(batch, decay, due % c.inverse_period == 0)
        self._count(batch.size)
        return step

    def _update(self, batch, statistics_decay, invert):
        """The algorithm box, with statistics where they have a decay; inverting it leaves to the
        host, and statistics that do not do the same every time.
        """
        predictive, dz, totals = self._forward(batch.draw(self.step_counter))
        if statistics_decay is not None:
            if all(block.RECORDABLE for block in self.blocks):
                self._update_statistics(predictive, statistics_decay)
            else:
                yield lambda: self._update_statistics(predictive, statistics_decay)
        if invert:
            yield self._invert
        self._backward(dz)
        with self.phase("preconditioning"):
            self._precondition(self.network.gradient, self.direction)
        clip_scale = nu = None
        if self.config.clip is not None:
            with self.phase("clip"):
                clip_scale, nu = self._clip_scale(predictive)
        self.tally.add(self.step_counter, totals, clip_scale, nu)
        self._move(self.direction, clip_scale, batch.size)
        self.ops.advance(self.step_counter)
        return Step(totals, clip_scale)

    def _invert(self):
        c = self.config
        with self.phase("inverses"):
            if c.inverse_delay:
                self._begin_inverses(self.steps + c.inverse_delay, c.inverse_on == "host")
            else:
                self._update_inverses()

    def _clip_scale(self, predictive):
        """(scale, nu): what takes nu = v^T F v + lambda |v|^2 to C, and nu; (1,) each.

        v is the step -learning_rate*direction, F the exact Fisher matrix, not the Kronecker one, on
        the first quarter of the mini-batch: nu is about twice the KL divergence between the
        predictions before and after the step. The scale is one where nu <= C.

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
