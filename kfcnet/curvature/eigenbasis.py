"""Damping a Kronecker product as it stands, Gamma (x) Omega + c*I, in the factors' eigenvectors.

With Omega = Q_O diag(d_O) Q_O^T and Gamma = Q_G diag(d_G) Q_G^T the eigenvectors of the product
are those of Q_G (x) Q_O, and its eigenvalues d_G d_O^T, an array of the shape of Wbar (I, P).
"""

import numpy as np

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.matrices import hadamard


def product_eigenvalues(derivative_values, input_values):
    """d_G d_O^T (I, P) from d_G (I,) and d_O (P,), without what rounding made negative."""
    d_G, d_O = (values * (values > 0) for values in (derivative_values, input_values))
    return d_G[:, None] * d_O


def damped_reciprocals(ops, values, c):
    """1 / (values + c); raises numpy.linalg.LinAlgError where that divides by zero."""
    damped = values + c
    if not (damped > np.finfo(ops.dtype).tiny).all():
        raise np.linalg.LinAlgError("an eigenvalue is zero, and weight decay + damping too")
    return 1 / damped


def rotate(ops, gradient, input_basis, derivative_basis):
    """Q_G^T gradient Q_O: the coordinates of a matrix (I, P) in the eigenvectors."""
    return ops.matmul(ops.matmul(derivative_basis, gradient, transpose_a=True), input_basis)


def eigen_solve(ops, gradient, input_basis, derivative_basis, inverse_values, out=None):
    """Q_G ((Q_G^T gradient Q_O) * inverse_values) Q_O^T, inverse_values and gradient (I, P)."""
    rotated = rotate(ops, gradient, input_basis, derivative_basis)
    scaled = hadamard(ops, inverse_values, rotated)
    return ops.matmul(ops.matmul(derivative_basis, scaled), input_basis, transpose_b=True, out=out)


class EigenbasisBlock(KroneckerBlock):
    """KFC with exact Tikhonov damping: (Gamma (x) Omega + c*I)^-1, c = weight decay + damping.

    Eq. 21 damps the factors instead, which adds pi*sqrt(c) Gamma (x) I + sqrt(c)/pi I (x) Omega to
    it too; Martens & Grosse (2015) found that this often works better.
    """

    INVERSES = "input_basis", "derivative_basis", "inverse_values"

    def _allocate_inverses(self, P, I):
        self.input_basis, self.derivative_basis = self.ops.zeros((P, P)), self.ops.zeros((I, I))
        self.inverse_values = self.ops.zeros((I, P))

    def invert(self, c, ops, Omega, Gamma):
        input_values, input_basis = ops.eigh(Omega)
        derivative_values, derivative_basis = ops.eigh(Gamma)
        values = product_eigenvalues(derivative_values, input_values)
        return input_basis, derivative_basis, damped_reciprocals(ops, values, c)

    def _diagnosis(self, c):
        return ""  # it is the product that is damped: Eq. 21's floor says nothing about it

    def precondition(self, gradient, out=None):
        return eigen_solve(
            self.ops, gradient, self.input_basis, self.derivative_basis, self.inverse_values, out
        )
