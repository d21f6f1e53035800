"""The kernels that are not matrix products, one by one, against float64 references.

Every launch here runs under several orders of the block's threads, on a GPU twice, and the results
must be equal bit for bit. Shapes are small and asymmetric; a number of maps that is a multiple of
four takes the 16-byte loads, any other takes single elements.
"""

import itertools

import numpy as np
import pytest
from checks import assert_close, map_sums_loops, scale_shift_loops
from cuda_on_cpu import launch_in_all_orders

from kfcnet import philox
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda.elementwise import literal
from kfcnet.ops.shapes import pooled_size

pytestmark = pytest.mark.usefixtures("device")

BLOCK = 64
STEP = 2**32 + 7  # needs both of the counter's step words


@pytest.fixture(scope="module")
def reference():
    """The definition of every primitive, in float64."""
    return CpuOps("float64", shards=1, native="off")


def launch(file, kernel, threads, arguments, block=BLOCK, **macros):
    """Launch on as many blocks of `block` threads as `threads` need, or on a grid (a tuple)."""
    grid = threads if isinstance(threads, tuple) else (-(-threads // block),)
    block = block if isinstance(block, tuple) else (block,)
    launch_in_all_orders(file, kernel, grid, block, arguments, macros)


def fours(array):
    """Threads that take four neighbours each."""
    return -(-array.size // 4)


def lanes(maps):
    return 4 if maps % 4 == 0 else 1


def empty(*shape, dtype=np.float32):
    """Memory whose bytes no kernel writes by chance: what stays unwritten fails the comparison."""
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = 0xFF
    return array


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def scalar(value, dtype=np.float32):
    return np.array([value], dtype)


# Random numbers


@pytest.mark.parametrize("count", [1, 4, 301])
def test_uniforms_are_those_of_philox_to_the_last_bit(count):
    y = empty(count)
    step = scalar(STEP, np.int64)
    launch("random", "uniforms", fours(y), [step, y, count, 11, philox.TARGETS, 3])
    assert np.array_equal(y, philox.uniforms(11, philox.TARGETS, STEP, count, 3))


def test_normals_are_those_of_philox_rounded():
    y = empty(301)
    launch("random", "normals", fours(y), [scalar(STEP, np.int64), y, 301, 11, philox.INITIAL, 0])
    assert_close(y, philox.normals(11, philox.INITIAL, STEP, 301), 1e-6)


def test_dropout_has_the_mask_of_the_reference(reference, rng):
    x = normal(rng, 7, 43)
    keep = philox.uniforms(5, philox.DROPOUT, STEP, x.size, 2)[17]  # exactly on the border: dropped
    y, mask, dx = empty(*x.shape), empty(*x.shape, dtype=np.uint8), empty(*x.shape)
    launch(
        "dropout",
        "dropout",
        fours(x),
        [
            x,
            scalar(STEP, np.int64),
            y,
            mask,
            x.size,
            5,
            philox.DROPOUT,
            2,
            int(np.ceil(keep * 2**24)),
            1 / keep,
        ],
    )
    launch("dropout", "dropout_backward", fours(x), [x, mask, dx, x.size, 1 / keep])
    expected, expected_mask = reference.dropout(x, keep, 5, STEP, 2)
    assert np.array_equal(mask, expected_mask)
    assert_close(y, expected, 1e-6)
    assert np.array_equal(dx, y)


# Pooling

POOLS = [  # M, H, W, maps, size, stride
    (3, 7, 6, 4, 3, 2),
    (2, 5, 8, 3, 3, 1),
    (1, 6, 5, 33, 2, 2),
    (2, 2, 3, 8, 4, 3),
]


def pool_macros(shape):
    M, H, W, maps, size, stride = shape
    return dict(
        HEIGHT=H,
        WIDTH=W,
        MAPS=maps,
        SIZE=size,
        STRIDE=stride,
        OUT_HEIGHT=pooled_size(H, size, stride),
        OUT_WIDTH=pooled_size(W, size, stride),
    )


def pool_arrays(rng, shape):
    """x of few different values, so that maxima are tied, and dy."""
    macros = pool_macros(shape)
    x = rng.integers(-2, 3, shape[:4]).astype(np.float32)
    return x, normal(rng, shape[0], macros["OUT_HEIGHT"], macros["OUT_WIDTH"], shape[3]), macros


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("shape", POOLS)
def test_max_pool_its_derivative_and_its_tangent(reference, rng, shape, relu):
    x, dy, macros = pool_arrays(rng, shape)
    (M, *_, maps), window, macros = x.shape, shape[4:], macros | dict(RELU=relu)
    expected, expected_argmax = reference.max_pool(x.astype(np.float64), *window)

    y, argmax = empty(*dy.shape), empty(*dy.shape, dtype=np.uint8)
    launch("max_pool", "max_pool", y.size // lanes(maps), [x, y, argmax, M], **macros)
    assert np.array_equal(y, np.maximum(expected, 0) if relu else expected)
    assert np.array_equal(argmax, expected_argmax)

    dx, active = empty(*x.shape), y if relu else None
    backward = [dy, argmax, active, dx, M]
    launch("max_pool", "max_pool_backward", x.size // lanes(maps), backward, **macros)
    passed = dy.astype(np.float64) * (expected > 0 if relu else 1)
    assert_close(dx, reference.max_pool_backward(passed, argmax, x.shape, *window))

    rx, ry = normal(rng, *x.shape), empty(*dy.shape)
    tangent = [rx, argmax, active, ry, M]
    launch("max_pool", "max_pool_tangent", y.size // lanes(maps), tangent, **macros)
    expected_ry = reference.max_pool_tangent(rx.astype(np.float64), argmax, *window)
    assert np.array_equal(ry, expected_ry * (expected > 0) if relu else expected_ry)


def test_max_pool_passes_nan_and_negative_infinity_on(reference, rng):
    shape = POOLS[0]
    x, dy, macros = pool_arrays(rng, shape)
    macros["RELU"] = 0
    x[0], x[1, 3, 2, 1], x[2, 0, 0], x[2, 6, 5] = -np.inf, np.nan, np.nan, np.nan
    y, argmax = empty(*dy.shape), empty(*dy.shape, dtype=np.uint8)
    launch("max_pool", "max_pool", y.size // 4, [x, y, argmax, len(x)], **macros)
    expected, expected_argmax = reference.max_pool(x.astype(np.float64), *shape[4:])
    assert np.isnan(y).sum() == np.isnan(expected).sum() > 4
    np.testing.assert_array_equal(y, expected)
    numbers = ~np.isnan(y)
    assert np.array_equal(argmax[numbers], expected_argmax[numbers])
    ry = empty(*dy.shape)
    launch("max_pool", "max_pool_tangent", y.size // 4, [x, argmax, None, ry, len(x)], **macros)
    np.testing.assert_array_equal(ry, y)  # every offset leads to its maximum, a NaN's too


@pytest.mark.parametrize("has_relu", [False, True])
@pytest.mark.parametrize("shape", POOLS)
def test_avg_pool_and_its_derivative(reference, rng, shape, has_relu):
    x, dy, macros = pool_arrays(rng, shape)
    (M, *_, maps), window = x.shape, shape[4:]
    macros["RELU"] = int(has_relu)
    y, dx = empty(*dy.shape), empty(*x.shape)
    active = np.maximum(normal(rng, *x.shape), 0) if has_relu else None
    passed = active > 0 if has_relu else 1
    launch("avg_pool", "avg_pool", y.size // lanes(maps), [x, active, y, M], **macros)
    launch("avg_pool", "avg_pool_backward", x.size // lanes(maps), [dy, active, dx, M], **macros)
    assert_close(y, reference.avg_pool(x.astype(np.float64) * passed, *window), 1e-6)
    expected = reference.avg_pool_backward(dy.astype(np.float64), x.shape, *window)
    assert_close(dx, expected * passed, 1e-6)


# Response normalisation


@pytest.mark.parametrize(
    "shape, size, power, tile",
    [
        ((3, 6, 5, 12), 3, 0.75, (6, 2)),  # the last group of maps is half a tile
        ((2, 7, 4, 4), 3, 0.75, (3, 2)),  # three tiles of rows, the last one cut
        ((2, 5, 7, 3), 4, 0.6, (2, 2)),  # an even window is not its own mirror image
    ],
)
def test_response_norm_within_maps(reference, rng, shape, size, power, tile):
    (M, H, W, maps), alpha = shape, 0.3
    x, dy, rx = (normal(rng, *shape) for _ in range(3))
    y, d, dx, ry = (empty(*shape) for _ in range(4))
    groups = maps // lanes(maps)
    macros = dict(
        HEIGHT=H,
        WIDTH=W,
        MAPS=maps,
        SIZE=size,
        POWER=f"{power}f",
        TILE_ROWS=tile[0],
        TILE_GROUPS=tile[1],
    )
    threads = x.size // lanes(maps)
    name = "response_norm_within"
    launch(name, name, threads, [x, y, d, M, alpha], **macros)
    launch(
        name,
        f"{name}_backward",
        (M, -(-H // tile[0]), -(-groups // tile[1])),
        [dy, x, d, dx, M, alpha],
        **macros,
    )
    launch(name, f"{name}_tangent", threads, [rx, x, d, ry, M, alpha], **macros)
    check_response_norm(reference, x, dy, rx, y, d, dx, ry, size, alpha, power, across=False)


@pytest.mark.parametrize("maps, size, power, pixels_each", [(7, 5, 0.75, 4), (6, 4, 0.6, 3)])
def test_response_norm_across_maps(reference, rng, maps, size, power, pixels_each):
    shape, alpha = (2, 3, 5, maps), 0.3
    x, dy, rx = (normal(rng, *shape) for _ in range(3))
    y, d, dx, ry = (empty(*shape) for _ in range(4))
    pixels = x.size // maps
    macros = dict(MAPS=maps, SIZE=size, POWER=f"{power}f", TILE_PIXELS=pixels_each)
    grid = (-(-pixels // pixels_each),)
    name = "response_norm_across"
    launch(name, name, grid, [x, y, d, pixels, alpha], **macros)
    launch(name, f"{name}_backward", grid, [dy, x, d, dx, pixels, alpha], **macros)
    launch(name, f"{name}_tangent", grid, [rx, x, d, ry, pixels, alpha], **macros)
    check_response_norm(reference, x, dy, rx, y, d, dx, ry, size, alpha, power, across=True)


def check_response_norm(reference, x, dy, rx, y, d, dx, ry, *parameters, across):
    x, dy, rx = (a.astype(np.float64) for a in (x, dy, rx))
    expected, expected_d = reference.response_norm(x, *parameters, across)
    assert_close(d, expected_d, 1e-6)
    assert_close(y, expected, 1e-6)
    given = x, expected_d, *parameters, across
    assert_close(dx, reference.response_norm_backward(dy, *given), 2e-6)
    assert_close(ry, reference.response_norm_tangent(rx, *given), 2e-6)


# Batch normalisation


@pytest.mark.parametrize("rows, maps, slices", [(45, 33, 3), (70, 5, 9), (1, 4, 1)])
def test_batch_norm_and_its_derivative(reference, rng, rows, maps, slices):
    """The mean is a hundred deviations away: squares summed as they are would lose four digits."""
    x, dy = normal(rng, rows, maps) + np.float32(100), normal(rng, rows, maps)
    mean, inv_std, y, dx = empty(maps), empty(maps), empty(rows, maps), empty(rows, maps)
    partials, mean_dy, mean_dy_y = empty(2, slices, maps), empty(maps), empty(maps)
    groups, tile = -(-maps // 32), (32, 8)

    def run(kernel, threads, *arguments, block=BLOCK):
        launch("batch_norm", kernel, threads, list(arguments), block, MAPS=maps)

    run("batch_norm_slices", (slices, groups), x, partials, rows, slices, block=tile)
    run("batch_norm_moments", (groups,), x, partials, mean, inv_std, rows, slices, 1e-2, block=tile)
    run("batch_norm_apply", fours(x), x, mean, inv_std, y, rows)
    expected, expected_mean, expected_inv_std = reference.batch_norm(x.astype(np.float64), 1e-2)
    assert_close(mean, expected_mean, 1e-6)
    assert_close(inv_std, expected_inv_std, 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-4)

    run("batch_norm_backward_slices", (slices, groups), dy, y, partials, rows, slices, block=tile)
    run(
        "batch_norm_backward_moments",
        (groups,),
        partials,
        mean_dy,
        mean_dy_y,
        rows,
        slices,
        block=tile,
    )
    run("batch_norm_backward", fours(x), dy, y, inv_std, mean_dy, mean_dy_y, dx, rows)
    given = (a.astype(np.float64) for a in (dy, y, inv_std))
    np.testing.assert_allclose(dx, reference.batch_norm_backward(*given), atol=1e-5)


# The loss


def softmax_macros(classes):
    return dict(CLASSES=classes, BLOCK=BLOCK)


@pytest.mark.parametrize("M, classes", [(1, 10), (64, 3), (150, 10)])
def test_softmax_cross_entropy_and_its_totals(reference, rng, M, classes):
    z = rng.integers(-4, 5, (M, classes)).astype(np.float32)  # ties: the first largest is taken
    z[-1] *= 200  # the exponential of such a logit is not a float
    labels = rng.integers(0, classes, M).astype(np.int32)
    p, dz, totals = empty(M, classes), empty(M, classes), empty(2)
    launch(
        "softmax_cross_entropy",
        "softmax_cross_entropy",
        (1,),
        [z, labels, p, dz, totals, M],
        **softmax_macros(classes),
    )
    expected = reference.softmax_cross_entropy(z.astype(np.float64), labels)
    for actual, wanted in zip((p, dz, totals[:1]), (*expected[:2], expected[2][:1]), strict=True):
        assert_close(actual, wanted, 1e-6)
    assert totals[1] == expected[2][1]


def test_softmax_cross_entropy_of_a_nan_is_nan():
    z, labels = np.zeros((3, 10), np.float32), np.zeros(3, np.int32)
    z[1, 4] = np.nan
    p, dz, totals = empty(3, 10), empty(3, 10), empty(2)
    launch(
        "softmax_cross_entropy",
        "softmax_cross_entropy",
        (1,),
        [z, labels, p, dz, totals, 3],
        **softmax_macros(10),
    )
    assert np.isnan(totals[0]) and np.isnan(p[1]).all()
    assert_close(p[::2], np.full((2, 10), 0.1))


def test_sampled_gradient_draws_the_reference_class(reference, rng):
    p = reference.softmax_cross_entropy(rng.standard_normal((150, 10)), np.zeros(150, int))[0]
    p, u = p.astype(np.float32), rng.random(150).astype(np.float32)
    u[0], u[1], p[1] = 0, p[1, 0], p[1]  # from the start, and exactly on a border
    p[2], u[2] = p[2] * np.float32(0.99), np.float32(0.995)  # rounding leaves no class: the last
    dz = empty(150, 10)
    launch(
        "softmax_cross_entropy", "sampled_gradient", dz.size, [p, u, dz, 150], **softmax_macros(10)
    )
    expected = CpuOps("float32", shards=1, native="off").sampled_gradient(p, u)
    assert np.array_equal(dz, expected)
    for drawn in ((2, 9), (0, 0), (1, 1)):
        assert dz[drawn] == p[drawn] - np.float32(1)


def test_softmax_fisher_is_exact_for_tangents_far_from_zero(reference, rng):
    p = reference.softmax_cross_entropy(rng.standard_normal((150, 10)), np.zeros(150, int))[0]
    p, r, s = p.astype(np.float32), *(normal(rng, 150, 10) + np.float32(30) for _ in range(2))
    result = empty(1)
    launch(
        "softmax_cross_entropy",
        "softmax_fisher",
        (1,),
        [p, r, s, result, 150, 0.25],
        **softmax_macros(10),
    )
    exact = reference.softmax_fisher(*(a.astype(np.float64) for a in (p, r, s)), 0.25)
    assert_close(result, exact)


# Vectors and sums


def test_relu_passes_nan_on_and_its_derivative_at_zero_is_zero(rng):
    x, dy = normal(rng, 43), normal(rng, 43)
    x[:3] = 0, np.nan, -np.inf
    y, dx = empty(43), empty(43)
    launch("relu", "relu", fours(x), [x, y, 43])
    launch("relu", "relu_backward", fours(x), [dy, y, dx, 43])
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    assert np.array_equal(dx, np.where(x > 0, dy, 0))


def test_relu_in_place_equals_relu(rng):
    x = normal(rng, 43)
    expected = np.maximum(x, 0)
    launch("relu", "relu", fours(x), [x, x, 43])
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("count, start", [(1, 0), (43, 0), (44, 1), (63, 3)])
def test_vector_products_at_any_address(rng, count, start):
    """Views into the parameter vector start anywhere; the 16-byte loads must notice."""
    w, x, y = (normal(rng, start + count)[start:] for _ in range(3))
    added, weighted = y.copy(), y.copy()
    launch("vector", "axpy", fours(x), [x, added, count, -0.5])
    launch("vector", "multiply_add", fours(x), [w, x, weighted, count])
    assert_close(added, y.astype(np.float64) - 0.5 * x, 1e-6)
    assert_close(weighted, y.astype(np.float64) + w.astype(np.float64) * x, 1e-6)


def test_scale_maps_scales_every_map(rng):
    x, s, y = normal(rng, 6, 7), normal(rng, 7), empty(6, 7)
    launch("vector", "scale_maps", fours(x), [x, s, y, x.size, 7])
    assert np.array_equal(y, x * s)


@pytest.mark.parametrize("M, locations, maps", [(3, 11, 7), (1, 20, 33), (2, 5, 4)])
def test_scale_shift_and_the_sums_of_its_gradients(rng, M, locations, maps):
    x, dy = (normal(rng, M, locations, 1, maps) for _ in range(2))
    weight = normal(rng, maps, 2)
    y, sums = empty(*x.shape), empty(M, maps, 2)
    launch("scale_shift", "scale_shift", fours(x), [x, weight, y, M * locations], MAPS=maps)
    assert_close(y, scale_shift_loops(x, weight), 1e-6)
    grid = M, -(-maps // 32)
    arguments = [x, dy, sums, M, locations]
    launch("scale_shift", "map_sums", grid, arguments, block=(32, 8), MAPS=maps)
    assert_close(sums, map_sums_loops(x.astype(np.float64), dy))


@pytest.mark.parametrize("count, slices", [(3, 1), (700, 1), (1501, 2)])
def test_dot_products_are_sums_of_ordered_slices(rng, count, slices):
    w, x, y = (normal(rng, count) for _ in range(3))
    for kernel, vectors in ("dot_slices", [x, y]), ("weighted_dot_slices", [w, x, y]):
        partials, result = empty(slices), empty(1)
        launch("reduce", kernel, (slices,), [*vectors, partials, count, slices])
        launch("reduce", "sum_slices", (1,), [partials, result, slices])
        products = np.prod(np.array(vectors, np.float64), axis=0)
        assert abs(result[0] - products.sum()) <= 1e-6 * np.abs(products).sum()


def test_trace_sums_the_diagonal(rng):
    matrix, result = normal(rng, 77, 77), empty(1)
    launch("reduce", "trace", (1,), [matrix, result, 77])
    assert_close(result, [np.trace(matrix.astype(np.float64))])


@pytest.mark.parametrize(
    "quadratic, expected", [(0.0, 1.0), (2.9, 1.0), (120.0, 0.5), (np.inf, 0.0), (np.nan, np.nan)]
)
def test_clip_scale_brings_nu_down_to_the_cap(quadratic, expected):
    scale, nu = empty(1), empty(1)
    launch("reduce", "clip_scale", (1,), [scalar(quadratic), scalar(0.1), scale, nu, 0.3], block=1)
    np.testing.assert_allclose([scale[0], nu[0]], [expected, 0.01 * quadratic], rtol=1e-6)


@pytest.mark.parametrize(
    "given, loss, slope, expected",
    [
        (0.5, 8.0, 50.0, 0.04),
        (None, 8.0, 1.0, 1.0),
        (0.5, 8.0, -3.0, 0.5),
        (0.5, np.nan, 1, np.nan),
    ],
)
def test_polyak_scale_lets_no_step_promise_more_than_the_objective(given, loss, slope, expected):
    scale = None if given is None else scalar(given)
    totals, result = np.array([loss, 3], np.float32), empty(1)
    scalars = [scalar(0.0), scalar(slope), scalar(0.1)]
    arguments = [scale, totals, *scalars, result, 0.25, 0.1]
    launch("reduce", "polyak_scale", (1,), arguments, block=1)
    np.testing.assert_allclose(result, [expected], rtol=1e-6)


# The update and what a step counts


def update_arguments(rng, count):
    """(direction, weight_decay, scalars, [theta, velocity, average])."""
    direction, *moved = (normal(rng, count) for _ in range(4))
    weight_decay = rng.choice([0, 0.01], count).astype(np.float32)
    return direction, weight_decay, [scalar(v) for v in (0.05, 0.9, 0.4, 0.99)], moved


@pytest.mark.parametrize("decays, clips", list(itertools.product([False, True], repeat=2)))
def test_momentum_update_moves_and_averages(reference, rng, decays, clips):
    direction, weight_decay, (rate, momentum, clip, decay), moved = update_arguments(rng, 87)
    expected = [a.astype(np.float64) for a in moved]
    decayed = direction + weight_decay * expected[0] if decays else direction
    reference.momentum_update(
        *expected, decayed, rate[0], momentum[0], clip[0] if clips else None, decay[0]
    )
    launch(
        "momentum_update",
        "momentum_update",
        fours(direction),
        [
            direction,
            weight_decay if decays else None,
            rate,
            momentum,
            clip if clips else None,
            decay,
            *[None] * 5,
            *moved,
            87,
        ],
    )
    for actual, wanted in zip(moved, expected, strict=True):
        assert_close(actual, wanted, 1e-6)


def test_nesterov_update_looks_ahead(rng):
    direction, weight_decay, (rate, momentum, _, decay), moved = update_arguments(rng, 87)
    theta, velocity, average = (a.astype(np.float64) for a in moved)
    descent = rate * (direction + weight_decay * theta)
    velocity = momentum * velocity - descent
    theta = theta + momentum * velocity - descent
    expected = theta, velocity, decay * average + (1 - decay) * theta
    launch(
        "momentum_update",
        "nesterov_update",
        fours(direction),
        [direction, weight_decay, rate, momentum, decay, *[None] * 4, *moved, 87],
    )
    for actual, wanted in zip(moved, expected, strict=True):
        assert_close(actual, wanted, 1e-6)


@pytest.mark.parametrize("kernel", ["momentum_update", "nesterov_update"])
@pytest.mark.parametrize(
    "loss, first, expected", [(2, -1, -1), (2, 0, 0), (2, 12, 12), (np.inf, -1, 7), (np.nan, 3, 3)]
)
def test_an_update_counts_its_step_and_stands_still_once_a_loss_is_not_finite(
    rng, kernel, loss, first, expected
):
    direction, _, (rate, momentum, _, decay), moved = update_arguments(rng, 2000)  # two blocks
    before, word = [a.copy() for a in moved], scalar(first, np.int64)
    step, sums = scalar(7, np.int64), np.ones(4, np.float32)
    clip, nu = ([scalar(0.5)], [scalar(3)]) if kernel == "momentum_update" else ([], [])
    counted = [np.array([loss, 5], np.float32), *nu, step, sums, word]
    arguments = [direction, None, rate, momentum, *clip, decay, *counted, *moved, 2000]
    launch("momentum_update", kernel, fours(direction), arguments)
    for a, b in zip(moved, before, strict=True):
        assert (a != b).any() if expected < 0 else np.array_equal(a, b)
    clipped, nus = (2, 4) if clip else (1, np.nan)
    np.testing.assert_array_equal(sums, np.array([1 + loss, 6, clipped, nus], np.float32))
    assert (step[0], word[0]) == (8, expected)


@pytest.mark.parametrize("is_decoupled", [0, 1])
@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "adam"])
def test_adaptive_updates_follow_their_published_formulas(rng, name, is_decoupled):
    """Three steps with weight decay; Adam's second decay is near one, where floats are coarse."""
    gain, squares_gain, epsilon, rate, decay = 0.1, 1e-5, 1e-8, 0.05, 0.9
    theta, weight_decay = normal(rng, 87), rng.choice([0, 0.01], 87).astype(np.float32)
    velocity, squares, average = np.zeros((3, 87), np.float32)
    state = theta, velocity, squares, average
    wanted = parameters, m, s, mean = [a.astype(np.float64) for a in state]
    for step in range(3):
        gradient = normal(rng, 87)
        given = [gradient, weight_decay, scalar(rate), scalar(decay)]
        if name == "adam":
            arguments = [
                *given,
                scalar(step + 1, np.int64),
                None,
                theta,
                velocity,
                squares,
                average,
                87,
                is_decoupled,
                gain,
                np.log1p(-gain),
                squares_gain,
                np.log1p(-squares_gain),
                epsilon,
            ]
        else:
            gains = [gain] if name == "rmsprop" else []
            sizes = [87, is_decoupled, *gains, epsilon]
            arguments = [*given, None, theta, squares, average, *sizes]
        launch("adaptive_update", f"{name}_update", fours(theta), arguments)

        g, t = gradient + (not is_decoupled) * weight_decay * parameters, step + 1
        parameters *= 1 - is_decoupled * rate * weight_decay
        if name == "adagrad":
            s += g**2
            parameters -= rate * g / (np.sqrt(s) + epsilon)
        elif name == "rmsprop":
            s += gain * (g**2 - s)
            parameters -= rate * g / (np.sqrt(s) + epsilon)
        else:
            m += gain * (g - m)
            s += squares_gain * (g**2 - s)
            unbiased = m / (1 - (1 - gain) ** t), s / (1 - (1 - squares_gain) ** t)
            parameters -= rate * unbiased[0] / (np.sqrt(unbiased[1]) + epsilon)
        mean[...] = decay * mean + (1 - decay) * parameters
    for actual, expected in zip(state, wanted, strict=True):
        assert_close(actual, expected, 1e-6)


def test_running_sums_add_up_and_keep_the_first_non_finite_step():
    sums, nonfinite_step = np.zeros(4, np.float32), scalar(-1, np.int64)

    def add(number, loss, *clip):
        scale, nu = map(scalar, clip) if clip else (None, None)
        step = scalar(number, np.int64)
        launch(
            "training_state",
            "count_step",
            (1,),
            [np.array([loss, 3], np.float32), scale, nu, step, sums, nonfinite_step],
            block=1,
        )
        assert step == number + 1

    add(4, 2.5, 0.5, 1.25)
    add(5, 1.5, 1.0, 0.25)
    assert sums.tolist() == [4, 6, 1, 1.5] and nonfinite_step == -1
    add(6, 1.0)
    assert sums[:3].tolist() == [5, 9, 1] and np.isnan(sums[3])
    add(7, np.inf)
    add(8, np.nan)
    assert nonfinite_step == 7 and sums[1] == 15


def test_advance_counts_steps_beyond_32_bits():
    step = scalar(2**33, np.int64)
    launch("training_state", "advance_step", (1,), [step], block=1)
    assert step == 2**33 + 1


# Mini-batches


@pytest.mark.parametrize("image_shape", [(3, 4, 3), (3, 5, 1)])
@pytest.mark.parametrize("step, position", [(0, 0), (2, 1), (2**40 + 3, 6)])
def test_gather_normalises_the_images_of_a_step_in_the_ring(
    reference, rng, image_shape, step, position
):
    """Of seven indices a step takes four, the first at place 4*step mod 7."""
    images = rng.integers(0, 256, (9, *image_shape)).astype(np.uint8)
    mean, labels = 128 + normal(rng, *image_shape), rng.integers(0, 10, 9).astype(np.int32)
    indices = rng.permutation(9)[:7].astype(np.int64)
    x, targets = empty(4, *image_shape), empty(4, dtype=np.int32)
    place, size, block = scalar(step, np.int64), mean.size, 4
    launch(
        "gather",
        "gather",
        (4, -(-size // lanes(size) // block)),
        [images, labels, mean, indices, place, x, targets, 9, 4, 7, 1 / 64],
        block,
        IMAGE_SIZE=size,
    )
    chosen = np.resize(indices, 14)[position : position + 4]
    expected, _ = reference.gather(images, labels, chosen, mean.astype(np.float64), 1 / 64)
    assert_close(x, expected, 1e-6)
    assert np.array_equal(targets, labels[chosen])


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.75, "0.75f"),
        (5e-324, "0.0f"),
        (0.1, "0.10000000149011612f"),
        (1e-45, "1.401298464324817e-45f"),
    ],
)
def test_a_number_in_a_kernel_is_one_that_fp32_has(number, text):
    """NVRTC refuses a constant that fp32 rounds to zero or infinity; g++ takes it."""
    assert literal(number) == text and np.float32(literal(number)[:-1]) == np.float32(number)
