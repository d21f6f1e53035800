"""Convolution, its adjoints and patches in NumPy: the definition that all others are held to.

A convolution layer is a dense layer applied to every patch of an image. Letters: M images, H x W
pixels, J input maps, I output maps, K kernel side, T = Ho*Wo output locations, P = 1 + K*K*J.
Arrays are NHWC. A row of patches is [1, a[t + delta, j] ...] with delta slowest and j fastest, so
that a kernel row, K*J numbers, is one contiguous run of the padded image. Functions write into
their `out` argument and work on any contiguous range of images; `native.c` has the same signatures.
"""

import numpy as np

from kfcnet.ops.shapes import output_size

CHUNK = 1 << 19
"""Elements of patches made at a time: about 2 MiB in float32, so that they stay in cache."""


def fill_patches(x, rows, kernel, stride, padding):
    """x (M, H, W, J) -> rows (M*T, P): a one, then the patch, [[x]]_H of the paper."""
    M, H, W, J = x.shape
    Ho, Wo = (output_size(side, kernel, stride, padding) for side in (H, W))
    if padding:
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    s = x.strides
    windows = np.lib.stride_tricks.as_strided(
        x, (M, Ho, Wo, kernel, kernel * J),
        (s[0], stride * s[1], stride * s[2], s[1], s[3]), writeable=False)
    rows[:, 0] = 1
    rows[:, 1:].reshape(windows.shape)[...] = windows  # splitting axes: still a view


def add_patches(rows, dx, kernel, stride, padding):
    """Adjoint of `fill_patches`: add every patch of rows (M*T, P) back onto dx (M, H, W, J)."""
    M, H, W, J = dx.shape
    Ho, Wo = (output_size(side, kernel, stride, padding) for side in (H, W))
    padded = np.zeros((M, H + 2 * padding, W + 2 * padding, J), dx.dtype)
    patches = rows[:, 1:].reshape(M, Ho, Wo, kernel, kernel, J)
    for r in range(kernel):
        for c in range(kernel):
            padded[:, r:r + stride * Ho:stride, c:c + stride * Wo:stride] += patches[:, :, :, r, c]
    dx += padded[:, padding:padding + H, padding:padding + W]


def chunks(x, kernel, stride, padding):
    """(first, last, rows): images whose patches fit in cache, and an array for the rows."""
    M, H, W, J = x.shape
    T = output_size(H, kernel, stride, padding) * output_size(W, kernel, stride, padding)
    P = 1 + kernel * kernel * J
    step = max(1, CHUNK // (T * P))
    scratch = np.empty((min(step, M) * T, P), x.dtype)
    for first in range(0, M, step):
        last = min(first + step, M)
        yield first, last, scratch[:(last - first) * T]


def conv_forward(x, weight, y, kernel, stride, padding):
    """y (M, Ho, Wo, I) = [[x]]_H Wbar^T for x (M, H, W, J) and Wbar = weight (I, P)."""
    if kernel == stride == 1 and padding == 0:
        rows = y.reshape(-1, y.shape[-1])
        np.matmul(x.reshape(-1, x.shape[-1]), weight[:, 1:].T, out=rows)
        rows += weight[:, 0]
        return
    for first, last, rows in chunks(x, kernel, stride, padding):
        fill_patches(x[first:last], rows, kernel, stride, padding)
        np.matmul(rows, weight.T, out=y[first:last].reshape(len(rows), -1))


def conv_backward_data(dy, weight, dx, kernel, stride, padding):
    """dx (M, H, W, J): the adjoint of `conv_forward` in x, applied to dy (M, Ho, Wo, I)."""
    if kernel == stride == 1 and padding == 0:
        np.matmul(dy.reshape(-1, dy.shape[-1]), weight[:, 1:], out=dx.reshape(-1, dx.shape[-1]))
        return
    dx[...] = 0
    for first, last, rows in chunks(dx, kernel, stride, padding):
        np.matmul(dy[first:last].reshape(len(rows), -1), weight, out=rows)
        add_patches(rows, dx[first:last], kernel, stride, padding)


def conv_backward_weights(x, dy, out, kernel, stride, padding):
    """out (I, P) = dy^T [[x]]_H, summed over images and locations."""
    if kernel == stride == 1 and padding == 0:
        dy = dy.reshape(-1, dy.shape[-1])
        out[:, 0] = dy.sum(axis=0)
        np.matmul(dy.T, x.reshape(len(dy), -1), out=out[:, 1:])
        return
    out[...] = 0
    for first, last, rows in chunks(x, kernel, stride, padding):
        fill_patches(x[first:last], rows, kernel, stride, padding)
        out += dy[first:last].reshape(len(rows), -1).T @ rows


def patch_gram(x, out, kernel, stride, padding):
    """out (P, P) = [[x]]_H^T [[x]]_H, summed over images and locations."""
    out[...] = 0
    for first, last, rows in chunks(x, kernel, stride, padding):
        fill_patches(x[first:last], rows, kernel, stride, padding)
        out += rows.T @ rows
