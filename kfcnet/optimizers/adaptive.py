"""The co-ordinatewise baselines of section 5.2: Adagrad, RMSProp and Adam.

All scale each entry of the gradient by a running measure of its own size, and average their
iterates like the other optimizers.
"""

from kfcnet.optimizers.base import GradientMethod


class _Adaptive(GradientMethod):
    """The gradient of h, and a running measure of its entries' squares.

    With `decoupled_decay` the gradient is that of the mean loss alone, and the weights shrink by
    learning_rate * weight_decay besides (Loshchilov & Hutter 2019).
    """

    moves_by_velocity = False

    def __init__(self, network, loss, config):
        super().__init__(network, loss, config)
        self.squares = self.ops.zeros(network.theta.shape)

    def _move_along_gradient(self, counted, examples):
        self.ops.count_step(*counted)  # apart: Adam reads the step that this moves on
        with self._moving(examples) as averaging_decay:
            self._scaled_update(averaging_decay)

    def _scaled_update(self, averaging_decay):
        raise NotImplementedError

    def state(self):
        return {**super().state(), "squares": self.ops.to_numpy(self.squares).copy()}

    def load_state(self, state):
        super().load_state(state)
        self.ops.write(self.squares, state["squares"])


class Adagrad(_Adaptive):
    """Duchi et al. (2011): the root of the sum of all squared gradients."""

    def _scaled_update(self, averaging_decay):
        self.ops.adagrad_update(
            self.network.theta,
            self.squares,
            self.average,
            self.network.gradient,
            self.learning_rate_on_device,
            self.config.epsilon,
            averaging_decay,
            self.running_sums.nonfinite_step,
            self.decay_vector,
            self.config.decoupled_decay,
        )


class RMSProp(_Adaptive):
    """Tieleman & Hinton (2012): the root of a running mean of the squared gradients."""

    def _scaled_update(self, averaging_decay):
        self.ops.rmsprop_update(
            self.network.theta,
            self.squares,
            self.average,
            self.network.gradient,
            self.learning_rate_on_device,
            self.config.square_decay,
            self.config.epsilon,
            averaging_decay,
            self.running_sums.nonfinite_step,
            self.decay_vector,
            self.config.decoupled_decay,
        )


class Adam(_Adaptive):
    """Kingma & Ba (2015): running means of gradient and square, corrected for starting at zero."""

    def _scaled_update(self, averaging_decay):
        self.ops.adam_update(
            self.network.theta,
            self.velocity,
            self.squares,
            self.average,
            self.network.gradient,
            self.learning_rate_on_device,
            self.config.momentum,
            self.config.square_decay,
            self.config.epsilon,
            self.step_counter,
            averaging_decay,
            self.running_sums.nonfinite_step,
            self.decay_vector,
            self.config.decoupled_decay,
        )
