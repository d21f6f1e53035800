"""Other structures of a layer's Fisher block: which assumptions they add to KFC's or drop.

The paper reads earlier methods as structured approximations of the Fisher matrix (its section 4.2
and appendix C). Each structure here starts from the same running averages as KFC, so that a
comparison shows what an assumption loses; none is written to be cheaper than KFC.
"""

import numpy as np

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.eigenbasis import (
    EigenbasisBlock,
    damped_reciprocals,
    product_eigenvalues,
    rotate,
)
from kfcnet.curvature.scale_shift import ScaleShiftBlock


class DiagonalBlock(KroneckerBlock):
    """KFC, and derivatives of different weights uncorrelated: diag(Omega) and diag(Gamma).

    The co-ordinatewise methods' structure (LeCun et al. 1998, Adagrad, RMSProp, Adam).
    """

    def project(self, ops, Omega, Gamma):
        return _diagonal(ops, Omega), _diagonal(ops, Gamma)


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
        return _masked(ops, same, Omega) + _masked(ops, other, means), Gamma

    def _parts(self):
        """(P, P) NumPy arrays: one where Omega stays, and beta(d, d') / (beta(d) beta(d'))."""
        kernel, J = self.layer.window[0], self.layer.input_shape[2]
        beta = self.ops.to_numpy(location_counts(self.ops, self.layer))
        seen = beta.diagonal().clip(min=1)  # an offset that never meets the image has row zero
        offsets = np.concatenate([[0], 1 + np.repeat(np.arange(kernel**2), J)])
        same = (offsets[:, None] == offsets) | (offsets[:, None] == 0) | (offsets == 0)
        scale = (beta / np.outer(seen, seen))[np.ix_(offsets, offsets)]
        return same, np.where(same, 0, scale)


class WhiteBlock(KroneckerBlock):
    """KFC, and white derivatives (WD): Gamma = (tr Gamma / I) * identity.

    The structure of projected natural gradient (Desjardins et al. 2015), which whitens each
    layer's activations; together with SUA it is Theorem 4.
    """

    def project(self, ops, Omega, Gamma):
        return Omega, _identity(ops, len(Gamma)) * (ops.trace(Gamma) / len(Gamma))


class EigenvalueCorrectedBlock(EigenbasisBlock):
    """KFC's eigenvectors, eigenvalues of their own: EKFAC (George et al. 2018), not the paper's.

    With Omega = Q_O diag(d_O) Q_O^T and Gamma = Q_G diag(d_G) Q_G^T, KFC's eigenvalues are
    d_G d_O^T (I, P). In their place stand the second moments of each example's own gradient DW
    (I, P) in that basis,

        moments = E[ (Q_G^T DW Q_O)^2 ]    element by element,

    for which IAD, SH and SUD are not needed: of all matrices with these eigenvectors this is the
    one nearest to the exact block in the Frobenius norm. Damping adds c to every eigenvalue.

    The moments follow every sampled pass, the basis and the damped moments every inversion. They
    start as KFC's own eigenvalues; the first pass replaces them.
    """

    FACTORS = "Omega", "Gamma", "input_basis", "derivative_basis", "moments"
    INVERSES = "input_basis", "derivative_basis", "inverse_values", "moments"
    CAPTURED = False  # it counts its passes

    def __init__(self, layer, ops, weight_decay=0.0):
        super().__init__(layer, ops, weight_decay)
        self.moments = ops.zeros(layer.weight_shape)
        self.passes = 0  # sampled passes that the moments have seen

    def update_factors(self, decay):
        super().update_factors(decay)
        if self.has_inverses:
            # The mean over the first passes, the running average once that has come to its length.
            decay = min(decay, self.passes / (self.passes + 1))
            moments = self.ops.zeros(self.moments.shape)
            self.ops.axpy(decay, self.moments, moments)
            self.ops.axpy(1 - decay, self._moments_of_pass(), moments)
            self.ops.write(self.moments, moments)
            self.passes += 1

    def _moments_of_pass(self):
        """The mean of (Q_G^T DW Q_O)^2 over the examples of the layer's latest sampled pass."""
        ops, layer = self.ops, self.layer
        squares, gradient = ops.zeros(self.moments.shape), ops.empty(self.moments.shape)
        M = len(layer.derivatives)
        for m in range(M):
            ops.conv_backward_weights(
                layer.inputs[m : m + 1],
                layer.derivatives[m : m + 1],
                *layer.window,
                scale=M**-0.5,
                out=gradient,
            )
            rotated = rotate(ops, gradient, self.input_basis, self.derivative_basis)
            ops.multiply_add(rotated, rotated, squares)
        return squares

    def invert(self, c, ops, Omega, Gamma, input_basis, derivative_basis, moments):
        input_values, new_input_basis = ops.eigh(Omega)
        derivative_values, new_derivative_basis = ops.eigh(Gamma)
        if self.passes:
            moments = _moments_in_new_basis(
                ops,
                moments,
                (input_basis, new_input_basis),
                (derivative_basis, new_derivative_basis),
            )
        else:
            moments = product_eigenvalues(derivative_values, input_values)
        reciprocals = damped_reciprocals(ops, moments, c)
        return new_input_basis, new_derivative_basis, reciprocals, moments

    def matrix(self):
        basis = np.kron(
            self.ops.to_numpy(self.derivative_basis), self.ops.to_numpy(self.input_basis)
        )
        return basis * self.ops.to_numpy(self.moments).ravel() @ basis.T

    def state(self):
        return {**super().state(), "passes": self.passes}

    def load_state(self, state):
        super().load_state(state)
        self.passes = int(state["passes"])


STRUCTURES = {
    "kfc": KroneckerBlock,
    "diagonal": DiagonalBlock,
    "sua": SuaBlock,
    "white": WhiteBlock,
    "ekfc": EigenvalueCorrectedBlock,
}


def build_block(structure, layer, ops, weight_decay=0.0):
    """The block of a weighted layer, which is exact for a learned scale and shift.

    Raises ValueError for an unknown structure.
    """
    if structure not in STRUCTURES:
        raise ValueError(
            f"optimizer.structure: {structure!r} is not one of {', '.join(STRUCTURES)}"
        )
    return block_class(layer, STRUCTURES[structure])(layer, ops, weight_decay)


def block_class(layer, kronecker):
    """The class of a layer's block: the one that it names, which may be the given `kronecker`."""
    return {"kronecker": kronecker, "scale_shift": ScaleShiftBlock}[layer.fisher_block]


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


def _identity(ops, n):
    return ops.asarray(np.eye(n))


def _masked(ops, mask, matrix):
    """mask * matrix, element by element."""
    out = ops.zeros(matrix.shape)
    ops.multiply_add(mask, matrix, out)
    return out


def _diagonal(ops, matrix):
    return _masked(ops, _identity(ops, len(matrix)), matrix)


def _moments_in_new_basis(ops, moments, input_bases, derivative_bases):
    """The diagonal, in the new basis, of the block that is diagonal in the old one; (old, new).

    sum over (i, p) of (q'_G . q_G,i)^2 moments[i, p] (q'_O . q_O,p)^2: squares of cosines, so that
    the trace stays and nothing becomes negative.
    """
    squares = []
    for old, new in (derivative_bases, input_bases):
        cosines = ops.matmul(new, old, transpose_a=True)
        squares.append(_masked(ops, cosines, cosines))
    outputs, inputs = squares
    return ops.matmul(ops.matmul(outputs, moments), inputs, transpose_b=True)
