"""Correlations and distances against plain loops, and on fields where the answer is known."""

import functools
import itertools

import numpy as np
import pytest
from checks import assert_close
from networks import EVERY_LAYER, INPUT_SHAPE, network

from kfcnet.curvature.assumptions import (
    correlations,
    distances,
    fisher_blocks,
    map_correlation,
    spatial_correlation,
)
from kfcnet.losses import SoftmaxCrossEntropy, SquaredError


def correlation_loops(maps, i, dr, dc):
    """Mean product of pairs (dr, dc) apart, over the mean square, one pair at a time."""
    M, H, W, _ = maps.shape
    products = [
        maps[m, h, w, i] * maps[m, h + dr, w + dc, i]
        for m, h, w in itertools.product(range(M), range(H), range(W))
        if 0 <= h + dr < H and 0 <= w + dc < W
    ]
    return np.mean(products) / np.mean(np.square(maps[..., i])) if products else np.nan


def test_spatial_correlation_matches_loops(rng):
    maps = rng.standard_normal((3, 5, 4, 2)) + np.arange(4)[:, None]
    result = spatial_correlation(maps, 2)
    expected = [
        [[correlation_loops(maps, i, dr, dc) for dc in range(-2, 3)] for dr in range(-2, 3)]
        for i in range(2)
    ]
    assert_close(result, expected)
    assert np.array_equal(result[:, 2, 2], [1, 1])


def test_many_images_give_the_same_correlation_as_loops(rng):
    """More than are taken to float64 at a time."""
    maps = rng.standard_normal((150, 2, 3, 1)).astype(np.float32)
    assert_close(spatial_correlation(maps, 1)[0, 0, 2], correlation_loops(maps, 0, -1, 1), 1e-6)


def test_a_moving_average_of_noise_has_the_correlation_that_is_known(rng):
    """x_t = e_t + e_(t-1) along rows: a half at distance one, nothing beyond or across."""
    noise = rng.standard_normal((3000, 9, 6, 1))
    rho = spatial_correlation(noise[:, 1:] + noise[:, :-1], 2)[0]
    expected = np.zeros((5, 5))
    expected[:, 2] = [0, 0.5, 1, 0.5, 0]
    assert_close(rho, expected, 0.02)


def test_offsets_beyond_the_image_and_maps_that_vanish_have_no_correlation(rng):
    maps = rng.standard_normal((4, 2, 5, 2))
    maps[..., 1] = 0
    rho, between = spatial_correlation(maps, 2), map_correlation(maps)
    assert np.isnan(rho[0, [0, 4]]).all() and np.isfinite(rho[0, 1:4]).all()
    assert np.isnan(rho[1]).all()
    assert np.isnan(between[1]).all() and between[0, 0] == 1


def test_correlation_of_maps_matches_loops(rng):
    maps = rng.standard_normal((3, 4, 2, 3)) @ rng.standard_normal((3, 3))
    expected = [
        [
            (maps[..., i] * maps[..., k]).sum()
            / np.sqrt((maps[..., i] ** 2).sum() * (maps[..., k] ** 2).sum())
            for k in range(3)
        ]
        for i in range(3)
    ]
    assert_close(map_correlation(maps), expected)


def test_layers_without_kronecker_factors_are_left_out(ops64, rng):
    layers = [CONV, dict(layer="batch_norm", name="norm1", affine=True), DENSE]
    net, loss = network(ops64, layers, SHAPE), SoftmaxCrossEntropy(ops64)
    x = rng.standard_normal((6, *SHAPE))
    net.measure_statistics(x)
    assert list(correlations(net, loss, x, radius=1)) == ["conv1"]
    result = distances(fisher_blocks(net, loss, x, "conv1"))
    assert np.isfinite(list(result.values())).all()
    scale = next(layer.name for layer in net.weighted if layer.fisher_block == "scale_shift")
    with pytest.raises(ValueError, match=f"'{scale}'; there are conv1, dense1"):
        fisher_blocks(net, loss, x, scale)


def test_correlations_are_those_of_sampled_derivatives_and_centred_activations(ops64, rng):
    net, loss = network(ops64), SoftmaxCrossEntropy(ops64, seed=4)
    x = rng.standard_normal((12, *INPUT_SHAPE))
    result = correlations(net, loss, x, radius=2, step=3)
    p = loss.predictive(net.forward(x))
    net.backward(loss.sampled_gradient(p, 3))
    assert list(result) == ["conv1", "conv2"]
    conv1, conv2 = net.weighted[:2]
    got = result["conv2"]
    assert [array.shape for array in got] == [(4, 3, 3), (4, 4), (3, 3, 3), (3, 3)]
    derivatives = conv2.derivatives
    activations = conv2.inputs - conv2.inputs.mean((0, 1, 2))
    assert_close(got.derivatives[1, 2, 0], correlation_loops(derivatives, 1, 1, -1))
    assert_close(got.activations[2, 1, 2], correlation_loops(activations, 2, 0, 1))
    assert_close(got.derivative_maps, map_correlation(derivatives))
    assert_close(got.activation_maps, map_correlation(activations))
    assert_close(
        result["conv1"].derivatives[2, 4, 2], correlation_loops(conv1.derivatives, 2, 2, 0)
    )


def test_offsets_of_small_images_end_at_half_of_their_side(ops64, rng):
    x = rng.standard_normal((5, *INPUT_SHAPE))
    net, loss = network(ops64), SoftmaxCrossEntropy(ops64)
    for name, values in correlations(net, loss, x, radius=3).items():
        layer = next(each for each in net.weighted if each.name == name)
        for shape, spatial in (
            (layer.output_shape, values.derivatives),
            (layer.input_shape, values.activations),
        ):
            largest = min(3, max(1, min(shape[:2]) // 2))
            assert spatial.shape[1:] == 2 * (2 * largest + 1,)
    sides = [min(layer.input_shape[:2]) for layer in net.weighted[:2]]
    assert min(sides) < 6 <= max(sides)  # one is cut, one is not


CONV = dict(layer="conv", name="conv1", filters=2, kernel=2, padding=1, std=0.7)
STRIDED = CONV | dict(stride=2)
DENSE = dict(layer="dense", name="dense1", units=3, std=0.7)
SHAPE = (3, 2, 2)


def block_loops(net, loss, x, kernel, stride, padding, label):
    """An approximation of conv1's Fisher block, entry by entry as the paper writes it.

    The expectations over targets are enumerated over the classes, weighted by p.
    """
    p, layer = loss.predictive(net.forward(x)), net.weighted[0]
    (H, W, J), (Ho, Wo, I) = layer.input_shape, layer.output_shape
    places = list(itertools.product(range(Ho), range(Wo)))
    M, C = p.shape
    weighted = []  # (p / M, derivatives of one example (Ho, Wo, I), activations (H, W, J))
    for c in range(C):
        net.backward(p - np.eye(C)[[c] * M])
        weighted += [(p[m, c] / M, layer.derivatives[m].copy(), layer.inputs[m]) for m in range(M)]
    names = [None, *itertools.product(range(kernel), range(kernel), range(J))]

    def pixel(name, t):
        """Where a weight's input lies for location t, or None outside of the image."""
        h, w = t[0] * stride + name[0] - padding, t[1] * stride + name[1] - padding
        return (h, w) if 0 <= h < H and 0 <= w < W else None

    def value(a, name, t):
        if name is None:
            return 1.0
        place = pixel(name, t)
        return 0.0 if place is None else a[place][name[2]]

    def mean(function):
        return sum(weight * function(ds, a) for weight, ds, a in weighted)

    def grid_pairs(height, width, dr, dc):
        return [
            ((h, w), (h + dr, w + dc))
            for h in range(height)
            for w in range(width)
            if 0 <= h + dr < height and 0 <= w + dc < width
        ]

    def stationary_activations(n, k, t, u):
        places = [name and pixel(name, at) for name, at in ((n, t), (k, u))]
        if (n and places[0] is None) or (k and places[1] is None):
            return 0.0
        if n is None or k is None:
            name = n or k
            return 1.0 if name is None else map_mean(name[2])
        return pixel_moment(n[2], k[2], *np.subtract(places[1], places[0]))

    @functools.cache
    def map_mean(j):
        return mean(lambda ds, a: a[..., j].mean())

    @functools.cache
    def pixel_moment(j, o, dr, dc):
        pairs = grid_pairs(H, W, dr, dc)
        return mean(lambda ds, a: np.mean([a[s][j] * a[r][o] for s, r in pairs]))

    @functools.cache
    def derivative_moment(i, o, dr, dc):
        pairs = grid_pairs(Ho, Wo, dr, dc)
        return mean(lambda ds, a: np.mean([ds[s][i] * ds[r][o] for s, r in pairs]))

    def entry(i, n, o, k):
        if label == "exact":
            return mean(
                lambda ds, a: (
                    sum(ds[t][i] * value(a, n, t) for t in places)
                    * sum(ds[u][o] * value(a, k, u) for u in places)
                )
            )
        if label == "without iad":
            return mean(
                lambda ds, a: sum(
                    ds[t][i] * ds[t][o] * value(a, n, t) * value(a, k, t) for t in places
                )
            )
        if label == "without sud":
            return sum(
                derivative_moment(i, o, *np.subtract(u, t)) * stationary_activations(n, k, t, u)
                for t in places
                for u in places
            )
        pairs = [(t, u) for t in places for u in places if label == "iad" or t == u]
        return sum(
            mean(lambda ds, a, t=t, u=u: ds[t][i] * ds[u][o])
            * mean(lambda ds, a, t=t, u=u: value(a, n, t) * value(a, k, u))
            for t, u in pairs
        )

    rows = list(itertools.product(range(I), names))
    return np.array([[entry(i, n, o, k) for o, k in rows] for i, n in rows])


@pytest.mark.parametrize("label", ["exact", "iad", "without iad", "without sh", "without sud"])
@pytest.mark.parametrize("conv", [CONV, STRIDED], ids=["stride 1", "stride 2"])
def test_approximations_match_loops(ops64, rng, conv, label):
    net, loss = network(ops64, [conv, dict(layer="relu"), DENSE], SHAPE), SoftmaxCrossEntropy(ops64)
    x = rng.standard_normal((2, *SHAPE))
    got = fisher_blocks(net, loss, x, "conv1")[label]
    assert_close(got, block_loops(net, loss, x, 2, conv.get("stride", 1), 1, label))


def test_the_exact_block_is_that_of_enumerated_gradients(ops64, rng):
    """Another way there: the gradients that training uses, of a deep network's every layer."""
    layers = EVERY_LAYER[1:]
    net, loss = network(ops64, layers), SoftmaxCrossEntropy(ops64)
    x = rng.standard_normal((2, *INPUT_SHAPE))
    p, expected = loss.predictive(net.forward(x)), 0.0
    for m, c in itertools.product(range(2), range(3)):
        dz = np.zeros((2, 3))
        dz[m] = p[m] - np.eye(3)[c]
        net.backward(dz)
        net.compute_gradient()  # half of the example's gradient: the mean over two
        gradients = [2 * view.ravel() for view in net.views(net.gradient)]
        expected = expected + np.array([p[m, c] * np.outer(g, g) / 2 for g in gradients], object)
    for layer, block in zip(net.weighted, expected, strict=True):
        assert_close(fisher_blocks(net, loss, x, layer.name)["exact"], block.astype(float))


def test_kfc_averages_the_derivatives_over_locations_and_nothing_else(ops64, rng):
    """Theorem 2 from the other side: the sum over t of mean Gamma (x) E[a_t a_t^T]."""
    net, loss = network(ops64, [CONV, DENSE], SHAPE), SquaredError(ops64)
    x = rng.standard_normal((4, *SHAPE))
    blocks = fisher_blocks(net, loss, x, "conv1")
    T, P = net.weighted[0].locations, net.weighted[0].weight_shape[1]
    rows = ops64.patches(x, *net.weighted[0].window).reshape(4, T, P)
    total = sum(a.T @ a / 4 for a in rows.transpose(1, 0, 2))
    Gamma = blocks["kfc"][::P, ::P] / total[0, 0]
    assert_close(blocks["kfc"], np.kron(Gamma, total))
    assert_close(blocks["without sh"][::P, ::P], T * Gamma)  # where activations are one


def test_all_approximations_are_exact_for_one_example_and_one_location(ops64, rng):
    net, loss = network(ops64, [DENSE | dict(units=4)], (1, 1, 3)), SoftmaxCrossEntropy(ops64)
    blocks = fisher_blocks(net, loss, rng.standard_normal((1, 1, 1, 3)), "dense1")
    result = distances(blocks)
    for label in ("kfc", "sua", "ekfac", "iad", "without iad", "without sh", "without sud"):
        assert result[label] < 1e-12, label
    assert result["diagonal"] > 0.1 and result["white_derivatives"] > 0.01


def test_dropping_an_assumption_brings_the_block_to_the_exact_one_where_only_that_one_fails(
    ops64, rng
):
    """A linear convolution with Gaussian outputs fulfils all; summing its outputs breaks SUD."""
    x = rng.standard_normal((4000, 3, 3, 1))
    loss = SquaredError(ops64)
    linear = [
        CONV | dict(filters=1, kernel=3),
        dict(layer="avg_pool", size=9, stride=9),
        DENSE | dict(units=1),
    ]
    result = distances(fisher_blocks(network(ops64, linear, (3, 3, 1)), loss, x, "conv1"))
    assert result["iad"] < 1e-12  # derivatives are the same for every input
    assert result["without sud"] < 0.1 < result["kfc"]
    assert result["without sh"] > 0.1 and result["without iad"] > 0.1


def test_eigenvalues_of_their_own_bring_the_block_nearer(ops64, rng):
    net, loss = network(ops64), SoftmaxCrossEntropy(ops64)
    x = rng.standard_normal((5, *INPUT_SHAPE))
    for layer in net.weighted:
        result = distances(fisher_blocks(net, loss, x, layer.name))
        assert np.isfinite(list(result.values())).all()
        assert result["ekfac"] < result["kfc"] < 1.5
        assert "exact" not in result


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(ops64, rng):
    net, loss = network(ops64), SoftmaxCrossEntropy(ops64)
    with pytest.raises(ValueError, match="'conv9'; there are conv1, conv2, dense1, dense2"):
        fisher_blocks(net, loss, rng.standard_normal((2, *INPUT_SHAPE)), "conv9")
