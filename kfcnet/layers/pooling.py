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

    `saved` is that pixel's place in every window.
    """

    def forward(self, x, mode):
        y, self.saved = self.ops.max_pool(x, *self.window, self.clipped)
        return y

    def backward(self, dy):
        shape = (len(dy), *self.input_shape)
        return self.ops.max_pool_backward(dy, self.saved[: len(dy)], shape, *self.window)

    def tangent(self, rx):
        return self.ops.max_pool_tangent(rx, self.saved[: len(rx)], *self.window)


class AvgPool(_Pool):
    """The mean of each clipped window; linear."""

    def forward(self, x, mode):
        return self.ops.avg_pool(x, *self.window, self.clipped)

    def backward(self, dy):
        return self.ops.avg_pool_backward(dy, (len(dy), *self.input_shape), *self.window)

    def tangent(self, rx):
        return self.ops.avg_pool(rx, *self.window, self.clipped)
