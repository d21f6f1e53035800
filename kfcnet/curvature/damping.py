"""Factored Tikhonov damping of a Kronecker product, and the natural gradient it gives."""


def trace_norm_pi(ops, Omega, Gamma):
    """pi of Eq. 8 in the trace norm: sqrt((tr Omega / dim) / (tr Gamma / dim)), a device scalar.

    It shares the damping between the factors so that moving a constant from one to the other
    changes nothing. One where a factor vanishes and the ratio says nothing.
    """
    input_scale = ops.trace(Omega) / len(Omega)
    derivative_scale = ops.trace(Gamma) / len(Gamma)
    defined = (input_scale > 0) & (derivative_scale > 0)
    return ((input_scale * defined + ~defined) / (derivative_scale * defined + ~defined)) ** 0.5


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
