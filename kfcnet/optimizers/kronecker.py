"""What the optimizers with Kronecker factors share: statistics, inverses, preconditioning."""

import math

from kfcnet.batches import Batch
from kfcnet.curvature.size import check_memory, of_inverses
from kfcnet.curvature.structures import build_block
from kfcnet.optimizers.base import Optimizer
from kfcnet.ranks import balanced


class KroneckerOptimizer(Optimizer):
    """One block of the Fisher matrix a weighted layer, from factors at sampled targets.

    `factor_damping` is added to each layer's weight decay in Eq. 21, `direction` (n,) the natural
    gradient of the latest step. The factors start from an estimate on many examples, so that their
    running average has no bias to correct.
    """

    def __init__(self, network, loss, config):
        super().__init__(network, loss, config)
        has_factors = self._has_factors()
        layers, decays = (network.weighted, self.weight_decays) if has_factors else ([], [])
        check_memory(layers, self.ops)
        self.blocks = [
            self._block(layer, weight_decay)
            for layer, weight_decay in zip(layers, decays, strict=True)
        ]
        costs = list(map(of_inverses, layers))
        self.owners = balanced(costs, self.ops.ranks.count)  # the process that inverts each block
        # Products with factors have small results: they take as long as their sums are deep.
        self._branches = balanced([sum(layer.factor_sizes) for layer in layers], 2)
        self.direction = self.ops.zeros(network.theta.shape)
        self.factor_damping = self._initial_factor_damping()
        self.factors_at = 0  # examples seen when the factors were last updated
        self.needs_preparation = has_factors

    def _has_factors(self):
        """Whether the configured method uses the factors at all."""
        return True

    def _initial_factor_damping(self):
        return self.config.damping

    def _block(self, layer, weight_decay):
        return build_block("kfc", layer, self.ops, weight_decay, self.config.tikhonov)

    def prepare(self, batches):
        """Factors and inverses at the initial parameters: the mean over all of the batches.

        Raises ValueError where there is none, TypeError for what is no list of batches.
        """
        if isinstance(batches, Batch):
            raise TypeError("prepare: expected a list of batches, got one Batch")
        seen = 0
        for index, batch in enumerate(batches):
            M = len(batch.inputs)
            with self.phase("statistics"):
                z = self.network.forward(batch.inputs, training=True, step=index)
                predictive = self.loss.evaluate(z, batch.targets).predictive
                # Counted down from the top of the range: no step will ever draw these uniforms.
                self._sample_factors(predictive, 2**63 - 1 - index, decay=seen / (seen + M))
            seen += M
        if not seen:
            raise ValueError("batches: none given; the factors need at least one")
        with self.phase("inverses"):
            self._update_inverses()
        self.factors_at, self.needs_preparation = self.examples, False

    def _objective_gradient(self, dz, totals):
        """Fill network.gradient with the gradient of h: mean loss plus lambda/2 * |weights|^2."""
        self._loss_gradient(dz, totals)
        self.add_decay(self.network.theta, self.network.gradient)

    def _update_statistics(self, predictive, decay):
        """Update the factors from the first part of the mini-batch."""
        with self.phase("statistics"):
            m = self.ops.ranks.part(self.config.statistics_fraction, len(predictive))
            self._sample_factors(predictive[:m], self.step_counter, decay)

    def _sample_factors(self, predictive, step, decay):
        """Update the running averages with the factors of one backward pass at sampled targets."""
        self.network.backward(self.loss.sampled_gradient(predictive, step), per_example=True)
        sums = [array for block in self.blocks for array in block.update_factors(decay)]
        self.ops.ranks.sum(*sums)

    def _factor_decay(self, M):
        """exp(-(examples since the last update) / timescale), the present batch included."""
        since = self.examples + M - self.factors_at
        return math.exp(-since / self.config.statistics_timescale)

    def _count(self, examples):
        super()._count(examples)  # a step that raised does not come here
        if self.steps % self.config.statistics_period == 0:
            self.factors_at = self.examples

    def _update_inverses(self):
        self._adopt([block.inversion(self.factor_damping) for block in self.blocks])

    def _adopt(self, inversions):
        """Let each block's owner finish its Inversion; all processes then go on with its inverses.

        Where one failed all of them keep the block's last good inverses, or raise
        numpy.linalg.LinAlgError.
        """
        ranks = self.ops.ranks
        failures = {}
        for block, owner, inversion in zip(self.blocks, self.owners, inversions, strict=True):
            if owner == ranks.rank and (failure := block.take_inverses(inversion)):
                failures[block.layer.name] = failure
        failures = {name: text for part in ranks.allgather(failures) for name, text in part.items()}
        for block, owner in zip(self.blocks, self.owners, strict=True):
            failure = failures.get(block.layer.name)
            if failure is None:
                ranks.broadcast(owner, *block.inverses())
            block.adopt(failure, self.steps)

    def _natural_gradient(self):
        """direction <- [F^(gamma)]^-1 gradient, block by block (Eq. 22), once that is known."""
        blocks = list(self._by_block(self.network.gradient, self.direction))
        branches = [], []
        for one, branch in zip(blocks, self._branches, strict=True):
            branches[branch].append(one)
        with self.ops.beside():
            self._take_natural_gradients(branches[1])
        self._take_natural_gradients(branches[0])
        self.ops.join()
        if parts := [out for block, _, out in blocks if block.is_shared]:
            self.ops.ranks.sum(*parts)

    @staticmethod
    def _take_natural_gradients(blocks):
        """Those of some (block, gradient, out)."""
        for block, gradient, out in blocks:
            take = block.precondition_rows if block.is_shared else block.natural_gradient
            take(gradient, out)

    def _precondition(self, vector, out):
        """out <- [F^(gamma)]^-1 vector, block by block, for any flat vector (n,)."""
        for block, part, result in self._by_block(vector, out):
            block.precondition(part, result)

    def _by_block(self, *vectors):
        """(block, its part (I, P) of each flat vector (n,)), one after the other.

        Raises RuntimeError before `prepare`: without inverses no parameter would move.
        """
        if self.needs_preparation:
            raise RuntimeError(
                "the factors have no first estimate yet: call prepare(batches) "
                "once, before the first step"
            )
        return zip(self.blocks, *map(self.network.views, vectors), strict=True)

    def state(self):
        blocks = {block.layer.name: block.state() for block in self.blocks}
        return {**super().state(), "factors_at": self.factors_at, "blocks": blocks}

    def load_state(self, state):
        factors_at = int(state["factors_at"])  # which fails before anything is written
        super().load_state(state)
        self.factors_at = factors_at
        for block in self.blocks:
            block.load_state(state["blocks"][block.layer.name])
        self.needs_preparation = not all(block.has_inverses for block in self.blocks)
