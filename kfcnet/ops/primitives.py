"""The contract of the array primitives: signature, shapes and formula of each, on every device.

`layers`, `losses`, `curvature` and `optimizers` are written against an object with these methods
and know no other way to touch an array. `CpuOps` implements them over NumPy, `CudaOps` by the
kernels of `kernels/`; the plain loops of `tests/checks.py` are the reference of both.

Letters: M images, m of them, H x W pixels, J input maps, I output maps, K kernel side, T = Ho*Wo
output locations, P = 1 + K*K*J. Images are NHWC; weights are Wbar = (b, W), (I, P), the column of
(delta, j) being 1 + delta*J + j; [[x]]_H are the patches of x with the homogeneous coordinate. A
device scalar is an array of shape (1,). Functions return new arrays unless `out` is given.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from kfcnet.ranks import Alone


class Pooling(NamedTuple):
    """The windows of a pool, as `max_pool` takes them."""

    size: int
    stride: int
    clipped: bool

    @property
    def nowhere(self):
        """The offset in a window that is none of its pixels."""
        return self.size**2

    @property
    def has_nowhere(self):
        """Whether that is a byte, as offsets are."""
        return self.nowhere < 256


class Placed(NamedTuple):
    """A convolution whose weights Wbar (I, P) lie in a flat vector, from element `place` on.

    x_shape: (M, H, W, J) of its input; window: kernel, stride, padding; pool: the Pooling of what
    `conv_max_pool` makes of it.
    """

    place: int
    out_maps: int
    x_shape: tuple
    window: tuple
    pool: Pooling | None = None

    def of(self, flat: Any) -> Any:
        """Its part of a flat vector, as a matrix (I, P)."""
        patch = 1 + self.window[0] ** 2 * self.x_shape[3]
        part = flat[self.place : self.place + self.out_maps * patch]
        return part.reshape(self.out_maps, patch)


class StepCount(NamedTuple):
    """What `count_step` takes: the results of a step, and where they are counted."""

    totals: Any
    clip_scale: Any
    nu: Any
    step: Any
    sums: Any
    nonfinite_step: Any


class ConvGradients:
    """Weight gradients, added layer by layer as a backward pass comes to them; complete after
    `finish`.
    """

    def __init__(self, ops, scale, out):
        self.ops, self.scale, self.out = ops, scale, out

    def add(self, layer, x, dy, argmax=None):
        """Of a Placed, x (M, H, W, J) and dy (M, Ho, Wo, I).

        argmax: where the layer has a pool, that of `conv_max_pool`; dy is then the pooled pixels'.
        """
        part = layer.of(self.out)
        if argmax is not None:
            pooled = x, dy, argmax, *layer.window, layer.pool
            return self.ops.conv_max_pool_backward_weights(*pooled, scale=self.scale, out=part)
        self.ops.conv_backward_weights(x, dy, *layer.window, scale=self.scale, out=part)

    def finish(self):
        """Let what follows find all gradients."""


class Primitives(ABC):
    """What a device offers. `name` is "cpu" or "cuda", `dtype` that of its arrays.

    `phases_measured` says for the record of a run how the phases of a step are measured. `ranks`
    are the processes that share a mini-batch (kfcnet/ranks.py), of which every primitive sees its
    own process's examples only; batch normalisation and random numbers are those of all.
    """

    ranks = Alone()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a network or an optimizer holds functions of its device, and is not pickled: keep "
            "ops.to_numpy(network.theta), or optimizer.state(); network.copy() makes a copy"
        )

    # The device

    @abstractmethod
    def describe(self):
        """Device and library versions, for the record of a run."""

    @property
    def memory(self):
        """Bytes that the device has in all; None where it is not known."""
        return None

    # Arrays

    @abstractmethod
    def asarray(self, x):
        """x on the device, C-contiguous, in `dtype`."""

    @abstractmethod
    def to_device(self, x):
        """x on the device, in the type it has: a data set that stays there."""

    @abstractmethod
    def to_numpy(self, a):
        """An array of the device as a NumPy array; waits for the device."""

    @abstractmethod
    def zeros(self, shape):
        """A new array of zeros."""

    @abstractmethod
    def empty(self, shape):
        """A new array whose elements are not set."""

    @abstractmethod
    def copy(self, a):
        """A new array with the elements of a."""

    # When things happen

    @abstractmethod
    def captured(self, function, *owners):
        """`function` of arrays as one that a GPU captures and replays; a CPU runs it every time.

        A function that it yields is called between two graphs, by the host. owners: objects in
        whose `saved` it leaves arrays. Arrays that it allocated and returns hold until the next
        call of it, or of any other captured function of these ops.
        """

    @abstractmethod
    def submit(self, function, *arrays, on_host=False):
        """Start function(ops, *arrays) beside what follows; a `deferred.Future` of what it returns,
        arrays.

        It works on copies of the arrays as they are now: `Future.inputs`. on_host: in a thread of
        the CPU rather than on the side stream of a GPU.
        """

    @abstractmethod
    def beside(self):
        """A context: what is queued in it comes after what is queued so far, and beside what
        follows until `join`. Captured graphs have branches so; elsewhere it comes in order.
        """

    @abstractmethod
    def join(self):
        """What is queued from here on comes after all that was queued `beside`."""

    @abstractmethod
    def event(self):
        """A moment on the device; on a GPU None within a captured graph."""

    @abstractmethod
    def seconds_between(self, start, end):
        """Seconds between two events that the device has passed."""

    # What changes from step to step, in device memory

    @abstractmethod
    def scalar(self, value):
        """A number in device memory, which a captured graph reads at every replay: (1,)."""

    @abstractmethod
    def counter(self, value):
        """A step number that a captured graph can advance: int64 (1,)."""

    @abstractmethod
    def advance(self, step):
        """step += 1."""

    @abstractmethod
    def write(self, target, value):
        """Write a number or an array into the memory of `target`."""

    # Convolution

    @abstractmethod
    def weights(self, flat, layers, backward=()):
        """The weights of several convolutions, [Placed] in `flat` (n,), in the form that the passes
        of a layer read, until they change.

        backward: those of the layers that `conv_backward_data` reads too.
        """

    @abstractmethod
    def conv_forward(self, x, weight, kernel, stride, padding, bias=True, relu=False, add_to=None):
        """x (M, H, W, J), weight (I, P) -> [[x]]_H Wbar^T, (M, Ho, Wo, I): Eq. 10.

        bias=False takes column 0 as zero; relu cuts the result at zero in the same pass. add_to:
        an array of the result's shape, which the result is added to in place of a new one.
        """

    @abstractmethod
    def conv_backward_data(self, dy, weight, x_shape, kernel, stride, padding):
        """dy (M, Ho, Wo, I), weight (I, P) -> dx (M, H, W, J): its adjoint in x."""

    @abstractmethod
    def conv_backward_weights(self, x, dy, kernel, stride, padding, scale, out):
        """out (I, P) = scale * dy^T [[x]]_H, over images and locations: Eq. 11."""

    @abstractmethod
    def conv_gradients(self, layers, scale, out):
        """The ConvGradients of several layers, [Placed], into their parts of out (n,)."""

    def can_convolve_and_pool(self, x_shape, out_maps, window, pool):
        """Whether there are the three below, for x of this shape, window: kernel, stride, padding,
        and a Pooling.
        """
        return False

    def conv_max_pool(self, x, weight, kernel, stride, padding, pool):
        """(y, argmax): `max_pool` with a ReLU of `conv_forward`, for a Pooling.

        argmax is `nowhere` where the ReLU cuts, so that `max_pool_backward` needs no more.
        """
        raise NotImplementedError

    def conv_max_pool_backward_weights(
        self, x, dy, argmax, kernel, stride, padding, pool, scale, out
    ):
        """out (I, P) = scale times the gradient of the weights, dy being that of the y above."""
        raise NotImplementedError

    def conv_max_pool_tangent(self, x, weight, kernel, stride, padding, pool, argmax):
        """ry: `conv_forward` of x and other weights at the maxima, zero where the ReLU cuts."""
        raise NotImplementedError

    @abstractmethod
    def patches(self, x, kernel, stride, padding):
        """[[x]]_H: x (M, H, W, J) -> (M*T, P), first column one."""

    @abstractmethod
    def patches_adjoint(self, rows, x_shape, kernel, stride, padding):
        """rows (M*T, P) -> (M, H, W, J): every patch added back; column 0 is ignored."""

    # Kronecker factors

    @abstractmethod
    def patch_gram(self, x, kernel, stride, padding, scale, decay, out):
        """out (P, P) <- decay*out + scale * [[x]]_H^T [[x]]_H, summed over images and locations."""

    @abstractmethod
    def gram(self, rows, scale, decay, out):
        """out (I, I) <- decay*out + scale * rows^T rows, for rows (n, I)."""

    # Pooling

    @abstractmethod
    def max_pool(self, x, size, stride, clipped=True, relu=False):
        """x (M, H, W, J) -> maxima (M, Ho, Wo, J), and their offsets r*size + c in the window.

        clipped: as for `pooled_size`. relu: of the maxima max(y, 0), in the same pass.
        """

    @abstractmethod
    def max_pool_backward(self, dy, argmax, x_shape, size, stride, active=None):
        """dy (M, Ho, Wo, J) -> dx of x_shape: every derivative goes to its window's argmax.

        active (M, Ho, Wo, J): the output of a ReLU behind it; derivatives where it is not positive
        do not count.
        """

    @abstractmethod
    def max_pool_tangent(self, rx, argmax, size, stride, active=None):
        """rx (M, H, W, J) -> ry (M, Ho, Wo, J): the tangent of the pixel at each argmax.

        active (M, Ho, Wo, J): as in `max_pool_backward`.
        """

    @abstractmethod
    def avg_pool(self, x, size, stride, clipped=True, active=None):
        """x (M, H, W, J) -> means of the clipped windows (M, Ho, Wo, J).

        active (M, H, W, J): the output of a ReLU before it, where x is a tangent that has not
        passed through it; x where it is not positive does not count.
        """

    @abstractmethod
    def avg_pool_backward(self, dy, x_shape, size, stride, active=None):
        """dy (M, Ho, Wo, J) -> dx of x_shape: a derivative is spread over its clipped window.

        active, of x_shape: the output of a ReLU before it; dx is zero where it is not positive.
        """

    def can_pool_and_normalise(self, pooled_shape, across):
        """Whether there are the three below, for pooled images (H, W, J) and this kind of response
        normalisation.
        """
        return False

    def max_pool_norm(self, x, size, stride, clipped, norm):
        """`response_norm` of what `max_pool` with a ReLU makes of x: (y, what the two below need).

        norm: size, alpha, power, across, as `response_norm` takes them.
        """
        raise NotImplementedError

    def max_pool_norm_backward(self, dy, saved, x_shape, size, stride, norm):
        """dx of x_shape: the adjoint of the derivative of `max_pool_norm`, applied to dy."""
        raise NotImplementedError

    def max_pool_norm_tangent(self, rx, saved, size, stride, norm):
        """ry: the derivative of `max_pool_norm` along rx."""
        raise NotImplementedError

    # Normalisation

    @abstractmethod
    def response_norm(self, x, size, alpha, power, across):
        """x -> (y, d): y = x * d^-power, d = 1 + alpha * sum of x^2 over the neighbourhood."""

    @abstractmethod
    def response_norm_backward(self, dy, x, d, size, alpha, power, across):
        """dx: the adjoint of the derivative of `response_norm` at x, applied to dy; d as it
        returned.
        """

    @abstractmethod
    def response_norm_tangent(self, rx, x, d, size, alpha, power, across):
        """ry: the derivative of `response_norm` at x along rx."""

    @abstractmethod
    def batch_norm(self, x, epsilon):
        """x (..., J) -> (y, mean (J,), inv_std (J,)), over all leading axes, those of all processes
        together.
        """

    @abstractmethod
    def batch_norm_apply(self, x, mean, inv_std):
        """x (..., J) -> (x - mean) * inv_std, map by map."""

    @abstractmethod
    def batch_norm_backward(self, dy, y, inv_std):
        """dx through the mean and variance of `batch_norm`; the Jacobian is symmetric: also the
        tangent.
        """

    @abstractmethod
    def scale_maps(self, x, s):
        """x (..., J), s (J,) -> x * s, map by map."""

    @abstractmethod
    def scale_shift(self, x, weight):
        """x (..., J), weight (J, 2) -> shift + scale * x, for weight's rows (shift, scale)."""

    @abstractmethod
    def map_sums(self, x, dy):
        """x, dy (m, H, W, J) -> (m, J, 2): sums over locations of dy and of dy * x.

        Of each example the gradient along the rows (shift, scale) of `scale_shift`.
        """

    # Activation and dropout

    @abstractmethod
    def relu(self, x):
        """max(x, 0)."""

    @abstractmethod
    def relu_backward(self, dy, y):
        """dy where y > 0; the tangent has the same mask."""

    @abstractmethod
    def dropout(self, x, keep, seed, step, stream):
        """x -> (x * mask / keep, mask uint8); elements whose uniform is below keep are kept."""

    @abstractmethod
    def dropout_backward(self, dy, mask, keep):
        """dy * mask / keep; the tangent has the same mask."""

    # Losses and sampling

    @abstractmethod
    def softmax_cross_entropy(self, z, labels):
        """z (M, C), labels int32 (M,) -> (p, p - onehot, [sum of nats, number wrong]).

        The CPU raises ValueError for a label that is no class; a GPU does not look at them.
        """

    @abstractmethod
    def sampled_gradient(self, p, uniforms):
        """p - onehot(class drawn from p): the first whose cumulative probability exceeds u.

        It never has probability zero, also where rounding leaves the whole sum below u.
        """

    @abstractmethod
    def softmax_fisher(self, p, r, s, scale):
        """scale * sum over examples of r^T (diag(p) - p p^T) s, as a device scalar.

        It is exact where p is nearly one-hot, and r^T (product with s) would cancel.
        """

    @abstractmethod
    def softmax_fisher_product(self, p, r):
        """(diag(p) - p p^T) r of every example, (M, C)."""

    @abstractmethod
    def uniforms(self, count, seed, purpose, step, stream=0, width=1):
        """Uniform numbers in [0, 1), (count,), by Philox 4x32-10 from seed, purpose, step and
        stream: `width` for each example of this process, at their places in the whole mini-batch.
        """

    @abstractmethod
    def normals(self, count, seed, purpose, step, stream=0, width=1):
        """Standard normal numbers (count,), likewise."""

    # Mini-batches

    @abstractmethod
    def gather(self, images, labels, indices, mean, scale, batch=None, step=0):
        """images uint8 (N, H, W, C), on a CPU also float32, labels int32 (N,) or None, indices
        (n,), mean (H, W, C) -> (image - mean) * scale (n, H, W, C), and their labels (n,) or None.

        batch: that number of examples instead of all, from place step*batch on in
        `indices` as a ring; of R processes every one takes its share of R*batch places from
        step*R*batch on. step: a number or a counter.
        """

    # Vectors and matrices

    @abstractmethod
    def matmul(self, a, b, transpose_a=False, transpose_b=False, out=None):
        """op(a) op(b), op being the transpose where that is asked for."""

    @abstractmethod
    def dot(self, x, y):
        """Sum of x*y, as a device scalar."""

    @abstractmethod
    def weighted_dot(self, w, x, y):
        """Sum of w*x*y, as a device scalar."""

    @abstractmethod
    def axpy(self, alpha, x, y):
        """y += alpha * x."""

    @abstractmethod
    def multiply_add(self, w, x, y):
        """y += w * x, element by element."""

    @abstractmethod
    def trace(self, matrix):
        """The sum of the diagonal, as a device scalar."""

    adopts_inverses = False

    def adopt_inverses(self, factors, sides, damping, inverses, failures):
        """Inverses of the damped factors (Eq. 21) of all layers at once, within a captured graph.

        factors (n,): Omega and Gamma of one layer after the other, of the `sides`. damping
        (layers,): c. Where both of a layer's damped factors are positive definite their inverses,
        exactly symmetric, replace the old ones in inverses (n,); where not, these stay, and
        failures (layers,), int32, counts one more. Only where `adopts_inverses`.
        """
        raise NotImplementedError

    @abstractmethod
    def spd_inverse(self, matrix, shift):
        """(matrix + shift*I)^-1 by Cholesky, for a symmetric matrix and a device scalar.

        Raises numpy.linalg.LinAlgError where the shifted matrix is not positive definite.
        """

    @abstractmethod
    def eigh(self, matrix):
        """Eigenvalues (n,), ascending, and eigenvectors (n, n), in columns, of a symmetric matrix.

        Raises numpy.linalg.LinAlgError where the iteration does not converge.
        """

    # Updates

    @abstractmethod
    def count_step(self, totals, clip_scale, nu, step, sums, nonfinite_step):
        """sums (4,) += [loss, errors, clipped or not, nu] of totals (2,), clip_scale and nu (1,);
        then step += 1, a counter.

        Where nothing clips the latter two are None, and the sum of nu becomes NaN. Where the loss
        is not finite nonfinite_step (1,) becomes `step`, unless it was set before; -1 where it was
        not.
        """

    @abstractmethod
    def clip_scale(self, quadratic, learning_rate, clip):
        """min(1, sqrt(clip / nu)) and nu = learning_rate^2 * quadratic, as device scalars."""

    @abstractmethod
    def polyak_scale(self, scale, totals, examples, twice_penalty, slope, learning_rate, share):
        """min(scale, share * h / (learning_rate * slope)) (1,), where slope (1,) is positive.

        h = totals[0] / examples + twice_penalty / 2, the objective; scale (1,) or None: one.
        """

    @abstractmethod
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
        """One pass over the flat parameter vector:

        velocity <- momentum*velocity - learning_rate*clip_scale*direction; theta += velocity;
        average <- averaging_decay*average + (1 - averaging_decay)*theta. No clip_scale: one.
        counted: a StepCount, of which `count_step` comes first; its clip_scale is this one. All
        updates: weight_decay*theta, with weight_decay (n,), is added to the direction first; none
        moves anything once nonfinite_step (1,), of `counted` or given, is not negative.
        """

    @abstractmethod
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
        """Like `momentum_update`, but theta += momentum*velocity - learning_rate*direction, with
        the new velocity: the look-ahead form of Sutskever et al. (2013).
        """

    @abstractmethod
    def max_norm(self, weight, average, limit, averaging_decay, nonfinite_step=None):
        """Shorten every row of weight[:, 1:] (I, P - 1) above the Euclidean norm `limit` to it.

        average (I, P) has folded in `weight` as it was, with averaging_decay; it takes its share of
        the change. Column 0, the bias, is free. In place. Nothing moves once nonfinite_step (1,) is
        not negative: see `count_step`.
        """

    @abstractmethod
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
        """squares += g^2; theta -= learning_rate * g / (sqrt(squares) + epsilon).

        is_decoupled: theta is multiplied by 1 - learning_rate * weight_decay first, and the decay
        has no part in g; likewise in the two methods below.
        """

    @abstractmethod
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
        """squares <- square_decay*squares + (1 - square_decay)*g^2; theta as for Adagrad."""

    @abstractmethod
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
        """velocity and squares: running means of g and g^2, here divided by 1 - decay^step.

        theta -= learning_rate * mean / (sqrt(mean square) + epsilon). number: of this step,
        counted from 1, a number or a counter.
        """
