"""A convolution with the maximum pool and the ReLU behind it, some images at a time.

What the convolution makes is larger than all else in a step. Of some images it stays in the
processor's cache: it is pooled there, and there the pool's derivatives are spread before the
weights' gradient reads them.
"""

import numpy as np

from kfcnet.ops.cpu.eager import Eager
from kfcnet.ops.shapes import output_sides, pooled_size

IN_CACHE = 1 << 20
"""Bytes of a convolution's outputs that are made at a time, at least of one image."""


class PooledConvolutions(Eager):
    """`conv_max_pool`, its gradient and its tangent, by the C extension."""

    def can_convolve_and_pool(self, x_shape, out_maps, window, pool):
        return self.native and window[0] > 1 and pool.has_nowhere

    def conv_max_pool(self, x, weight, kernel, stride, padding, pool):
        sides = output_sides(x.shape, kernel, stride, padding)
        Ho, Wo = (pooled_size(side, *pool) for side in sides)
        y = self.empty((len(x), Ho, Wo, len(weight)))
        argmax = np.empty(y.shape, np.uint8)

        def convolve_and_pool(outputs, x, y, argmax):
            self._convolutions.conv_forward(x, weight, outputs, kernel, stride, padding)
            self._windows.max_pool(outputs, y, argmax, pool.size, pool.stride)
            np.maximum(y, 0, out=y)
            np.putmask(argmax, ~(y > 0), pool.nowhere)

        self._run(self._in_cache(convolve_and_pool, sides, len(weight)), x, y, argmax)
        return y, argmax

    def conv_max_pool_backward_weights(
        self, x, dy, argmax, kernel, stride, padding, pool, scale, out
    ):
        sides = output_sides(x.shape, kernel, stride, padding)

        def sum_over(x, dy, argmax, total):
            part = self.empty(total.shape)
            total[...] = 0

            def add(derivatives, x, dy, argmax):
                pooled = pool.size, pool.stride
                self._windows.max_pool_backward(dy, argmax, derivatives, *pooled)
                self._convolutions.conv_backward_weights(
                    x, derivatives, part, kernel, stride, padding
                )
                np.add(total, part, out=total)

            self._in_cache(add, sides, len(out))(x, dy, argmax)

        np.multiply(self._sum(sum_over, out.shape, x, dy, argmax), scale, out=out)

    def conv_max_pool_tangent(self, x, weight, kernel, stride, padding, pool, argmax):
        ry = self.empty(argmax.shape)

        def convolve_and_take(outputs, x, argmax, ry):
            self._convolutions.conv_forward(x, weight, outputs, kernel, stride, padding)
            self._windows.max_pool_tangent(outputs, argmax, ry, pool.size, pool.stride)

        sides = output_sides(x.shape, kernel, stride, padding)
        self._run(self._in_cache(convolve_and_take, sides, len(weight)), x, argmax, ry)
        return ry

    def _in_cache(self, function, sides, maps):
        """A function of arrays that calls function(outputs, *parts) for some images at a time:
        outputs (m, *sides, maps) is memory of a convolution's, the same every time.
        """
        count = max(1, IN_CACHE // (sides[0] * sides[1] * maps * self.dtype.itemsize))

        def for_all(*arrays):
            images = len(arrays[0])
            outputs = self.empty((min(count, images), *sides, maps))
            for first in range(0, images, count):
                parts = [array[first : first + count] for array in arrays]
                function(outputs[: len(parts[0])], *parts)

        return for_all
