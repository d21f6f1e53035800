"""Batch normalisation, its scale and shift, in NumPy: some images at a time, to stay in cache.

Maps are the last axis of x (M, ..., J); what is known of a map is an array (J,). Loops run over
whole images, with (J,) repeated for every pixel: maps alone are too few for a fast inner loop.
Functions write into their last arguments, as said for each, and work on any contiguous range of
images.
"""

import numpy as np

BLOCK = 1 << 16
"""Elements taken at a time: 256 KiB in float32."""


def _blocks(*arrays):
    """The arrays' images (n, pixels*J), some at a time."""
    images = [array.reshape(len(array), -1) for array in arrays]
    step = max(1, BLOCK // images[0].shape[1])
    for first in range(0, len(images[0]), step):
        yield [image[first : first + step] for image in images]


def _for_pixels(values, x):
    """values (J,), once for every pixel of an image of x."""
    return np.tile(values, x[0].size // len(values))


def _add_pixels(totals, out):
    """out (J,) = sum over pixels of totals (pixels*J,)."""
    totals.reshape(-1, len(out)).sum(axis=0, out=out)


def totals(x, out):
    """out (J,) = sum of each map of x."""
    _add_pixels(x.reshape(len(x), -1).sum(axis=0), out)


def product_totals(x, y, out):
    """out (J,) = sum of each map of x * y."""
    _add_pixels(sum((a * b).sum(axis=0) for a, b in _blocks(x, y)), out)


def center(x, mean, y, out):
    """y = x - mean, and out (J,) = sum of each map of y^2."""
    mean, totals = _for_pixels(mean, x), 0
    for a, b in _blocks(x, y):
        np.subtract(a, mean, out=b)
        totals = totals + (b * b).sum(axis=0)
    _add_pixels(totals, out)


def scale_maps(x, scale, y):
    """y = x * scale; y may be x."""
    scale = _for_pixels(scale, x)
    for a, b in _blocks(x, y):
        np.multiply(a, scale, out=b)


def standardize(x, mean, inv_std, y):
    """y = (x - mean) * inv_std."""
    mean, inv_std = _for_pixels(mean, x), _for_pixels(inv_std, x)
    for a, b in _blocks(x, y):
        np.subtract(a, mean, out=b)
        b *= inv_std


def scale_shift(x, weight, y):
    """y = shift + scale * x, for the rows (shift, scale) of weight (J, 2)."""
    shift, scale = (_for_pixels(values, x) for values in weight.T)
    for a, b in _blocks(x, y):
        np.multiply(a, scale, out=b)
        b += shift


def map_sums(x, dy, out):
    """out (M, J, 2) = sums over each image's pixels of dy and of dy * x, map by map."""
    J = x.shape[-1]
    for a, b, sums in _blocks(x, dy, out):
        shape = len(a), -1, J
        of_dy, of_dy_x = np.moveaxis(sums.reshape(len(a), J, 2), -1, 0)
        b.reshape(shape).sum(axis=1, out=of_dy)
        (a * b).reshape(shape).sum(axis=1, out=of_dy_x)


def batch_norm_backward(dy, y, mean_dy, mean_dy_y, inv_std, dx):
    """dx = (dy - mean_dy - y * mean_dy_y) * inv_std."""
    mean_dy, mean_dy_y, inv_std = (
        _for_pixels(values, y) for values in (mean_dy, mean_dy_y, inv_std)
    )
    for a, b, c in _blocks(dy, y, dx):
        np.multiply(b, mean_dy_y, out=c)
        np.subtract(a, c, out=c)
        c -= mean_dy
        c *= inv_std
