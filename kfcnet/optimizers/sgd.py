"""The baseline: stochastic gradient descent with momentum and iterate averaging."""

import math

from kfcnet.optimizers.base import Optimizer, Step


class SGD(Optimizer):
    """velocity <- momentum*velocity - learning_rate*gradient; theta <- theta + velocity.

    With `nesterov` theta moves by momentum*velocity - learning_rate*gradient instead: the gradient
    is taken where momentum is about to lead (Sutskever et al. 2013).
    """

    def step(self, batch):
        with self.phase("gradient"):
            _, dz, totals = self._forward(batch)
            self._backward(dz)
            move = self._look_ahead if self.config.nesterov else self._move
            move(self.network.gradient, None, len(batch.inputs))
        return Step(totals, None)

    def _look_ahead(self, direction, _, examples):
        averaging_decay = math.exp(-examples / self.config.averaging_timescale)
        self.ops.nesterov_update(
            self.network.theta, self.velocity, self.average, direction, self.learning_rate,
            self.config.momentum, averaging_decay)
        self._finish_update(examples, averaging_decay)
