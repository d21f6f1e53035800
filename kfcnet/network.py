"""A network: layers in order over one flat parameter vector."""

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from kfcnet import philox
from kfcnet.config.layers import completed
from kfcnet.config.names import affine_name, layer_names
from kfcnet.layers import (
    AvgPool,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Layer,
    MaxPool,
    Mode,
    ReLU,
    ResponseNorm,
    ScaleShift,
    Weighted,
)
from kfcnet.ops.primitives import Pooling

LAYERS = {
    "conv": Conv2d,
    "dense": Dense,
    "relu": ReLU,
    "max_pool": MaxPool,
    "avg_pool": AvgPool,
    "response_norm": ResponseNorm,
    "batch_norm": BatchNorm,
    "dropout": Dropout,
}
CUSTOM = "custom"
PASSES = ("forward", "backward", "tangent")


def build_network(
    specifications: Iterable, input_shape: tuple[int, int, int], ops: Any, seed: int = 0
) -> "Network":
    """The network of a configuration's layer list.

    specifications: mappings or pydantic models with the key `layer`, a name out of LAYERS, an
    optional `name`, and the layer's arguments; or `layer: custom` with a class `type` and its
    `settings`. input_shape: (H, W, C). Raises ValueError naming the layer for an unknown kind, a
    wrong argument or an impossible shape, and for a seed that is no whole number below 2**32.
    """
    philox.check_seed(seed, "seed")
    return Network(build_layers(specifications, input_shape, ops, seed), ops, seed)


def build_layers(specifications, input_shape, ops, seed=0):
    """The layers of `build_network`, which have no parameters yet."""
    layers, shape = [], input_shape
    mappings = [dict(getattr(layer, "model_dump", lambda s=layer: s)()) for layer in specifications]
    for index, mapping in enumerate(mappings):
        if "layer" not in mapping:
            raise ValueError(f"network.{index}: has no key layer, one of {', '.join(LAYERS)}")
    names = layer_names(mappings)
    for index, (arguments, name) in enumerate(zip(mappings, names, strict=True)):
        kind = arguments["layer"]
        if kind not in LAYERS and kind != CUSTOM:
            raise ValueError(f"network.{index}: {kind!r} is not one of {', '.join(LAYERS)}")
        plain = {
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in arguments.items()
        }
        given = completed(plain, f"network.{index} ({kind})")
        # None, as the units of a last layer may be elsewhere, is missing here.
        arguments = {
            key: value
            for key, value in given.items()
            if key not in ("layer", "name") and value is not None
        }
        layer_class = LAYERS.get(kind)
        if kind == CUSTOM:
            layer_class = _custom(arguments["type"], ops)
            arguments = arguments.get("settings", {})
        if kind == "dropout":
            arguments |= {"seed": seed, "stream": index}
        is_affine = kind == "batch_norm" and arguments.pop("affine", False)
        try:
            layers.append(layer_class(ops, shape, name, **arguments))
        except (TypeError, ValueError) as error:
            raise ValueError(f"network.{index} ({kind}): {error}") from None
        if is_affine:
            layers.append(ScaleShift(ops, shape, affine_name(name)))
        shape = layers[-1].output_shape
    return layers


def _custom(layer_class, ops):
    """The class of a custom layer, whose passes give what the primitives take.

    Raises ValueError where it is only named, and on a GPU.
    """
    if isinstance(layer_class, str):
        raise ValueError(
            f"network: {layer_class} is a custom layer, and its class is not known here: train it "
            f"by kfcnet.fit, and read it by kfcnet.load(path, layers=[{layer_class}])"
        )
    if not issubclass(layer_class, Layer) or issubclass(layer_class, Weighted):
        raise ValueError(
            f"network: {layer_class.__name__} must be a subclass of kfcnet.layers.Layer without "
            "weights"
        )
    if ops.name != "cpu":
        raise ValueError(
            f"network: {layer_class.__name__} is a custom layer, and computes with NumPy; set "
            "device=cpu"
        )
    passes = {name: _as_primitives_take(getattr(layer_class, name)) for name in PASSES}
    # A subclass of a layer of the package computes something else, which no other layer's pass has.
    alone = {"is_custom": True, "can_apply_relu": False}
    return type(layer_class.__name__, (layer_class,), passes | alone)


def _is(layer, kind):
    """Whether a layer computes what the package's layers of a kind do."""
    return isinstance(layer, kind) and not layer.is_custom


def _as_primitives_take(function):
    """A pass of a custom layer whose result is C-contiguous and of the network's number type."""

    @functools.wraps(function)
    def wrapped(self, *arguments):
        return np.ascontiguousarray(function(self, *arguments), self.ops.dtype)

    return wrapped


class Network:
    """Layers applied in order. `theta` (n,) holds all parameters, `gradient` (n,) their gradient.

    Each weighted layer's Wbar (I, P), row-major, is a view of theta, in layer order; gradients,
    velocities and averages are vectors of the same order.
    """

    def __init__(self, layers, ops, seed=0):
        """Initial weights are Gaussian with each layer's deviation, from the seed; biases are zero.

        Raises ValueError where no layer has weights or two layers share a name.
        """
        self.layers, self.ops = list(layers), ops
        self.weighted = [layer for layer in self.layers if isinstance(layer, Weighted)]
        names = [layer.name for layer in self.layers]
        if not self.weighted:
            raise ValueError("network: no layer has weights")
        if len(set(names)) < len(names):
            raise ValueError(f"network: two layers are named {max(names, key=names.count)!r}")
        self.weighted[0].needs_input_gradient = False
        self._fuse_relus()  # first: what makes a pool makes the ReLU behind it, too
        self._fuse_pools()
        self._fuse_norms()  # last: of pools that no convolution makes
        ends = np.cumsum([np.prod(layer.weight_shape) for layer in self.weighted]).tolist()
        self._slices = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        first = self.layers[0]  # a weighted layer may see its images in another shape
        self.input_shape = getattr(first, "image_shape", first.input_shape)
        self.theta = ops.asarray(self._initial(seed))
        self.gradient = ops.zeros(self.theta.shape)
        self.bind(self.theta)

    def _fuse_relus(self):
        """Let the layers beside every ReLU apply it and its derivative in their own passes, where
        they can.
        """
        for layer, following in itertools.pairwise(self.layers):
            if _is(following, ReLU) and layer.can_apply_relu:
                layer.applies_relu = following.forward_fused = True
                following.derivative_fused = isinstance(layer, MaxPool)
            if _is(layer, ReLU) and _is(following, AvgPool):
                if not layer.derivative_fused:
                    following.takes_relu_derivative = layer.derivative_fused = True

    def _fuse_pools(self):
        """Let a convolution make the maximum pool and the ReLU behind it in its own passes, where
        it can.
        """
        for conv, pool, _ in self._in_a_row(Conv2d, MaxPool, ReLU):
            pooling = Pooling(*pool.window, pool.clipped)
            if conv.can_pool(pooling):
                conv.pool, pool.fused = pooling, True

    def _fuse_norms(self):
        """Let maximum pools apply the response normalisation behind their ReLU in their own passes,
        where the device can.
        """
        for pool, _, norm in self._in_a_row(MaxPool, ReLU, ResponseNorm):
            across = norm.parameters.across
            if not pool.fused and self.ops.can_pool_and_normalise(pool.output_shape, across):
                pool.norm, norm.fused = norm.parameters, True

    def _in_a_row(self, *kinds):
        """The layers of these kinds that follow one another, as tuples."""
        rows = zip(*(self.layers[place:] for place in range(len(kinds))), strict=False)
        return [row for row in rows if all(map(_is, row, kinds))]

    def _initial(self, seed):
        flat = np.zeros(self._slices[-1].stop)
        for index, (layer, view) in enumerate(zip(self.weighted, self.views(flat), strict=True)):
            size = view[:, 1:].shape
            draw = philox.normals(seed, philox.INITIAL, 0, size[0] * size[1], stream=index)
            view[:, 1:] = layer.mean + layer.std * draw.reshape(size)
        return flat

    def views(self, flat: Any) -> list:
        """The parts of a flat vector (n,) as matrices (I, P), one a weighted layer, in layer order.

        Raises ValueError for another shape.
        """
        n = self._slices[-1].stop
        if flat.shape != (n,):
            raise ValueError(f"a vector of shape {flat.shape} given; the network's are ({n},)")
        return [
            flat[part].reshape(layer.weight_shape)
            for part, layer in zip(self._slices, self.weighted, strict=True)
        ]

    def bind(self, flat: Any) -> None:
        """Let the layers use the parameters in `flat` (n,) from now on; ValueError for another
        shape.
        """
        views = self.views(flat)
        self._bound = flat
        for layer, view in zip(self.weighted, views, strict=True):
            layer.weight = view

    def copy(self) -> "Network":
        """A copy with its own buffers: nothing that is done with it changes this network.

        Its theta begins with the parameters in use here, which `using` may have bound.
        """
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        pairs = zip(other.layers, self.layers, strict=True)
        other.weighted = [own for own, layer in pairs if layer in self.weighted]
        other.theta, other.gradient = map(self.ops.copy, (self._bound, self.gradient))
        other.bind(other.theta)
        return other

    def __deepcopy__(self, _):
        return self.copy()

    @contextlib.contextmanager
    def using(self, flat):
        """Within the context the layers use the parameters in `flat`, afterwards theta again."""
        self.bind(flat)
        try:
            yield self
        finally:
            self.bind(self.theta)

    def forward(self, x: Any, training: bool = False, step: Any = 0) -> Any:
        """x (M, H, W, C) of the primitives' number type -> z (M, classes).

        Raises TypeError for another type, ValueError for another shape or no example.
        """
        x = self._checked(x)
        mode = Mode(training, step, self._weights(self._bound, len(x), training))
        self.ops.join()  # where x was queued beside
        for layer in self.layers:
            x = layer.forward(x, mode)
        return x

    def _convolutions(self, M):
        """{layer: its Placed in a flat vector} of the layers that convolve M examples."""
        return {
            layer: layer.placed(part.start, M)
            for layer, part in zip(self.weighted, self._slices, strict=True)
            if isinstance(layer, Conv2d)
        }

    def _weights(self, flat, M, backward=False):
        """{name: weights in `flat` as the device reads them} of all convolutions, made together.

        backward: whether for a backward pass too.
        """
        placed = self._convolutions(M)
        down = [one for layer, one in placed.items() if backward and layer.needs_input_gradient]
        names = [layer.name for layer in placed]
        return dict(zip(names, self.ops.weights(flat, list(placed.values()), down), strict=True))

    def _checked(self, x):
        """The inputs, C-contiguous as the primitives take them; raises as `forward` says."""
        expected = self.ops.dtype.name
        if not hasattr(x, "dtype") or x.dtype != self.ops.dtype:
            found = getattr(x, "dtype", type(x).__name__)
            way_out = f"ops.asarray(x) makes them {expected}"
            if found == np.uint8:
                way_out = "scale pixels first, (pixels - mean) / deviation, as kfcnet.fit does"
            raise TypeError(f"inputs are {found}; this network computes with {expected}: {way_out}")
        if tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(
                f"inputs have shape {tuple(x.shape)}; the network takes "
                f"(M, {', '.join(map(str, self.input_shape))})"
            )
        if len(x) == 0:
            raise ValueError("inputs hold no example: a mini-batch has at least one")
        return self.ops.asarray(x)

    def backward(self, dz: Any, per_example: bool = False) -> None:
        """Send dz (m, classes) down through the layers; m <= M, the first of the forward pass.

        Each weighted layer keeps the derivatives of its pre-activations. per_example: the
        derivatives of each example's own loss, batch statistics being constants, as they always
        are in evaluation; without it, batch normalisation in training needs m = M. Raises
        ValueError for another shape or m, RuntimeError before the first forward pass.
        """
        self._check_derivatives(dz)
        for _ in self._backward(dz, per_example):
            pass

    def _backward(self, dz, per_example=False):
        """Yield each layer after its backward pass, the last layer first."""
        for layer in reversed(self.layers):
            dz = layer.backward_per_example(dz) if per_example else layer.backward(dz)
            yield layer
            if dz is None:
                return

    def _check_derivatives(self, dz):
        """Raise as `backward` says: what M examples saved would stand for more of them."""
        last = self.weighted[-1]
        if last.saved is None:
            raise RuntimeError("a backward pass needs a forward pass before it")
        M, outputs = len(last.inputs), self.layers[-1].output_shape
        if dz.shape[1:] != outputs or not 1 <= len(dz) <= M:
            raise ValueError(
                f"derivatives of shape {dz.shape} given; after a forward pass of M = {M} the "
                f"network takes (m, {', '.join(map(str, outputs))}), m from 1 to M"
            )

    def backward_with_gradient(self, dz: Any, *sums: Any) -> None:
        """`backward` and `compute_gradient` at once: on a GPU each layer's gradient is computed
        beside the passes of the layers below it.
        """
        self._check_derivatives(dz)
        gradients = self._gradients(len(dz), self.gradient)
        for layer in self._backward(dz):
            if layer in self.weighted:
                self._add_gradient(layer, gradients)
        gradients.finish()
        self.ops.ranks.sum(self.gradient, *sums)

    def _gradients(self, m, out):
        """The ConvGradients of all convolutions, means over the m examples of a backward pass."""
        layers = list(self._convolutions(m).values())
        return self.ops.conv_gradients(layers, 1 / self.ops.ranks.whole(m), out)

    def _add_gradient(self, layer, gradients):
        part = self._slices[self.weighted.index(layer)]
        if isinstance(layer, Conv2d):
            gradients.add(*layer.gradient_pass(part.start))
        else:
            layer.gradient(gradients.out[part].reshape(layer.weight_shape))

    def compute_gradient(self, out: Any = None, *sums: Any) -> None:
        """Fill `gradient`, or `out` (n,), with the mean gradient of the latest backward pass.

        sums: arrays that the processes of a run add up together with it. Raises ValueError for an
        `out` of another shape or number type than `gradient`, or that is not C-contiguous.
        """
        gradient = self.gradient if out is None else out
        same = (gradient.shape, gradient.dtype) == (self.gradient.shape, self.gradient.dtype)
        if not (same and gradient.flags.c_contiguous):
            raise ValueError(
                f"out has shape {gradient.shape} of {gradient.dtype}; expected a C-contiguous "
                f"array of shape {self.gradient.shape} of {self.gradient.dtype}"
            )
        gradients = self._gradients(self.weighted[-1].examples, gradient)
        for layer in self.weighted:
            self._add_gradient(layer, gradients)
        gradients.finish()
        self.ops.ranks.sum(gradient, *sums)

    def tangent(self, direction: Any, count: int) -> Any:
        """R(z) (count, classes): the derivative of the first logits along direction (n,)."""
        weights = self._weights(direction, count)
        vectors = {
            layer: weights.get(layer.name, view)
            for layer, view in zip(self.weighted, self.views(direction), strict=True)
        }
        with self.ops.beside():  # these wait for no layer before; the first two are needed soon
            along_weights = {
                layer: layer.weight_tangent(vectors[layer], count) for layer in self.weighted[2:]
            }
        rx = None
        for layer in self.layers:
            if layer in along_weights:
                self.ops.join()
                rx = layer.add_input_tangent(rx, along_weights[layer])
            elif layer in vectors:
                rx = layer.tangent(rx, vectors[layer], count)
            elif rx is not None:
                rx = layer.tangent(rx)
        return rx

    @property
    def has_batch_statistics(self) -> bool:
        """Whether evaluation needs `measure_statistics` after the parameters have changed."""
        return any(isinstance(layer, BatchNorm) for layer in self.layers)

    def measure_statistics(self, x: Any) -> None:
        """Set every batch normalisation's statistics for evaluation to those of x (M, H, W, C)."""
        x = self._checked(x)
        normalisations = [layer for layer in self.layers if isinstance(layer, BatchNorm)]
        for layer in normalisations:
            layer.measuring = True
        for layer in self.layers:
            x = layer.forward(x, Mode(training=layer in normalisations))
        for layer in normalisations:
            layer.measuring = False

    def first_nonfinite(self, x: Any) -> str | None:
        """Name of the first layer whose parameters or outputs on x are not finite, or None."""
        x = self._checked(x)
        for layer in self.layers:
            x = layer.forward(x, Mode())
            # A ReLU hides what a bias of minus infinity makes.
            arrays = [x, layer.weight] if layer in self.weighted else [x]
            if not all(np.isfinite(self.ops.to_numpy(array)).all() for array in arrays):
                return layer.name
        return None

    def summary(self) -> str:
        """A table of the layers: name, output shape, parameters, sizes of the Kronecker factors."""
        lines = [f"{'layer':<18}{'output':<16}{'parameters':>11}  factors"]
        for layer in self.layers:
            shape = " x ".join(map(str, layer.output_shape))
            if layer in self.weighted:
                parameters = math.prod(layer.weight_shape)
                factors = ", ".join(map(str, layer.factor_sizes))
                lines.append(f"{layer.name:<18}{shape:<16}{parameters:>11,}  {factors}")
            else:
                lines.append(f"{layer.name:<18}{shape:<16}")
        return "\n".join([*lines, f"{'total':<34}{len(self.theta):>11,}"])
