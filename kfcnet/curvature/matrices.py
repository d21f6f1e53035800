"""Small operations on matrices that the primitives do not have."""

import numpy as np


def identity(ops, n):
    """The identity matrix (n, n) on the device."""
    return ops.asarray(np.eye(n))


def fold(ops, average, value, decay):
    """average <- decay*average + (1 - decay)*value.

    Where processes share a mini-batch, `value` is this one's part, and `average` too afterwards.
    """
    folded = ops.zeros(average.shape)
    ops.axpy(ops.ranks.of_first(decay), average, folded)
    ops.axpy(1 - decay, value, folded)
    ops.write(average, folded)


def hadamard(ops, x, y):
    """x * y, element by element."""
    out = ops.zeros(x.shape)
    ops.multiply_add(x, y, out)
    return out
