"""The layers that have parameters. Curvature is made from what they leave behind."""

from typing import Any, NamedTuple

from kfcnet.layers.base import Layer, image_shape
from kfcnet.ops.primitives import Placed
from kfcnet.ops.shapes import output_sides


class WeightedPass(NamedTuple):
    """What a pass leaves in a layer with parameters.

    inputs (M, H, W, J); weight: in the form that the device reads, which on the CPU is a view of
    the parameters, so that a backward pass has to come before they move; derivatives
    (m, Ho, Wo, I): of the pre-activations, after a backward pass. Where a convolution pools in its
    own pass, argmax (M, Po, Qo, I) is that of its windows, and after a backward pass there are
    pooled_derivatives (m, Po, Qo, I), of its result.
    """

    inputs: Any
    weight: Any = None
    derivatives: Any = None
    argmax: Any = None
    pooled_derivatives: Any = None


class Weighted(Layer):
    """A layer with parameters: `weight`, Wbar = (b, W), a view of the network's one vector.

    After a pass `inputs` (M, H, W, J) and `derivatives` (m, Ho, Wo, I) are what the Kronecker
    factors are made of, and the gradient too unless a convolution pools in its own pass; a dense
    layer has |T| = |Delta| = 1, so that nothing downstream asks which kind it has. `fisher_block`
    names the class of its block of the Fisher matrix: see `build_block` in
    kfcnet/curvature/structures.py.
    """

    fisher_block = "kronecker"
    is_regularised = True  # whether a weight decay or max-norm that is one number holds for it
    needs_input_gradient = True

    def __init__(self, ops, input_shape, name, weight_shape, locations, mean, std):
        """weight_shape: of Wbar; locations: |T|; mean, std: of its initial Gaussian weights."""
        super().__init__(ops, input_shape, name)
        self.weight_shape, self.locations, self.mean, self.std = weight_shape, locations, mean, std
        self.weight = None

    @property
    def inputs(self):
        """What the latest forward pass took in, (M, H, W, J)."""
        return self.saved.inputs

    @property
    def derivatives(self):
        """Those of the pre-activations in the latest backward pass, (m, Ho, Wo, I)."""
        return self.saved.derivatives

    @property
    def examples(self):
        """m: those of the latest backward pass."""
        return len(self.derivatives)

    @property
    def factor_sizes(self):
        """Sides of the matrices that the layer's Fisher block is made of: P and I."""
        return self.weight_shape[::-1]

    def gradient(self, out):
        """out, of weight_shape: that of the latest backward pass, the mean over its examples.

        Where processes share a mini-batch, this one's part of the mean over all of it.
        """
        raise NotImplementedError

    def tangent(self, rx, direction, count):
        """The first `count` examples' tangent along rx (or None: zero) and weights `direction`."""
        ry = self.weight_tangent(direction, count)
        return ry if rx is None else self.add_input_tangent(rx, ry)

    def weight_tangent(self, direction, count):
        """The first `count` examples' tangent along weights `direction`, of weight_shape."""
        raise NotImplementedError

    def add_input_tangent(self, rx, ry):
        """ry, to which the tangent along rx is added."""
        raise NotImplementedError


class Conv2d(Weighted):
    """A dense layer applied to every patch of an image (cross-correlation, zero padding).

    Wbar is homogeneous, of shape (I, P), P = 1 + K*K*J. pool: the Pooling of the maximum pool
    behind it, which it makes with its ReLU in its own passes, where nothing needs the derivatives
    of its input.
    """

    can_apply_relu = True
    pool = None

    def __init__(self, ops, input_shape, name, filters, kernel, stride=1, padding=0, std="he"):
        """std: deviation of the initial Gaussian weights, or "he" for sqrt(2 / inputs).

        Raises ValueError where the kernel does not fit into the padded image, and behind a dense
        layer.
        """
        H, W, J = image_shape(input_shape, name)
        Ho, Wo = output_sides((1, H, W, J), kernel, stride, padding)
        if min(Ho, Wo) < 1:
            raise ValueError(
                f"{name}: a kernel of {kernel} with padding {padding} does not fit "
                f"into its {H} x {W} input"
            )
        inputs = kernel * kernel * J
        super().__init__(
            ops,
            input_shape,
            name,
            (filters, 1 + inputs),
            Ho * Wo,
            0.0,
            (2 / inputs) ** 0.5 if std == "he" else std,
        )
        self.window = (kernel, stride, padding)
        self.output_shape = (Ho, Wo, filters)

    def placed(self, place, M):
        """Its weights in a flat vector, from `place` on, for passes of M examples."""
        return Placed(place, self.weight_shape[0], (M, *self.input_shape), self.window, self.pool)

    def can_pool(self, pool):
        """Whether it can make a Pooling behind it in its own passes, on its device."""
        x_shape, out_maps = (1, *self.input_shape), self.weight_shape[0]
        return not self.needs_input_gradient and self.ops.can_convolve_and_pool(
            x_shape, out_maps, self.window, pool
        )

    def forward(self, x, mode):
        weight = mode.weights.get(self.name)
        if weight is None:
            own = [self.placed(0, len(x))]
            backward = own if self.needs_input_gradient and mode.training else ()
            (weight,) = self.ops.weights(self.weight.reshape(-1), own, backward)
        if self.pool:
            y, argmax = self.ops.conv_max_pool(x, weight, *self.window, self.pool)
            self.saved = WeightedPass(x, weight, argmax=argmax)
            return y
        self.saved = WeightedPass(x, weight)
        return self.ops.conv_forward(x, weight, *self.window, relu=self.applies_relu)

    def backward(self, dy):
        """dy -> dx, or None in the first layer with weights, where it is not needed."""
        if self.pool:
            self.saved = self.saved._replace(pooled_derivatives=dy, derivatives=None)
            return None
        self.saved = self.saved._replace(derivatives=dy)
        if self.needs_input_gradient:
            return self.ops.conv_backward_data(
                dy, self.saved.weight, self.inputs.shape, *self.window
            )

    @property
    def derivatives(self):
        """Those of the pre-activations in the latest backward pass, (m, Ho, Wo, I).

        Where it pools they are made when they are first asked for: the gradient needs the pool's.
        """
        dy = self.saved.pooled_derivatives
        if self.saved.derivatives is None and dy is not None:
            shape, (size, stride, _) = (len(dy), *self.output_shape), self.pool
            spread = self.ops.max_pool_backward(dy, self._argmax(len(dy)), shape, size, stride)
            self.saved = self.saved._replace(derivatives=spread)
        return self.saved.derivatives

    @property
    def examples(self):
        return len(self.saved.pooled_derivatives if self.pool else self.derivatives)

    def _argmax(self, m):
        return self.saved.argmax[:m]

    def gradient_pass(self, place):
        """The arguments of `ConvGradients.add` for the latest backward pass."""
        m = self.examples
        layer, x = self.placed(place, m), self.inputs[:m]
        if self.pool:
            return layer, x, self.saved.pooled_derivatives, self._argmax(m)
        return layer, x, self.derivatives

    def gradient(self, out):
        """out (I, P): DWbar."""
        scale = 1 / self.ops.ranks.whole(self.examples)
        layer, *arrays = self.gradient_pass(0)
        gradients = self.ops.conv_gradients([layer], scale, out.reshape(-1))
        gradients.add(layer, *arrays)
        gradients.finish()

    def weight_tangent(self, direction, count):
        """[[a]]_H Vbar^T for Vbar = direction (I, P), or as `weights` made it of that."""
        x = self.inputs[:count]
        if self.pool:
            return self.ops.conv_max_pool_tangent(
                x, direction, *self.window, self.pool, self._argmax(count)
            )
        return self.ops.conv_forward(x, direction, *self.window)

    def add_input_tangent(self, rx, ry):
        """R(s) = [[R(a)]] W^T + ry."""
        self.ops.conv_forward(rx, self.saved.weight, *self.window, bias=False, add_to=ry)
        return ry


class Dense(Conv2d):
    """Every output sees every input: a convolution of a 1 x 1 image whose maps are the inputs."""

    def __init__(self, ops, input_shape, name, units, std="he"):
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

    def weight_tangent(self, direction, count):
        return super().weight_tangent(direction, count).reshape(count, -1)

    def add_input_tangent(self, rx, ry):
        super().add_input_tangent(self._as_image(rx), self._as_image(ry))
        return ry


class ScaleShift(Weighted):
    """y = shift_j + scale_j * x for every map j: what batch normalisation learns where `affine`.

    Wbar (J, 2) is one row (shift, scale) a map.
    """

    fisher_block = "scale_shift"
    is_regularised = False

    def __init__(self, ops, input_shape, name):
        self.image_shape = tuple(input_shape)
        H, W, J = (1, 1, *self.image_shape)[-3:]
        # The initial scale is one; the shift starts at zero like a bias.
        super().__init__(ops, (H, W, J), name, (J, 2), H * W, mean=1.0, std=0.0)
        self.output_shape = self.image_shape

    @property
    def factor_sizes(self):
        return (2 * self.weight_shape[0],)

    def forward(self, x, mode):
        self.saved = WeightedPass(x.reshape(len(x), *self.input_shape))
        return self.ops.scale_shift(x, self.weight)

    def backward(self, dy):
        self.saved = self.saved._replace(derivatives=dy.reshape(len(dy), *self.input_shape))
        if self.needs_input_gradient:
            return self._scaled(dy)

    def _scaled(self, x):
        return self.ops.scale_maps(x, self.ops.copy(self.weight[:, 1]))

    def gradients(self):
        """Those of the examples of the latest backward pass, each of its own loss: (m, J, 2)."""
        return self.ops.map_sums(self.inputs[: len(self.derivatives)], self.derivatives)

    def gradient(self, out):
        """out (J, 2): their mean."""
        gradients = self.gradients()
        m = len(gradients)
        shares = self.ops.empty((1, m))
        self.ops.write(shares, 1 / self.ops.ranks.whole(m))
        self.ops.matmul(shares, gradients.reshape(m, -1), out=out.reshape(1, -1))

    def weight_tangent(self, direction, count):
        """Vshift + Vscale * x for direction (J, 2) = (Vshift, Vscale)."""
        ry = self.ops.scale_shift(self.inputs[:count], direction)
        return ry.reshape(count, *self.image_shape)

    def add_input_tangent(self, rx, ry):
        """R(y) = scale * R(x) + ry."""
        self.ops.axpy(1.0, self._scaled(rx).reshape(ry.shape), ry)
        return ry
