"""The curvature for NumPy arrays: factors, damping and the natural gradient as plain functions.

They take and return NumPy arrays, float32 or float64, and keep the dtype: the more precise one of
several arguments.
"""

from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kfcnet.curvature import damping, factors
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.shapes import output_sides


def _reference_ops(**arrays):
    """The primitives for the precision that the named arrays have in common."""
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name}: {array.dtype} is neither float32 nor float64")
    return CpuOps(np.result_type(*arrays.values()), shards=1)


def _native(array):
    """C-contiguous, in the byte order of the machine."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _as_matrices(**matrices):
    """(the primitives, [each of the named matrices in their common precision])."""
    arrays = {name: _native(np.asarray(matrix)) for name, matrix in matrices.items()}
    for name, array in arrays.items():
        if array.ndim != 2 or not array.size:
            raise ValueError(f"{name}: an array of shape {array.shape} is no matrix")
        if name != "gradient" and len(array) != array.shape[1]:
            raise ValueError(f"{name}: a matrix of shape {array.shape} is not square")
    ops = _reference_ops(**arrays)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: has entries that are not finite")
    return ops, [ops.asarray(array) for array in arrays.values()]


def _as_images(array, name):
    """(M, H, W, J) as it is, (M, J) as M images of one pixel."""
    array = np.asarray(array)
    if array.ndim not in (2, 4):
        raise ValueError(f"{name}: shape {array.shape} is neither (M, H, W, maps) nor (M, units)")
    if not array.size:
        raise ValueError(f"{name}: an array of shape {array.shape} is empty")
    if array.ndim == 2:
        array = array[:, None, None, :]
    return _native(array)


def input_factor(
    activations: ArrayLike, kernel_size: int = 1, stride: int = 1, padding: int = 0
) -> NDArray:
    """Omega (P, P), P = 1 + K*K*J, from activations (M, H, W, J); from (M, J) Psi (1 + J, 1 + J).

    Theorem 2: the sum over output locations, the mean over examples; row 0 is the homogeneous one,
    then (offset, map), maps fastest. Raises ValueError for another shape, no example, a window that
    is none or does not fit into the padded image, TypeError for another dtype than float32 and
    float64 and a window that is no whole number.
    """
    x = _as_images(activations, "activations")
    for name, value, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
    ):
        if not isinstance(value, Integral):
            raise TypeError(f"{name}: {value!r} is no whole number")
        if value < least:
            raise ValueError(f"{name}: {value} is below {least}")
    if min(output_sides(x.shape, kernel_size, stride, padding)) < 1:
        raise ValueError(
            f"kernel_size: {kernel_size} with padding {padding} does not fit into "
            f"activations of {x.shape[1]} x {x.shape[2]}"
        )
    ops = _reference_ops(activations=x)
    P = 1 + kernel_size**2 * x.shape[-1]
    Omega = ops.empty((P, P))
    factors.update_input_factor(ops, x, (kernel_size, stride, padding), 0.0, Omega)
    return Omega


def derivative_factor(derivatives: ArrayLike) -> NDArray:
    """Gamma (I, I) from per-example derivatives (M, H, W, I), or (M, I): Theorem 2.

    The mean over examples and over locations. Raises like `input_factor`.
    """
    ds = _as_images(derivatives, "derivatives")
    ops = _reference_ops(derivatives=ds)
    Gamma = ops.empty((ds.shape[-1],) * 2)
    factors.update_derivative_factor(ops, ds, 0.0, Gamma)
    return Gamma


def damped_inverses(Omega: ArrayLike, Gamma: ArrayLike, c: float) -> tuple[NDArray, NDArray]:
    """(Omega_inv, Gamma_inv) of Eq. 21 with the trace-norm pi; c = weight decay + damping > 0.

    Raises ValueError for c <= 0 and a factor that is not square or not finite, TypeError for
    another dtype than float32 and float64, numpy.linalg.LinAlgError where a damped factor is not
    positive definite.
    """
    if not c > 0:
        raise ValueError(f"c: {c} is not positive")
    ops, factors = _as_matrices(Omega=Omega, Gamma=Gamma)
    return damping.damped_inverses(ops, *factors, c)


def damping_floor(Omega: ArrayLike, Gamma: ArrayLike) -> float:
    """The least c of `damped_inverses` that is safe for these factors in their precision.

    Zero eigenvalues need a shift above rounding, and rounding can make them a little negative.
    Raises ValueError for a factor that is not square, TypeError like `damped_inverses`.
    """
    ops, factors = _as_matrices(Omega=Omega, Gamma=Gamma)
    return damping.damping_floor(ops, *factors)[0]


def precondition(gradient: ArrayLike, Omega_inv: ArrayLike, Gamma_inv: ArrayLike) -> NDArray:
    """The natural gradient Gamma_inv @ gradient @ Omega_inv of Eq. 22; gradient (I, P).

    Raises ValueError for shapes that do not belong together, TypeError like `damped_inverses`.
    """
    ops, matrices = _as_matrices(gradient=gradient, Omega_inv=Omega_inv, Gamma_inv=Gamma_inv)
    (I, P), Omega_shape, Gamma_shape = (matrix.shape for matrix in matrices)
    for name, shape, side in (("Omega_inv", Omega_shape, P), ("Gamma_inv", Gamma_shape, I)):
        if shape[0] != side:
            raise ValueError(f"{name}: shape {shape} does not fit a gradient of shape {(I, P)}")
    return damping.precondition(ops, *matrices)
