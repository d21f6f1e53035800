"""What tensor cores multiply, in float64: the reference of a step that uses them."""

import numpy as np

from kfcnet.ops.cpu import CpuOps


def nearest_tf32(array):
    """The nearest TF32 numbers in float64: 10 bits of mantissa, ties away from zero."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).view(np.float32).astype(np.float64)


class Tf32Operands(CpuOps):
    """The primitives in float64 but for the operands of convolutions, which are rounded to TF32.

    Against float64 alone a step in TF32 is a few percent off: where two pixels of a window are
    nearly the same, the other one is the maximum. Dense layers are left as they are: at the batch
    sizes that are compared they are multiplied in fp32.
    """

    def __init__(self):
        super().__init__("float64")

    def conv_forward(self, x, weight, kernel, *window, **options):
        if kernel > 1:
            biases, weights = weight[:, :1], weight[:, 1:]  # biases are added
            x, weight = nearest_tf32(x), np.hstack([biases, nearest_tf32(weights)])
        return super().conv_forward(x, weight, kernel, *window, **options)

    def conv_backward_data(self, dy, weight, x_shape, kernel, *window):
        if kernel > 1:
            dy, weight = nearest_tf32(dy), nearest_tf32(weight)
        return super().conv_backward_data(dy, weight, x_shape, kernel, *window)

    def conv_backward_weights(self, x, dy, kernel, *window, **options):
        if kernel > 1:
            x, dy = nearest_tf32(x), nearest_tf32(dy)
        return super().conv_backward_weights(x, dy, kernel, *window, **options)
