"""One layer's block of the approximate Fisher matrix."""

import numpy as np

from kfcnet.curvature.damping import damped_inverses, precondition
from kfcnet.curvature.factors import update_derivative_factor, update_input_factor


class KroneckerBlock:
    """Omega (P, P) and Gamma (I, I) of a weighted layer as running averages, and their inverses.

    weight_decay: the layer's lambda; the block is damped with lambda + damping (Eq. 21).
    """

    def __init__(self, layer, ops, weight_decay=0.0):
        I, P = layer.weight_shape
        self.layer, self.ops, self.weight_decay = layer, ops, weight_decay
        self.Omega, self.Gamma = ops.zeros((P, P)), ops.zeros((I, I))
        self.Omega_inv, self.Gamma_inv = ops.zeros((P, P)), ops.zeros((I, I))

    def update_factors(self, decay):
        """Fold in the layer's latest sampled pass; its m examples also choose the activations."""
        derivatives = self.layer.output_gradients
        inputs = self.layer.inputs[:len(derivatives)]
        update_input_factor(self.ops, inputs, self.layer.window, decay, self.Omega)
        update_derivative_factor(self.ops, derivatives, decay, self.Gamma)

    def update_inverses(self, damping):
        """Invert the damped factors; raises numpy.linalg.LinAlgError naming the layer."""
        try:
            self.Omega_inv, self.Gamma_inv = damped_inverses(
                self.ops, self.Omega, self.Gamma, self.weight_decay + damping)
        except np.linalg.LinAlgError as error:
            raise np.linalg.LinAlgError(f"{self.layer.name}: {error}") from None

    def precondition(self, gradient, out=None):
        """The block's share of the natural gradient (Eq. 22): (I, P) -> (I, P)."""
        return precondition(self.ops, gradient, self.Omega_inv, self.Gamma_inv, out)

    STATE = ("Omega", "Gamma", "Omega_inv", "Gamma_inv")

    def state(self):
        return {name: self.ops.to_numpy(getattr(self, name)).copy() for name in self.STATE}

    def load_state(self, state):
        for name in self.STATE:
            setattr(self, name, self.ops.asarray(state[name]))
