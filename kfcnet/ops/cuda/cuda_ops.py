"""The array primitives on a GPU: every method launches kernels of `kernels/`.

The launchers know a *runtime*, which allocates, compiles and launches: CuPy's on a GPU, and in the
tests one that runs the same kernels on the CPU. What every primitive computes is said in
`kfcnet/ops/cpu/cpu_ops.py`; here is which kernel does it, on which grid, into which arrays.
"""

import math

import numpy as np

from kfcnet import philox
from kfcnet.ops.cuda import kernels
from kfcnet.ops.cuda.graphs import Graphs
from kfcnet.ops.cuda.inverse import Inversions
from kfcnet.ops.cuda.matmul import Products
from kfcnet.ops.shapes import ceil_div, pooled_shape, pooled_size

BLOCK = 256  # threads of a block, where a kernel does not ask for another number
SCALARS_KEPT = 256  # numbers that stay on the device because they may be asked for again


def is_available():
    """Whether CuPy is installed and sees a GPU."""
    from kfcnet.ops.cuda import runtime

    return runtime.is_available()


class CudaOps(Products, Inversions, Graphs):
    """Array primitives over the arrays of a runtime, in float32.

    A device scalar is an array of shape (1,). Numbers that change from step to step (the step, a
    learning rate, a decay) may also be given as device scalars, so that a captured graph follows
    them. Functions return new arrays unless `out` is given.
    """

    name = "cuda"
    dtype = np.dtype(np.float32)

    def __init__(self, runtime=None, tensor_cores=None):
        """runtime: by default CuPy's. tensor_cores: TF32 products, by default where there are any.

        Raises DeviceError where there is no GPU or no CuPy.
        """
        if runtime is None:
            from kfcnet.ops.cuda.runtime import CupyRuntime

            runtime = CupyRuntime()
        self.runtime = runtime
        self.tensor_cores = runtime.tensor_cores if tensor_cores is None else tensor_cores
        self._scalars = {}
        self._recorded_scalars = []  # that captured steps read, so that they must stay
        self._failures = None  # of factorizations begun, while they are queued

    def describe(self):
        """Device and library versions, for the record of a run."""
        return self.runtime.describe() | {
            "dtype": self.dtype.name,
            "tensor_cores": self.tensor_cores,
        }

    def launch(self, file, kernel, grid, *values, block=BLOCK, shared=0, **constants):
        """Run a kernel of kernels/<file>.cu, compiled with `constants`, on checked arguments.

        grid, block: a number or a tuple. Raises what `kernels.checked` raises.
        """
        arguments = kernels.signatures(file)[kernel]
        values = kernels.checked(kernel, arguments, values, constants, self.runtime.array_type)
        grid, block = (size if isinstance(size, tuple) else (size,) for size in (grid, block))
        self.runtime.launch(file, kernel, constants, grid, block, values, shared)

    def _each(self, file, kernel, threads, *values, **constants):
        """Launch with at least so many threads."""
        self.launch(file, kernel, ceil_div(threads, BLOCK), *values, **constants)

    def _fours(self, file, kernel, count, *values, **constants):
        """Launch with a thread for every four elements."""
        self._each(file, kernel, ceil_div(count, 4), *values, **constants)

    # Arrays

    def asarray(self, x):
        """x on the device, in float32."""
        return self._on_device(x, self.dtype)

    def place(self, x):
        """x on the device, in the type it has: a data set that stays there."""
        return self._on_device(x, x.dtype)

    def _on_device(self, x, dtype):
        if isinstance(x, self.runtime.array_type) and x.dtype == dtype and x.flags.c_contiguous:
            return x
        return self.runtime.asarray(x, dtype)

    def to_numpy(self, a):
        return self.runtime.to_numpy(a)

    def zeros(self, shape):
        return self.runtime.zeros(shape, self.dtype)

    def empty(self, shape, dtype=np.float32):
        return self.runtime.empty(shape, np.dtype(dtype))

    def copy(self, a):
        return self.runtime.copy(a)

    def _scalar(self, value, dtype=np.float32):
        """A device scalar: the value itself if it is one, else a number moved there."""
        if isinstance(value, self.runtime.array_type):
            return value
        key = float(value) if dtype is np.float32 else int(value), dtype
        if key not in self._scalars:
            if len(self._scalars) >= SCALARS_KEPT:
                self._scalars.pop(next(iter(self._scalars)))
            self._scalars[key] = self.runtime.asarray(np.array([value]), np.dtype(dtype))
        if self.runtime.capturing:
            self._recorded_scalars.append(self._scalars[key])
        return self._scalars[key]

    def _step(self, step):
        return self._scalar(step, np.int64)

    # Pooling

    def max_pool(self, x, size, stride):
        y = self.empty(pooled_shape(x.shape, size, stride))
        argmax = self.empty(y.shape, np.uint8)
        self._pool("max_pool", "max_pool", y, x.shape, size, stride, x, y, argmax)
        return y, argmax

    def max_pool_backward(self, dy, argmax, x_shape, size, stride):
        dx = self.empty((len(dy), *x_shape[1:]))
        self._pool("max_pool", "max_pool_backward", dx, x_shape, size, stride, dy, argmax, dx)
        return dx

    def max_pool_tangent(self, rx, argmax, size, stride):
        ry = self.empty(argmax.shape)
        self._pool("max_pool", "max_pool_tangent", ry, rx.shape, size, stride, rx, argmax, ry)
        return ry

    def avg_pool(self, x, size, stride):
        y = self.empty(pooled_shape(x.shape, size, stride))
        self._pool("avg_pool", "avg_pool", y, x.shape, size, stride, x, y)
        return y

    def avg_pool_backward(self, dy, x_shape, size, stride):
        dx = self.empty((len(dy), *x_shape[1:]))
        self._pool("avg_pool", "avg_pool_backward", dx, x_shape, size, stride, dy, dx)
        return dx

    def _pool(self, file, kernel, result, x_shape, size, stride, *arrays):
        _, H, W, J = x_shape
        self._each(
            file,
            kernel,
            result.size // _lanes(J),
            *arrays,
            len(result),
            HEIGHT=H,
            WIDTH=W,
            MAPS=J,
            SIZE=size,
            STRIDE=stride,
            OUT_HEIGHT=pooled_size(H, size, stride),
            OUT_WIDTH=pooled_size(W, size, stride),
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
        constants = {"MAPS": J, "SIZE": size, "POWER": f"{float(power)!r}f"}
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
        lanes = _lanes(J)
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
        return self.batch_norm_apply(x, mean, inv_std), mean, inv_std

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
        threshold = math.ceil(keep * 2**24)  # uniforms are multiples of 2^-24
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

    def softmax_fisher(self, p, r, scale):
        M, C = p.shape
        result, block = self.empty(1), _softmax_block(C)
        self.launch(
            "softmax_cross_entropy",
            "softmax_fisher",
            1,
            p,
            r,
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

    def uniforms(self, count, seed, purpose, step, stream=0):
        return self._random("uniforms", count, seed, purpose, step, stream)

    def normals(self, count, seed, purpose, step, stream=0):
        return self._random("normals", count, seed, purpose, step, stream)

    def _random(self, kernel, count, seed, purpose, step, stream):
        y = self.empty(count)
        self._fours("random", kernel, count, self._step(step), y, count, seed, purpose, stream)
        return y

    # Mini-batches

    def gather(self, images, indices, mean, scale, batch=None, step=0):
        M, size = batch or len(indices), math.prod(images.shape[1:])
        x = self.empty((M, *images.shape[1:]))
        grid = M, ceil_div(size // _lanes(size), BLOCK)
        self.launch(
            "gather",
            "gather",
            grid,
            self._on_device(images, np.uint8),
            mean,
            self._on_device(indices, np.int64),
            self._step(step),
            x,
            len(images),
            M,
            len(indices),
            scale,
            IMAGE_SIZE=size,
        )
        return x

    def take(self, labels, indices, batch=None, step=0):
        M = batch or len(indices)
        targets = self.empty(M, np.int32)
        self._each(
            "gather",
            "take",
            M,
            self._on_device(labels, np.int32),
            self._on_device(indices, np.int64),
            self._step(step),
            targets,
            len(labels),
            M,
            len(indices),
            IMAGE_SIZE=1,
        )
        return targets

    # Vectors and matrices

    def dot(self, x, y):
        return self._sum_of_products("dot_slices", x, y)

    def weighted_dot(self, w, x, y):
        return self._sum_of_products("weighted_dot_slices", w, x, y)

    def _sum_of_products(self, kernel, *vectors):
        """Partial sums, then their sum in order; one part is the result."""
        count = vectors[0].size
        slices = min(128, ceil_div(count, 4096))
        partials = self.empty(slices)
        self.launch("reduce", kernel, slices, *vectors, partials, count, slices)
        if slices == 1:
            return partials
        result = self.empty(1)
        self.launch("reduce", "sum_slices", 1, partials, result, slices)
        return result

    def axpy(self, alpha, x, y):
        self._fours("vector", "axpy", x.size, x, y, x.size, alpha)

    def multiply_add(self, w, x, y):
        self._fours("vector", "multiply_add", x.size, w, x, y, x.size)

    def trace(self, matrix):
        result = self.empty(1)
        self.launch("reduce", "trace", 1, matrix, result, len(matrix))
        return result

    def eigh(self, matrix):
        """By the runtime's library; waits for the device, which knows whether it was found."""
        values, vectors = self.runtime.eigh(matrix)
        if not np.isfinite(self.to_numpy(values)).all():
            raise np.linalg.LinAlgError("eigenvalues did not converge")
        return values, vectors

    # Updates

    def tally(self, totals, clip_scale, nu, step, sums, nonfinite_step):
        self.launch(
            "training_state",
            "tally",
            1,
            totals,
            clip_scale,
            nu,
            step,
            sums,
            nonfinite_step,
            block=1,
        )

    def clip_scale(self, quadratic, learning_rate, clip):
        scale, nu = self.empty(1), self.empty(1)
        self.launch(
            "reduce",
            "clip_scale",
            1,
            quadratic,
            self._scalar(learning_rate),
            scale,
            nu,
            clip,
            block=1,
        )
        return scale, nu

    def momentum_update(
        self,
        theta,
        velocity,
        average,
        direction,
        learning_rate,
        momentum,
        clip_scale,
        averaging_decay,
        nonfinite_step=None,
        weight_decay=None,
    ):
        self._fours(
            "momentum_update",
            "momentum_update",
            theta.size,
            direction,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(momentum),
            clip_scale,
            self._scalar(averaging_decay),
            nonfinite_step,
            theta,
            velocity,
            average,
            theta.size,
        )

    def nesterov_update(
        self,
        theta,
        velocity,
        average,
        direction,
        learning_rate,
        momentum,
        averaging_decay,
        nonfinite_step=None,
        weight_decay=None,
    ):
        self._fours(
            "momentum_update",
            "nesterov_update",
            theta.size,
            direction,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(momentum),
            self._scalar(averaging_decay),
            nonfinite_step,
            theta,
            velocity,
            average,
            theta.size,
        )

    def max_norm(self, weight, average, limit, averaging_decay, nonfinite_step=None):
        rows, columns = weight.shape
        self.launch(
            "max_norm",
            "max_norm",
            rows,
            self._scalar(averaging_decay),
            nonfinite_step,
            weight,
            average,
            rows,
            columns,
            limit,
            block=128,
        )

    def adagrad_update(
        self,
        theta,
        squares,
        average,
        gradient,
        learning_rate,
        epsilon,
        averaging_decay,
        nonfinite_step=None,
        weight_decay=None,
    ):
        self._fours(
            "adaptive_update",
            "adagrad_update",
            theta.size,
            gradient,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(averaging_decay),
            nonfinite_step,
            theta,
            squares,
            average,
            theta.size,
            epsilon,
        )

    def rmsprop_update(
        self,
        theta,
        squares,
        average,
        gradient,
        learning_rate,
        square_decay,
        epsilon,
        averaging_decay,
        nonfinite_step=None,
        weight_decay=None,
    ):
        self._fours(
            "adaptive_update",
            "rmsprop_update",
            theta.size,
            gradient,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(averaging_decay),
            nonfinite_step,
            theta,
            squares,
            average,
            theta.size,
            1 - square_decay,
            epsilon,
        )

    def adam_update(
        self,
        theta,
        velocity,
        squares,
        average,
        gradient,
        learning_rate,
        momentum,
        square_decay,
        epsilon,
        completed,
        averaging_decay,
        nonfinite_step=None,
        weight_decay=None,
    ):
        self._fours(
            "adaptive_update",
            "adam_update",
            theta.size,
            gradient,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(averaging_decay),
            self._step(completed),
            nonfinite_step,
            theta,
            velocity,
            squares,
            average,
            theta.size,
            1 - momentum,
            _log(momentum),
            1 - square_decay,
            _log(square_decay),
            epsilon,
        )


def _lanes(count):
    """Neighbours that a thread takes at once."""
    return 4 if count % 4 == 0 else 1


def _batch_norm_slices(rows):
    return min(256, ceil_div(rows, 64))


def _log(decay):
    return math.log(decay) if decay > 0 else -math.inf


def _response_norm_tile(H, W, J, size):
    """Rows and groups of maps that a block of the backward kernel holds in 48 KB."""
    groups, lanes = (2, 4) if _lanes(J) == 4 else (8, 1)
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
