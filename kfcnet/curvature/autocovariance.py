"""Theorem 1 with empirical autocovariances: what section 3.1 warns of."""

import numpy as np

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.damping import damping_shifts
from kfcnet.curvature.matrices import fold
from kfcnet.curvature.sua import location_counts


class AutocovarianceBlock(KroneckerBlock):
    """KFC's block with estimates of the means and autocovariances plugged into Theorem 1.

    With M(j) and Omega(j, j', d) the means over all locations, and over all pairs of locations that
    are d apart,

        Omega[0, 0] = |T|,    Omega[0, (d, j)] = beta(d) M(j),
        Omega[(d, j), (d', j')] = beta(d, d') Omega(j, j', d' - d).                       Eq. 19

    On stationary activations this is what Theorem 2 estimates. On images, whose edges differ from
    their middle, it need not be positive semi-definite, and a step along an eigenvector whose
    eigenvalue stays negative after damping climbs. So the inverse here is a plain one, where
    KFC's would fail.
    """

    CAPTURED = False  # its numbers pass through the host

    def update_input_factor(self, inputs, decay):
        fold(self.ops, self.Omega, self.ops.asarray(self._plugged_in(inputs)), decay)

    def _plugged_in(self, inputs):
        """Omega (P, P) of inputs (M, H, W, J), or this process's part of it: a NumPy array."""
        M, H, W, J = inputs.shape
        whole = self.ops.ranks.whole(M)
        kernel = self.layer.window[0]
        side = 2 * kernel - 1
        # The weight gradient of a convolution with itself: sums over t of a_t a_(t+d)^T, for all d.
        sums = self.ops.empty((J, 1 + side**2 * J))
        self.ops.conv_backward_weights(
            inputs, inputs, side, 1, kernel - 1, scale=1 / whole, out=sums
        )
        sums = self.ops.to_numpy(sums).astype(np.float64)
        apart = np.abs(np.arange(side) - (kernel - 1))
        pairs = np.outer((H - apart).clip(min=1), (W - apart).clip(min=1)).ravel()
        means = sums[:, 0] / (H * W)
        covariances = sums[:, 1:].reshape(J, side**2, J).swapaxes(0, 1) / pairs[:, None, None]
        beta = self.ops.to_numpy(location_counts(self.ops, self.layer))
        row, column = np.divmod(np.arange(kernel**2), kernel)
        difference = (row - row[:, None] + kernel - 1) * side + column - column[:, None]
        blocks = beta[1:, 1:, None, None] * covariances[difference + kernel - 1]
        Omega = np.empty(self.Omega.shape)
        Omega[0, 0] = beta[0, 0] * M / whole
        Omega[0, 1:] = Omega[1:, 0] = np.outer(beta[0, 1:], means).ravel()
        Omega[1:, 1:] = blocks.swapaxes(1, 2).reshape(kernel**2 * J, -1)
        return Omega

    def invert(self, c, ops, Omega, Gamma):
        input_shift, derivative_shift = damping_shifts(ops, Omega, Gamma, c)
        shifted = (
            ops.to_numpy(factor).astype(np.float64)
            + float(ops.to_numpy(shift)[0]) * np.eye(len(factor))
            for factor, shift in ((Omega, input_shift), (Gamma, derivative_shift))
        )
        return tuple(ops.asarray(np.linalg.inv(matrix)) for matrix in shifted)
