"""A device's primitives beside float64: each result of a real step from the same inputs.

A whole step in TF32 is some percent off float64 though nothing is wrong: rounding makes another
pixel of a window the maximum, or a unit pass its ReLU, and the derivatives go elsewhere. So every
primitive is compared by itself, with what the device gave it.
"""

import numpy as np

from kfcnet.batches import Batch
from kfcnet.benchmarks.cpu import INPUT_SHAPE
from kfcnet.config import load_config
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.primitives import ConvGradients
from kfcnet.ops.shapes import output_sides
from kfcnet.training.build import build

COMPARED = {
    "gather",
    "conv_forward",
    "conv_backward_data",
    "conv_backward_weights",
    "conv_max_pool",
    "conv_max_pool_backward_weights",
    "conv_max_pool_tangent",
    "max_pool",
    "max_pool_backward",
    "max_pool_tangent",
    "max_pool_norm",
    "max_pool_norm_backward",
    "max_pool_norm_tangent",
    "avg_pool",
    "avg_pool_backward",
    "response_norm",
    "response_norm_backward",
    "response_norm_tangent",
    "softmax_cross_entropy",
    "sampled_gradient",
    "patch_gram",
    "gram",
}


def nearest_tf32(array):
    """The nearest TF32 numbers in float64: 10 bits of mantissa, ties away from zero."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).view(np.float32).astype(np.float64)


class Reference(CpuOps):
    """The primitives in float64, over the operands that a device multiplies.

    tensor_cores: those of convolutions are rounded to TF32. Dense layers are left as they are: at
    the batch sizes that are compared they are multiplied in fp32.
    """

    def __init__(self, tensor_cores):
        super().__init__("float64")
        self._tensor_cores = tensor_cores

    def _operand(self, array, kernel):
        return nearest_tf32(array) if self._tensor_cores and kernel > 1 else array

    def _weights(self, weight, kernel):
        """Biases are added, not multiplied."""
        return np.hstack([weight[:, :1], self._operand(weight[:, 1:], kernel)])

    def conv_forward(self, x, weight, kernel, *window, **options):
        x, weight = self._operand(x, kernel), self._weights(weight, kernel)
        return super().conv_forward(x, weight, kernel, *window, **options)

    def conv_backward_data(self, dy, weight, x_shape, kernel, *window):
        dy, weight = self._operand(dy, kernel), self._weights(weight, kernel)
        return super().conv_backward_data(dy, weight, x_shape, kernel, *window)

    def conv_backward_weights(self, x, dy, kernel, *window, **options):
        x, dy = self._operand(x, kernel), self._operand(dy, kernel)
        return super().conv_backward_weights(x, dy, kernel, *window, **options)

    def conv_max_pool(self, x, weight, *window_and_pool):
        *window, pool = window_and_pool
        y, argmax = self.max_pool(self.conv_forward(x, weight, *window), *pool, relu=True)
        return y, np.where(y > 0, argmax, pool.nowhere).astype(np.uint8)

    def conv_max_pool_backward_weights(self, x, dy, argmax, *window_and_pool, scale, out):
        *window, pool = window_and_pool
        shape = (len(x), *output_sides(x.shape, *window), len(out))
        derivatives = self.max_pool_backward(dy, argmax, shape, pool.size, pool.stride)
        self.conv_backward_weights(x, derivatives, *window, scale=scale, out=out)

    def conv_max_pool_tangent(self, x, weight, *window_and_pool_and_argmax):
        *window, pool, argmax = window_and_pool_and_argmax
        ry = self.conv_forward(x, weight, *window)
        return self.max_pool_tangent(ry, argmax, pool.size, pool.stride)

    def max_pool_norm(self, x, size, stride, clipped, norm):
        pooled, argmax = self.max_pool(x, size, stride, clipped, relu=True)
        y, d = self.response_norm(pooled, *norm)
        return y, (pooled, argmax, d)

    def max_pool_norm_backward(self, dy, saved, x_shape, size, stride, norm):
        pooled, argmax, d = saved
        dy = self.response_norm_backward(dy, pooled, d, *norm)
        return self.max_pool_backward(dy, argmax, x_shape, size, stride, active=pooled)

    def max_pool_norm_tangent(self, rx, saved, size, stride, norm):
        pooled, argmax, d = saved
        rx = self.max_pool_tangent(rx, argmax, size, stride, active=pooled)
        return self.response_norm_tangent(rx, pooled, d, *norm)


class Compared:
    """The primitives of a device, the results of COMPARED held against a Reference.

    errors: {call: largest error over largest entry, of its worst result}.
    """

    def __init__(self, ops):
        self._ops, self.errors = ops, {}
        self._reference = Reference(ops.name == "cuda" and ops.tensor_cores)

    def __getattr__(self, name):
        value = getattr(self._ops, name)
        if name not in COMPARED:
            return value

        def call(*args, **kwargs):
            given, named = self._on_host(args), self._on_host(kwargs)
            result = value(*args, **kwargs)
            expected = getattr(self._reference, name)(*given, **named)
            pairs = list(zip(_arrays(self._on_host(result)), _arrays(expected), strict=True))
            if "out" in kwargs:
                pairs.append((self._on_host(kwargs["out"]), named["out"]))
            shape = "x".join(map(str, args[0].shape))
            self.errors[f"{len(self.errors) + 1}: {name} {shape}"] = max(map(_error, pairs))
            return result

        return call

    def conv_gradients(self, layers, scale, out):
        """Each layer's by a call of its own, to be compared."""
        return ConvGradients(self, scale, out)

    def _on_host(self, value):
        """A copy for the reference, of weights as they are."""
        if isinstance(value, dict):
            return {key: self._on_host(one) for key, one in value.items()}
        if type(value) in (tuple, list):
            return type(value)(map(self._on_host, value))
        value = getattr(value, "array", value)  # packed
        if not hasattr(value, "dtype"):
            return value
        array = np.array(self._ops.to_numpy(value))
        return array.astype(np.float64) if array.dtype == np.float32 else array


def _arrays(value):
    """The arrays of a result, in order."""
    if isinstance(value, tuple):
        return [array for one in value for array in _arrays(one)]
    return [] if value is None else [value]


def _error(pair):
    """Largest error over largest entry; of whole numbers, such as places of maxima, the share that
    differs: rounding may decide between two pixels that are as large.
    """
    if np.asarray(pair[1]).dtype.kind in "iu":
        return float(np.mean(np.not_equal(*pair)))
    found, expected = (np.asarray(array, np.float64) for array in pair)
    largest = np.abs(expected).max(initial=0.0)
    return float(np.abs(found - expected).max(initial=0.0) / (largest or 1.0))


def step_errors(ops, M=128):
    """`errors` of Compared for the passes of a step of the CIFAR-10 network with M examples, in the
    tiles that training launches, and that of the gradient of all layers at once.
    """
    compared = Compared(ops)
    # Activations of the size of the constant 1 beside them, so that factors show their errors.
    large = [f"network.{layer}.std=he" for layer in ("conv1", "conv2", "conv3", "fc10")]
    config = load_config("cifar_kfc", [f"optimizer.batch_size={M}", *large])
    optimizer = build(config, compared, INPUT_SHAPE)
    network, loss = optimizer.network, optimizer.loss
    images = ops.to_device(np.random.default_rng(0).integers(0, 256, (M, *INPUT_SHAPE), np.uint8))
    labels = ops.to_device((np.arange(M) % 10).astype(np.int32))
    mean, indices = ops.asarray(np.full(INPUT_SHAPE, 128.0)), ops.to_device(np.arange(M))
    batch = Batch(*compared.gather(images, labels, indices, mean, 1 / 64))
    predictive, dz, _ = loss.evaluate(network.forward(batch.inputs, training=True), batch.targets)
    network.backward(loss.sampled_gradient(predictive, 0)[: M // 2], per_example=True)
    for block in optimizer.blocks:
        block.update_factors(0.0)
    network.backward(dz)
    network.compute_gradient()
    apart = ops.to_numpy(network.gradient).copy()
    network.tangent(network.gradient, M // 2)
    network.ops = ops  # whose gradients of all layers come together
    network.compute_gradient()
    together = ops.to_numpy(network.gradient)
    return compared.errors | {"gradients together": _error((together, apart))}
