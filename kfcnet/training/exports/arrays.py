"""A network's weights as named NumPy arrays, as `numpy.savez` takes them.

| name           | shape                                                                 |
|----------------|-----------------------------------------------------------------------|
| `conv1.weight` | (I, K, K, J): maps out, kernel's rows and columns, maps in            |
| `fc.weight`    | (I, H, W, J) behind an image, (I, J) behind another dense layer       |
| `NAME.bias`    | (I,)                                                                  |
| `bn.mean`, `bn.inv_std` | (J,): statistics of evaluation, where they were measured     |
| `bn_affine.scale`, `bn_affine.shift` | (J,)                                            |
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kfcnet.layers import BatchNorm, Conv2d, Dense, Layer, ScaleShift, Weighted
from kfcnet.layers.normalization import BatchStatistics
from kfcnet.network import Network


def to_arrays(network: Network) -> dict[str, NDArray]:
    """{name: array} of everything in a network that training changes; copies."""
    found = {}
    for layer in network.layers:
        for part, array in layer_arrays(layer).items():
            found[f"{layer.name}.{part}"] = array
    return found


def layer_arrays(layer: Layer) -> dict[str, NDArray]:
    """{part: array} of one layer; empty where training changes nothing."""
    to_numpy = layer.ops.to_numpy
    if isinstance(layer, BatchNorm):
        if layer.population is None:
            return {}
        statistics = layer.population._asdict()
        return {part: to_numpy(array).copy() for part, array in statistics.items()}
    if not isinstance(layer, Weighted):
        return {}
    homogeneous = to_numpy(layer.weight)
    first, rest = homogeneous[:, 0].copy(), homogeneous[:, 1:].copy()
    if isinstance(layer, ScaleShift):
        return {"scale": rest[:, 0], "shift": first}
    return {"weight": rest.reshape(_weight_shape(layer)), "bias": first}


def from_arrays(network: Network, arrays: Mapping[str, ArrayLike]) -> None:
    """Set the weights of a network to what `to_arrays` of one like it returned.

    Raises ValueError naming an array that is missing, unknown, of another shape or not finite; the
    network is then as it was.
    """
    expected = _expected(network)
    unknown = set(arrays) - set(expected)
    missing = set(expected) - set(arrays) - _never_measured(network, arrays)
    if unknown or missing:
        wrong, what = (unknown, "is no array of") if unknown else (missing, "is missing; it is of")
        raise ValueError(f"arrays: {min(wrong)} {what} this network: {', '.join(expected)}")
    given = {name: np.asarray(array) for name, array in arrays.items()}
    ops = network.ops
    for name, array in given.items():
        if array.shape != expected[name]:
            raise ValueError(f"arrays: {name} has shape {array.shape}, not {expected[name]}")
        if array.dtype.kind in "iuf":
            with np.errstate(over="ignore"):
                array = given[name] = array.astype(ops.dtype)
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"arrays: {name} holds what is no finite number in {ops.dtype}")
    for layer in network.layers:
        if isinstance(layer, BatchNorm):
            if f"{layer.name}.mean" in given:
                own = (given[f"{layer.name}.{part}"] for part in BatchStatistics._fields)
                layer.population = BatchStatistics(*map(ops.asarray, own))
        elif isinstance(layer, Weighted):
            scale = isinstance(layer, ScaleShift)
            first, rest = ("shift", "scale") if scale else ("bias", "weight")
            homogeneous = np.column_stack(
                [
                    given[f"{layer.name}.{first}"],
                    given[f"{layer.name}.{rest}"].reshape(len(given[f"{layer.name}.{first}"]), -1),
                ]
            )
            ops.write(layer.weight, ops.asarray(homogeneous))


def _expected(network):
    """{name: shape} of the arrays of a network; statistics of evaluation are among them where the
    network has batch normalisation, measured or not.
    """
    shapes = {}
    for layer in network.layers:
        if isinstance(layer, BatchNorm):
            parts = dict.fromkeys(BatchStatistics._fields, layer.input_shape[-1:])
        else:
            parts = {part: array.shape for part, array in layer_arrays(layer).items()}
        shapes |= {f"{layer.name}.{part}": shape for part, shape in parts.items()}
    return shapes


def _never_measured(network, arrays):
    """Names of statistics of evaluation that neither the network nor the arrays have."""
    names = set()
    for layer in network.layers:
        if isinstance(layer, BatchNorm) and layer.population is None:
            own = {f"{layer.name}.{part}" for part in BatchStatistics._fields}
            names |= own if own.isdisjoint(arrays) else set()
    return names


def _weight_shape(layer: Conv2d) -> tuple[int, ...]:
    if isinstance(layer, Dense):
        return (layer.weight_shape[0], *layer.image_shape)
    kernel = layer.window[0]
    return layer.weight_shape[0], kernel, kernel, layer.input_shape[-1]
