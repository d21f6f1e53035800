"""Convolution, its adjoints and patches in NumPy.

A convolution layer is a dense layer applied to every patch of an image. Letters: M images, H x W
pixels, J input maps, I output maps, K kernel side, T = Ho*Wo output locations, P = 1 + K*K*J.
Arrays are NHWC. A row of patches is [1, a[t + delta, j] ...] with delta slowest and j fastest, so
that a kernel row, K*J numbers, is one contiguous run of the padded image. Functions write into
their `out` argument and work on any contiguous range of images; `native.c` has the same signatures.

With stride 1, a patch shares all but one of its kernel rows with the patch above it. So the
convolution writes each of them once, not K times, and takes K products, one for each row of the
kernel: see `unrolled`.
"""

import math

import numpy as np

from kfcnet.ops.shapes import output_sides

CHUNK = 1 << 18
"""Elements of patches made at a time: 1 MiB in float32, so that they stay in cache."""


def fill_patches(x, rows, kernel, stride, padding):
    """x (M, H, W, J) -> rows (M*T, P): a one, then the patch, [[x]]_H of the paper."""
    M, H, W, J = x.shape
    Ho, Wo = output_sides(x.shape, kernel, stride, padding)
    if padding:
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    x = np.ascontiguousarray(x)  # a kernel row is then one run
    s = x.strides
    windows = np.lib.stride_tricks.as_strided(
        x,
        (M, Ho, Wo, kernel, kernel * J),
        (s[0], stride * s[1], stride * s[2], s[1], x.itemsize),  # s[3] says nothing where J = 1
        writeable=False,
    )
    rows[:, 0] = 1
    rows[:, 1:].reshape(windows.shape)[...] = windows  # splitting axes: still a view


def add_patches(rows, dx, kernel, stride, padding):
    """Adjoint of `fill_patches`: add every patch of rows (M*T, P) back onto dx (M, H, W, J)."""
    M, H, W, J = dx.shape
    Ho, Wo = output_sides(dx.shape, kernel, stride, padding)
    padded = np.zeros((M, H + 2 * padding, W + 2 * padding, J), dx.dtype)
    patches = rows[:, 1:].reshape(M, Ho, Wo, kernel, kernel, J)
    for r in range(kernel):
        for c in range(kernel):
            padded[:, r : r + stride * Ho : stride, c : c + stride * Wo : stride] += patches[
                :, :, :, r, c
            ]
    dx += padded[:, padding : padding + H, padding : padding + W]


def chunks(x, kernel, stride, padding):
    """(first, last, rows): images whose patches fit in cache, and an array for the rows."""
    M = len(x)
    T = math.prod(output_sides(x.shape, kernel, stride, padding))
    P = 1 + kernel * kernel * x.shape[-1]
    step = max(1, CHUNK // (T * P))
    scratch = np.empty((min(step, M) * T, P), x.dtype)
    for first in range(0, M, step):
        last = min(first + step, M)
        yield first, last, scratch[: (last - first) * T]


def unrolled(x, kernel, stride, padding, maps):
    """(first, last, slices): images that are convolved at a time, and their patches in S slices.

    slices (S, Ho*n*Wo, K*K*J/S), for n images: the patches without the one, cut by kernel rows and
    ordered by output row, image, column. In that order what one slice holds of an image row the
    next one holds of the row below, so that all share one array. S is K, or 1 where the stride is
    not 1, or where so few maps come in that S sums over the `maps` that go out would take longer.
    """
    M, H, W, J = x.shape
    Ho, Wo = output_sides(x.shape, kernel, stride, padding)
    S = kernel if stride == 1 and kernel * J > maps else 1
    height, depth = Ho + S - 1, kernel // S
    row_size = Wo * depth * kernel * J
    step = min(M, max(1, CHUNK // (height * row_size)))
    scratch = np.empty(height * step * row_size, x.dtype)
    padded = np.zeros((H + 2 * padding, step, W + 2 * padding, J), x.dtype)
    s = padded.strides
    for first in range(0, M, step):
        n = min(step, M - first)
        padded[padding : padding + H, :n, padding : padding + W] = np.swapaxes(
            x[first : first + n], 0, 1
        )
        rows = scratch[: height * n * row_size].reshape(height, n, Wo, depth, kernel * J)
        rows[...] = np.lib.stride_tricks.as_strided(
            padded, rows.shape, (stride * s[0], s[1], stride * s[2], s[0], s[3]), writeable=False
        )
        t = rows.strides
        yield (
            first,
            first + n,
            np.lib.stride_tricks.as_strided(
                rows, (S, Ho * n * Wo, depth * kernel * J), (t[0], t[2], t[4]), writeable=False
            ),
        )


def _in_slices(weight, S):
    """weight (I, P) -> a view (S, I, K*K*J/S) without column 0."""
    return weight[:, 1:].reshape(len(weight), S, -1).swapaxes(0, 1)


def conv_forward(x, weight, y, kernel, stride, padding):
    """y (M, Ho, Wo, I) = [[x]]_H Wbar^T for x (M, H, W, J) and Wbar = weight (I, P)."""
    if kernel == stride == 1 and padding == 0:
        rows = y.reshape(-1, y.shape[-1])
        np.matmul(x.reshape(-1, x.shape[-1]), weight[:, 1:].T, out=rows)
        rows += weight[:, 0]
        return
    lines = y.reshape(*y.shape[:2], -1)
    bias = np.tile(weight[:, 0], y.shape[2])
    for first, last, slices in unrolled(x, kernel, stride, padding, len(weight)):
        products = np.matmul(slices, _in_slices(weight, len(slices)).swapaxes(1, 2))
        total = products[0] if len(slices) == 1 else products.sum(axis=0)
        by_row = lines[first:last].swapaxes(0, 1)
        np.add(total.reshape(by_row.shape), bias, out=by_row)


def conv_backward_data(dy, weight, dx, kernel, stride, padding):
    """dx (M, H, W, J): the adjoint of `conv_forward` in x, applied to dy (M, Ho, Wo, I)."""
    if kernel == stride == 1 and padding == 0:
        np.matmul(dy.reshape(-1, dy.shape[-1]), weight[:, 1:], out=dx.reshape(-1, dx.shape[-1]))
    elif stride == 1 and padding < kernel:
        mirrored = _mirrored(weight, kernel, dx.shape[-1])
        conv_forward(dy, mirrored, dx, kernel, 1, kernel - 1 - padding)
    else:
        dx[...] = 0
        for first, last, rows in chunks(dx, kernel, stride, padding):
            np.matmul(dy[first:last].reshape(len(rows), -1), weight, out=rows)
            add_patches(rows, dx[first:last], kernel, stride, padding)


def _mirrored(weight, kernel, J):
    """The weights (J, 1 + K*K*I) of the convolution that is the adjoint of that with (I, P)."""
    kernels = weight[:, 1:].reshape(-1, kernel, kernel, J)[:, ::-1, ::-1].transpose(3, 1, 2, 0)
    return np.concatenate([np.zeros((J, 1), weight.dtype), kernels.reshape(J, -1)], axis=1)


def conv_backward_weights(x, dy, out, kernel, stride, padding):
    """out (I, P) = dy^T [[x]]_H, summed over images and locations."""
    I = out.shape[0]
    out[:, 0] = dy.reshape(len(dy) * dy.shape[1], -1).sum(axis=0).reshape(-1, I).sum(axis=0)
    if kernel == stride == 1 and padding == 0:
        np.matmul(dy.reshape(-1, I).T, x.reshape(-1, x.shape[-1]), out=out[:, 1:])
        return
    out[:, 1:] = 0
    for first, last, slices in unrolled(x, kernel, stride, padding, I):
        by_row = dy[first:last].swapaxes(0, 1).reshape(-1, I)
        total = _in_slices(out, len(slices))
        total += np.matmul(by_row.T, slices)


def patch_gram(x, out, kernel, stride, padding):
    """out (P, P) = [[x]]_H^T [[x]]_H, summed over images and locations."""
    out[...] = 0
    for first, last, rows in chunks(x, kernel, stride, padding):
        fill_patches(x[first:last], rows, kernel, stride, padding)
        out += rows.T @ rows
