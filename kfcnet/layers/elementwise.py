"""ReLU and dropout."""

from kfcnet.layers.base import Layer


class ReLU(Layer):
    """max(x, 0); the derivative at 0 is 0. done: the layer before has taken it already."""

    done = False

    def forward(self, x, mode):
        self.y = x if self.done else self.ops.relu(x)
        return self.y

    def backward(self, dy):
        return self.ops.relu_backward(dy, self.y[: len(dy)])

    tangent = backward


class Dropout(Layer):
    """Keep each element with probability `keep` and scale it by 1/keep; the identity in evaluation.

    One mask a mini-batch, a function of seed, step and layer: the true, the sampled and the tangent
    pass after one forward pass go through the same thinned network.
    """

    def __init__(self, ops, input_shape, name, keep, seed, stream):
        super().__init__(ops, input_shape, name)
        self.keep, self.seed, self.stream = keep, seed, stream
        self.mask = None

    def forward(self, x, mode):
        if not mode.training:
            self.mask = None
            return x
        y, self.mask = self.ops.dropout(x, self.keep, self.seed, mode.step, self.stream)
        return y

    def backward(self, dy):
        if self.mask is None:
            return dy
        return self.ops.dropout_backward(dy, self.mask[: len(dy)], self.keep)

    tangent = backward
