"""Every primitive, on every device, against plain loops in float64 and finite differences."""

import inspect
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl
from checks import (
    assert_close,
    conv_loops,
    derivative,
    map_sums_loops,
    patches_adjoint_loops,
    patches_loops,
    pool_windows,
    response_norm_loops,
    scale_shift_loops,
)

from kfcnet import philox
from kfcnet.ops.cpu import CpuOps, batch_norm, cpu_ops
from kfcnet.ops.cpu import convolution as numpy_convolution
from kfcnet.ops.cpu.blas import one_blas_thread
from kfcnet.ops.cpu.eager import Eager
from kfcnet.ops.cuda import CudaOps
from kfcnet.ops.primitives import Placed, Primitives, StepCount
from kfcnet.ops.shapes import output_size

CONVOLUTIONS = [  # M, H, W, J, I, kernel, stride, padding
    (3, 5, 4, 2, 3, 3, 1, 1),
    (3, 7, 6, 3, 5, 5, 1, 2),
    (2, 7, 5, 2, 3, 3, 2, 1),
    (5, 4, 3, 1, 4, 2, 1, 0),
    (3, 6, 5, 4, 33, 3, 3, 2),
    (1, 5, 6, 33, 2, 3, 1, 1),
    (3, 1, 1, 7, 4, 1, 1, 0),
    (2, 3, 4, 5, 3, 1, 1, 0),
    (2, 8, 8, 32, 32, 5, 1, 2),
    (2, 3, 4, 5, 3, 2, 1, 2),
    (2, 4, 3, 2, 3, 1, 1, 1),
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """The CPU works through vectors, matrices and images of these tests in several pieces, as it
    does through large ones.
    """
    monkeypatch.setattr(cpu_ops, "PIECE", 30)
    monkeypatch.setattr(cpu_ops, "BLOCK", 4)
    monkeypatch.setattr(batch_norm, "BLOCK", 12)  # an image, or two of six elements


@pytest.fixture(params=CONVOLUTIONS, ids=lambda shape: "x".join(map(str, shape)))
def convolution(request, ops, rng):
    """Random (x, weight, dy) in the device's dtype, and (kernel, stride, padding)."""
    M, H, W, J, I, *window = request.param
    T = [output_size(side, *window) for side in (H, W)]
    shapes = (M, H, W, J), (I, 1 + window[0] ** 2 * J), (M, *T, I)
    return [ops.asarray(rng.standard_normal(shape)) for shape in shapes], window


def test_convolution_matches_loops(ops, convolution):
    (x, weight, _), window = convolution
    expected = conv_loops(*(ops.to_numpy(a).astype(np.float64) for a in (x, weight)), *window)
    assert_close(ops.to_numpy(ops.conv_forward(x, weight, *window)), expected)


def test_convolution_without_bias_ignores_column_zero(ops, convolution):
    (x, weight, _), window = convolution
    w = ops.to_numpy(weight).astype(np.float64)
    expected = conv_loops(ops.to_numpy(x).astype(np.float64), w, *window) - w[:, 0]
    assert_close(ops.to_numpy(ops.conv_forward(x, weight, *window, bias=False)), expected)


@pytest.mark.parametrize("shape, window", [((3, 1, 1, 7), (1, 1, 0)), ((2, 5, 4, 2), (3, 1, 1))])
def test_convolution_cuts_its_result_at_zero_where_a_relu_is_asked_for(ops, rng, shape, window):
    x, weight = rng.standard_normal(shape), rng.standard_normal((4, 1 + window[0] ** 2 * shape[3]))
    expected = conv_loops(x, weight, *window)
    assert (expected > 0).any() and (expected < 0).any()
    y = ops.conv_forward(ops.asarray(x), ops.asarray(weight), *window, relu=True)
    assert_close(ops.to_numpy(y), np.maximum(expected, 0))


def test_convolution_adds_to_what_is_there(ops, convolution):
    (x, weight, dy), window = convolution
    expected = ops.to_numpy(dy).astype(np.float64) + ops.to_numpy(
        ops.conv_forward(x, weight, *window, bias=False)
    )
    assert ops.conv_forward(x, weight, *window, bias=False, add_to=dy) is dy
    assert_close(ops.to_numpy(dy), expected)


LAYERS = [Placed(3, 5, (4, 6, 5, 9), (3, 1, 1)), Placed(420, 4, (4, 1, 1, 7), (1, 1, 0))]
LAYERS.append(Placed(459, 6, (4, 5, 4, 2), (3, 2, 1)))


def test_weights_of_several_layers_are_made_as_those_of_each(ops, rng):
    flat = ops.asarray(rng.standard_normal(580))
    together = ops.weights(flat, LAYERS, LAYERS[:2])
    for layer, weight in zip(LAYERS, together, strict=True):
        x = ops.asarray(rng.standard_normal(layer.x_shape))
        y, expected = (ops.conv_forward(x, w, *layer.window) for w in (weight, layer.of(flat)))
        assert np.array_equal(*map(ops.to_numpy, (y, expected))) and ops.to_numpy(y).any()
        dx = [
            ops.to_numpy(ops.conv_backward_data(y, w, layer.x_shape, *layer.window))
            for w in (weight, layer.of(flat))
        ]
        assert np.array_equal(*dx)


def test_gradients_of_several_layers_are_those_of_each(ops, rng):
    out, passes = ops.zeros((580,)), []
    for layer in LAYERS:
        _, H, W, _ = layer.x_shape
        sides = [output_size(side, *layer.window) for side in (H, W)]
        shapes = layer.x_shape, (4, *sides, layer.out_maps)
        passes.append((layer, *(ops.asarray(rng.standard_normal(shape)) for shape in shapes)))
    gradients = ops.conv_gradients(LAYERS, 0.5, out)
    for one in passes[::-1]:
        gradients.add(*one)
    gradients.finish()
    for layer, x, dy in passes:
        expected = ops.copy(layer.of(out))
        ops.conv_backward_weights(x, dy, *layer.window, scale=0.5, out=expected)
        assert np.array_equal(*map(ops.to_numpy, (layer.of(out), expected)))
    assert not ops.to_numpy(out)[:3].any() and not ops.to_numpy(out)[413:420].any()


def test_patches_match_loops(ops, convolution):
    (x, _, _), window = convolution
    expected = patches_loops(ops.to_numpy(x), *window)
    assert np.array_equal(ops.to_numpy(ops.patches(x, *window)), expected)


def test_patches_adjoint_adds_every_patch_back(ops, convolution, rng):
    (x, _, _), window = convolution
    rows = rng.standard_normal(ops.patches(x, *window).shape)
    back = ops.to_numpy(ops.patches_adjoint(ops.asarray(rows), x.shape, *window))
    assert_close(back, patches_adjoint_loops(rows, x.shape, *window))


def test_convolution_backward_to_data_matches_loops(ops, convolution):
    (x, weight, dy), window = convolution
    dx = ops.to_numpy(ops.conv_backward_data(dy, weight, x.shape, *window))
    w, d = (ops.to_numpy(a).astype(np.float64) for a in (weight, dy))
    assert_close(dx, patches_adjoint_loops(d.reshape(-1, d.shape[-1]) @ w, x.shape, *window))


@pytest.mark.parametrize("window", [(3, 1, 1), (3, 2, 0)])
def test_patches_adjoint_in_loops_is_the_adjoint_of_patches_in_loops(rng, window):
    x = rng.standard_normal((2, 6, 5, 3))
    patches = patches_loops(x, *window)
    rows = rng.standard_normal(patches.shape)
    back = patches_adjoint_loops(rows, x.shape, *window)
    assert np.isclose(np.vdot(back, x), np.vdot(rows[:, 1:], patches[:, 1:]), rtol=1e-12)


def test_convolution_backward_to_weights_is_a_product_with_patches(ops, convolution):
    (x, weight, dy), window = convolution
    out = ops.empty(weight.shape)
    ops.conv_backward_weights(x, dy, *window, scale=0.5, out=out)
    rows = patches_loops(ops.to_numpy(x).astype(np.float64), *window)
    d = ops.to_numpy(dy).astype(np.float64)
    assert_close(ops.to_numpy(out), 0.5 * d.reshape(-1, d.shape[-1]).T @ rows)


@pytest.mark.parametrize(
    "maps, window",
    [((5, 3), (3, 1, 1)), ((2, 7), (3, 1, 1)), ((5, 3), (3, 2, 1))],
    ids=["in slices", "whole patches", "with a stride"],
)
def test_convolution_in_numpy_does_not_depend_on_how_many_images_fit_in_cache(
    rng, monkeypatch, maps, window
):
    J, I = maps
    ops = CpuOps("float64", shards=1, native="off")
    sides = [output_size(side, *window) for side in (5, 4)]
    x, dy = rng.standard_normal((7, 5, 4, J)), rng.standard_normal((7, *sides, I))
    weight = rng.standard_normal((I, 1 + 9 * J))

    def passes():
        out, gram = ops.empty(weight.shape), ops.empty((1 + 9 * J, 1 + 9 * J))
        ops.conv_backward_weights(x, dy, *window, scale=1.0, out=out)
        ops.patch_gram(x, *window, scale=1.0, decay=0.0, out=gram)
        return [
            ops.conv_forward(x, weight, *window),
            ops.conv_backward_data(dy, weight, x.shape, *window),
            out,
            gram,
        ]

    at_once = passes()
    for images in (3, 1):  # the last turn of three has one left
        chunk = images * np.prod(sides) * (1 + 9 * J)
        monkeypatch.setattr(numpy_convolution, "CHUNK", chunk)
        for here, expected in zip(passes(), at_once, strict=True):
            assert_close(here, expected)


def test_patch_gram_is_the_gram_of_the_patches(ops, convolution):
    (x, weight, _), window = convolution
    P = weight.shape[1]
    rows = patches_loops(ops.to_numpy(x).astype(np.float64), *window)
    out = ops.asarray(np.full((P, P), np.nan))  # decay 0 must not read it
    ops.patch_gram(x, *window, scale=0.25, decay=0.0, out=out)
    assert_close(ops.to_numpy(out), 0.25 * rows.T @ rows)
    ops.patch_gram(x, *window, scale=0.5, decay=0.5, out=out)
    assert_close(ops.to_numpy(out), 0.625 * rows.T @ rows)
    assert np.array_equal(ops.to_numpy(out), ops.to_numpy(out).T)


def test_patch_gram_sums_over_many_examples_of_a_dense_layer(ops, rng):
    """A GPU cuts the rows of patches in two slices from 257 on."""
    x = ops.asarray(rng.standard_normal((300, 1, 1, 3)))
    rows = patches_loops(ops.to_numpy(x).astype(np.float64), 1, 1, 0)
    out = ops.asarray(np.full((4, 4), np.nan))
    ops.patch_gram(x, 1, 1, 0, scale=0.5, decay=0.0, out=out)
    assert_close(ops.to_numpy(out), 0.5 * rows.T @ rows)


@pytest.mark.parametrize("count", [37, 1100])  # few slices of rows on a GPU, and many
def test_gram_accumulates_the_product_of_rows(ops, rng, count):
    rows = ops.asarray(rng.standard_normal((count, 5)))
    exact = ops.to_numpy(rows).astype(np.float64)
    out = ops.asarray(np.full((5, 5), np.nan))
    ops.gram(rows, scale=2.0, decay=0.0, out=out)
    ops.gram(rows, scale=1.0, decay=0.25, out=out)
    assert_close(ops.to_numpy(out), 1.5 * exact.T @ exact)


POOLS = [
    ((2, 7, 6, 3), 3, 2, True),
    ((3, 5, 8, 1), 2, 2, True),
    ((1, 8, 8, 33), 3, 2, True),
    ((2, 4, 5, 2), 3, 1, True),
    ((2, 7, 4, 2), 1, 1, True),
    ((1, 2, 3, 2), 4, 2, True),
    ((2, 17, 19, 3), 16, 13, True),  # the largest window whose places fit in a byte
    ((2, 7, 6, 3), 3, 2, False),
    ((1, 9, 8, 33), 4, 3, False),
    ((3, 3, 5, 2), 3, 3, False),
]


@pytest.fixture(params=POOLS, ids=str)
def pooling(request):
    return request.param


def test_max_pooling_matches_loops_and_takes_the_first_of_ties(ops, pooling, rng):
    shape, size, stride, clipped = pooling
    x = rng.integers(-2, 3, shape).astype(np.float64)  # few values: ties in most windows
    y, argmax = map(ops.to_numpy, ops.max_pool(ops.asarray(x), size, stride, clipped))
    t1, t2, *_ = list(pool_windows(shape, size, stride, clipped))[-1]
    assert y.shape == (shape[0], t1 + 1, t2 + 1, shape[3])
    for t1, t2, rows, columns in pool_windows(shape, size, stride, clipped):
        window = x[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        flat = window.reshape(shape[0], -1, shape[3])
        r, c = np.divmod(flat.argmax(axis=1), len(columns))
        assert np.array_equal(y[:, t1, t2], flat.max(axis=1))
        assert np.array_equal(argmax[:, t1, t2], r * size + c)


def test_max_pooling_passes_nan_on(ops):
    x = np.zeros((1, 3, 3, 1))
    x[0, 0, 1, 0] = np.nan
    assert np.isnan(ops.to_numpy(ops.max_pool(ops.asarray(x), 3, 2)[0])).all()


def test_derivative_and_tangent_of_a_nan_are_those_of_a_pixel_of_its_clipped_window(ops):
    x = np.zeros((1, 4, 4, 1))
    x[0, 2, 3] = np.nan  # of both clipped windows on the right
    rx = 1 + np.arange(16.0).reshape(x.shape)
    y, argmax = ops.max_pool(ops.asarray(x), 3, 2)
    assert np.array_equal(np.isnan(ops.to_numpy(y))[0, ..., 0], [[False, True], [False, True]])
    ry = ops.to_numpy(ops.max_pool_tangent(ops.asarray(rx), argmax, 3, 2))
    assert ry[0, 0, 1, 0] in rx[0, :, 2:] and ry[0, 1, 1, 0] in rx[0, 2:, 2:]
    dy = np.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 2, 2, 1)
    dx = ops.to_numpy(ops.max_pool_backward(ops.asarray(dy), argmax, x.shape, 3, 2))
    assert dx.sum() == 15 and dx[0, :, 2:].sum() >= 10 and dx[0, 2:, 2:].sum() >= 8


def test_max_pooling_backward_and_tangent_are_adjoint_and_follow_the_maximum(ops, pooling, rng):
    shape, size, stride, clipped = pooling
    x, rx = (ops.asarray(rng.standard_normal(shape)) for _ in range(2))
    y, argmax = ops.max_pool(x, size, stride, clipped)
    dy = ops.asarray(rng.standard_normal(y.shape))
    ry = ops.to_numpy(ops.max_pool_tangent(rx, argmax, size, stride))
    dx = ops.to_numpy(ops.max_pool_backward(dy, argmax, x.shape, size, stride))
    values, derivatives = ops.to_numpy(x), ops.to_numpy(rx)
    for t1, t2, rows, columns in pool_windows(shape, size, stride, clipped):
        window, along = (
            array[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].reshape(
                shape[0], -1, shape[3]
            )
            for array in (values, derivatives)
        )
        first = window.argmax(axis=1, keepdims=True)
        assert np.array_equal(ry[:, t1, t2], np.take_along_axis(along, first, 1)[:, 0])
    assert_close(np.vdot(dx, ops.to_numpy(rx)), np.vdot(ops.to_numpy(dy), ry), 1e-4)


def test_average_pooling_divides_by_the_clipped_window(ops, pooling, rng):
    shape, size, stride, clipped = pooling
    x = ops.asarray(rng.standard_normal(shape))
    exact = ops.to_numpy(x).astype(np.float64)
    y = ops.to_numpy(ops.avg_pool(x, size, stride, clipped))
    expected = np.zeros(y.shape)
    for t1, t2, rows, columns in pool_windows(shape, size, stride, clipped):
        window = exact[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        expected[:, t1, t2] = window.mean(axis=(1, 2))
    assert_close(y, expected)
    dy = ops.asarray(rng.standard_normal(y.shape))
    dx = ops.to_numpy(ops.avg_pool_backward(dy, x.shape, size, stride))
    assert_close(np.vdot(dx, exact), np.vdot(ops.to_numpy(dy), expected), 1e-4)


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_passes_through_a_pool_take_the_relu_beside_it_along(ops, rng, name):
    """Of a maximum pool that behind it, which sees its outputs, of a mean pool that before it."""
    shape, window = (3, 7, 6, 4), (3, 2)
    x, rx = (ops.asarray(rng.standard_normal(shape)) for _ in range(2))
    if name == "max_pool":
        y, *at = ops.max_pool(x, *window)
        cut, _ = ops.max_pool(x, *window, relu=True)
        assert np.array_equal(ops.to_numpy(cut), np.maximum(ops.to_numpy(y), 0))
        active = ops.asarray(rng.standard_normal(y.shape))
        tangent = ops.max_pool_tangent
    else:
        y, at, active, tangent = ops.avg_pool(x, *window), [], x, ops.avg_pool
    mask = ops.to_numpy(active) > 0
    dy = ops.to_numpy(y).copy()
    backward = getattr(ops, f"{name}_backward")
    got = [tangent(rx, *at, *window, active=active)]
    got.append(backward(ops.asarray(dy), *at, shape, *window, active=active))
    if name == "max_pool":
        expected = [ops.to_numpy(tangent(rx, *at, *window)) * mask]
        expected.append(ops.to_numpy(backward(ops.asarray(dy * mask), *at, shape, *window)))
    else:
        expected = [ops.to_numpy(tangent(ops.asarray(ops.to_numpy(rx) * mask), *window))]
        expected.append(ops.to_numpy(backward(ops.asarray(dy), shape, *window)) * mask)
    for actual, wanted in zip(got, expected, strict=True):
        assert wanted.any()
        assert_close(ops.to_numpy(actual), wanted, 1e-6)


@pytest.mark.parametrize("across", [False, True], ids=["within", "across"])
@pytest.mark.parametrize("size, power", [(3, 0.75), (2, 0.5), (11, 0.75)])
def test_response_norm_matches_loops_with_its_adjoint_and_tangent(ops, rng, size, power, across):
    x, rx, dy = (ops.asarray(rng.standard_normal((2, 4, 5, 6))) for _ in range(3))
    exact, direction = (ops.to_numpy(a).astype(np.float64) for a in (x, rx))
    arguments = (size, 0.3, power, across)
    y, d = ops.response_norm(x, *arguments)
    assert_close(ops.to_numpy(y), response_norm_loops(exact, *arguments))
    ry = ops.to_numpy(ops.response_norm_tangent(rx, x, d, *arguments))
    loops = derivative(lambda a: response_norm_loops(a, *arguments), exact, direction)
    assert_close(ry, loops, max(1e-8, 2e-5 * (ops.dtype == np.float32)))
    dx = ops.to_numpy(ops.response_norm_backward(dy, x, d, *arguments))
    assert_close(np.vdot(dx, direction), np.vdot(ops.to_numpy(dy), ry), 1e-4)


@pytest.mark.parametrize(
    "shape, across", [((1, 19, 3, 4), False), ((2, 10, 9, 6), True)], ids=["within", "across"]
)
def test_response_norm_of_images_that_take_several_blocks_is_that_of_float64(
    ops, rng, shape, across
):
    x, dy = (ops.asarray(rng.standard_normal(shape)) for _ in range(2))
    exact, derivatives = (ops.to_numpy(a).astype(np.float64) for a in (x, dy))
    arguments, reference = (3, 0.3, 0.75, across), CpuOps("float64", shards=1, native="off")
    (y, d), expected = (o.response_norm(a, *arguments) for o, a in ((ops, x), (reference, exact)))
    assert_close(ops.to_numpy(y), expected[0])
    for name in ("response_norm_backward", "response_norm_tangent"):
        got = ops.to_numpy(getattr(ops, name)(dy, x, d, *arguments))
        assert_close(got, getattr(reference, name)(derivatives, exact, expected[1], *arguments))


@pytest.mark.parametrize("M", [4, 25])  # on a GPU one slice of the pixels, and three
def test_batch_norm_has_zero_mean_unit_variance_and_a_symmetric_jacobian(ops, rng, M):
    x, rx = (rng.standard_normal((M, 3, 2, 5)) * 3 + 1 for _ in range(2))
    normalise = lambda a: (a - a.mean((0, 1, 2))) / np.sqrt(a.var((0, 1, 2)) + 0.1)  # noqa: E731
    y, mean, inv_std = ops.batch_norm(ops.asarray(x), 0.1)
    assert_close(ops.to_numpy(y), normalise(x), 1e-9 if ops.dtype == np.float64 else 1e-5)
    assert_close(
        ops.to_numpy(ops.batch_norm_apply(ops.asarray(x), mean, inv_std)), ops.to_numpy(y), 1e-5
    )
    ry = ops.to_numpy(ops.batch_norm_backward(ops.asarray(rx), y, inv_std))
    assert_close(ry, derivative(normalise, x, rx), 1e-8 if ops.dtype == np.float64 else 1e-4)


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (1, 3, 5, 33), (4, 8), (2, 9, 1, 4)])
def test_maps_are_scaled_and_shifted_by_a_view_of_the_parameters(ops, rng, shape):
    J = shape[-1]
    x, theta = (ops.asarray(rng.standard_normal(size)) for size in (shape, 3 + 2 * J))
    weight = theta[3:].reshape(J, 2)
    y = ops.scale_shift(x, weight)
    exact, rows = (ops.to_numpy(a).astype(np.float64) for a in (x, weight))
    assert_close(ops.to_numpy(y), scale_shift_loops(exact, rows), 1e-6)
    scaled = ops.scale_maps(x, ops.asarray(rows[:, 1]))
    assert_close(ops.to_numpy(scaled), scale_shift_loops(exact, rows * [0, 1]), 1e-6)


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (1, 3, 5, 33), (5, 1, 1, 6), (2, 9, 3, 4)])
def test_map_sums_are_the_gradients_of_each_example_along_shift_and_scale(ops, rng, shape):
    x, dy = (ops.asarray(rng.standard_normal(shape)) for _ in range(2))
    exact, d = (ops.to_numpy(a).astype(np.float64) for a in (x, dy))
    sums = ops.to_numpy(ops.map_sums(x, dy))
    assert_close(sums, map_sums_loops(exact, d))
    along = rng.standard_normal((shape[-1], 2))
    for example, gradient in enumerate(sums):
        value = np.vdot(d[example], scale_shift_loops(exact[example], along))
        assert_close(np.vdot(gradient, along), value, 1e-4)


def test_relu_and_its_mask(ops):
    x = ops.asarray([[-1.0, 0.0, 2.0], [3.0, -0.5, 0.0]])
    y = ops.relu(x)
    assert np.array_equal(ops.to_numpy(y), [[0, 0, 2], [3, 0, 0]])
    dx = ops.relu_backward(ops.asarray([[5.0, 6, 7], [8, 9, 10]]), y)
    assert np.array_equal(ops.to_numpy(dx), [[0, 0, 7], [8, 0, 0]])


def test_dropout_is_the_mask_of_philox_scaled_by_one_over_keep(ops, rng):
    x = rng.standard_normal((3, 2, 2, 5))
    y, mask = ops.dropout(ops.asarray(x), 0.6, seed=3, step=7, stream=2)
    expected = philox.uniforms(3, philox.DROPOUT, 7, x.size, 2).reshape(x.shape) < 0.6
    assert np.array_equal(ops.to_numpy(mask), expected)
    assert 0 < expected.mean() < 1
    assert_close(ops.to_numpy(y), x * expected / 0.6, 1e-6)
    assert_close(
        ops.to_numpy(ops.dropout_backward(ops.asarray(x), mask, 0.6)), x * expected / 0.6, 1e-6
    )


def test_softmax_cross_entropy_value_gradient_and_errors(ops, rng):
    z, labels = rng.standard_normal((7, 5)) * 3, np.array([0, 4, 2, 2, 1, 3, 0], np.int32)
    z[2] = 1.0  # a tie: the first class wins, so label 2 counts as an error
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    got_p, dz, totals = map(ops.to_numpy, ops.softmax_cross_entropy(ops.asarray(z), labels))
    assert_close(got_p, p)
    assert_close(dz, p - np.eye(5)[labels])
    assert_close(totals[:1], [-np.log(p[np.arange(7), labels]).sum()], 1e-5)
    assert totals[1] == (z.argmax(axis=1) != labels).sum()


def test_softmax_cross_entropy_is_finite_for_huge_logits(ops):
    z = ops.asarray([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    p, dz, totals = map(ops.to_numpy, ops.softmax_cross_entropy(z, np.array([0, 1], np.int32)))
    assert np.isfinite(p).all() and np.isfinite(dz).all()
    assert_close(totals[:1], [np.log(3)], 1e-6)


def test_sampled_gradient_draws_each_class_with_its_probability(ops):
    p = np.tile([0.2, 0.5, 0.3], (3000, 1))
    uniforms = philox.uniforms(1, philox.TARGETS, 0, 3000)
    dz = ops.to_numpy(ops.sampled_gradient(ops.asarray(p), ops.asarray(uniforms)))
    drawn = np.rint(p - dz)
    assert np.array_equal(drawn.sum(axis=1), np.ones(3000))
    assert np.array_equal(drawn.argmax(axis=1), np.searchsorted([0.2, 0.7], uniforms, "right"))


def test_sampled_gradient_never_draws_beyond_the_last_class(ops):
    p = ops.asarray([[0.5, 0.25, 0.2499]])  # rounding has lost a little probability
    dz = ops.to_numpy(ops.sampled_gradient(p, ops.asarray([0.99999994])))
    assert_close(dz, [[0.5, 0.25, 0.2499 - 1]], 1e-6)


def test_no_class_of_probability_zero_is_ever_drawn(ops, rng):
    p = np.zeros((60, 6))
    p[:, 1:4] = ops.to_numpy(ops.asarray(rng.dirichlet(np.ones(3), 60))) * np.float32(0.99)
    p[::2, 3] = 0
    uniforms = np.tile([0.0, 0.25, 0.5, 0.75, 1 - 2.0**-24], 12)
    dz = ops.to_numpy(ops.sampled_gradient(ops.asarray(p), ops.asarray(uniforms)))
    drawn = np.rint(p - dz)
    assert np.isfinite(dz).all() and np.array_equal(drawn.sum(axis=1), np.ones(60))
    assert (p[drawn == 1] > 0).all()
    last = drawn[4::5].argmax(axis=1)
    assert np.array_equal(last, 2 + np.arange(4, 60, 5) % 2)


def test_a_class_that_adds_nothing_to_the_sum_is_not_drawn_for_one_that_does(ops):
    p = np.array([[0.6, 0.39, 1e-20]])  # rounding leaves the sum below the number
    dz = ops.to_numpy(ops.sampled_gradient(ops.asarray(p), ops.asarray([0.995])))
    assert np.isfinite(dz).all()
    assert_close(dz, p - [[0, 1, 0]], 1e-6)


def test_softmax_fisher_is_the_bilinear_form(ops, rng):
    p, r, s = rng.dirichlet(np.ones(4), 6), *rng.standard_normal((2, 6, 4))
    matrices = [np.diag(q) - np.outer(q, q) for q in p]
    expected = np.einsum("mi,mij,mj", r, matrices, s) / 3
    got = ops.softmax_fisher(ops.asarray(p), ops.asarray(r), ops.asarray(s), 1 / 3)
    assert got.shape == (1,)
    assert_close(ops.to_numpy(got), [expected])


def test_softmax_fisher_does_not_cancel_where_a_prediction_is_nearly_certain(ops, rng):
    z = rng.standard_normal((6, 4)) + [14, 0, 0, 0]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    r, s = rng.standard_normal((2, 6, 4)) + 3
    matrices = [np.diag(q) - np.outer(q, q) for q in p]
    expected = np.einsum("mi,mij,mj", r, matrices, s)
    got = ops.softmax_fisher(ops.asarray(p), ops.asarray(r), ops.asarray(s), 1.0)
    assert_close(ops.to_numpy(got), [expected], 1e-5)


def test_softmax_fisher_is_finite_where_a_tangent_of_probability_zero_is_large(ops):
    r = ops.asarray([[0, 1e25, -1e30]])
    got = ops.softmax_fisher(ops.asarray([[1, 0, 0]]), r, r, 1.0)
    assert ops.to_numpy(got) == 0


def test_softmax_fisher_product_is_the_product_with_the_matrix_of_every_example(ops, rng):
    p, r = rng.dirichlet(np.ones(4), 6), rng.standard_normal((6, 4)) + 3
    expected = [(np.diag(q) - np.outer(q, q)) @ v for q, v in zip(p, r, strict=True)]
    assert_close(ops.to_numpy(ops.softmax_fisher_product(ops.asarray(p), ops.asarray(r))), expected)


def test_gather_normalises_the_chosen_images(ops, rng):
    images = rng.integers(0, 256, (9, 4, 3, 2)).astype(np.uint8)
    mean, indices = images.mean(axis=0), np.array([4, 0, 8, 4, 2])
    labels = np.arange(9, dtype=np.int32)[::-1].copy()
    x, targets = ops.gather(images, labels, indices, ops.asarray(mean), 0.5)
    assert_close(ops.to_numpy(x), (images[indices] - mean) * 0.5, 1e-6)
    assert np.array_equal(ops.to_numpy(targets), labels[indices])
    again, none = ops.gather(images, None, indices, ops.asarray(mean), 0.5)
    assert none is None and np.array_equal(ops.to_numpy(again), ops.to_numpy(x))


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul_with_transposes(ops, rng, transpose_a, transpose_b):
    a = ops.asarray(rng.standard_normal((5, 7) if transpose_a else (7, 5)))
    b = ops.asarray(rng.standard_normal((3, 5) if transpose_b else (5, 3)))
    A, B = (ops.to_numpy(m).astype(np.float64) for m in (a, b))
    expected = (A.T if transpose_a else A) @ (B.T if transpose_b else B)
    out = ops.empty((7, 3))
    ops.matmul(a, b, transpose_a, transpose_b, out=out)
    assert_close(ops.to_numpy(out), expected)


def test_vector_primitives(ops, rng):
    w, x, y = (rng.standard_normal(101) for _ in range(3))
    W, X, Y = (ops.asarray(a.copy()) for a in (w, x, y))
    assert_close(ops.to_numpy(ops.dot(X, Y)), [x @ y], 1e-5)
    assert_close(ops.to_numpy(ops.weighted_dot(W, X, Y)), [(w * x) @ y], 1e-5)
    ops.axpy(-2.0, X, Y)
    ops.multiply_add(W, X, Y)
    assert_close(ops.to_numpy(Y), y - 2 * x + w * x, 1e-5)


def test_products_of_long_vectors_are_summed_whole(ops, rng):
    """A GPU takes more than 4,096 elements in slices."""
    w, x, y = (rng.random(9001) for _ in range(3))
    W, X, Y = map(ops.asarray, (w, x, y))
    assert_close(ops.to_numpy(ops.dot(X, Y)), [x @ y], 1e-5)
    assert_close(ops.to_numpy(ops.weighted_dot(W, X, Y)), [(w * x) @ y], 1e-5)


def test_spd_inverse_inverts_the_shifted_matrix(ops, rng):
    root = rng.standard_normal((10, 6))
    matrix, shift = root @ root.T, ops.asarray([0.5])
    inverse = ops.to_numpy(ops.spd_inverse(ops.asarray(matrix), shift))
    assert_close(
        inverse,
        np.linalg.inv(matrix + 0.5 * np.eye(10)),
        max(1e-9, 1e-4 * (ops.dtype == np.float32)),
    )
    assert np.array_equal(inverse, inverse.T)


def test_what_is_submitted_works_on_the_arrays_as_they_were(ops):
    x = ops.asarray([1.0, 2.0])
    pending = ops.submit(lambda ops, x: (ops.relu(x),), x)
    ops.axpy(1.0, ops.asarray([5.0, 6.0]), x)
    assert ops.to_numpy(pending.inputs[0]).tolist() == [1, 2]
    assert ops.to_numpy(pending.result()[0]).tolist() == [1, 2]


@pytest.mark.parametrize("spoil", [-1.0, np.nan])
def test_spd_inverse_refuses_what_is_not_positive_definite(ops, spoil):
    matrix = np.diag([2.0, spoil, 3.0])
    with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
        ops.spd_inverse(ops.asarray(matrix), ops.asarray([0.1]))


def test_eigh_gives_ascending_values_and_orthonormal_vectors(ops, rng):
    root = rng.standard_normal((9, 6))  # three eigenvalues are zero
    matrix = ops.asarray(root @ root.T)
    values, vectors = map(ops.to_numpy, ops.eigh(matrix))
    assert (np.diff(values) >= 0).all()
    assert_close(vectors @ np.diag(values) @ vectors.T, ops.to_numpy(matrix))
    assert_close(vectors.T @ vectors, np.eye(9))


def test_eigh_refuses_what_has_no_eigenvalues(ops):
    with pytest.raises(np.linalg.LinAlgError, match="converge"):
        ops.eigh(ops.asarray(np.full((3, 3), np.nan)))


def test_clip_scale_brings_nu_down_to_the_cap_and_never_up(ops):
    for quadratic, expected in [(0.0, 1.0), (10.0, 1.0), (30.0, 1.0), (120.0, 0.5)]:
        scale, nu = ops.clip_scale(ops.asarray([quadratic]), 0.1, 0.3)
        assert_close(ops.to_numpy(scale), [expected], 1e-6)
        assert_close(ops.to_numpy(nu), [0.01 * quadratic], 1e-6)


@pytest.mark.parametrize("scale, totals, twice_penalty, slope, expected", [
    (None, 8.0, 0.0, 1.0, 1.0),  # h = 2 a step of 0.1: there is room
    (None, 8.0, 0.0, 50.0, 0.04),  # 0.1 * 2 / (0.1 * 50)
    (0.5, 8.0, 0.0, 50.0, 0.04),
    (0.5, 8.0, 0.0, 3.0, 0.5),
    (0.5, 8.0, 12.0, 50.0, 0.16),  # the penalty belongs to h
    (0.5, 0.0, 0.0, 0.0, 0.5), (0.5, 8.0, 0.0, -3.0, 0.5),  # nothing is promised
    (0.5, 0.0, 0.0, 1.0, 0.0),
    (0.5, np.nan, 0.0, 1.0, np.nan), (0.5, 8.0, 0.0, np.nan, np.nan),
    (np.nan, 8.0, 0.0, 1.0, np.nan),
])  # fmt: skip
def test_polyak_scale_lets_no_step_promise_more_than_the_objective(
    ops, scale, totals, twice_penalty, slope, expected
):
    scale = None if scale is None else ops.asarray([scale])
    arguments = [ops.asarray(v) for v in ([totals, 3.0], [twice_penalty], [slope])]
    result = ops.polyak_scale(scale, arguments[0], 4, *arguments[1:], 0.1, 0.1)
    np.testing.assert_allclose(ops.to_numpy(result), [expected], rtol=1e-6)


AVERAGING = 0.75


def published_update(name, theta, g, velocity, squares):
    """One step of a method as published: (theta, velocity, squares), learning rate 0.1, step 3."""
    if name == "nesterov":
        velocity = 0.9 * velocity - 0.1 * g
        theta = theta + 0.9 * velocity - 0.1 * g
    elif name == "adagrad":
        squares = squares + g**2
        theta = theta - 0.1 * g / (np.sqrt(squares) + 1e-3)
    elif name == "rmsprop":
        squares = 0.95 * squares + 0.05 * g**2
        theta = theta - 0.1 * g / (np.sqrt(squares) + 1e-3)
    else:
        velocity = 0.9 * velocity + 0.1 * g
        squares = 0.99 * squares + 0.01 * g**2
        mean, square = velocity / (1 - 0.9**3), squares / (1 - 0.99**3)
        theta = theta - 0.1 * mean / (np.sqrt(square) + 1e-3)
    return theta, velocity, squares


@pytest.fixture(params=[False, True], ids=["no decay", "decay"])
def weight_decay(request, rng):
    """That of 77 parameters, many of them free; or none."""
    return rng.choice([0, 0.3], 77) if request.param else None


def decayed(direction, weight_decay, theta):
    return direction if weight_decay is None else direction + weight_decay * theta


def check_update(ops, name, arrays, expected, **options):
    """A step of a method from (theta, g, velocity, average, squares) leaves what is expected."""
    t, G, v, a, s = (ops.asarray(x.copy()) for x in arrays)
    if name == "nesterov":
        ops.nesterov_update(t, v, a, G, 0.1, 0.9, AVERAGING, **options)
    elif name == "adagrad":
        ops.adagrad_update(t, s, a, G, 0.1, 1e-3, AVERAGING, **options)
    elif name == "rmsprop":
        ops.rmsprop_update(t, s, a, G, 0.1, 0.95, 1e-3, AVERAGING, **options)
    else:
        ops.adam_update(t, v, s, a, G, 0.1, 0.9, 0.99, 1e-3, 3, AVERAGING, **options)
    average = AVERAGING * arrays[3] + (1 - AVERAGING) * expected[0]
    for got, want in zip((t, v, s, a), (*expected, average), strict=True):
        assert_close(ops.to_numpy(got), want, 1e-5)


@pytest.mark.parametrize("name", ["nesterov", "adagrad", "rmsprop", "adam"])
def test_other_updates_are_the_published_ones(ops, rng, name, weight_decay):
    theta, g, velocity, average = (rng.standard_normal(77) for _ in range(4))
    squares = np.square(rng.standard_normal(77))
    expected = published_update(name, theta, decayed(g, weight_decay, theta), velocity, squares)
    decay = None if weight_decay is None else ops.asarray(weight_decay)
    arrays = theta, g, velocity, average, squares
    check_update(ops, name, arrays, expected, weight_decay=decay)


@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "adam"])
def test_decoupled_decay_shrinks_the_weights_and_stays_out_of_the_squares(ops, rng, name):
    """Loshchilov & Hutter (2019): theta is multiplied by 1 - learning rate * decay besides."""
    theta, g, velocity, average = (rng.standard_normal(77) for _ in range(4))
    squares, decay = np.square(rng.standard_normal(77)), rng.choice([0, 0.3], 77)
    expected = published_update(name, theta * (1 - 0.1 * decay), g, velocity, squares)
    arrays = theta, g, velocity, average, squares
    check_update(ops, name, arrays, expected, weight_decay=ops.asarray(decay), is_decoupled=True)


def test_adam_without_memory_steps_by_the_learning_rate(ops, rng):
    """Both decays are zero: the logarithms that a GPU takes of them are not finite."""
    theta, g = rng.standard_normal((2, 9))
    t, G, state = ops.asarray(theta.copy()), ops.asarray(g), [ops.zeros((9,)) for _ in range(3)]
    for number in (1, 2):
        ops.adam_update(t, *state, G, 0.1, 0.0, 0.0, 1e-8, number, AVERAGING)
    assert_close(ops.to_numpy(t), theta - 0.2 * np.sign(g), 1e-6)


@pytest.mark.parametrize("clip_scale", [None, 0.5])
def test_momentum_update_moves_and_averages(ops, rng, clip_scale, weight_decay):
    theta, velocity, average, direction = (rng.standard_normal(77) for _ in range(4))
    device = [ops.asarray(a.copy()) for a in (theta, velocity, average, direction)]
    scale = None if clip_scale is None else ops.asarray([clip_scale])
    decay = None if weight_decay is None else ops.asarray(weight_decay)
    ops.momentum_update(*device, 0.1, 0.9, scale, 0.75, weight_decay=decay)
    velocity = 0.9 * velocity - 0.1 * (clip_scale or 1) * decayed(direction, weight_decay, theta)
    theta = theta + velocity
    average = 0.75 * average + 0.25 * theta
    for got, expected in zip(device, (theta, velocity, average, direction), strict=True):
        assert_close(ops.to_numpy(got), expected, 1e-6)


def test_running_sums_add_up_steps_and_keep_the_first_whose_loss_is_not_finite(ops):
    sums, first = ops.zeros((4,)), ops.counter(-1)
    results = [
        (1.5, 2, 0.25, 4.0),
        (0.5, 1, 1.0, 0.75),
        (2.0, 3, 1.0, 0.5),
        (np.inf, 0, 0.5, 1.5),
        (np.nan, 0, 1.0, 0.0),
    ]
    for step, (loss, errors, *clip) in enumerate(results):
        scale, nu = (ops.asarray([number]) for number in clip)
        counter = ops.counter(step + 7)
        ops.count_step(ops.asarray([loss, errors]), scale, nu, counter, sums, first)
        assert ops.to_numpy(counter).tolist() == [step + 8]
        if step == 2:
            assert ops.to_numpy(sums).tolist() == [4, 6, 1, 5.25]
            assert ops.to_numpy(first).tolist() == [-1]
    assert ops.to_numpy(first).tolist() == [10]


def test_running_sums_have_no_nu_of_a_step_that_nothing_clips(ops):
    sums = ops.asarray([1.0, 2.0, 3.0, 4.0])
    ops.count_step(ops.asarray([0.5, 6.0]), None, None, ops.counter(7), sums, ops.counter(-1))
    np.testing.assert_array_equal(ops.to_numpy(sums), [1.5, 8, 3, np.nan])


@pytest.mark.parametrize(
    "name, numbers", [("momentum", (0.9, None, 0.5)), ("nesterov", (0.9, 0.5))]
)
def test_an_update_with_momentum_counts_its_step_before_it_moves(ops, rng, name, numbers):
    arrays = [ops.asarray(rng.random(9)) for _ in range(4)]
    before = [ops.to_numpy(array).copy() for array in arrays]
    step, sums, flag = ops.counter(3), ops.zeros((4,)), ops.counter(-1)
    counted = StepCount(ops.asarray([np.inf, 6.0]), None, None, step, sums, flag)
    getattr(ops, f"{name}_update")(*arrays, 0.1, *numbers, counted)
    np.testing.assert_array_equal(ops.to_numpy(sums), [np.inf, 6, 0, np.nan])
    assert (ops.to_numpy(step)[0], ops.to_numpy(flag)[0]) == (4, 3)
    for array, unmoved in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(ops.to_numpy(array), unmoved)


@pytest.mark.parametrize("first", [-1, 0])
@pytest.mark.parametrize(
    "name, state, numbers",
    [
        ("momentum", 2, (0.1, 0.9, None, 0.5)),
        ("nesterov", 2, (0.1, 0.9, 0.5)),
        ("adagrad", 2, (0.1, 1e-8, 0.5)),
        ("rmsprop", 2, (0.1, 0.9, 1e-8, 0.5)),
        ("adam", 3, (0.1, 0.9, 0.9, 1e-8, 1, 0.5)),
    ],
)
def test_no_update_moves_anything_after_a_loss_that_was_not_finite(
    ops, rng, name, state, numbers, first
):
    arrays = [ops.asarray(rng.random(9)) for _ in range(state + 2)]  # theta, state, gradient
    before = [ops.to_numpy(array).copy() for array in arrays]
    flag = ops.counter(first)
    if name in ("momentum", "nesterov"):
        totals, sums = ops.asarray([0.5, 6.0]), ops.zeros((4,))
        flag = StepCount(totals, None, None, ops.counter(3), sums, flag)
    getattr(ops, f"{name}_update")(*arrays, *numbers, flag)
    stays = [np.array_equal(*pair) for pair in zip(map(ops.to_numpy, arrays), before, strict=True)]
    assert stays == [first == 0] * (state + 1) + [True]


def blas_threads():
    pools = threadpoolctl.threadpool_info()
    return {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}


@pytest.fixture
def two_blas_threads():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield


def test_blas_is_held_to_one_thread_beside_the_shards_and_given_back(two_blas_threads):
    ops = CpuOps(shards=2)
    seen = []
    ops._run(lambda x: seen.append(blas_threads()), np.zeros((2, 1)))
    ops.submit(lambda ops: seen.append(blas_threads())).result()
    ops.captured(lambda: seen.append(blas_threads()))()
    assert seen == 4 * [{1}]
    assert blas_threads() == {2}


def test_blas_is_given_back_by_the_last_of_several_threads_and_after_an_error(two_blas_threads):
    inside, leave = threading.Event(), threading.Event()

    @one_blas_thread
    def wait():
        inside.set()
        leave.wait()
        raise ValueError("an error on the way")

    with ThreadPoolExecutor(1) as threads:
        with one_blas_thread:
            later = threads.submit(wait)
            inside.wait()
        held = blas_threads()
        leave.set()
        with pytest.raises(ValueError):
            later.result()
    assert held == {1}
    assert blas_threads() == {2}


def test_the_calling_thread_takes_the_last_shard_and_waits_for_the_others_after_an_error():
    ops, seen = CpuOps("float64", shards=3, native="off"), []

    def work(x):
        if x[0] == 2:
            assert threading.current_thread() is threading.main_thread()
            raise ZeroDivisionError
        time.sleep(0.05)
        seen.append(x[0])

    with pytest.raises(ZeroDivisionError):
        ops._run(work, np.arange(3))
    assert sorted(seen) == [0, 1]


def test_no_shard_writes_after_map_has_raised():
    ops, seen = CpuOps("float64", shards=3, native="off"), []

    def work(x):
        if x[0] == 0:
            raise ZeroDivisionError
        time.sleep(0.05 * (2 - x[0]))
        seen.append(x[0])

    with pytest.raises(ZeroDivisionError):
        ops._run(work, np.arange(3))
    assert sorted(seen) == [1, 2]


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork"
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_computes_though_its_parents_threads_are_gone():
    ops = CpuOps(shards=2)
    x = ops.asarray(np.arange(-4, 4).reshape(4, 2))

    def compute():
        (later,) = ops.submit(lambda ops, x: [ops.relu(x)], x).result()
        return np.stack([ops.relu(x), later]).tolist()

    context = multiprocessing.get_context("fork")
    received, sent = context.Pipe(duplex=False)
    expected = compute()
    child = context.Process(target=lambda: sent.send(compute()))
    child.start()
    try:
        assert received.poll(20), "the child waits for threads that it does not have"
        assert received.recv() == expected
    finally:
        child.kill()
        child.join()


def test_a_device_that_lacks_a_primitive_cannot_be_made_and_the_error_names_it():
    class Forgetful(Eager):
        name = "forgetful"

    missing = "abstract .*conv_forward.*spd_inverse"
    with pytest.raises(TypeError, match=missing):
        Forgetful()


OF_A_DEVICE_ALONE = {"launch"}


OF_A_GPU_ALONE = {
    "adopt_inverses",
    "can_pool_and_normalise",  # the contract says that others cannot
    "max_pool_norm",
    "max_pool_norm_backward",
    "max_pool_norm_tangent",
}


@pytest.mark.parametrize("device", [CpuOps, CudaOps])
def test_a_device_has_the_primitives_of_the_contract_and_no_others(device):
    contract = {name for name, value in vars(Primitives).items() if callable(value)}
    contract = {name for name in contract if not name.startswith("_")}
    if device is CpuOps:
        contract -= OF_A_GPU_ALONE
    inherited = (vars(base) for base in device.__mro__ if base not in (Primitives, object))
    there = {name for names in inherited for name in names if callable(names[name])}
    public = {name for name in there if not name.startswith("_")}
    assert public - OF_A_DEVICE_ALONE == contract
    for name in contract:
        asked, own = (inspect.signature(getattr(owner, name)) for owner in (Primitives, device))
        count = len(asked.parameters)
        assert list(own.parameters.values())[:count] == list(asked.parameters.values()), name
        assert all(p.default is not p.empty for p in list(own.parameters.values())[count:]), name
        assert inspect.getdoc(getattr(device, name)), name
