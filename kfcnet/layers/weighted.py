"""The layers that have parameters. Curvature is made from what they leave behind."""

from kfcnet.layers.base import Layer
from kfcnet.ops.shapes import output_sides


class Conv2d(Layer):
    """A dense layer applied to every patch of an image (cross-correlation, zero padding).

    `weight` is the homogeneous Wbar = (b, W) of shape (I, P), P = 1 + K*K*J; the network makes it a
    view of its one parameter vector. After a pass `inputs` (M, H, W, J) and `output_gradients`
    (m, Ho, Wo, I) are what the gradient and the Kronecker factors are made of. Dense leaves the
    same two with |T| = |Delta| = 1, so that nothing downstream asks which of the two it has.
    `is_per_map` layers alone have another curvature: see ScaleShift.
    """

    is_per_map = False

    @property
    def factor_sizes(self):
        """Sides of the matrices that the layer's Fisher block is made of: P and I."""
        return self.weight_shape[::-1]

    def __init__(self, ops, input_shape, name, filters, kernel, stride=1, padding=0, std=0.01):
        """std: deviation of the initial Gaussian weights, or "he" for sqrt(2 / inputs).

        Raises ValueError where the kernel does not fit into the padded image.
        """
        super().__init__(ops, input_shape, name)
        H, W, J = self.input_shape
        Ho, Wo = output_sides((1, H, W, J), kernel, stride, padding)
        if min(Ho, Wo) < 1:
            raise ValueError(f"{name}: a kernel of {kernel} with padding {padding} does not fit "
                             f"into its {H} x {W} input")
        self.window = (kernel, stride, padding)
        self.output_shape = (Ho, Wo, filters)
        self.locations = Ho * Wo  # |T|
        self.weight_shape = (filters, 1 + kernel * kernel * J)
        self.mean, self.std = 0.0, (2 / (self.weight_shape[1] - 1))**0.5 if std == "he" else std
        self.weight = None
        self.weight_now = None  # the same, as the latest forward pass met it
        self.needs_input_gradient = True
        self.relu = False  # whether the ReLU that follows is taken in the same pass

    def forward(self, x, mode):
        self.inputs = x
        self.weight_now = self.ops.weights(self.weight, x.shape, *self.window,
                                           backward=self.needs_input_gradient and mode.training)
        return self.ops.conv_forward(x, self.weight_now, *self.window, relu=self.relu)

    def backward(self, dy):
        """dy -> dx, or None in the network's first layer with weights, where nobody asks for it."""
        self.output_gradients = dy
        if self.needs_input_gradient:
            return self.ops.conv_backward_data(dy, self.weight_now, self.inputs.shape,
                                               *self.window)

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
            through_input = self.ops.conv_forward(rx, self.weight_now, *self.window, bias=False)
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


class ScaleShift(Conv2d):
    """y = shift_j + scale_j * x for every map j: what batch normalisation learns where `affine`.

    Wbar (J, 2) is one row (shift, scale) a map, the diagonal of a 1 x 1 convolution. Weight decay
    and max-norm leave it alone unless they name it.
    """

    is_per_map = True

    @property
    def factor_sizes(self):
        return (2 * self.weight_shape[0],)

    def __init__(self, ops, input_shape, name):
        self.shape = tuple(input_shape)
        super().__init__(ops, (1, 1, *self.shape)[-3:], name, filters=self.shape[-1], kernel=1)
        self.weight_shape = (self.shape[-1], 2)
        self.mean, self.std = 1.0, 0.0  # the initial scale; the shift starts at zero like a bias
        self.output_shape = self.shape
        self.ones = ops.asarray([1.0] * self.shape[-1])

    def forward(self, x, mode):
        self.inputs = x.reshape(len(x), *self.input_shape)
        return self._apply(self.inputs, self.weight).reshape(len(x), *self.shape)

    def _apply(self, x, weight):
        minus_shift = self.ops.zeros(self.ones.shape)
        self.ops.axpy(-1.0, self.ops.copy(weight[:, 0]), minus_shift)
        return self.ops.batch_norm_apply(self._scale(x, weight), minus_shift, self.ones)

    def _scale(self, x, weight):
        return self.ops.scale_channels(x, self.ops.copy(weight[:, 1]))

    def backward(self, dy):
        self.output_gradients = dy.reshape(len(dy), *self.input_shape)
        if self.needs_input_gradient:
            return self._scale(dy, self.weight)

    def gradient(self, out):
        """The entries of the 1 x 1 convolution's gradient (J, 1 + J) that are parameters here."""
        J = len(self.ones)
        whole = self.ops.empty((J, 1 + J))
        super().gradient(whole)
        out[:, 0] = whole[:, 0]
        out[:, 1] = whole.reshape(-1)[1::J + 2]  # the diagonal behind column 0

    def tangent(self, rx, direction, count):
        """R(y) = Vshift + Vscale * x + scale * R(x) for direction (J, 2) = (Vshift, Vscale)."""
        ry = self._apply(self.inputs[:count], direction)
        if rx is not None:
            self.ops.axpy(1.0, self._scale(rx, self.weight).reshape(ry.shape), ry)
        return ry.reshape(count, *self.shape)
