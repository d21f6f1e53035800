"""The layers that have parameters. Curvature is made from what they leave behind."""

from kfcnet.layers.base import Layer
from kfcnet.ops.shapes import output_size


class Conv2d(Layer):
    """A dense layer applied to every patch of an image (cross-correlation, zero padding).

    `weight` is the homogeneous Wbar = (b, W) of shape (I, P), P = 1 + K*K*J; the network makes it a
    view of its one parameter vector. After a pass `inputs` (M, H, W, J) and `output_gradients`
    (m, Ho, Wo, I) are what the gradient and the Kronecker factors are made of. Dense leaves the
    same two with |T| = |Delta| = 1, so that nothing downstream asks which of the two it has.
    """

    def __init__(self, ops, input_shape, name, filters, kernel, stride=1, padding=0, std=0.01):
        """std: deviation of the initial Gaussian weights, or "he" for sqrt(2 / inputs).

        Raises ValueError where the kernel does not fit into the padded image.
        """
        super().__init__(ops, input_shape, name)
        H, W, J = self.input_shape
        Ho, Wo = (output_size(side, kernel, stride, padding) for side in (H, W))
        if min(Ho, Wo) < 1:
            raise ValueError(f"{name}: a kernel of {kernel} with padding {padding} does not fit "
                             f"into its {H} x {W} input")
        self.window = (kernel, stride, padding)
        self.output_shape = (Ho, Wo, filters)
        self.locations = Ho * Wo  # |T|
        self.weight_shape = (filters, 1 + kernel * kernel * J)
        self.std = (2 / (self.weight_shape[1] - 1))**0.5 if std == "he" else std
        self.weight = None
        self.needs_input_gradient = True

    def forward(self, x, mode):
        self.inputs = x
        return self.ops.conv_forward(x, self.weight, *self.window)

    def backward(self, dy):
        """dy -> dx, or None in the network's first layer with weights, where nobody asks for it."""
        self.output_gradients = dy
        if self.needs_input_gradient:
            return self.ops.conv_backward_data(dy, self.weight, self.inputs.shape, *self.window)

    def gradient(self, out):
        """out (I, P): DWbar of the latest backward pass, the mean over its examples."""
        m = len(self.output_gradients)
        self.ops.conv_backward_weights(self.inputs[:m], self.output_gradients, *self.window,
                                       scale=1 / m, out=out)

    def tangent(self, rx, direction, count):
        """Tangent of the first `count` examples along rx (or None: zero) and weights `direction`.

        R(s) = [[R(a)]] W^T + [[a]]_H Vbar^T for Vbar = direction (I, P).
        """
        ry = self.ops.conv_forward(self.inputs[:count], direction, *self.window)
        if rx is not None:
            through_input = self.ops.conv_forward(rx, self.weight, *self.window, bias=False)
            self.ops.axpy(1.0, through_input, ry)
        return ry


class Dense(Conv2d):
    """Every output sees every input: a convolution of a 1 x 1 image whose maps are the inputs."""

    def __init__(self, ops, input_shape, name, units, std=0.01):
        self.image_shape = tuple(input_shape)
        inputs = 1
        for side in input_shape:
            inputs *= side
        super().__init__(ops, (1, 1, inputs), name, units, kernel=1, std=std)
        self.output_shape = (units,)

    def _as_image(self, x):
        return x.reshape(len(x), 1, 1, -1)

    def forward(self, x, mode):
        return super().forward(self._as_image(x), mode).reshape(len(x), -1)

    def backward(self, dy):
        dx = super().backward(self._as_image(dy))
        return None if dx is None else dx.reshape(len(dy), *self.image_shape)

    def tangent(self, rx, direction, count):
        rx = None if rx is None else self._as_image(rx)
        return super().tangent(rx, direction, count).reshape(count, -1)
