"""A convolution, the maximum pool and the ReLU behind it in one pass: on tensor cores, and on a CPU
by the C extension.
"""

import numpy as np
import pytest
from checks import assert_close
from networks import batches, optimizer

from kfcnet.layers import Conv2d, MaxPool
from kfcnet.layers.base import Mode
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps, has_extension
from kfcnet.ops.cpu import pooled_convolution as cpu_pooled_convolution
from kfcnet.ops.cuda import pooled_convolution
from kfcnet.ops.cuda.convolution import ConvShape
from kfcnet.ops.primitives import Pooling
from kfcnet.ops.shapes import ceil_div

SHAPES = [  # M, H, W, J, filters, kernel, stride, padding, pool, its stride, clipped
    (3, 9, 8, 3, 20, 5, 1, 2, 3, 2, True),
    (2, 11, 19, 1, 36, 3, 2, 0, 2, 2, True),
    (2, 8, 39, 2, 4, 3, 1, 1, 3, 2, True),  # two tiles across
    (2, 23, 7, 3, 8, 2, 1, 1, 3, 3, False),  # two tiles down, pixels that no window covers
    (1, 7, 35, 7, 16, 3, 1, 1, 4, 3, False),
    (2, 6, 5, 2, 12, 3, 1, 2, 2, 1, True),
    (3, 5, 6, 4, 68, 3, 1, 1, 2, 2, True),  # two and a bit tiles of maps
]


def layers_of(ops, shape, rng, tie=False):
    """A convolution and a pool with its ReLU, not fused, with weights."""
    _, *image, filters, kernel, stride, padding, size, pool_stride, clipped = shape
    conv = Conv2d(ops, image, "conv", filters, kernel, stride, padding)
    pool = MaxPool(ops, conv.output_shape, "pool", size, pool_stride, clipped)
    conv.needs_input_gradient, pool.applies_relu = False, True
    weight = rng.standard_normal(conv.weight_shape)
    weight[:, 0] = -1.5 * weight.shape[1] ** 0.5  # many windows are cut by the ReLU
    conv.weight = ops.asarray(np.round(weight) if tie else weight)
    return conv, pool


def fuse(conv, pool):
    pooling = Pooling(*pool.window, pool.clipped)
    assert conv.can_pool(pooling)
    conv.pool, pool.fused = pooling, True


def passes(ops, shape, fused, tie=False):
    """Of all examples and of one: outputs, gradient, derivatives and tangent."""
    rng = np.random.default_rng(7)
    conv, pool = layers_of(ops, shape, rng, tie)
    if fused:
        fuse(conv, pool)
    x = rng.standard_normal(shape[:4])
    dy = rng.standard_normal((shape[0], *pool.output_shape))
    direction = ops.asarray(rng.standard_normal(conv.weight_shape))
    y = pool.forward(conv.forward(ops.asarray(np.round(x) if tie else x), Mode(True)), Mode(True))
    results = [y]
    for m in (shape[0], 1):
        assert conv.backward(pool.backward(ops.asarray(dy[:m]))) is None
        gradient = ops.zeros((np.prod(conv.weight_shape),))
        gradients = ops.conv_gradients([conv.placed(0, m)], 0.5, gradient)
        gradients.add(*conv.gradient_pass(0))
        gradients.finish()
        tangent = pool.tangent(conv.weight_tangent(direction, m))
        results += [gradient, conv.derivatives, tangent]
    return [ops.to_numpy(result) for result in results]


@pytest.fixture(autouse=True)
def small_images_too(request, monkeypatch):
    """Tiles may be larger than small images but where the test is of that."""
    if "pays" not in request.function.__name__:
        monkeypatch.setattr(pooled_convolution, "MOST_TWICE", 100)


@pytest.mark.parametrize("tie", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_passes_are_those_of_the_layers_bit_for_bit(tensor_cores, shape, tie):
    fused, apart = (passes(tensor_cores, shape, fused, tie) for fused in (True, False))
    assert (apart[0] == 0).any() and (apart[0] > 0).any()
    for actual, expected in zip(fused, apart, strict=True):
        assert np.isfinite(expected).all() and expected.any()
        np.testing.assert_array_equal(actual, expected)


@pytest.fixture(params=["float32", "float64"])
def native(request):
    if not has_extension():
        pytest.skip("the C extension is not built")
    return CpuOps(request.param, shards=2, native="on")


@pytest.mark.parametrize("at_a_time", [1, 1 << 20], ids=["an image", "all images"])
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_cpu_all_passes_are_those_of_the_layers(native, monkeypatch, shape, at_a_time):
    monkeypatch.setattr(cpu_pooled_convolution, "IN_CACHE", at_a_time)
    fused, apart = (passes(native, shape, fused) for fused in (True, False))
    assert (apart[0] == 0).any() and (apart[0] > 0).any()
    for index, (actual, expected) in enumerate(zip(fused, apart, strict=True)):
        assert np.isfinite(expected).all() and expected.any()
        if index in (1, 4):  # gradients, whose sums come in another order
            assert_close(actual, expected, 1e-5 if native.dtype == np.float32 else 1e-13)
        else:
            np.testing.assert_array_equal(actual, expected)


def test_on_a_cpu_the_last_images_may_be_fewer_than_are_taken_at_a_time(monkeypatch):
    if not has_extension():
        pytest.skip("the C extension is not built")
    ops, shape = CpuOps("float64", shards=1, native="on"), SHAPES[0]
    results = []
    for images in (3, 2):
        monkeypatch.setattr(cpu_pooled_convolution, "IN_CACHE", images * 9 * 8 * 20 * 8)
        results.append(passes(ops, shape, fused=True))
    for at_once, in_parts in zip(*results, strict=True):
        assert np.isfinite(in_parts).all() and in_parts.any()
        assert_close(in_parts, at_once, 1e-13)


def assert_nan_passes_and_gets_no_derivative(ops):
    shape = (1, 6, 6, 1, 4, 3, 1, 1, 2, 2, True)
    conv, pool = layers_of(ops, shape, np.random.default_rng(0))
    fuse(conv, pool)
    x = np.full(shape[:4], 9.0)
    x[0, 0, 0] = np.nan
    y = ops.to_numpy(conv.forward(ops.asarray(x), Mode()))
    assert np.isnan(y[0, 0, 0]).all() and not np.isnan(y).all()
    conv.backward(ops.asarray(np.ones(y.shape)))
    derivatives = ops.to_numpy(conv.derivatives)
    assert not derivatives[0, :2, :2].any() and derivatives.sum() == (y > 0).sum() > 0


def test_what_is_not_a_number_passes_and_gets_no_derivative(tensor_cores):
    assert_nan_passes_and_gets_no_derivative(tensor_cores)


def test_on_a_cpu_what_is_not_a_number_passes_and_gets_no_derivative(native):
    assert_nan_passes_and_gets_no_derivative(native)


LAYERS = [
    {"layer": "conv", "filters": 8, "kernel": 3, "padding": 1, "std": 0.3},
    {"layer": "max_pool", "size": 3, "stride": 2},
    {"layer": "relu"},
    {"layer": "response_norm", "size": 3, "scale": 0.7, "power": 0.75},
    {"layer": "conv", "filters": 8, "kernel": 3, "padding": 1, "std": 0.3},
    {"layer": "max_pool", "size": 2, "stride": 2},
    {"layer": "relu"},
    {"layer": "dense", "units": 3},
]


def fused(ops, layers=LAYERS, image=(9, 8, 2)):
    """The names of the convolutions that pool in their own passes."""
    network = build_network(layers, image, ops)
    found = [layer.name for layer in network.weighted if getattr(layer, "pool", None)]
    pools = [layer for layer in network.layers if isinstance(layer, MaxPool)]
    assert sum(pool.fused for pool in pools) == len(found)
    return found


def test_with_the_extension_a_network_fuses_its_first_convolution(native):
    assert fused(native) == fused(native, image=(9, 8, 8)) == ["conv1"]
    assert fused(native, [LAYERS[0], LAYERS[2], LAYERS[1], LAYERS[-1]]) == []
    assert fused(native, [LAYERS[0] | {"kernel": 1, "padding": 0}, *LAYERS[1:]]) == []
    assert fused(CpuOps("float32", native="off")) == []


def test_a_network_fuses_the_first_convolution_of_few_maps_on_tensor_cores(tensor_cores, cuda):
    assert fused(tensor_cores) == ["conv1"]
    assert fused(cuda) == []
    assert fused(tensor_cores, image=(9, 8, 8)) == []  # not so few maps
    assert fused(tensor_cores, [LAYERS[0] | {"filters": 9}, *LAYERS[1:]]) == []
    assert fused(tensor_cores, [LAYERS[0], LAYERS[2], LAYERS[1], LAYERS[-1]]) == []
    assert fused(tensor_cores, [LAYERS[0] | {"kernel": 1, "padding": 0}, *LAYERS[1:]]) == []
    large = {"layer": "max_pool", "size": 16, "stride": 16}
    assert fused(tensor_cores, [LAYERS[0], large, *LAYERS[2:]], (40, 40, 2)) == []


def test_a_network_with_them_fused_computes_the_same(tensor_cores, rng):
    x, dz = rng.standard_normal((4, 9, 8, 2)), rng.standard_normal((4, 3))
    results = []
    for ops in (tensor_cores, CpuOps("float64", native="off")):
        network = build_network(LAYERS, (9, 8, 2), ops)
        z = network.forward(ops.asarray(x), training=True)
        network.backward_with_gradient(ops.asarray(dz))
        whole = ops.copy(network.gradient)
        direction = ops.asarray(np.cos(np.arange(len(network.theta))))
        rz = network.tangent(direction, 3)
        network.backward(ops.asarray(dz[:2]), per_example=True)
        network.compute_gradient()
        arrays = z, whole, rz, network.weighted[0].derivatives, network.gradient
        results.append([ops.to_numpy(a) for a in arrays])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 3e-3)


@pytest.mark.parametrize(
    "image, filters, kernel, stride, padding, pool, expected",
    [
        ((32, 32, 3), 32, 5, 1, 2, (3, 2, True), True),
        ((28, 28, 1), 20, 5, 1, 0, (2, 2, True), True),
        ((64, 64, 3), 64, 5, 1, 2, (3, 2, False), True),
        ((224, 224, 3), 96, 11, 4, 2, (3, 2, False), True),
        ((32, 32, 3), 32, 5, 1, 2, (8, 2, True), False),  # most is computed twice and more
        ((32, 32, 3), 32, 5, 1, 2, (4, 1, True), False),
        ((16, 16, 3), 32, 5, 1, 2, (15, 1, True), False),  # no tile for the gradient
        ((32, 32, 3), 32, 31, 1, 15, (3, 2, True), False),  # none at all
    ],
)
def test_a_convolution_pools_where_it_pays_and_then_computes_little_twice(
    tensor_cores, image, filters, kernel, stride, padding, pool, expected
):
    pooling, window = Pooling(*pool), (kernel, stride, padding)
    can = tensor_cores.can_convolve_and_pool((1, *image), filters, window, pooling)
    assert can is expected
    if not can:
        return
    layer = ConvShape.of((1, *image), filters, *window)
    tile = tensor_cores._pooled_tile(layer, pooling)
    assert tile.grid(1)[0] * tile.threads <= 1.5 * layer.locations
    assert tile.rows * ceil_div(tile.pool.height, tile.rows) >= tile.pool.height
    for count, side, whole in (
        (tile.rows, tile.height, layer.out_height),
        (tile.columns, tile.width, layer.out_width),
    ):  # all of its windows lie in the tile, or beyond the image
        assert (count - 1) * pooling.stride + pooling.size <= side or whole <= side


def test_derivatives_without_the_argmax_of_their_pool_are_refused(tensor_cores):
    shape = SHAPES[0]
    conv, pool = layers_of(tensor_cores, shape, np.random.default_rng(0))
    x = tensor_cores.asarray(np.zeros(shape[:4]))
    plain, dy = conv.placed(0, len(x)), tensor_cores.zeros((len(x), *conv.output_shape))
    fuse(conv, pool)
    pooled = conv.placed(0, len(x))
    argmax = tensor_cores.zeros(dy.shape).astype(np.uint8)
    for layer, arrays in ((pooled, ()), (plain, (argmax,))):
        out = tensor_cores.zeros((np.prod(conv.weight_shape),))
        gradients = tensor_cores.conv_gradients([layer], 1.0, out)
        with pytest.raises(ValueError, match="derivatives of a pool need its argmax"):
            gradients.add(layer, x, dy, *arrays)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("sgd", {}),
        ("kfc_pre", dict(statistics_period=2, inverse_period=2)),
        pytest.param("kfc_pre", dict(structure="ekfac"), marks=pytest.mark.slow),
    ],
)
def test_recorded_steps_with_them_fused_end_in_the_same_bits(new_cuda, monkeypatch, name, changes):
    thetas = []
    for is_fused in (True, False):
        ops = new_cuda(tensor_cores=True)
        monkeypatch.setattr(ops, "can_pool_and_normalise", lambda *_: False)
        if not is_fused:
            monkeypatch.setattr(ops, "can_convolve_and_pool", lambda *_: False)
        assert fused(ops) == ["conv1"] * is_fused
        training = optimizer(ops, name, LAYERS, **changes)
        made = batches(ops, np.random.default_rng(0), 6)
        training.prepare(made[:1])
        for batch in made:  # eager, captured and replayed
            training.step(batch)
        thetas.append(ops.to_numpy(training.network.theta))
    assert np.isfinite(thetas[0]).all()
    np.testing.assert_array_equal(*thetas)
