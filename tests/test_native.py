"""The C extension against plain loops in float64, for every instruction set of this CPU.

Shapes are asymmetric (H != W) and channel counts lie on both sides of the vector widths.
"""
from __future__ import annotations

import numpy as np
import pytest

native = pytest.importorskip(
    "kfcnet.ops._native", reason="the C extension is not built (no compiler at install time)"
)

targets = pytest.mark.parametrize("target", native.targets)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# images, height, width, input maps, output maps, kernel, stride, padding
CONVOLUTIONS = [
    (3, 7, 10, 3, 5, 5, 1, 2),
    (2, 5, 9, 1, 33, 3, 1, 1),
    (1, 6, 5, 33, 64, 3, 1, 0),
    (2, 4, 3, 32, 32, 1, 1, 0),
    (1, 9, 17, 32, 33, 5, 1, 2),
    (3, 9, 8, 3, 5, 3, 2, 1),
    (2, 8, 11, 5, 17, 5, 2, 2),
    (2, 7, 6, 3, 16, 5, 3, 0),
    (1, 4, 5, 2, 3, 1, 2, 1),
    (1, 3, 4, 2, 3, 3, 1, 4),
]
convolutions = pytest.mark.parametrize("shape", CONVOLUTIONS)


def output_size(length, kernel, stride, padding):
    return (length + 2 * padding - kernel) // stride + 1


def draw(shape, dtype, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def conv_operands(shape, dtype):
    """x (M, H, W, J), weight (I, 1 + K*K*J), dy (M, Ho, Wo, I)."""
    m, h, w, j, i, k, s, p = shape
    out = output_size(h, k, s, p), output_size(w, k, s, p)
    return (
        draw((m, h, w, j), dtype, 1),
        draw((i, 1 + k * k * j), dtype, 2),
        draw((m, *out, i), dtype, 3),
    )


def taps(x_shape, dy_shape, kernel, stride, padding):
    """Every (kr, kc, input slices, output slices) of a convolution, cut to the image."""
    for kr in range(kernel):
        for kc in range(kernel):
            for r in range(dy_shape[1]):
                for c in range(dy_shape[2]):
                    h, w = r * stride + kr - padding, c * stride + kc - padding
                    if 0 <= h < x_shape[1] and 0 <= w < x_shape[2]:
                        yield kr * kernel + kc, (h, w), (r, c)


def reference_conv(x, weight, dy, kernel, stride, padding):
    """(y, dx, gradient) by the definition, in float64."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    in_maps = x.shape[3]
    y = np.zeros(dy.shape) + weight[:, 0]
    dx, gradient = np.zeros(x.shape), np.zeros(weight.shape)
    gradient[:, 0] = dy.sum(axis=(0, 1, 2))
    for delta, (h, w), (r, c) in taps(x.shape, dy.shape, kernel, stride, padding):
        columns = slice(1 + delta * in_maps, 1 + (delta + 1) * in_maps)
        y[:, r, c] += x[:, h, w] @ weight[:, columns].T
        dx[:, h, w] += dy[:, r, c] @ weight[:, columns]
        gradient[:, columns] += dy[:, r, c].T @ x[:, h, w]
    return y, dx, gradient


def assert_close(actual, expected):
    """Equal to the rounding of a sum of a few hundred terms of size one."""
    assert np.isfinite(actual).all()
    precision = np.finfo(actual.dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=100 * precision, atol=400 * precision)


def unwritten(shape, dtype):
    return np.full(shape, np.nan, dtype)


@targets
@dtypes
@convolutions
def test_conv_forward_is_the_sum_over_taps(shape, dtype, target):
    x, weight, dy = conv_operands(shape, dtype)
    y = unwritten(dy.shape, dtype)
    native.conv_forward(x, weight, y, *shape[5:], target)
    assert_close(y, reference_conv(x, weight, dy, *shape[5:])[0])


@targets
@dtypes
@convolutions
def test_conv_backward_data_is_the_transposed_sum(shape, dtype, target):
    x, weight, dy = conv_operands(shape, dtype)
    dx = unwritten(x.shape, dtype)
    native.conv_backward_data(dy, weight, dx, *shape[5:], target)
    assert_close(dx, reference_conv(x, weight, dy, *shape[5:])[1])


@targets
@dtypes
@convolutions
def test_conv_backward_weights_sums_over_images_and_positions(shape, dtype, target):
    x, weight, dy = conv_operands(shape, dtype)
    out = unwritten(weight.shape, dtype)
    native.conv_backward_weights(x, dy, out, *shape[5:], target)
    assert_close(out, reference_conv(x, weight, dy, *shape[5:])[2])
