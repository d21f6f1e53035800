"""Factored Tikhonov damping of a Kronecker product, and the natural gradient it gives."""

import numpy as np


def trace_norm_pi(ops, Omega, Gamma):
    """pi of Eq. 8 in the trace norm: sqrt((tr Omega / dim) / (tr Gamma / dim)), a device scalar.

    It shares the damping between the factors so that moving a constant from one to the other
    changes nothing. One where a factor vanishes and the ratio says nothing.
    """
    input_scale = ops.trace(Omega) / len(Omega)
    derivative_scale = ops.trace(Gamma) / len(Gamma)
    defined = (input_scale > 0) & (derivative_scale > 0)
    # The roots come first: the ratio of the scales may overflow where that of their roots does not.
    input_root = (input_scale * defined + ~defined) ** 0.5
    return input_root / (derivative_scale * defined + ~defined) ** 0.5


def damping_shifts(ops, Omega, Gamma, c):
    """pi*sqrt(c) and sqrt(c)/pi (Eq. 21), what is added to Omega and Gamma; device scalars."""
    pi = trace_norm_pi(ops, Omega, Gamma)
    root = c**0.5
    return pi * root, root / pi


def damped_inverses(ops, Omega, Gamma, c):
    """Inverses of Omega + pi*sqrt(c)*I and Gamma + sqrt(c)/pi*I (Eq. 21).

    c > 0 is all of the damping: the layer's weight decay lambda plus gamma. Raises
    numpy.linalg.LinAlgError where a damped factor is not positive definite.
    """
    input_shift, derivative_shift = damping_shifts(ops, Omega, Gamma, c)
    return ops.spd_inverse(Omega, input_shift), ops.spd_inverse(Gamma, derivative_shift)


def precondition(ops, gradient, Omega_inv, Gamma_inv, out=None):
    """Gamma_inv @ gradient @ Omega_inv (Eq. 22), the natural gradient of Wbar (I, P)."""
    return ops.matmul(ops.matmul(Gamma_inv, gradient), Omega_inv, out=out)


def precondition_product(ops, derivatives, inputs, Omega_inv, Gamma_inv, out):
    """out (I, P): `precondition` of derivatives^T inputs / m, factor by factor.

    derivatives (m, I), inputs (m, P): the rows of a mini-batch that such a gradient is the mean of.
    """
    m, I = derivatives.shape
    shares = ops.empty((I,))
    ops.write(shares, 1 / m)
    derivatives = ops.matmul(ops.scale_maps(derivatives, shares), Gamma_inv)  # it is symmetric
    return ops.matmul(derivatives, ops.matmul(inputs, Omega_inv), transpose_a=True, out=out)


def damping_floor(ops, Omega, Gamma):
    """(c, smallest eigenvalues of Omega and of Gamma): the least c of Eq. 21 that is safe."""
    (input_shift, input_value), (derivative_shift, derivative_value) = (
        min_shift(ops, factor) for factor in (Omega, Gamma)
    )
    pi = float(ops.to_numpy(trace_norm_pi(ops, Omega, Gamma))[0])
    floor = max(input_shift / pi, derivative_shift * pi) ** 2
    return floor, (input_value, derivative_value)


def min_shift(ops, factor):
    """(s, smallest eigenvalue): the least s from which on factor + s*I can safely be inverted.

    In arithmetic of precision eps a Cholesky factorization of an n x n matrix succeeds once its
    smallest eigenvalue is above about n*eps times its largest one. The eigenvalues are computed in
    float64 on the CPU, eps is that of ops.dtype.
    """
    values = np.linalg.eigvalsh(ops.to_numpy(factor).astype(np.float64))
    rounding = len(values) * np.finfo(ops.dtype).eps * max(values[-1], 0)
    return float(max(-values[0], 0) + rounding), float(values[0])
