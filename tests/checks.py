"""What tests compare with: tolerances, finite differences, and the primitives as plain loops."""

import itertools

import numpy as np

from kfcnet.ops.shapes import output_size, pooled_size


def assert_close(actual, expected, tolerance=None, dtype=None):
    """Equal up to rounding in `dtype` (that of `actual`), relative to the largest entry."""
    actual, expected = np.asarray(actual), np.asarray(expected, np.float64)
    if tolerance is None:
        tolerance = 2e-5 if (dtype or actual.dtype) == np.float32 else 1e-10
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.isfinite(actual).all(), "not finite"
    scale = max(np.abs(expected).max(initial=0), 1e-30)
    error = np.abs(actual - expected).max(initial=0) / scale
    assert error <= tolerance, f"relative error {error:.3g} above {tolerance:.3g}"


def derivative(function, x, direction, step=1e-5):
    """Central difference of an array function along a direction."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def conv_loops(x, weight, kernel, stride, padding):
    """The convolution layer of the paper's Eq. 10, one pixel of a patch at a time."""
    M, H, W, J = x.shape
    Ho, Wo = (output_size(side, kernel, stride, padding) for side in (H, W))
    y = np.zeros((M, Ho, Wo, len(weight)))
    for m, t1, t2, i in itertools.product(*map(range, y.shape)):
        total = weight[i, 0]
        for r, c in itertools.product(range(kernel), range(kernel)):
            h, w = t1 * stride + r - padding, t2 * stride + c - padding
            if 0 <= h < H and 0 <= w < W:
                first = 1 + (r * kernel + c) * J
                total += np.vdot(weight[i, first : first + J], x[m, h, w])
        y[m, t1, t2, i] = total
    return y


def patches_loops(x, kernel, stride, padding):
    """Rows [1, patch] (M*T, P), offset-major, map fastest."""
    M, H, W, J = x.shape
    Ho, Wo = (output_size(side, kernel, stride, padding) for side in (H, W))
    rows = np.zeros((M, Ho, Wo, 1 + kernel * kernel * J))
    rows[..., 0] = 1
    for t1, t2, r, c in itertools.product(range(Ho), range(Wo), range(kernel), range(kernel)):
        h, w = t1 * stride + r - padding, t2 * stride + c - padding
        if 0 <= h < H and 0 <= w < W:
            first = 1 + (r * kernel + c) * J
            rows[:, t1, t2, first : first + J] = x[:, h, w]
    return rows.reshape(-1, rows.shape[-1])


def patches_adjoint_loops(rows, x_shape, kernel, stride, padding):
    """Every patch of rows (M*T, P) added back onto its pixels (M, H, W, J)."""
    M, H, W, J = x_shape
    Ho, Wo = (output_size(side, kernel, stride, padding) for side in (H, W))
    x, rows = np.zeros(x_shape), rows.reshape(M, Ho, Wo, -1)
    for t1, t2, r, c in itertools.product(range(Ho), range(Wo), range(kernel), range(kernel)):
        h, w = t1 * stride + r - padding, t2 * stride + c - padding
        if 0 <= h < H and 0 <= w < W:
            first = 1 + (r * kernel + c) * J
            x[:, h, w] += rows[:, t1, t2, first : first + J]
    return x


def pool_windows(x_shape, size, stride, clipped=True):
    """(t1, t2, rows, columns) of every clipped pooling window; else of those that lie inside."""
    _, H, W, _ = x_shape
    for t1, t2 in itertools.product(
        range(pooled_size(H, size, stride)), range(pooled_size(W, size, stride))
    ):
        if clipped or (t1 * stride + size <= H and t2 * stride + size <= W):
            yield (
                t1,
                t2,
                range(t1 * stride, min(t1 * stride + size, H)),
                range(t2 * stride, min(t2 * stride + size, W)),
            )


def response_norm_loops(x, size, alpha, power, across):
    """x * (1 + alpha * sum of squares of the neighbours)^-power."""
    M, H, W, J = x.shape
    y, start = np.zeros(x.shape), -(size // 2)
    near = [range(start, start + size)] * 2
    for m, h, w, j in itertools.product(*map(range, x.shape)):
        if across:
            others = [x[m, h, w, k] for k in range(j + start, j + start + size) if 0 <= k < J]
        else:
            others = [
                x[m, h + a, w + b, j]
                for a, b in itertools.product(*near)
                if 0 <= h + a < H and 0 <= w + b < W
            ]
        y[m, h, w, j] = x[m, h, w, j] * (1 + alpha * np.square(others).sum()) ** -power
    return y


def scale_shift_loops(x, weight):
    """shift + scale * x for the rows (shift, scale) of weight (J, 2)."""
    y = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        shift, scale = weight[place[-1]]
        y[place] = shift + scale * x[place]
    return y


def map_sums_loops(x, dy):
    """(m, J, 2): of every example and map the sums over its pixels of dy and of dy * x."""
    m, H, W, J = x.shape
    sums = np.zeros((m, J, 2))
    for example, h, w, j in itertools.product(*map(range, x.shape)):
        d = dy[example, h, w, j]
        sums[example, j] += d, d * x[example, h, w, j]
    return sums
