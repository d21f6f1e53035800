"""The check of a layer: are its three maps of a mini-batch those of one function?"""

import functools
from typing import Any, NamedTuple

import numpy as np

from kfcnet.layers.base import Layer, Mode, class_of
from kfcnet.layers.weighted import Weighted
from kfcnet.ops.cpu import CpuOps

STEP = 1e-5  # of the central differences, whose error in float64 is then about 1e-10
EXAMPLES = 3
PER_EXAMPLE = "backward_per_example"


class LayerError(AssertionError):
    """A layer whose forward, backward and tangent pass do not belong to one function."""


class LayerCheck(NamedTuple):
    """Relative errors: of the tangent against central differences, of <dy, tangent(rx)> against
    <backward(dy), rx>, and of a layer's weights likewise (0 without weights).

    Where training mixes the examples, as batch normalisation does, the tangent is compared with
    backward_per_example, and backward with the differences.
    """

    tangent: float
    backward: float
    weights: float


def check_layer(
    layer: type[Layer] | functools.partial,
    input_shape: tuple[int, ...],
    *,
    tolerance: float = 1e-6,
    training: bool = False,
    seed: int = 0,
) -> LayerCheck:
    """Check forward, backward and tangent of a layer for inputs (M, *input_shape), in float64.

    layer: a class, or `Class.of(**settings)`. training: whether the forward pass is one of
    training. The inputs are random; a layer with a kink must not have it where a random number
    can fall. Returns the LayerCheck.

    Raises TypeError for what is no layer, and LayerError, which says which of the maps is wrong and
    by how much: an output of another shape than `output_shape` or not finite, a tangent that is not
    the derivative, a backward pass that is not its adjoint, a pass over the first m < M examples
    that fails or differs from a part of the whole, a second pass that differs from the first,
    arguments that are changed.
    """
    if class_of(layer) is None:
        raise TypeError(
            "check_layer: expected a subclass of kfcnet.layers.Layer, or Class.of(...) of one, "
            f"got {layer!r}"
        )
    return _Check(layer, input_shape, training, seed).run(tolerance)


class _Check:
    def __init__(self, layer, input_shape, training, seed):
        self.rng, self.mode = np.random.default_rng(seed), Mode(training, 0)
        self.layer = layer(CpuOps("float64", shards=1), tuple(input_shape), "checked")
        self.has_weights = isinstance(self.layer, Weighted)
        # Its training pass is then a function of the whole mini-batch, and its tangent, which is
        # that of each example's own function, not the derivative.
        own = type(self.layer).backward_per_example is not Layer.backward_per_example
        self.mixes_examples = training and own
        self.x = self._normal(self.layer.input_shape if not self.has_weights else input_shape)
        self.direction = None
        if self.has_weights:
            self.layer.weight = self.rng.standard_normal(self.layer.weight_shape)
            self.direction = self.rng.standard_normal(self.layer.weight_shape)

    def _normal(self, shape):
        return self.rng.standard_normal((EXAMPLES, *shape))

    def run(self, tolerance):
        y = self._forward(self.x)
        self._expect(y.shape == (EXAMPLES, *self.layer.output_shape), (
            f"forward: the output has shape {y.shape}, not (M, *output_shape), "
            f"{(EXAMPLES, *self.layer.output_shape)}"
        ))  # fmt: skip
        self._expect(np.isfinite(y).all(), "forward: the output is not finite")
        rx, dy = self._normal(self.x.shape[1:]), self._normal(y.shape[1:])
        differences = (self._forward(self.x + STEP * rx) - self._forward(self.x - STEP * rx)) / (
            2 * STEP
        )
        self._forward(self.x)
        zero = None if self.direction is None else np.zeros_like(self.direction)
        ry = self._pass("tangent", lambda v: self._tangent(v, zero), rx, y.shape)
        dx = self._pass("backward", self.layer.backward, dy, self.x.shape)
        if self.mixes_examples:
            alone = self._pass(PER_EXAMPLE, self.layer.backward_per_example, dy, self.x.shape)
            tangent = self._adjoint(PER_EXAMPLE, alone, "tangent(rx)", ry, rx, dy, tolerance)
            name = "the differences of forward along rx"
            backward = self._adjoint("backward", dx, name, differences, rx, dy, tolerance)
        else:
            tangent = _relative(ry - differences, differences)
            self._expect(
                tangent <= tolerance,
                f"tangent: differs from the differences of forward by {tangent:.2g} of their norm",
            )
            backward = self._adjoint("backward", dx, "tangent(rx)", ry, rx, dy, tolerance)
        return LayerCheck(tangent, backward, float(self._check_weights(dy, tolerance)))

    def _adjoint(self, name, dx, of, ry, rx, dy, tolerance):
        """The relative error of dx, a map of dy, as the adjoint of ry, a map of rx."""
        error = abs(np.vdot(dy, ry) - np.vdot(dx, rx)) / (
            np.linalg.norm(dy) * np.linalg.norm(ry) or 1.0
        )
        self._expect(
            error <= tolerance,
            f"{name}: is not the adjoint of {of.partition('(')[0]}: <dy, {of}> and "
            f"<{name}(dy), rx> differ by {error:.2g} of |dy| |{of}|",
        )
        return float(error)

    def _check_weights(self, dy, tolerance):
        """The same of the weights: their tangent and the gradient."""
        if not self.has_weights:
            return 0.0
        weight, found = self.layer.weight, []
        for sign in (1, -1):
            self.layer.weight = weight + sign * STEP * self.direction
            found.append(self._forward(self.x))
        self.layer.weight = weight
        self._forward(self.x)
        differences = (found[0] - found[1]) / (2 * STEP)
        ry = self.layer.tangent(None, self.direction, EXAMPLES)
        self.layer.backward(dy)
        gradient = np.zeros_like(weight)
        self.layer.gradient(gradient)
        slope = np.vdot(dy, ry) / EXAMPLES
        scale = np.linalg.norm(dy) * np.linalg.norm(ry) / EXAMPLES or 1.0
        error = max(
            _relative(ry - differences, differences),
            abs(np.vdot(gradient, self.direction) - slope) / scale,
        )
        self._expect(
            error <= tolerance,
            f"weights: tangent or gradient differs from the differences by {error:.2g}",
        )
        return error

    def _forward(self, x):
        given = x.copy()
        y = np.array(self.layer.forward(given, self.mode))
        self._expect(np.array_equal(given, x), "forward: changes its argument in place")
        return y

    def _tangent(self, rx, direction):
        if direction is None:
            return self.layer.tangent(rx)
        return self.layer.tangent(rx, direction, len(rx))

    def _pass(self, name, function, argument, shape):
        """A pass of all examples; it must not change its argument, and be the same once more and
        for the first examples alone.
        """
        given = argument.copy()
        result = np.array(function(given))
        self._expect(np.array_equal(given, argument), f"{name}: changes its argument in place")
        self._expect(
            result.shape == shape, f"{name}: the result has shape {result.shape}, not {shape}"
        )
        again = np.array(function(argument.copy()))
        self._expect(np.array_equal(again, result), f"{name}: a second pass gives other numbers")
        if not (name == "backward" and self.mode.training):
            way_out = "use saved[: len(argument)]"
            try:
                part = np.array(function(argument[:2].copy()))
            except (IndexError, ValueError) as error:  # shapes that do not go together
                raise LayerError(
                    f"{type(self.layer).__name__}: {name}: the pass of the first 2 examples of "
                    f"{EXAMPLES} fails ({error}); {way_out}"
                ) from error
            self._expect(
                part.shape == (2, *shape[1:]) and np.allclose(part, result[:2], rtol=1e-9),
                f"{name}: the pass of the first 2 examples is not that part of the whole; "
                f"{way_out}",
            )
        return result

    def _expect(self, holds, text):
        if not holds:
            raise LayerError(f"{type(self.layer).__name__}: {text}")


def _relative(difference: Any, of: Any) -> float:
    return float(np.linalg.norm(difference) / (np.linalg.norm(of) or 1.0))
