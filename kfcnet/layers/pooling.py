"""Pooling windows from the image's corner: clipped at its far borders, as cuda-convnet's are, or
without those that hang over.
"""

from kfcnet.layers.base import Layer, image_shape
from kfcnet.ops.shapes import pooled_size


class _Pool(Layer):
    def __init__(self, ops, input_shape, name, size, stride, clipped=True):
        """Raises ValueError where the stride would leave out pixels or no window lies inside, and
        behind a dense layer.
        """
        super().__init__(ops, input_shape, name)
        if stride > size:
            raise ValueError(f"{name}: a stride of {stride} is above the window's size, {size}")
        H, W, J = image_shape(self.input_shape, name)
        Ho, Wo = (pooled_size(side, size, stride, clipped) for side in (H, W))
        if min(Ho, Wo) < 1:
            raise ValueError(f"{name}: no window of {size} lies inside its {H} x {W} input")
        self.window, self.clipped = (size, stride), clipped
        self.output_shape = (Ho, Wo, J)


class MaxPool(_Pool):
    """The maximum of each window; derivative and tangent follow the first pixel that attains it.

    `saved` is that pixel's place in every window, and the output where it `applies_relu`, else
    None: the pool then takes the derivative of the ReLU behind it too. norm: what the primitives
    need of a response normalisation behind that ReLU, which it applies in its own passes as well;
    `saved` is then theirs. fused: a convolution before it pools in its own passes.
    """

    can_apply_relu = True
    norm = None
    fused = False

    def forward(self, x, mode):
        if self.fused:
            return x
        if self.norm:
            y, self.saved = self.ops.max_pool_norm(x, *self.window, self.clipped, self.norm)
            return y
        y, argmax = self.ops.max_pool(x, *self.window, self.clipped, self.applies_relu)
        self.saved = argmax, y if self.applies_relu else None
        return y

    def backward(self, dy):
        if self.fused:
            return dy
        saved, shape = _of_first(len(dy), self.saved), (len(dy), *self.input_shape)
        if self.norm:
            return self.ops.max_pool_norm_backward(dy, saved, shape, *self.window, self.norm)
        argmax, active = saved
        return self.ops.max_pool_backward(dy, argmax, shape, *self.window, active=active)

    def tangent(self, rx):
        if self.fused:
            return rx
        saved = _of_first(len(rx), self.saved)
        if self.norm:
            return self.ops.max_pool_norm_tangent(rx, saved, *self.window, self.norm)
        argmax, active = saved
        return self.ops.max_pool_tangent(rx, argmax, *self.window, active=active)


class AvgPool(_Pool):
    """The mean of each clipped window; linear.

    takes_relu_derivative: that of the ReLU before it; `saved` is then (x,), the output of that
    ReLU, else (None,).
    """

    takes_relu_derivative = False

    def forward(self, x, mode):
        self.saved = (x if self.takes_relu_derivative else None,)
        return self.ops.avg_pool(x, *self.window, self.clipped)

    def backward(self, dy):
        (active,) = _of_first(len(dy), self.saved)
        shape = (len(dy), *self.input_shape)
        return self.ops.avg_pool_backward(dy, shape, *self.window, active=active)

    def tangent(self, rx):
        (active,) = _of_first(len(rx), self.saved)
        return self.ops.avg_pool(rx, *self.window, self.clipped, active=active)


def _of_first(m, arrays):
    """The parts of the first m examples; None where there is no array."""
    return [None if array is None else array[:m] for array in arrays]
