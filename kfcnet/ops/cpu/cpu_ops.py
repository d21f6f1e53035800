"""The array primitives on the CPU, over NumPy arrays of float32 or float64.

Work on a mini-batch is split into `shards` contiguous ranges of images, one thread each, while
BLAS is held to one thread; sums over shards are taken in their order, so that a result depends
on the number of shards and never on timing. The convolution and pooling come from the optional C
extension where it is built, else from NumPy: the same functions with the same signatures.
"""

import math
import os
import platform

import numpy as np
import scipy
import scipy.linalg

from kfcnet import philox
from kfcnet.ops.cpu import batch_norm, convolution, extension, memory, windows
from kfcnet.ops.cpu.blas import one_blas_thread
from kfcnet.ops.cpu.pooled_convolution import PooledConvolutions
from kfcnet.ops.cpu.threads import Threads
from kfcnet.ops.errors import DeviceError
from kfcnet.ops.primitives import ConvGradients
from kfcnet.ops.shapes import output_sides, pooled_shape

_native = extension.load()

PIECE = 1 << 16
"""Elements of a vector that an update works on at a time."""

BLOCK = 128
"""Rows and columns of a matrix that are transposed at a time."""


def has_extension():
    """Whether the C extension is built."""
    return _native is not None


def _uses_native(native, dtype):
    """Whether the C extension is used; it has all functions of `windows`, and the convolutions."""
    if native not in ("auto", "on", "off"):
        raise ValueError(f"ops.native: {native!r} is not one of auto, on, off")
    if native == "on" and _native is None:
        raise DeviceError(
            "ops.native is on, but the C extension is not built: "
            "install again where a C compiler is, or set ops.native=auto"
        )
    return native != "off" and _native is not None and dtype.name in _native.DTYPES


def _check_labels(z, labels):
    """Raise ValueError for labels that are not one class number for each row of z (M, C)."""
    if labels.dtype.kind not in "iu" or labels.shape != z.shape[:1]:
        raise ValueError(
            f"labels are {labels.dtype} {labels.shape}; for outputs {z.shape} they must be whole "
            f"numbers of shape {z.shape[:1]}"
        )
    wrong = (labels < 0) | (labels >= z.shape[1])
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(
            f"the label of example {first} is {labels[first]}, not one of 0 to {z.shape[1] - 1}"
        )


class CpuOps(PooledConvolutions):
    """The primitives over NumPy arrays; a device scalar is an array of shape (1,)."""

    name = "cpu"

    def __init__(self, dtype="float32", shards=2, native="auto", ranks=None):
        """Raises ValueError for a bad argument, DeviceError for an extension that is not there."""
        self.dtype, self.ranks = np.dtype(dtype), ranks or self.ranks
        if self.dtype.name not in ("float32", "float64"):
            raise ValueError(f"dtype: {dtype!r} is not one of float32, float64")
        if shards < 1:
            raise ValueError(f"ops.shards: {shards} is not a positive number")
        self.shards = shards
        self.native = _uses_native(native, self.dtype)
        self._convolutions = _native if self.native else convolution
        self._windows = _native if self.native else windows
        self._draws = _native if self.native else philox
        self._threads = Threads(max(1, shards - 1), "kfcnet")

    def describe(self):
        return {
            "device": "cpu",
            "processor": processor_name(),
            "dtype": self.dtype.name,
            "native": self.native,
            "shards": self.shards,
            **self.ranks.describe(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        }

    @property
    def memory(self):
        try:
            pages, size = (os.sysconf(f"SC_{name}") for name in ("PHYS_PAGES", "PAGE_SIZE"))
        except (AttributeError, ValueError, OSError):  # Windows has none, others not all names
            return None
        return pages * size if min(pages, size) > 0 else None  # -1: not known

    @one_blas_thread
    def _run(self, function, *batched):
        """Call function(*slices) for every shard of the arrays' first axis; list of results."""
        M = len(batched[0])
        edges = [M * shard // self.shards for shard in range(self.shards + 1)]
        slices = [
            [array[a:b] for array in batched]
            for a, b in zip(edges, edges[1:], strict=False)
            if b > a
        ]
        if len(slices) == 1:
            return [function(*slices[0])]
        return self._threads.map(lambda arrays: function(*arrays), slices)

    def _sum(self, function, shape, *batched):
        """The sum over shards, in their order, of what function(*slices, out) writes into out."""

        def partial(*slices):
            out = self.empty(shape)
            function(*slices, out)
            return out

        first, *others = self._run(partial, *batched)
        for other in others:
            first += other
        return first

    # Arrays

    def asarray(self, x):
        return np.ascontiguousarray(x, self.dtype)

    def to_numpy(self, a):
        return np.asarray(a)

    def zeros(self, shape):
        return np.zeros(shape, self.dtype)

    def empty(self, shape):
        return memory.empty(shape, self.dtype)

    def copy(self, a):
        return a.copy()

    # Convolution

    def weights(self, flat, layers, backward=()):
        return [layer.of(flat) for layer in layers]

    def conv_forward(self, x, weight, kernel, stride, padding, bias=True, relu=False, add_to=None):
        if not bias:
            weight = weight.copy()
            weight[:, 0] = 0
        y = self.empty((len(x), *output_sides(x.shape, kernel, stride, padding), len(weight)))
        forward = self._convolution(kernel).conv_forward

        def convolve(x, y):
            forward(x, weight, y, kernel, stride, padding)
            if relu:
                np.maximum(y, 0, out=y)

        self._run(convolve, x, y)
        if add_to is None:
            return y
        add_to += y
        return add_to

    def conv_backward_data(self, dy, weight, x_shape, kernel, stride, padding):
        dx = self.empty((len(dy), *x_shape[1:]))
        backward = self._convolution(kernel).conv_backward_data
        self._run(lambda dy, dx: backward(dy, weight, dx, kernel, stride, padding), dy, dx)
        return dx

    def conv_backward_weights(self, x, dy, kernel, stride, padding, scale, out):
        backward = self._convolution(kernel).conv_backward_weights
        total = self._sum(
            lambda x, dy, out: backward(x, dy, out, kernel, stride, padding), out.shape, x, dy
        )
        np.multiply(total, scale, out=out)

    def conv_gradients(self, layers, scale, out):
        return ConvGradients(self, scale, out)

    def _convolution(self, kernel):
        """A dense layer, the convolution with a 1 x 1 kernel, is a plain matrix product."""
        return convolution if kernel == 1 else self._convolutions

    def patches(self, x, kernel, stride, padding):
        T = math.prod(output_sides(x.shape, kernel, stride, padding))
        rows = self.empty((len(x) * T, 1 + kernel * kernel * x.shape[3]))
        convolution.fill_patches(x, rows, kernel, stride, padding)
        return rows

    def patches_adjoint(self, rows, x_shape, kernel, stride, padding):
        dx = self.zeros(x_shape)
        convolution.add_patches(rows, dx, kernel, stride, padding)
        return dx

    # Kronecker factors

    def patch_gram(self, x, kernel, stride, padding, scale, decay, out):
        total = self._patch_gram(x, out.shape, kernel, stride, padding)
        self._accumulate(total, scale, decay, out)

    def _patch_gram(self, x, shape, kernel, stride, padding):
        if self.native and stride == 1 and kernel > 1:
            geometry = (*x.shape[1:], kernel, padding)
            regions = self._sum(
                lambda x, out: _native.patch_gram_regions(x, out, kernel, padding),
                _native.patch_gram_regions_shape(*geometry),
                x,
            )
            total = self.empty(shape)
            _native.patch_gram_assemble(regions, total, len(x), *geometry)
            return total
        gram = convolution.patch_gram
        return self._sum(lambda x, out: gram(x, out, kernel, stride, padding), shape, x)

    def gram(self, rows, scale, decay, out):
        total = self._sum(lambda rows, out: np.matmul(rows.T, rows, out=out), out.shape, rows)
        self._accumulate(total, scale, decay, out)

    @staticmethod
    def _accumulate(total, scale, decay, out):
        if decay:
            out *= decay
            out += scale * total
        else:
            np.multiply(total, scale, out=out)

    # Pooling

    def max_pool(self, x, size, stride, clipped=True, relu=False):
        y = self.empty(pooled_shape(x.shape, size, stride, clipped))
        argmax = np.empty(y.shape, np.uint8)
        self._run(lambda *arrays: self._windows.max_pool(*arrays, size, stride), x, y, argmax)
        return self.relu(y) if relu else y, argmax

    def max_pool_backward(self, dy, argmax, x_shape, size, stride, active=None):
        dy = self._active_only(dy, active)
        dx = self.empty((len(dy), *x_shape[1:]))
        self._run(
            lambda *arrays: self._windows.max_pool_backward(*arrays, size, stride), dy, argmax, dx
        )
        return dx

    def max_pool_tangent(self, rx, argmax, size, stride, active=None):
        ry = self.empty(argmax.shape)
        self._run(
            lambda *arrays: self._windows.max_pool_tangent(*arrays, size, stride), rx, argmax, ry
        )
        return self._active_only(ry, active)

    def avg_pool(self, x, size, stride, clipped=True, active=None):
        x = self._active_only(x, active)
        y = self.empty(pooled_shape(x.shape, size, stride, clipped))
        self._run(lambda *arrays: self._windows.avg_pool(*arrays, size, stride), x, y)
        return y

    def avg_pool_backward(self, dy, x_shape, size, stride, active=None):
        dx = self.empty((len(dy), *x_shape[1:]))
        self._run(lambda *arrays: self._windows.avg_pool_backward(*arrays, size, stride), dy, dx)
        return self._active_only(dx, active)

    def _active_only(self, values, active):
        """The derivative of a ReLU with the output `active`, if there is one."""
        return values if active is None else self.relu_backward(values, active)

    # Normalisation

    def response_norm(self, x, size, alpha, power, across):
        y, d = self.empty(x.shape), self.empty(x.shape)
        forward = self._windows.response_norm
        self._run(lambda *arrays: forward(*arrays, size, alpha, power, across), x, y, d)
        return y, d

    def response_norm_backward(self, dy, x, d, size, alpha, power, across):
        dx = self.empty(x.shape)
        backward = self._windows.response_norm_backward
        self._run(lambda *arrays: backward(*arrays, size, alpha, power, across), dy, x, d, dx)
        return dx

    def response_norm_tangent(self, rx, x, d, size, alpha, power, across):
        ry = self.empty(x.shape)
        tangent = self._windows.response_norm_tangent
        self._run(lambda *arrays: tangent(*arrays, size, alpha, power, across), rx, x, d, ry)
        return ry

    def batch_norm(self, x, epsilon):
        shape, count = x.shape[-1:], self._pixels(x)
        y, totals = self.empty(x.shape), self._sum(batch_norm.totals, shape, x)
        self.ranks.sum(totals)
        mean = totals / count
        squares = self._sum(lambda x, y, out: batch_norm.center(x, mean, y, out), shape, x, y)
        self.ranks.sum(squares)
        inv_std = 1 / np.sqrt(squares / count + self.dtype.type(epsilon))
        self._run(lambda y: batch_norm.scale_maps(y, inv_std, y), y)
        return y, mean, inv_std

    def _pixels(self, x):
        """Of a map in the whole mini-batch, whose share x (..., J) is."""
        return self.dtype.type(self.ranks.whole(x.size // x.shape[-1]))

    def batch_norm_apply(self, x, mean, inv_std):
        y = self.empty(x.shape)
        self._run(lambda x, y: batch_norm.standardize(x, mean, inv_std, y), x, y)
        return y

    def batch_norm_backward(self, dy, y, inv_std):
        shape, count = y.shape[-1:], self._pixels(y)
        sums = (
            self._sum(batch_norm.totals, shape, dy),
            self._sum(batch_norm.product_totals, shape, dy, y),
        )
        self.ranks.sum(*sums)
        mean_dy, mean_dy_y = (total / count for total in sums)
        dx = self.empty(y.shape)
        self._run(
            lambda *arrays: batch_norm.batch_norm_backward(
                *arrays[:2], mean_dy, mean_dy_y, inv_std, arrays[2]
            ),
            dy,
            y,
            dx,
        )
        return dx

    def scale_maps(self, x, s):
        y = self.empty(x.shape)
        self._run(lambda x, y: batch_norm.scale_maps(x, s, y), x, y)
        return y

    def scale_shift(self, x, weight):
        y = self.empty(x.shape)
        self._run(lambda x, y: batch_norm.scale_shift(x, weight, y), x, y)
        return y

    def map_sums(self, x, dy):
        sums = self.empty((len(dy), dy.shape[-1], 2))
        self._run(batch_norm.map_sums, x, dy, sums)
        return sums

    # Activation and dropout

    def relu(self, x):
        y = self.empty(x.shape)
        self._run(lambda x, y: np.maximum(x, 0, out=y), x, y)
        return y

    def relu_backward(self, dy, y):
        dx = self.empty(dy.shape)
        self._run(lambda dy, y, dx: np.multiply(dy, y > 0, out=dx), dy, y, dx)
        return dx

    def dropout(self, x, keep, seed, step, stream):
        y, mask = self.empty(x.shape), np.empty(x.shape, np.uint8)
        limit = self.dtype.type(philox.threshold(keep) * 2.0**-24)
        sequence = seed, philox.DROPOUT, _number(step), stream

        def thin(places, x, y, mask):
            uniforms = self._uniforms(places, x[0].size, *sequence)
            np.less(uniforms.reshape(x.shape), limit, out=mask)
            self._thin(x, mask, keep, y)

        self._run(thin, np.arange(len(x)), x, y, mask)
        return y, mask

    def dropout_backward(self, dy, mask, keep):
        dx = self.empty(dy.shape)
        self._run(lambda dy, mask, dx: self._thin(dy, mask, keep, dx), dy, mask, dx)
        return dx

    def _thin(self, x, mask, keep, y):
        np.multiply(x, mask, out=y)
        y *= self.dtype.type(1 / keep)

    # Losses and sampling

    def softmax_cross_entropy(self, z, labels):
        _check_labels(z, labels)
        shifted = z - z.max(axis=1, keepdims=True)
        p = np.exp(shifted)
        sums = p.sum(axis=1, keepdims=True)
        p /= sums
        rows = np.arange(len(z))
        dz = p.copy()
        dz[rows, labels] -= 1
        nats = (np.log(sums[:, 0]) - shifted[rows, labels]).sum(dtype=np.float64)
        return p, dz, np.array([nats, (z.argmax(axis=1) != labels).sum()])

    def sampled_gradient(self, p, uniforms):
        sums = np.cumsum(p, axis=1)
        # Rounding may leave the last sum below u: the first class with that sum is then taken.
        reached = (sums > uniforms[:, None]) | (sums == sums[:, -1:])
        dz = p.copy()
        dz[np.arange(len(p)), reached.argmax(axis=1)] -= 1
        return dz

    def softmax_fisher(self, p, r, s, scale):
        r, s = (tangent - (p * tangent).sum(axis=1, keepdims=True) for tangent in (r, s))
        # From left to right: r * s can be infinite where p is zero.
        return self.asarray([scale * (p * r * s).sum()])

    def softmax_fisher_product(self, p, r):
        return p * (r - (p * r).sum(axis=1, keepdims=True))

    def uniforms(self, count, seed, purpose, step, stream=0, width=1):
        places = np.arange(count // width)
        return self._uniforms(places, width, seed, purpose, _number(step), stream)

    def _uniforms(self, places, width, *sequence):
        """The `width` numbers of each of this process's examples at ascending, adjoining places."""
        out = self.empty(len(places) * width)
        if self.ranks.count == 1:
            self._draws.fill_uniforms(out, *sequence, int(places[0]) * width)
            return out
        for row, place in zip(out.reshape(len(places), width), places, strict=True):
            first = (int(place) * self.ranks.count + self.ranks.rank) * width
            self._draws.fill_uniforms(row, *sequence, first)
        return out

    def normals(self, count, seed, purpose, step, stream=0, width=1):
        whole = self.ranks.whole(count)
        numbers = philox.normals(seed, purpose, _number(step), whole, stream)
        return self.asarray(self.ranks.share(numbers.reshape(-1, width)).reshape(-1))

    # Mini-batches

    def gather(self, images, labels, indices, mean, scale, batch=None, step=0):
        indices = self._part(indices, batch, step)
        x = self.empty((len(indices), *images.shape[1:]))

        def normalise(indices, x):
            np.subtract(images[indices], mean, out=x, casting="unsafe")
            x *= self.dtype.type(scale)

        self._run(normalise, indices, x)
        return x, None if labels is None else labels[indices]

    def _part(self, ring, batch, step):
        """This process's entries from step*R*batch on of a ring (n,): (batch,); the ring itself
        without a batch.
        """
        if batch is None:
            return ring
        begin = self.ranks.whole(_number(step) * batch)
        places = self.ranks.share(np.arange(self.ranks.whole(batch)))
        return ring[(places + begin) % len(ring)]

    # Vectors and matrices

    @one_blas_thread
    def matmul(self, a, b, transpose_a=False, transpose_b=False, out=None):
        return np.matmul(a.T if transpose_a else a, b.T if transpose_b else b, out=out)

    @one_blas_thread
    def dot(self, x, y):
        return self.asarray([np.vdot(x, y)])

    @one_blas_thread
    def weighted_dot(self, w, x, y):
        return self.asarray([sum(float(np.vdot(u * v, z)) for u, v, z in _pieces(w, x, y))])

    def axpy(self, alpha, x, y):
        y += x if alpha == 1 else alpha * x

    def multiply_add(self, w, x, y):
        for factors, values, sums in _pieces(w, x, y):
            sums += factors * values

    def trace(self, matrix):
        return self.asarray([np.trace(matrix)])

    @one_blas_thread
    def spd_inverse(self, matrix, shift):
        damped = matrix.copy()
        damped.flat[:: len(matrix) + 1] += shift
        potrf, potri = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (damped,))
        factor, info = potrf(damped.T, lower=0, overwrite_a=True)
        if info == 0:
            inverse, info = potri(factor, lower=0, overwrite_c=True)
        if info or not np.isfinite(inverse).all():
            raise np.linalg.LinAlgError("matrix is not positive definite after damping")
        return _mirrored(inverse.T)

    @one_blas_thread
    def eigh(self, matrix):
        return np.linalg.eigh(matrix)

    # Updates

    def count_step(self, totals, clip_scale, nu, step, sums, nonfinite_step):
        sums[:2] += totals
        sums[2] += clip_scale is not None and clip_scale[0] < 1
        sums[3] += np.nan if nu is None else nu[0]
        if not (_is_set(nonfinite_step) or np.isfinite(totals[0])):
            nonfinite_step[...] = step
        self.advance(step)

    def clip_scale(self, quadratic, learning_rate, clip):
        nu = learning_rate**2 * quadratic
        return np.sqrt(clip / np.maximum(nu, clip)), nu

    def polyak_scale(self, scale, totals, examples, twice_penalty, slope, learning_rate, share):
        scale = np.ones_like(slope) if scale is None else scale
        h = totals[:1] / examples + twice_penalty / 2
        decrease = learning_rate * slope
        # A quotient of what is not positive is never looked at; NaN is passed on.
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(decrease <= 0, scale, np.minimum(scale, share * h / decrease))

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
        counted=None,
        weight_decay=None,
    ):
        if counted is not None:
            self.count_step(*counted)
            if _is_set(counted.nonfinite_step):
                return
        step = learning_rate if clip_scale is None else learning_rate * clip_scale
        vectors = theta, velocity, average, direction, weight_decay
        for theta, velocity, average, direction, weight_decay in _pieces(*vectors):
            velocity *= momentum
            velocity -= step * _decayed(direction, weight_decay, theta)
            theta += velocity
            _fold(average, theta, averaging_decay)

    def nesterov_update(
        self,
        theta,
        velocity,
        average,
        direction,
        learning_rate,
        momentum,
        averaging_decay,
        counted=None,
        weight_decay=None,
    ):
        if counted is not None:
            self.count_step(*counted)
            if _is_set(counted.nonfinite_step):
                return
        vectors = theta, velocity, average, direction, weight_decay
        for theta, velocity, average, direction, weight_decay in _pieces(*vectors):
            descent = learning_rate * _decayed(direction, weight_decay, theta)
            velocity *= momentum
            velocity -= descent
            theta += momentum * velocity
            theta -= descent
            _fold(average, theta, averaging_decay)

    def max_norm(self, weight, average, limit, averaging_decay, nonfinite_step=None):
        if _is_set(nonfinite_step):
            return
        incoming = weight[:, 1:]
        norms = np.sqrt(np.square(incoming).sum(axis=1, keepdims=True))
        # A NaN is divided by and passed on; limit and norm may both be zero in float32.
        is_long = ~(norms <= limit)
        shorter = incoming * np.divide(limit, norms, out=np.ones_like(norms), where=is_long)
        average[:, 1:] += (1 - averaging_decay) * (shorter - incoming)
        incoming[...] = shorter

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
        is_decoupled=False,
    ):
        if _is_set(nonfinite_step):
            return
        vectors = theta, squares, average, gradient, weight_decay
        for theta, squares, average, g, weight_decay in _pieces(*vectors):
            g = _adaptive_gradient(g, weight_decay, theta, learning_rate, is_decoupled)
            squares += g * g
            theta -= learning_rate * g / (np.sqrt(squares) + epsilon)
            _fold(average, theta, averaging_decay)

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
        is_decoupled=False,
    ):
        if _is_set(nonfinite_step):
            return
        vectors = theta, squares, average, gradient, weight_decay
        for theta, squares, average, g, weight_decay in _pieces(*vectors):
            g = _adaptive_gradient(g, weight_decay, theta, learning_rate, is_decoupled)
            _fold(squares, g * g, square_decay)
            theta -= learning_rate * g / (np.sqrt(squares) + epsilon)
            _fold(average, theta, averaging_decay)

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
        number,
        averaging_decay,
        nonfinite_step=None,
        weight_decay=None,
        is_decoupled=False,
    ):
        if _is_set(nonfinite_step):
            return
        steps = _number(number)
        mean_scale, square_scale = 1 - momentum**steps, 1 - square_decay**steps
        step = learning_rate / mean_scale
        vectors = theta, velocity, squares, average, gradient, weight_decay
        for theta, velocity, squares, average, g, weight_decay in _pieces(*vectors):
            g = _adaptive_gradient(g, weight_decay, theta, learning_rate, is_decoupled)
            _fold(velocity, g, momentum)
            _fold(squares, g * g, square_decay)
            theta -= step * velocity / (np.sqrt(squares / square_scale) + epsilon)
            _fold(average, theta, averaging_decay)


def _mirrored(matrix):
    """The matrix (n, n), its part above the diagonal overwritten with that below, by blocks."""
    for begin in range(0, len(matrix), BLOCK):
        end = begin + BLOCK
        matrix[:begin, begin:end] = matrix[begin:end, :begin].T
        on_diagonal = matrix[begin:end, begin:end]
        on_diagonal[...] = np.tril(on_diagonal) + np.tril(on_diagonal, -1).T
    return matrix


def _number(step):
    """The number of a step that is given as such or as a counter (1,)."""
    return int(np.ravel(step)[0])


def _pieces(*vectors):
    """The vectors (n,), each an array or None, piece by piece: what an update makes of a piece on
    its way stays in cache.
    """
    for begin in range(0, len(vectors[0]), PIECE):
        yield [v if v is None else v[begin : begin + PIECE] for v in vectors]


def _is_set(nonfinite_step):
    return nonfinite_step is not None and nonfinite_step[0] >= 0


def _decayed(direction, weight_decay, theta):
    """The direction with the part of the weight decay, a vector or None."""
    return direction if weight_decay is None else direction + weight_decay * theta


def _adaptive_gradient(gradient, weight_decay, theta, learning_rate, is_decoupled):
    """The gradient with the weight decay's part, which goes to theta itself where decoupled."""
    if not is_decoupled:
        return _decayed(gradient, weight_decay, theta)
    if weight_decay is not None:
        theta -= learning_rate * weight_decay * theta
    return gradient


def _fold(average, value, decay):
    """average <- decay*average + (1 - decay)*value."""
    average *= decay
    average += (1 - decay) * value


def processor_name():
    """The processor's model name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
