"""The Fisher block of batch normalisation's learned scale and shift."""

import numpy as np

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.damping import min_shift


class ScaleShiftBlock(KroneckerBlock):
    """The exact Fisher block of a layer y_j = shift_j + scale_j * x_j: no Kronecker product.

    With two parameters a map the block (2J, 2J) is small enough to need none of KFC's assumptions.
    It is the second moment of each example's own gradient,

        Omega = E[ g g^T ],    g = (Dshift_1, Dscale_1, Dshift_2, ...),
        Dshift_j = sum_t Dy_{j,t},    Dscale_j = sum_t Dy_{j,t} x_{j,t},

    and stands in Omega's place, with Gamma = 1 (1, 1), so that Gamma (x) Omega is the block in
    theta's order as for other layers. Damping is plain Tikhonov: Omega + c*I. What is damped,
    inverted and averaged is otherwise treated alike, whatever the structure of the other blocks.
    """

    FACTORS, INVERSES = ("Omega",), ("Omega_inv",)

    def __init__(self, layer, ops, weight_decay=0.0):
        super().__init__(layer, ops, weight_decay)
        self.Gamma, self.Gamma_inv = ops.asarray(np.ones((1, 1))), ops.asarray(np.ones((1, 1)))

    def _sides(self):
        return (*self.layer.factor_sizes, 1)

    def update_factors(self, decay):
        """Update the running average with the examples of the layer's latest sampled pass."""
        gradients, ranks = self.layer.gradients(), self.ops.ranks
        m = len(gradients)
        self.ops.gram(
            gradients.reshape(m, -1),
            scale=(1 - decay) / ranks.whole(m),
            decay=ranks.of_first(decay),
            out=self.Omega,
        )
        return [self.Omega]

    def invert(self, c, ops, Omega):
        return (ops.spd_inverse(Omega, ops.asarray([c])),)

    def _damping_floor(self, Omega, Gamma):
        floor, smallest = min_shift(self.ops, Omega)
        return floor, (smallest, 1.0)

    def shifts(self, damping):
        return 1.0, self.total_damping(damping), 0.0

    def precondition(self, gradient, out=None):
        """(J, 2) -> (J, 2)."""
        flat = out if out is None else out.reshape(1, -1)
        return super().precondition(gradient.reshape(1, -1), flat).reshape(gradient.shape)
