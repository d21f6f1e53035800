"""KFC-pre: SGD with the approximate natural gradient in place of the gradient (appendix B.1)."""

import math

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.optimizers.base import Optimizer, Step


class KfcPre(Optimizer):
    """The algorithm that all of the paper's reported results come from.

    `step` is its algorithm box: statistics every T_s steps, inverses every T_f, the gradient, the
    natural gradient, the clip, and a momentum step whose iterates are averaged.
    """

    def __init__(self, network, loss, config, seed=0):
        super().__init__(network, loss, config, seed)
        self.blocks = [KroneckerBlock(layer, self.ops, weight_decay) for layer, weight_decay
                       in zip(network.weighted, self.weight_decays, strict=True)]
        self.direction = self.ops.zeros(network.theta.shape)
        self.factors_at = 0  # examples seen when the factors were last updated
        self.needs_preparation = True

    def prepare(self, batches):
        """Factors and inverses at the initial parameters: the mean over all of the batches.

        Starting from an estimate on many examples, the running average has no bias to correct.
        """
        seen = 0
        for index, batch in enumerate(batches):
            M = len(batch.inputs)
            with self.phase("statistics"):
                z = self.network.forward(batch.inputs, training=True, step=index)
                predictive, _, _ = self.loss.evaluate(z, batch.targets)
                # Counted down from the top of the range: no step will ever draw these uniforms.
                self._sample_factors(predictive, 2**63 - 1 - index, decay=seen / (seen + M))
            seen += M
        with self.phase("inverses"):
            self._update_inverses()
        self.needs_preparation = False

    def step(self, batch):
        c, M = self.config, len(batch.inputs)
        due = self.steps + 1
        with self.phase("gradient"):
            predictive, dz, totals = self._forward(batch)

        if due % c.statistics_period == 0:
            with self.phase("statistics"):
                m = math.ceil(c.statistics_fraction * M)
                self._sample_factors(predictive[:m], self.steps, self._factor_decay(M))
        if due % c.inverse_period == 0:
            with self.phase("inverses"):
                self._update_inverses()

        with self.phase("gradient"):
            self._backward(dz)
        with self.phase("preconditioning"):
            self._precondition()
        clip_scale = None
        if c.clip is not None:
            with self.phase("clip"):
                clip_scale = self._clip_scale(predictive)
        with self.phase("gradient"):
            self._move(self.direction, clip_scale, M)
        return Step(totals, clip_scale)

    def _sample_factors(self, predictive, step, decay):
        """Fold the factors of one backward pass at sampled targets into the running averages."""
        self.network.backward(self.loss.sampled_gradient(predictive, step), per_example=True)
        for block in self.blocks:
            block.update_factors(decay)

    def _factor_decay(self, M):
        """exp(-(examples since the last update) / timescale), the present batch included."""
        timescale = self.config.statistics_timescale or self.config.averaging_timescale
        seen = self.examples + M
        decay = math.exp(-(seen - self.factors_at) / timescale)
        self.factors_at = seen
        return decay

    def _update_inverses(self):
        for block in self.blocks:
            block.update_inverses(self.config.damping)

    def _precondition(self):
        """direction <- [F^(gamma)]^-1 grad h, block by block (Eq. 22)."""
        views = self.network.views
        for block, gradient, out in zip(self.blocks, views(self.network.gradient),
                                        views(self.direction), strict=True):
            block.precondition(gradient, out)

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

    def state(self):
        blocks = {block.layer.name: block.state() for block in self.blocks}
        return {**super().state(), "factors_at": self.factors_at, "blocks": blocks}

    def load_state(self, state):
        super().load_state(state)
        self.factors_at = int(state["factors_at"])
        for block in self.blocks:
            block.load_state(state["blocks"][block.layer.name])
        self.needs_preparation = False
