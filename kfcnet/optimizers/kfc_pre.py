"""KFC-pre: SGD with the approximate natural gradient in place of the gradient (appendix B.1)."""

from kfcnet.curvature.structures import build_block
from kfcnet.optimizers.base import ScheduledOptimizer, Step
from kfcnet.optimizers.kronecker import KroneckerOptimizer


class KfcPre(KroneckerOptimizer, ScheduledOptimizer):
    """The algorithm that all of the paper's reported results come from. For each mini-batch:

        every T_s updates: Omega, Gamma <- running averages of the mini-batch's factors   Eq. 23
        every T_f updates: their inverses, damped with lambda + gamma                     Eq. 21
        g <- gradient of h, the mean loss plus lambda/2 |weights|^2
        n <- [F^(gamma)]^-1 g, the natural gradient, layer by layer                       Eq. 22
        v <- -alpha n, times min(1, sqrt(C / nu)) for nu = v^T F v + lambda |v|^2
        velocity <- mu velocity + v
        theta <- theta + velocity
        average <- xi average + (1 - xi) theta

    | paper  | setting             | paper | setting                                  |
    |--------|---------------------|-------|------------------------------------------|
    | T_s    | `statistics_period` | alpha | `learning_rate`                          |
    | T_f    | `inverse_period`    | mu    | `momentum`                               |
    | lambda | `weight_decay`      | C     | `clip`                                   |
    | gamma  | `damping`           | xi    | exp(-batch_size / `averaging_timescale`) |
    """

    def decide(self, examples):
        """(decay of the statistics that are due or None, whether an inversion is due)."""
        due = self.steps + 1
        decay = None
        if due % self.config.statistics_period == 0:
            decay = self._factor_decay(examples)
        self._take_due_inverses()
        return decay, due % self.config.inverse_period == 0

    def update(self, batch, statistics_decay, invert):
        """The algorithm. The host inverts, and computes the statistics of blocks that cannot be
        CAPTURED.
        """
        predictive, dz, totals = self._forward(batch)
        if statistics_decay is not None:
            if all(block.CAPTURED for block in self.blocks):
                self._update_statistics(predictive, statistics_decay)
            else:
                yield lambda: self._update_statistics(predictive, statistics_decay)
        if invert:
            yield self._invert
        self._backward(dz, totals)
        with self.phase("preconditioning"):
            self._natural_gradient()
        clip_scale = nu = None
        if self.config.clip is not None:
            with self.phase("clip"):
                clip_scale, nu = self._clip_scale(predictive)
        self.running_sums.add(self.step_counter, totals, clip_scale, nu)
        self._move(self.direction, clip_scale, self.ops.ranks.whole(batch.size))
        self.ops.advance(self.step_counter)
        return Step(totals, clip_scale)

    def _clip_scale(self, predictive):
        """(min(1, sqrt(C / nu)), nu) for nu = v^T F v + lambda |v|^2; (1,) each.

        v = -alpha n is the step. F is the exact Fisher matrix, not the Kronecker one, on the first
        `clip_fraction` of the mini-batch. v^T F v is about twice the KL divergence between the
        predictions before and after the step, lambda |v|^2 the share of the penalty.

        As published, nu is blind to examples that are predicted wrongly with certainty: their F_R
        vanishes with p(1 - p), and so does their share of Gamma, but not their gradient. On a
        training set that is fitted, such an example can move everything by alpha g / (lambda +
        gamma) past a silent clip, and the run diverge. Weight decay keeps predictions from becoming
        so certain, damping bounds the step; a lower rate only delays it.
        """
        c = self.config
        m = self.ops.ranks.part(c.clip_fraction, len(predictive))
        tangent = self.network.tangent(self.direction, m)
        along_n = self.quadratic(predictive, tangent, self.direction)  # nu is alpha^2 times that
        return self.ops.clip_scale(along_n, self.learning_rate_on_device, c.clip)

    def _invert(self):
        """Invert now, or begin to and adopt the inverses `inverse_delay` updates later."""
        c = self.config
        with self.phase("inverses"):
            if c.inverse_delay:
                self._begin_inverses(self.steps + c.inverse_delay, c.inverse_on == "host")
            else:
                self._update_inverses()

    def _block(self, layer, weight_decay):
        c = self.config
        return build_block(c.structure, layer, self.ops, weight_decay, c.tikhonov)
