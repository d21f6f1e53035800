"""The baseline: stochastic gradient descent with momentum and iterate averaging."""

from kfcnet.optimizers.base import Optimizer, Step


class SGD(Optimizer):
    """velocity <- momentum*velocity - learning_rate*gradient; theta <- theta + velocity."""

    def step(self, batch):
        with self.phase("gradient"):
            _, dz, totals = self._forward(batch)
            self._backward(dz)
            self._move(self.network.gradient, None, len(batch.inputs))
        return Step(totals, None)
