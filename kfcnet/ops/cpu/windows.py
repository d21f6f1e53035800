"""Pooling and response normalisation in NumPy.

Windows follow cuda-convnet: they start inside the image, hang over its right and bottom border and
are clipped there; pooled maps that are smaller lack the windows that hang over. Arrays are NHWC;
functions write into their `out` arguments and work on any contiguous range of images; `native.c`
has the same signatures where it has the function.
"""

import numpy as np


def _positions(side, pooled, offset, stride):
    """Slices (of the image, of the pooled map) that pair a window with its pixel at `offset`."""
    count = min(pooled, max(0, -(-(side - offset) // stride)))
    return slice(offset, offset + stride * count, stride), slice(0, count)


def _offsets(x_shape, y_shape, size, stride):
    """For every offset of the window: its index, and the matching views of image and pooled map."""
    for r in range(size):
        rows, pooled_rows = _positions(x_shape[1], y_shape[1], r, stride)
        for c in range(size):
            columns, pooled_columns = _positions(x_shape[2], y_shape[2], c, stride)
            yield r * size + c, np.s_[:, rows, columns], np.s_[:, pooled_rows, pooled_columns]


def max_pool(x, y, argmax, size, stride):
    """y (M, Ho, Wo, J) = maximum of each window; argmax uint8 its offset, the first where tied.

    A NaN is passed on, at the window's first pixel.
    """
    offsets = list(_offsets(x.shape, y.shape, size, stride))
    y[...] = -np.inf
    for _, pixels, windows in offsets:
        np.maximum(y[windows], x[pixels], out=y[windows])
    argmax[...] = 0
    last = size * size - 1  # 255 at most
    for offset, pixels, windows in offsets:  # the first hit leaves the largest number
        # Not "equal": where the maximum is a NaN some pixel of the window has to be it.
        hits = (~(x[pixels] < y[windows])).view(np.uint8)
        hits *= np.uint8(last - offset)
        np.maximum(argmax[windows], hits, out=argmax[windows])
    np.subtract(last, argmax, out=argmax, casting="unsafe")


def max_pool_backward(dy, argmax, dx, size, stride):
    """dx (M, H, W, J): every derivative goes to the pixel that was the maximum."""
    dx[...] = 0
    for offset, pixels, windows in _offsets(dx.shape, dy.shape, size, stride):
        dx[pixels] += dy[windows] * (argmax[windows] == offset)


def max_pool_tangent(rx, argmax, ry, size, stride):
    """ry (M, Ho, Wo, J): the tangent of the pixel that was the maximum, zero where none was."""
    ry[...] = 0
    for offset, pixels, windows in _offsets(rx.shape, ry.shape, size, stride):
        np.copyto(ry[windows], rx[pixels], where=argmax[windows] == offset)


def window_areas(image, pooled, size, stride, dtype):
    """Pixels in each clipped window (Ho, Wo, 1), for image (H, W) and pooled (Ho, Wo)."""
    rows, columns = (
        np.minimum(size, side - stride * np.arange(windows))
        for side, windows in zip(image, pooled, strict=True)
    )
    return np.multiply.outer(rows, columns)[:, :, None].astype(dtype)


def avg_pool(x, y, size, stride):
    """y (M, Ho, Wo, J) = mean of each clipped window."""
    y[...] = 0
    for _, pixels, windows in _offsets(x.shape, y.shape, size, stride):
        y[windows] += x[pixels]
    y /= window_areas(x.shape[1:3], y.shape[1:3], size, stride, x.dtype)


def avg_pool_backward(dy, dx, size, stride):
    """dx (M, H, W, J): every derivative is spread evenly over its clipped window."""
    dx[...] = 0
    shares = dy / window_areas(dx.shape[1:3], dy.shape[1:3], size, stride, dx.dtype)
    for _, pixels, windows in _offsets(dx.shape, dy.shape, size, stride):
        dx[pixels] += shares[windows]


def _sum_along(x, axis, size, start):
    """out[i] = sum of x[i + start], ..., x[i + start + size - 1] along `axis`, zero outside."""
    out = np.zeros_like(x)
    source, target = np.moveaxis(x, axis, 0), np.moveaxis(out, axis, 0)
    for offset in range(start, start + size):
        first, last = max(0, -offset), min(len(source), len(source) - offset)
        if first < last:
            target[first:last] += source[first + offset : last + offset]
    return out


def neighbourhood_sum(x, size, across, adjoint=False):
    """Sum over each element's neighbourhood: `size` maps, or size x size pixels of its own map.

    The neighbourhood starts at -(size // 2); the adjoint's is its mirror image.
    """
    start = size // 2 + 1 - size if adjoint else -(size // 2)
    if across:
        return _sum_along(x, 3, size, start)
    return _sum_along(_sum_along(x, 1, size, start), 2, size, start)


def inverse_power(d, power):
    """d^-power; three quarters, the published exponent, from square roots, much faster."""
    if power == 0.75:
        root = np.sqrt(d)
        return 1 / (root * np.sqrt(root))
    return d**-power


def response_norm(x, y, d, size, alpha, power, across):
    """y = x * d^-power with d = 1 + alpha * sum of x^2 over the neighbourhood; all (M, H, W, J)."""
    np.multiply(neighbourhood_sum(x * x, size, across), alpha, out=d)
    d += 1
    np.multiply(x, inverse_power(d, power), out=y)


def response_norm_backward(dy, x, d, dx, size, alpha, power, across):
    """dx: the adjoint of the derivative of `response_norm` at x, applied to dy."""
    shrink = inverse_power(d, power)
    pull = neighbourhood_sum(dy * x * shrink / d, size, across, adjoint=True)
    np.multiply(dy, shrink, out=dx)
    dx -= 2 * alpha * power * x * pull


def response_norm_tangent(rx, x, d, ry, size, alpha, power, across):
    """ry: the derivative of `response_norm` at x along rx."""
    shrink = inverse_power(d, power)
    np.multiply(rx, shrink, out=ry)
    ry -= 2 * alpha * power * x * shrink / d * neighbourhood_sum(x * rx, size, across)
