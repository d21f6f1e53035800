"""Response normalisation and batch normalisation."""

from typing import Any, NamedTuple

from kfcnet.layers.base import Layer, image_shape


class ResponseNormParameters(NamedTuple):
    """The arguments of the ops' response_norm; alpha: of the sum of n squares, scale/n."""

    size: int
    alpha: float
    power: float
    across: bool


class ResponseNorm(Layer):
    """y = x * (1 + scale/n * sum of x^2 over n neighbours)^-power (Krizhevsky et al. 2012).

    The neighbours are size x size pixels of the same map, or `size` maps of the same pixel where
    `across`; n counts the whole neighbourhood also where the border clips it, as cuda-convnet does.
    `saved` is the input and the base of the power. fused: a pool before it normalises in its own
    passes.
    """

    fused = False

    def __init__(self, ops, input_shape, name, size, scale=5e-5, power=0.75, across=False):
        """Raises ValueError behind a dense layer."""
        super().__init__(ops, image_shape(input_shape, name), name)
        alpha = scale / (size if across else size**2)
        self.parameters = ResponseNormParameters(size, alpha, power, across)

    def forward(self, x, mode):
        if self.fused:
            return x
        y, d = self.ops.response_norm(x, *self.parameters)
        self.saved = x, d
        return y

    def backward(self, dy):
        if self.fused:
            return dy
        x, d = (array[: len(dy)] for array in self.saved)
        return self.ops.response_norm_backward(dy, x, d, *self.parameters)

    def tangent(self, rx):
        if self.fused:
            return rx
        x, d = (array[: len(rx)] for array in self.saved)
        return self.ops.response_norm_tangent(rx, x, d, *self.parameters)


class Normalised(NamedTuple):
    """What a pass through BatchNorm leaves: the output, 1 / deviation of every map (J,), and
    whether that depends on the input.
    """

    y: Any
    inv_std: Any
    depends_on_input: bool


class BatchStatistics(NamedTuple):
    """Of every map (J,): the mean, and 1 / deviation."""

    mean: Any
    inv_std: Any


class BatchNorm(Layer):
    """Zero mean and unit variance of every map over the mini-batch (Ioffe & Szegedy 2015).

    Without learned scale and shift the next layer with weights has to absorb them; a ScaleShift
    layer behind this one learns them. The gradient in training goes through the batch's statistics:
    `backward` then needs the whole mini-batch, not a part. The Fisher matrix is defined example by
    example, so the sampled pass and the tangent pass take the statistics as constants. Evaluation
    uses `population`, the statistics last measured by Network.measure_statistics, never those of
    the batch that is being evaluated.
    """

    def __init__(self, ops, input_shape, name, epsilon=1e-5):
        super().__init__(ops, input_shape, name)
        self.epsilon = epsilon
        self.population = None  # or BatchStatistics
        self.measuring = False

    def forward(self, x, mode):
        if mode.training:
            y, mean, inv_std = self.ops.batch_norm(x, self.epsilon)
            if self.measuring:
                self.population = BatchStatistics(mean, inv_std)
        elif self.population is None:
            raise RuntimeError(f"{self.name}: evaluation needs Network.measure_statistics first")
        else:
            mean, inv_std = self.population
            y = self.ops.batch_norm_apply(x, mean, inv_std)
        self.saved = Normalised(y, inv_std, mode.training)
        return y

    def backward(self, dy):
        """Raises ValueError for a part of a mini-batch whose statistics it normalised with."""
        if not self.saved.depends_on_input:
            return self.backward_per_example(dy)
        if len(dy) != len(self.saved.y):
            raise ValueError(
                f"{self.name}: derivatives of {len(dy)} examples given, but the gradient through "
                f"the statistics of a mini-batch needs all of its {len(self.saved.y)}"
            )
        return self.ops.batch_norm_backward(dy, self.saved.y, self.saved.inv_std)

    def backward_per_example(self, dy):
        return self.ops.scale_maps(dy, self.saved.inv_std)

    tangent = backward_per_example
