"""The co-ordinatewise baselines of section 5.2: Adagrad, RMSProp and Adam.

All scale each entry of the gradient by a running measure of its own size, and average their
iterates like the other optimizers.
"""

import math

from kfcnet.optimizers.base import Optimizer, Step


class _Adaptive(Optimizer):
    """The gradient of h, and a running measure of its entries' squares."""

    def __init__(self, network, loss, config, seed=0):
        super().__init__(network, loss, config, seed)
        self.squares = self.ops.zeros(network.theta.shape)

    def step(self, batch):
        with self.phase("gradient"):
            _, dz, totals = self._forward(batch)
            self._backward(dz)
            M = len(batch.inputs)
            averaging_decay = math.exp(-M / self.config.averaging_timescale)
            self._update(averaging_decay)
            self._finish_update(M, averaging_decay)
        return Step(totals, None)

    def _update(self, averaging_decay):
        raise NotImplementedError

    def state(self):
        return {**super().state(), "squares": self.ops.to_numpy(self.squares).copy()}

    def load_state(self, state):
        super().load_state(state)
        self.squares[...] = self.ops.asarray(state["squares"])


class Adagrad(_Adaptive):
    """Duchi et al. (2011): the root of the sum of all squared gradients."""

    def _update(self, averaging_decay):
        self.ops.adagrad_update(
            self.network.theta, self.squares, self.average, self.network.gradient,
            self.learning_rate, self.config.epsilon, averaging_decay)


class RMSProp(_Adaptive):
    """Tieleman & Hinton (2012): the root of a running mean of the squared gradients."""

    def _update(self, averaging_decay):
        self.ops.rmsprop_update(
            self.network.theta, self.squares, self.average, self.network.gradient,
            self.learning_rate, self.config.square_decay, self.config.epsilon, averaging_decay)


class Adam(_Adaptive):
    """Kingma & Ba (2015): running means of gradient and square, corrected for starting at zero."""

    def _update(self, averaging_decay):
        self.ops.adam_update(
            self.network.theta, self.velocity, self.squares, self.average, self.network.gradient,
            self.learning_rate, self.config.momentum, self.config.square_decay,
            self.config.epsilon, self.steps + 1, averaging_decay)
