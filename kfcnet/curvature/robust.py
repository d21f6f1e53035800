"""Inversions that may fail: what is tried, and what is said when nothing helps."""

import numpy as np

from kfcnet.curvature.damping import trace_norm_pi
from kfcnet.ops.cpu import CpuOps


class InversionWarning(RuntimeWarning):
    """A layer's factors could not be inverted; it goes on with its last good inverses."""


def all_finite(ops, array):
    """Whether no element is NaN or infinite: 0 times such an element is NaN, and so is the sum."""
    return bool(np.isfinite(ops.to_numpy(ops.dot(array, ops.zeros(array.shape))))[0])


def inverted(ops, invert, factors):
    """invert(ops, *arrays) -> arrays, once more in float64 on the CPU where the first try fails.

    factors: {name: array}. Raises numpy.linalg.LinAlgError where one of them is not finite, or the
    second try fails too.
    """
    for name, array in factors.items():
        if not all_finite(ops, array):
            raise np.linalg.LinAlgError(f"{name} is not finite")
    try:
        return invert(ops, *factors.values())
    except np.linalg.LinAlgError:
        reference = CpuOps("float64", shards=1)
        arrays = [reference.asarray(ops.to_numpy(array)) for array in factors.values()]
        with np.errstate(over="ignore"):  # on the way back to ops.dtype; looked for next
            results = [ops.asarray(result) for result in invert(reference, *arrays)]
        if not all(all_finite(ops, result) for result in results):
            raise
        return results


def damping_floor(ops, Omega, Gamma):
    """(c, smallest eigenvalues of Omega and of Gamma): the least c of Eq. 21 that is safe."""
    (input_shift, input_value), (derivative_shift, derivative_value) = (
        least_shift(ops, factor) for factor in (Omega, Gamma)
    )
    pi = float(ops.to_numpy(trace_norm_pi(ops, Omega, Gamma))[0])
    floor = max(input_shift / pi, derivative_shift * pi) ** 2
    return floor, (input_value, derivative_value)


def least_shift(ops, factor):
    """(s, smallest eigenvalue): the least s from which on factor + s*I can safely be inverted.

    In arithmetic of precision eps a Cholesky factorization of an n x n matrix succeeds once its
    smallest eigenvalue is above about n*eps times its largest one. The eigenvalues are computed in
    float64 on the CPU, eps is that of ops.dtype.
    """
    values = np.linalg.eigvalsh(ops.to_numpy(factor).astype(np.float64))
    rounding = len(values) * np.finfo(ops.dtype).eps * max(values[-1], 0)
    return float(max(-values[0], 0) + rounding), float(values[0])
