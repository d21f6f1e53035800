"""Response normalisation and batch normalisation."""

from kfcnet.layers.base import Layer


class ResponseNorm(Layer):
    """y = x * (1 + scale/n * sum of x^2 over n neighbours)^-power (Krizhevsky et al. 2012).

    The neighbours are size x size pixels of the same map, or `size` maps of the same pixel where
    `across`; n counts the whole neighbourhood also where the border clips it, as cuda-convnet does.
    """

    def __init__(self, ops, input_shape, name, size, scale, power, across=False):
        super().__init__(ops, input_shape, name)
        self.parameters = (size, scale / (size if across else size**2), power, across)

    def forward(self, x, mode):
        self.x = x
        y, self.d = self.ops.response_norm(x, *self.parameters)
        return y

    def backward(self, dy):
        m = len(dy)
        return self.ops.response_norm_backward(dy, self.x[:m], self.d[:m], *self.parameters)

    def tangent(self, rx):
        m = len(rx)
        return self.ops.response_norm_tangent(rx, self.x[:m], self.d[:m], *self.parameters)


class BatchNorm(Layer):
    """Zero mean and unit variance of every map over the mini-batch (Ioffe & Szegedy 2015).

    Without learned scale and shift the next layer with weights has to absorb them; a ScaleShift
    layer behind this one learns them. The gradient in training goes through the batch's statistics:
    `backward` then needs the whole mini-batch, not a part. The Fisher matrix is defined example by
    example, so the sampled pass and the tangent pass take the statistics as constants. Evaluation
    uses the statistics last measured by `measure_statistics`, never those of the batch that is
    being evaluated.
    """

    def __init__(self, ops, input_shape, name, epsilon=1e-5):
        super().__init__(ops, input_shape, name)
        self.epsilon = epsilon
        self.population = None  # mean (J,), inverse deviation (J,)
        self.measuring = False

    def forward(self, x, mode):
        self.through_statistics = mode.training  # whether they depend on x
        if mode.training:
            self.y, mean, self.inv_std = self.ops.batch_norm(x, self.epsilon)
            if self.measuring:
                self.population = mean, self.inv_std
            return self.y
        if self.population is None:
            raise RuntimeError(f"{self.name}: evaluation needs Network.measure_statistics first")
        mean, self.inv_std = self.population
        self.y = self.ops.batch_norm_apply(x, mean, self.inv_std)
        return self.y

    def backward(self, dy):
        if not self.through_statistics:
            return self.backward_per_example(dy)
        return self.ops.batch_norm_backward(dy, self.y, self.inv_std)

    def backward_per_example(self, dy):
        return self.ops.scale_channels(dy, self.inv_std)

    tangent = backward_per_example
