"""ReLU and dropout."""

from kfcnet.layers.base import Layer


class ReLU(Layer):
    """max(x, 0); the derivative at 0 is 0. `saved` is the output.

    forward_fused: the layer before already applied it. derivative_fused: a pool beside it takes its
    derivative in its own passes.
    """

    forward_fused = derivative_fused = False

    def forward(self, x, mode):
        y = self.saved = x if self.forward_fused else self.ops.relu(x)
        return y  # `saved` may be another thread's by now

    def backward(self, dy):
        if self.derivative_fused:
            return dy
        return self.ops.relu_backward(dy, self.saved[: len(dy)])

    tangent = backward


class Dropout(Layer):
    """Keep each element with probability `keep` and scale it by 1/keep; the identity in evaluation.

    One mask a mini-batch, a function of seed, step and layer: the true, the sampled and the tangent
    pass after one forward pass go through the same thinned network. `saved` is the mask, None
    after a pass in evaluation.
    """

    def __init__(self, ops, input_shape, name, keep, seed, stream):
        super().__init__(ops, input_shape, name)
        self.keep, self.seed, self.stream = keep, seed, stream

    def forward(self, x, mode):
        if not mode.training:
            self.saved = None
            return x
        y, self.saved = self.ops.dropout(x, self.keep, self.seed, mode.step, self.stream)
        return y

    def backward(self, dy):
        if self.saved is None:
            return dy
        return self.ops.dropout_backward(dy, self.saved[: len(dy)], self.keep)

    tangent = backward
