"""What Kronecker factors take by their sizes: memory, and arithmetic beside a gradient's."""

import math
from typing import NamedTuple

import numpy as np

SMALL_CALLS = 250_000_000
"""Multiply-adds in the time that everything but products takes of an update: 5 ms of two cores."""


class Arithmetic(NamedTuple):
    """Multiply-adds: of a mini-batch's gradient, of an update of the factors, of their inverses."""

    gradient: int
    statistics: int
    inverses: int

    def multiple(self, statistics_period, inverse_period):
        """An update with both at their periods as a multiple of SGD's."""
        more = self.statistics / statistics_period + self.inverses / inverse_period
        return 1 + more / (self.gradient + SMALL_CALLS)


def arithmetic(layers, batch_size, statistics_fraction):
    """The Arithmetic of weighted layers, without what preconditioning and clipping take.

    statistics_fraction: of the mini-batch, which the factors see. A gradient takes three passes of
    I P products at every location. Omega takes J^2 for each of the (2K - 1)^2 offsets between two
    pixels of a patch, Gamma I^2; half of both are the other half's mirror image. An inverse takes
    the cube of its side.
    """
    gradient = statistics = inverses = 0
    sampled = math.ceil(statistics_fraction * batch_size)
    for layer in layers:
        (I, P), J = layer.weight_shape, layer.input_shape[-1]
        kernel = layer.window[0] if hasattr(layer, "window") else 1
        gradient += 3 * batch_size * layer.locations * I * P
        statistics += sampled * layer.locations * (J**2 * (2 * kernel - 1) ** 2 + I**2) // 2
        inverses += sum(side**3 for side in layer.factor_sizes)
    return Arithmetic(gradient, statistics, inverses)


def largest_factor(layers):
    """(layer, rows) of the largest factor of weighted layers."""
    layer = max(layers, key=lambda layer: max(layer.factor_sizes))
    return layer, max(layer.factor_sizes)


def check_memory(layers, ops):
    """Raise ValueError, naming a layer, where the device cannot hold the factors and inverses.

    While the largest is inverted there are two more of its size. A system may grant more memory
    than it has, and end the process once that is used.
    """
    layer, rows = largest_factor(layers)
    elements = 2 * sum(side**2 for each in layers for side in each.factor_sizes) + 2 * rows**2
    needed = elements * np.dtype(ops.dtype).itemsize
    if ops.memory is not None and needed > ops.memory:
        raise ValueError(
            f"network: the Kronecker factors and their inverses take {needed / 1e9:,.1f} GB, and "
            f"this machine has {ops.memory / 1e9:,.1f} GB: the largest factor, of {layer.name}, "
            f"has {rows:,} rows. A pool or a stride before {layer.name} makes it smaller; SGD has "
            "none"
        )
