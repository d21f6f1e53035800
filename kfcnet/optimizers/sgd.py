"""The baseline: stochastic gradient descent with momentum and iterate averaging."""

from kfcnet.optimizers.base import GradientMethod


class SGD(GradientMethod):
    """velocity <- momentum*velocity - learning_rate*gradient; theta <- theta + velocity.

    With `nesterov` theta moves by momentum*velocity - learning_rate*gradient instead: the gradient
    is taken where momentum is about to lead (Sutskever et al. 2013).
    """

    @property
    def moves_by_velocity(self):
        return not self.config.nesterov

    def _move_along_gradient(self, counted, examples):
        if self.config.nesterov:
            self._look_ahead(counted, examples)
        else:
            self._move(self.network.gradient, counted, examples, self.decay_vector)

    def _look_ahead(self, counted, examples):
        with self._moving(examples) as averaging_decay:
            self.ops.nesterov_update(
                self.network.theta,
                self.velocity,
                self.average,
                self.network.gradient,
                self.learning_rate_on_device,
                self.config.momentum,
                averaging_decay,
                counted,
                self.decay_vector,
            )
