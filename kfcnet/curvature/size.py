"""What Kronecker factors take by their sizes: memory, and arithmetic beside a gradient's."""

import math
from typing import NamedTuple

import numpy as np

SMALL_CALLS = 250_000_000
"""An update's cost without its matrix products, as multiply-adds: 5 ms of two cores."""


class Arithmetic(NamedTuple):
    """Multiply-adds: of a mini-batch's gradient, of preconditioning it, of an update of the
    factors, of their inverses.
    """

    gradient: int
    preconditioning: int
    statistics: int
    inverses: int

    def more(self, statistics_period, inverse_period):
        """{part: its share of an update}, of what SGD's does not have."""
        return {
            "preconditioning": self.preconditioning,
            "statistics": self.statistics / statistics_period,
            "inverses": self.inverses / inverse_period,
        }

    def multiple(self, statistics_period, inverse_period):
        """An update as a multiple of SGD's, without the clip."""
        more = sum(self.more(statistics_period, inverse_period).values())
        return 1 + more / (self.gradient + SMALL_CALLS)


def arithmetic(layers, batch_size, statistics_fraction):
    """[the Arithmetic of each weighted layer].

    statistics_fraction: of the mini-batch, which the factors see. A pass takes I P products at
    every location: a gradient has three, where nothing comes before the layer two, and a sampled
    derivative comes back through one. Omega takes J^2 for each of the (2K - 1)^2 offsets between
    two pixels of a patch, with a stride P^2; Gamma takes I^2. Half of both mirrors the other half.
    """
    counts, sampled = [], math.ceil(statistics_fraction * batch_size)
    for index, layer in enumerate(layers):
        I, P = layer.weight_shape
        passes, products = 2 if index == 0 else 3, layer.locations * I * P
        preconditioning, moments = I * P * (I + P), layer.locations * (_of_omega(layer) + I**2)
        if layer.fisher_block == "scale_shift":
            preconditioning = moments = (2 * I) ** 2
        counts.append(
            Arithmetic(
                passes * batch_size * products,
                preconditioning,
                sampled * (moments // 2 + (passes - 2) * products),
                of_inverses(layer),
            )
        )
    return counts


def of_inverses(layer):
    """Multiply-adds of the inverses of a layer's factors, about: the cubes of their sides."""
    return sum(side**3 for side in layer.factor_sizes)


def _of_omega(layer):
    """Products that one location's share of Omega takes."""
    kernel, stride, _ = getattr(layer, "window", (1, 1, 0))
    J, P = layer.input_shape[-1], layer.weight_shape[1]
    return J**2 * (2 * kernel - 1) ** 2 if stride == 1 else P**2


def whole(counts):
    """The Arithmetic of all layers, of a list of theirs."""
    return Arithmetic(*map(sum, zip(*counts, strict=True)))


def way_out(layer):
    """What makes the largest factor of a weighted layer smaller, in words."""
    I, P = layer.weight_shape
    image = getattr(layer, "image_shape", None)
    if I >= P:
        return f"fewer {'filters' if image is None else 'units'} in {layer.name}"
    if image is None:
        return f"fewer maps before {layer.name} or a smaller kernel"
    is_image = math.prod(image[:-1]) > 1
    return f"{'a pool or a stride' if is_image else 'fewer units'} before {layer.name}"


def check_memory(layers, ops):
    """Raise ValueError, naming a layer, where a CPU's memory cannot hold the factors and inverses.

    While the largest is inverted there are two more of its size. A system may grant more memory
    than it has, and end the process once that is used; a GPU refuses it by itself.
    """
    if not layers:
        return
    layer = max(layers, key=lambda layer: max(layer.factor_sizes))
    rows = max(layer.factor_sizes)
    elements = 2 * sum(side**2 for each in layers for side in each.factor_sizes) + 2 * rows**2
    needed = elements * np.dtype(ops.dtype).itemsize
    if ops.memory is not None and needed > ops.memory:
        raise ValueError(
            f"network: the Kronecker factors and their inverses take {needed / 1e9:,.1f} GB, and "
            f"this machine has {ops.memory / 1e9:,.1f} GB: the largest factor, of {layer.name}, "
            f"has {rows:,} rows, and fewer with {way_out(layer)}; SGD has no factors"
        )
