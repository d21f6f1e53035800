"""KFC-pre: SGD with the approximate natural gradient in place of the gradient (appendix B.1)."""

from kfcnet.curvature.delayed_inversions import DelayedInversions
from kfcnet.curvature.inversions_in_step import InversionsInStep
from kfcnet.curvature.structures import build_block
from kfcnet.optimizers.base import ScheduledOptimizer, Step
from kfcnet.optimizers.kronecker import KroneckerOptimizer

# Of `damping: auto`, chosen by the measurements of docs/settings.md:
LEAST_DAMPING = 1e-3  # the paper's
RATE_OVER_DAMPING = 3  # the longest step, in gradients, where F vanishes
POLYAK_SHARE = 4  # 1 / c of the Polyak step


class KfcPre(KroneckerOptimizer, ScheduledOptimizer):
    """The algorithm that all of the paper's reported results come from. For each mini-batch:

        every T_s updates: Omega, Gamma <- running averages of the mini-batch's factors   Eq. 23
        every T_f updates: their inverses, damped with lambda + gamma                     Eq. 21
        g <- gradient of h, the mean loss plus lambda/2 |weights|^2
        n <- [F^(gamma)]^-1 g, the natural gradient, layer by layer                       Eq. 22
        v <- -alpha n, times min(1, sqrt(C / nu)) for nu = v^T F v + lambda |v|^2
        with damping: auto, besides v times min(1, 4 (1 - mu) h / -g^T v), where g^T v < 0, and
            gamma = max(1e-3, alpha_0 / 3), alpha_0 being the rate before its schedule
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

    def __init__(self, network, loss, config):
        super().__init__(network, loss, config)
        self.inversions = None  # as a part of the step, where the device can and none is put off
        if not config.inverse_delay and InversionsInStep.is_possible(self.ops, self.blocks):
            self.inversions = InversionsInStep(self.ops, self.blocks, self.factor_damping)
        on_host = config.inverse_on == "host"
        self.delayed = DelayedInversions(self.ops, self.blocks, self.owners, on_host)

    @property
    def has_polyak_bound(self):
        """Whether steps are bounded by what they promise, besides the clip."""
        return self.config.damping == "auto"

    def _initial_factor_damping(self):
        """The setting, or of `auto` a third of the learning rate, but not below the paper's."""
        c = self.config
        if not self.has_polyak_bound:
            return c.damping
        return max(LEAST_DAMPING, c.learning_rate / RATE_OVER_DAMPING)

    def decide(self, examples):
        """(decay of the statistics that are due or None, whether an inversion is due)."""
        due = self.steps + 1
        decay = None
        if due % self.config.statistics_period == 0:
            decay = self._factor_decay(examples)
        if delayed := self.delayed.take_due(self.steps):
            with self.phase("inverses"):
                self._adopt(delayed)
        return decay, due % self.config.inverse_period == 0

    def update(self, batch, statistics_decay, invert):
        """The algorithm. The host inverts where the step itself cannot, and computes the statistics
        of blocks that cannot be CAPTURED.
        """
        predictive, dz, totals = self._forward(batch)
        examples = self.ops.ranks.whole(batch.size)
        if statistics_decay is not None:
            if all(block.CAPTURED for block in self.blocks):
                self._update_statistics(predictive, statistics_decay)
            else:
                yield lambda: self._update_statistics(predictive, statistics_decay)
        if invert and self.inversions:
            with self.phase("inverses"), self.ops.beside():  # joined by the gradient
                self.inversions.invert()
        elif invert:
            yield self._invert
        self._objective_gradient(dz, totals)
        with self.phase("preconditioning"):
            self._natural_gradient()
        clip_scale = nu = None
        with self.phase("clip"):
            if self.config.clip is not None:
                clip_scale, nu = self._clip_scale(predictive)
            if self.has_polyak_bound:
                clip_scale = self._polyak_scale(clip_scale, totals, examples)
        counted = self.running_sums.of(self.step_counter, totals, clip_scale, nu)
        self._move(self.direction, counted, examples)
        return Step(totals, clip_scale)

    def read_sums(self):
        if self.inversions:
            self.inversions.tell(self.steps)
        return super().read_sums()

    def _clip_scale(self, predictive):
        """(min(1, sqrt(C / nu)), nu) for nu = v^T F v + lambda |v|^2; (1,) each.

        v = -alpha n is the step. F is the exact Fisher matrix, not the Kronecker one, on the first
        `clip_fraction` of the mini-batch. v^T F v is about twice the KL divergence between the
        predictions before and after the step, lambda |v|^2 the share of the penalty.

        nu is blind to examples that are predicted wrongly with a probability near 1: their F_R
        vanishes with p(1 - p), and so does their share of Gamma, but not their gradient. On a
        training set that is fitted, such an example can move everything by alpha g / (lambda +
        gamma) past a silent clip, and the run diverge. Weight decay keeps predictions from becoming
        so certain, damping bounds the step; a lower rate only delays it. `_polyak_scale` sees it.
        """
        c = self.config
        m = self.ops.ranks.part(c.clip_fraction, len(predictive))
        with self.ops.beside():
            decay_form = self.decay_form(self.direction)
        tangent = self.network.tangent(self.direction, m)
        self.ops.join()
        along_n = self.quadratic(predictive, tangent, decay_form)  # nu is alpha^2 times that
        return self.ops.clip_scale(along_n, self.learning_rate_on_device, c.clip)

    def _polyak_scale(self, scale, totals, examples):
        """min(scale, 4 (1 - mu) h / (alpha g^T n)) (1,): the Polyak step as the longest one.

        h is never negative. A step to the minimum of a quadratic lowers it by -g^T v / 2, so that
        one with -g^T v above 2 h believes in a minimum below zero: such steps come where F vanishes
        and the gradient does not. Momentum adds 1 / (1 - mu) of them up. Loizou et al. (2021) bound
        the steps of SGD so, with the gradient in place of n and c = 1/2. Its steps seldom point
        one way: c = 1/2 halves most updates of sound runs too, c = 1/4 fewer (docs/settings.md).
        """
        network = self.network
        return self.ops.polyak_scale(
            scale,
            totals,
            examples,
            self.decay_form(network.theta),
            self.ops.dot(network.gradient, self.direction),
            self.learning_rate_on_device,
            POLYAK_SHARE * (1 - self.config.momentum),
        )

    def _invert(self):
        """Invert now, or begin to and adopt the inverses `inverse_delay` updates later."""
        c = self.config
        with self.phase("inverses"):
            if c.inverse_delay:
                self.delayed.begin(self.steps + c.inverse_delay, self.factor_damping)
            else:
                self._update_inverses()

    def _block(self, layer, weight_decay):
        c = self.config
        return build_block(c.structure, layer, self.ops, weight_decay, c.tikhonov)

    def state(self):
        return {**super().state(), "begun": self.delayed.state()}

    def load_state(self, state):
        super().load_state(state)
        # Older states have no such key: no inversion was ever under way.
        self.delayed.load_state(state.get("begun"), self.factor_damping)
