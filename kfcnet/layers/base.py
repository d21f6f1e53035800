"""What every layer is: three maps of a mini-batch that share one forward pass."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Mode(NamedTuple):
    """How a forward pass is run: training draws dropout masks for `step`, evaluation draws none.

    weights: {name: weights of a layer in the form that the device reads}, made for all layers
    together; a layer that is not there makes its own.
    """

    training: bool = False
    step: int = 0
    weights: Mapping = MappingProxyType({})


def image_shape(input_shape, name):
    """input_shape as (H, W, maps). Raises ValueError for the shape (units,) of a dense layer."""
    if len(input_shape) != 3:
        raise ValueError(
            f"{name} takes images (H, W, maps), but its input has shape {tuple(input_shape)}: "
            "put it before the first dense layer"
        )
    return input_shape


def class_of(layer):
    """The class of what a user gives as a layer, a class or `Class.of(...)`; None if it is none."""
    made = getattr(layer, "func", layer)
    return made if isinstance(made, type) and issubclass(made, Layer) else None


class Layer:
    """A function of a mini-batch with its adjoint and its tangent.

    `forward` comes first. `backward` and `tangent` may then be called any number of times, and for
    the first m <= M examples of that mini-batch: the sampled pass and the clip use a part of it.
    Nothing that flows is divided by M; derivatives are those of each example's own loss.

    Whatever a pass leaves for the passes after it is in `saved`, and nowhere else. `saved` is
    bound anew and never changed in place, so that a captured graph can keep the one whose arrays
    it writes to and bind it again at every replay.
    """

    saved = None
    can_apply_relu = False  # whether it can apply the ReLU behind it in its own pass
    applies_relu = False
    is_custom = False  # a user's, whatever class it is derived from

    def __new__(cls, *arguments, **settings):
        place = [key for key in ("ops", "input_shape", "name") if key in settings]
        if len(arguments) + len(place) < 3:
            words = ", ".join([*map(repr, arguments), *(f"{k}={v!r}" for k, v in settings.items())])
            raise TypeError(
                f"{cls.__name__}({words}) is a layer without a place in a network; kfcnet.fit "
                f"makes it of {cls.__name__}, or of {cls.__name__}.of(**settings)"
            )
        return super().__new__(cls)

    def __init__(self, ops, input_shape, name):
        self.ops, self.input_shape, self.name = ops, tuple(input_shape), name
        self.output_shape = self.input_shape

    def __copy__(self):
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    @classmethod
    def of(cls, **settings: Any) -> functools.partial:
        """A layer of these settings that has no place in a network yet, for `kfcnet.fit`."""
        return functools.partial(cls, **settings)

    def forward(self, x, mode):
        """x (M, *input_shape) -> y (M, *output_shape)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy):
        """dy (m, *output_shape) -> dx (m, *input_shape): the adjoint of the derivative."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def backward_per_example(self, dy):
        """`backward` with every example taken by itself; differs for batch normalisation only."""
        return self.backward(dy)

    def tangent(self, rx):
        """rx (m, *input_shape) -> ry (m, *output_shape): the derivative along rx."""
        raise NotImplementedError(f"{type(self).__name__} has no tangent")
