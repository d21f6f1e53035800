"""Inversions of a block's factors, and what is done where one fails."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kfcnet.ops.cpu import CpuOps


class Inversion(NamedTuple):
    """An inversion of factors, as they were when it began, with the damping c = lambda + gamma.

    result: returns the inverses where the work runs while training goes on, else None.
    """

    c: float
    factors: list
    result: Callable | None


class InversionWarning(RuntimeWarning):
    """A layer's factors could not be inverted; it goes on with its last good inverses."""


def all_finite(ops, array):
    """Whether no element is NaN or infinite: 0 times such an element is NaN, and so is the sum."""
    return bool(np.isfinite(ops.to_numpy(ops.dot(array, ops.zeros(array.shape))))[0])


def inverted(ops, invert, factors):
    """invert(ops, *arrays) -> arrays; tried again in float64 on the CPU where it fails.

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
