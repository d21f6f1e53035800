"""Eigenvalues of their own for KFC's eigenvectors: EKFAC."""

import numpy as np

from kfcnet.curvature.eigenbasis import (
    EigenbasisBlock,
    damped_reciprocals,
    product_eigenvalues,
    rotate,
)
from kfcnet.curvature.matrices import fold, hadamard


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
        sums = super().update_factors(decay)
        if not self.has_inverses:
            return sums
        # The mean over the first passes, the running average once that has come to its length.
        decay = min(decay, self.passes / (self.passes + 1))
        fold(self.ops, self.moments, self._moments_of_pass(), decay)
        self.passes += 1
        return [*sums, self.moments]

    def _moments_of_pass(self):
        """The mean of (Q_G^T DW Q_O)^2 over the examples of the layer's latest sampled pass, or
        this process's part of it.
        """
        ops, layer = self.ops, self.layer
        squares, gradient = ops.zeros(self.moments.shape), ops.empty(self.moments.shape)
        M = len(layer.derivatives)
        for m in range(M):
            ops.conv_backward_weights(
                layer.inputs[m : m + 1],
                layer.derivatives[m : m + 1],
                *layer.window,
                scale=ops.ranks.whole(M) ** -0.5,
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


def _moments_in_new_basis(ops, moments, input_bases, derivative_bases):
    """The diagonal, in the new basis, of the block that is diagonal in the old one; (old, new).

    sum over (i, p) of (q'_G . q_G,i)^2 moments[i, p] (q'_O . q_O,p)^2: squares of cosines, so that
    the trace stays and nothing becomes negative.
    """
    squares = []
    for old, new in (derivative_bases, input_bases):
        cosines = ops.matmul(new, old, transpose_a=True)
        squares.append(hadamard(ops, cosines, cosines))
    outputs, inputs = squares
    return ops.matmul(ops.matmul(outputs, moments), inputs, transpose_b=True)
