"""Launchers of pooling, normalisation, activation, dropout, losses and random numbers."""

import numpy as np

from kfcnet import philox
from kfcnet.ops.cuda.launcher import BLOCK, Launcher, lanes_of
from kfcnet.ops.shapes import ceil_div, pooled_shape

POOL_NORM_SHARED = 48 * 1024  # bytes of a block's two tiles of pooled pixels
POOL_NORM_GROUPS = 2  # of maps, that it has at most: smaller blocks, more of them


def literal(number):
    """A number as a constant of a kernel: the nearest fp32, others are refused by the compiler."""
    return f"{float(np.float32(number))!r}f"


class Elementwise(Launcher):
    """The primitives of a pass that are no matrix product: memory limits them."""

    # Pooling

    def max_pool(self, x, size, stride, clipped=True, relu=False):
        y = self.empty(pooled_shape(x.shape, size, stride, clipped))
        argmax = self.empty(y.shape, np.uint8)
        self._pool("max_pool", "", y, (x, y), size, stride, relu, x, y, argmax)
        return y, argmax

    def max_pool_backward(self, dy, argmax, x_shape, size, stride, active=None):
        dx, relu = self.empty((len(dy), *x_shape[1:])), active is not None
        arrays = dy, argmax, active, dx
        self._pool("max_pool", "_backward", dx, (dx, dy), size, stride, relu, *arrays)
        return dx

    def max_pool_tangent(self, rx, argmax, size, stride, active=None):
        ry, relu = self.empty(argmax.shape), active is not None
        arrays = rx, argmax, active, ry
        self._pool("max_pool", "_tangent", ry, (rx, ry), size, stride, relu, *arrays)
        return ry

    def avg_pool(self, x, size, stride, clipped=True, active=None):
        y, relu = self.empty(pooled_shape(x.shape, size, stride, clipped)), active is not None
        self._pool("avg_pool", "", y, (x, y), size, stride, relu, x, active, y)
        return y

    def avg_pool_backward(self, dy, x_shape, size, stride, active=None):
        dx, relu = self.empty((len(dy), *x_shape[1:])), active is not None
        self._pool("avg_pool", "_backward", dx, (dx, dy), size, stride, relu, dy, active, dx)
        return dx

    def _pool(self, file, which, result, images, size, stride, relu, *arrays):
        """images: the array of the images, and that of the pooled ones. relu: whether a ReLU beside
        the pool is taken in the same pass.
        """
        (_, H, W, J), (_, Ho, Wo, _) = (array.shape for array in images)
        self._each(
            file,
            file + which,
            result.size // lanes_of(J),
            *arrays,
            len(result),
            HEIGHT=H,
            WIDTH=W,
            MAPS=J,
            SIZE=size,
            STRIDE=stride,
            OUT_HEIGHT=Ho,
            OUT_WIDTH=Wo,
            RELU=int(relu),
        )

    # A pool with the ReLU and the response normalisation behind it

    def can_pool_and_normalise(self, pooled_shape, across):
        H, W, J = pooled_shape
        return not across and 2 * 4 * H * W * lanes_of(J) <= POOL_NORM_SHARED

    def max_pool_norm(self, x, size, stride, clipped, norm):
        pooled = self.empty(pooled_shape(x.shape, size, stride, clipped))
        argmax = self.empty(pooled.shape, np.uint8)
        y, d = self.empty(pooled.shape), self.empty(pooled.shape)
        arrays = x, pooled, argmax, y, d
        self._max_pool_norm("", x.shape, pooled.shape, (size, stride), norm, arrays)
        return y, (pooled, argmax, d)

    def max_pool_norm_backward(self, dy, saved, x_shape, size, stride, norm):
        dx = self.empty((len(dy), *x_shape[1:]))
        arrays = dy, *saved, dx
        self._max_pool_norm("_backward", dx.shape, dy.shape, (size, stride), norm, arrays)
        return dx

    def max_pool_norm_tangent(self, rx, saved, size, stride, norm):
        ry = self.empty(saved[0].shape)
        arrays = rx, *saved, ry
        self._max_pool_norm("_tangent", rx.shape, ry.shape, (size, stride), norm, arrays)
        return ry

    def _max_pool_norm(self, which, x_shape, pooled_shape, window, norm, arrays):
        (M, H, W, J), (_, Ho, Wo, _) = x_shape, pooled_shape
        norm_size, alpha, power, _ = norm
        bytes_of_group = 2 * 4 * Ho * Wo * lanes_of(J)
        groups = min(POOL_NORM_GROUPS, POOL_NORM_SHARED // bytes_of_group)
        self.launch(
            "max_pool_norm",
            "max_pool_norm" + which,
            (M, ceil_div(J // lanes_of(J), groups)),
            *arrays,
            M,
            alpha,
            HEIGHT=H,
            WIDTH=W,
            MAPS=J,
            SIZE=window[0],
            STRIDE=window[1],
            OUT_HEIGHT=Ho,
            OUT_WIDTH=Wo,
            NORM_SIZE=norm_size,
            POWER=literal(power),
            TILE_GROUPS=groups,
        )

    # Normalisation

    def response_norm(self, x, size, alpha, power, across):
        y, d = self.empty(x.shape), self.empty(x.shape)
        self._response_norm("", across, (x, y, d), size, alpha, power)
        return y, d

    def response_norm_backward(self, dy, x, d, size, alpha, power, across):
        dx = self.empty(x.shape)
        self._response_norm("_backward", across, (dy, x, d, dx), size, alpha, power)
        return dx

    def response_norm_tangent(self, rx, x, d, size, alpha, power, across):
        ry = self.empty(x.shape)
        self._response_norm("_tangent", across, (rx, x, d, ry), size, alpha, power)
        return ry

    def _response_norm(self, which, across, arrays, size, alpha, power):
        M, H, W, J = arrays[0].shape
        constants = {"MAPS": J, "SIZE": size, "POWER": literal(power)}
        if across:
            tile = max(1, 1024 // J)
            self.launch(
                "response_norm_across",
                "response_norm_across" + which,
                ceil_div(M * H * W, tile),
                *arrays,
                M * H * W,
                alpha,
                TILE_PIXELS=tile,
                **constants,
            )
            return
        rows, groups = _response_norm_tile(H, W, J, size)
        lanes = lanes_of(J)
        grid, block = ceil_div(M * H * W * J // lanes, BLOCK), BLOCK
        if which == "_backward":
            grid = M, ceil_div(H, rows), ceil_div(J // lanes, groups)
            block = 256 if H * W >= 100 else 128
        self.launch(
            "response_norm_within",
            "response_norm_within" + which,
            grid,
            *arrays,
            M,
            alpha,
            block=block,
            HEIGHT=H,
            WIDTH=W,
            TILE_ROWS=rows,
            TILE_GROUPS=groups,
            **constants,
        )

    def batch_norm(self, x, epsilon):
        J = x.shape[-1]
        rows, slices = x.size // J, _batch_norm_slices(x.size // J)
        partials, mean, inv_std = self.empty((2, slices, J)), self.empty((J,)), self.empty((J,))
        self._moments(
            "batch_norm", slices, (x,), (x, partials, mean, inv_std), partials, rows, epsilon
        )
        if self.ranks.count > 1:
            mean, inv_std = self._moments_of_all(x, mean, epsilon)
        return self.batch_norm_apply(x, mean, inv_std), mean, inv_std

    def _moments_of_all(self, x, mean, epsilon):
        """Mean and 1 / deviation (J,) of each map over all processes, whose own mean is `mean`."""
        J = x.shape[-1]
        rows, slices = x.size // J, _batch_norm_slices(x.size // J)
        (mean,) = self._means_over_ranks(mean)
        ones, inv_std = self.empty((J,)), self.empty((J,))
        self.write(ones, 1.0)
        centred = self.batch_norm_apply(x, mean, ones)
        partials, remainder, squares = self.empty((2, slices, J)), self.empty(J), self.empty(J)
        self._moments(
            "batch_norm_backward",
            slices,
            (centred, centred),
            (partials, remainder, squares),
            partials,
            rows,
        )
        (squares,) = self._means_over_ranks(squares)
        self._each("batch_norm", "batch_norm_inv_std", J, squares, inv_std, epsilon, MAPS=J)
        return mean, inv_std

    def _means_over_ranks(self, *means):
        """The means (J,) over all processes of their own ones, which are overwritten."""
        self.ranks.sum(*means)
        share = self.empty((len(means[0]),))
        self.write(share, 1 / self.ranks.count)
        return [self.scale_maps(total, share) for total in means]

    def batch_norm_apply(self, x, mean, inv_std):
        y = self.empty(x.shape)
        J = x.shape[-1]
        self._fours(
            "batch_norm", "batch_norm_apply", x.size, x, mean, inv_std, y, x.size // J, MAPS=J
        )
        return y

    def batch_norm_backward(self, dy, y, inv_std):
        J = y.shape[-1]
        rows, slices = y.size // J, _batch_norm_slices(y.size // J)
        partials, mean_dy, mean_dy_y = self.empty((2, slices, J)), self.empty(J), self.empty(J)
        self._moments(
            "batch_norm_backward", slices, (dy, y), (partials, mean_dy, mean_dy_y), partials, rows
        )
        if self.ranks.count > 1:
            mean_dy, mean_dy_y = self._means_over_ranks(mean_dy, mean_dy_y)
        dx = self.empty(y.shape)
        self._fours(
            "batch_norm",
            "batch_norm_backward",
            y.size,
            dy,
            y,
            inv_std,
            mean_dy,
            mean_dy_y,
            dx,
            rows,
            MAPS=J,
        )
        return dx

    def _moments(self, which, slices, inputs, outputs, partials, rows, *numbers):
        """Sums over slices of the rows, then the moments from them in order."""
        J = partials.shape[-1]
        across, block = ceil_div(J, 32), (32, 8)
        self.launch(
            "batch_norm",
            which + "_slices",
            (slices, across),
            *inputs,
            partials,
            rows,
            slices,
            block=block,
            MAPS=J,
        )
        self.launch(
            "batch_norm",
            which + "_moments",
            across,
            *outputs,
            rows,
            slices,
            *numbers,
            block=block,
            MAPS=J,
        )

    def scale_maps(self, x, s):
        y = self.empty(x.shape)
        J = x.shape[-1]
        self._fours("vector", "scale_maps", x.size, x, s, y, x.size, J)
        return y

    def scale_shift(self, x, weight):
        y = self.empty(x.shape)
        J = x.shape[-1]
        self._fours("scale_shift", "scale_shift", x.size, x, weight, y, x.size // J, MAPS=J)
        return y

    def map_sums(self, x, dy):
        m, H, W, J = dy.shape
        sums = self.empty((m, J, 2))
        self.launch(
            "scale_shift",
            "map_sums",
            (m, ceil_div(J, 32)),
            x,
            dy,
            sums,
            m,
            H * W,
            block=(32, 8),
            MAPS=J,
        )
        return sums

    # Activation and dropout

    def relu(self, x):
        y = self.empty(x.shape)
        self._fours("relu", "relu", x.size, x, y, x.size)
        return y

    def relu_backward(self, dy, y):
        dx = self.empty(dy.shape)
        self._fours("relu", "relu_backward", dy.size, dy, y, dx, dy.size)
        return dx

    def dropout(self, x, keep, seed, step, stream):
        y, mask = self.empty(x.shape), self.empty(x.shape, np.uint8)
        threshold = philox.threshold(keep)
        self._fours(
            "dropout",
            "dropout",
            x.size,
            x,
            self._step(step),
            y,
            mask,
            x.size,
            seed,
            philox.DROPOUT,
            stream,
            threshold,
            1 / keep,
            **self._shared(x.size // len(x)),
        )
        return y, mask

    def dropout_backward(self, dy, mask, keep):
        dx = self.empty(dy.shape)
        self._fours("dropout", "dropout_backward", dy.size, dy, mask, dx, dy.size, 1 / keep)
        return dx

    # Losses and sampling

    def softmax_cross_entropy(self, z, labels):
        M, C = z.shape
        p, dz, totals = self.empty(z.shape), self.empty(z.shape), self.empty(2)
        block = _softmax_block(C)
        self.launch(
            "softmax_cross_entropy",
            "softmax_cross_entropy",
            1,
            z,
            self._on_device(labels, np.int32),
            p,
            dz,
            totals,
            M,
            block=block,
            CLASSES=C,
            BLOCK=block,
        )
        return p, dz, totals

    def sampled_gradient(self, p, uniforms):
        M, C = p.shape
        dz = self.empty(p.shape)
        self._each(
            "softmax_cross_entropy",
            "sampled_gradient",
            M * C,
            p,
            uniforms,
            dz,
            M,
            CLASSES=C,
            BLOCK=_softmax_block(C),
        )
        return dz

    def softmax_fisher(self, p, r, s, scale):
        M, C = p.shape
        result, block = self.empty(1), _softmax_block(C)
        self.launch(
            "softmax_cross_entropy",
            "softmax_fisher",
            1,
            p,
            r,
            s,
            result,
            M,
            scale,
            block=block,
            CLASSES=C,
            BLOCK=block,
        )
        return result

    def softmax_fisher_product(self, p, r):
        M, C = p.shape
        product = self.empty(p.shape)
        self._each(
            "softmax_cross_entropy",
            "softmax_fisher_product",
            M * C,
            p,
            r,
            product,
            M,
            CLASSES=C,
            BLOCK=_softmax_block(C),
        )
        return product

    def uniforms(self, count, seed, purpose, step, stream=0, width=1):
        return self._random("uniforms", count, seed, purpose, step, stream, width)

    def normals(self, count, seed, purpose, step, stream=0, width=1):
        return self._random("normals", count, seed, purpose, step, stream, width)

    def _random(self, kernel, count, seed, purpose, step, stream, width):
        y, where = self.empty(count), self._shared(width)
        self._fours(
            "random", kernel, count, self._step(step), y, count, seed, purpose, stream, **where
        )
        return y


def _batch_norm_slices(rows):
    return min(256, ceil_div(rows, 64))


def _response_norm_tile(H, W, J, size):
    """Rows and groups of maps that a block of the backward kernel holds in 48 KB."""
    groups, lanes = (2, 4) if lanes_of(J) == 4 else (8, 1)
    bytes_of_row = 4 * W * groups * lanes
    rows = min(H, 16, 48 * 1024 // bytes_of_row - (size - 1))
    if rows < 1:
        raise ValueError(
            f"response normalisation of size {size} on maps of {H} x {W}: one row of "
            "windows does not fit into 48 KB of shared memory"
        )
    return rows, groups


def _softmax_block(classes):
    """Threads of the one block, each with a row of `classes` in 40 KB of shared memory."""
    floats = 40 * 1024 // 4
    odd = classes | 1  # so that rows begin in different banks
    block = min(512, floats // odd // 32 * 32)
    if block < 32:
        raise ValueError(
            f"softmax over {classes} classes: the kernel does {floats // 32 - 1} at most"
        )
    return block
