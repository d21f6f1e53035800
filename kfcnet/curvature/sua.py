"""Spatially uncorrelated activations, the assumption of Theorem 4."""

import numpy as np

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.matrices import hadamard


class SuaBlock(KroneckerBlock):
    """KFC, and spatially uncorrelated activations (SUA), as in Theorem 4.

    Activations at different locations covary no more, but their means stay: with M_d(j) the mean
    of map j over the locations that offset d sees, and beta(d, d') of Eq. 17,

        Omega[(d, j), (d', j')] = beta(d, d') M_d(j) M_d'(j')    for d != d',

    while blocks of the same offset and the homogeneous row are those of KFC. Where activations are
    stationary every M_d is the paper's M. With the means of what each offset sees the result is a
    sum of a covariance and a Gram matrix, so it is positive semi-definite for any activations.
    """

    def project(self, ops, Omega, Gamma):
        if self.layer.window[0] == 1:
            return Omega, Gamma  # there is one offset only
        same, other = (ops.asarray(part) for part in self._parts())
        row = Omega[:1]  # |T|, then beta(d) M_d(j)
        means = ops.matmul(row, row, transpose_a=True)
        return hadamard(ops, same, Omega) + hadamard(ops, other, means), Gamma

    def _parts(self):
        """(P, P) NumPy arrays: one where Omega stays, and beta(d, d') / (beta(d) beta(d'))."""
        kernel, J = self.layer.window[0], self.layer.input_shape[2]
        beta = self.ops.to_numpy(location_counts(self.ops, self.layer))
        seen = beta.diagonal().clip(min=1)  # an offset that never meets the image has row zero
        offsets = np.concatenate([[0], 1 + np.repeat(np.arange(kernel**2), J)])
        same = (offsets[:, None] == offsets) | (offsets[:, None] == 0) | (offsets == 0)
        scale = (beta / np.outer(seen, seen))[np.ix_(offsets, offsets)]
        return same, np.where(same, 0, scale)


def location_counts(ops, layer):
    """beta of Eq. 17 for a layer's window: (1 + K*K, 1 + K*K), row 0 the homogeneous one.

    Entry (d, d') counts the locations from which both offsets lie inside the image: it is the
    input factor of an image of ones.
    """
    kernel, _, _ = layer.window
    ones = np.ones((1, *layer.input_shape[:2], 1))
    counts = ops.empty((1 + kernel**2,) * 2)
    ops.patch_gram(ops.asarray(ones), *layer.window, scale=1.0, decay=0.0, out=counts)
    return counts
