"""KFC's operator from arrays of any framework: a layer's inputs and its sampled derivatives."""

import re

import numpy as np
import pytest
from networks import network

from kfcnet.curvature import (
    KroneckerFisher,
    damped_inverses,
    derivative_factor,
    input_factor,
    precondition,
)
from kfcnet.losses import SoftmaxCrossEntropy

M = 5
WINDOW = dict(kernel_size=3, stride=2, padding=1)


@pytest.fixture
def layers(rng):
    """A convolution (7, 6, 2) -> (4, 3, 3) and a dense layer 4 -> 2."""
    return [
        dict(inputs=rng.standard_normal((M, 7, 6, 2)),
             derivatives=rng.standard_normal((M, 4, 3, 3)), **WINDOW),
        dict(inputs=rng.standard_normal((M, 4)), derivatives=rng.standard_normal((M, 2))),
    ]  # fmt: skip


def dense_blocks(layers):
    """Gamma (x) Omega of every layer by plain loops over examples and locations, in float64."""
    blocks = []
    for layer in layers:
        x, ds = layer["inputs"], layer["derivatives"]
        if x.ndim == 2:
            x, ds = x[:, None, None], ds[:, None, None]
        K, stride, pad = (layer.get(k, d) for k, d in zip(WINDOW, (1, 1, 0), strict=True))
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        P, I = 1 + K * K * x.shape[-1], ds.shape[-1]
        Omega, Gamma = np.zeros((P, P)), np.zeros((I, I))
        locations = ds.shape[1] * ds.shape[2]
        for m in range(M):
            for row in range(ds.shape[1]):
                for column in range(ds.shape[2]):
                    r, c = row * stride, column * stride
                    patch = np.concatenate([[1], x[m, r : r + K, c : c + K].ravel()])
                    Omega += np.outer(patch, patch) / M
                    Gamma += np.outer(ds[m, row, column], ds[m, row, column]) / (M * locations)
        blocks.append(np.kron(Gamma, Omega))
    return blocks


def test_the_operator_is_the_dense_matrix_of_plain_loops(layers, rng):
    fisher, blocks = KroneckerFisher.from_arrays(layers), dense_blocks(layers)
    sizes = [len(block) for block in blocks]
    assert fisher.shape == (sum(sizes),) * 2 == (3 * 19 + 2 * 5,) * 2
    dense = np.zeros(fisher.shape)
    dense[: sizes[0], : sizes[0]], dense[sizes[0] :, sizes[0] :] = blocks
    v = rng.standard_normal(len(dense))
    assert np.isfinite(dense).all()
    np.testing.assert_allclose(fisher @ v, dense @ v, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        fisher.solve(v, 0.1), np.linalg.solve(dense + 0.1 * np.eye(len(dense)), v), rtol=1e-8
    )
    np.testing.assert_allclose(
        fisher.eigenvalues(), np.linalg.eigvalsh(dense), rtol=1e-8, atol=1e-10
    )
    assert fisher.trace() == pytest.approx(np.trace(dense))


def test_its_damped_inverse_is_that_of_the_plain_functions(layers, rng):
    c = 0.03
    v = rng.standard_normal(3 * 19 + 2 * 5)
    expected, begin = [], 0
    for layer in layers:
        window = {key: layer[key] for key in WINDOW if key in layer}
        factors = input_factor(layer["inputs"], **window), derivative_factor(layer["derivatives"])
        shape = len(factors[1]), len(factors[0])
        part = v[begin : begin + shape[0] * shape[1]].reshape(shape)
        expected.append(precondition(part, *damped_inverses(*factors, c)).ravel())
        begin += part.size
    found = KroneckerFisher.from_arrays(layers).damped(c).inverse() @ v
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-9)


def test_it_is_the_estimate_of_a_network_from_what_passes_through_it(ops64, rng):
    net = network(ops64)
    x = rng.standard_normal((4, 7, 6, 2))
    loss = SoftmaxCrossEntropy(ops64, seed=3)
    expected = KroneckerFisher.estimate(net, loss, x)
    layers = []
    for layer in net.weighted:  # what that estimate's only draw left in the layers
        window = dict(zip(("kernel_size", "stride", "padding"), layer.window, strict=True))
        layers.append(dict(inputs=layer.inputs, derivatives=layer.derivatives, **window))
    found = KroneckerFisher.from_arrays(layers)
    v = rng.standard_normal(len(net.theta))
    np.testing.assert_allclose(found @ v, expected @ v, rtol=1e-10)


def test_the_dtype_is_kept(layers):
    single = [{k: np.float32(v) if np.ndim(v) else v for k, v in each.items()} for each in layers]
    assert KroneckerFisher.from_arrays(single).dtype == np.float32
    assert KroneckerFisher.from_arrays(layers).dtype == np.float64


@pytest.mark.parametrize("number, change, error, message", [
    (0, dict(derivatives=np.ones((M, 3, 4, 3))), ValueError,
     "layer 0: derivatives: shape (5, 3, 4, 3) does not fit inputs of shape (5, 7, 6, 2)"),
    (1, dict(derivatives=np.ones((M + 1, 2))), ValueError, "layer 1: derivatives: shape (6, 2)"),
    (0, dict(derivatives=np.ones((M, 3))), ValueError, "layer 0: derivatives: shape (5, 3)"),
    (1, dict(inputs=np.full((M, 4), np.nan)), ValueError, "layer 1: inputs: a number is not"),
    (1, dict(inputs=np.ones((M, 4), int)), TypeError, "layer 1: activations: int64 is neither"),
    (0, dict(kernel_size=20), ValueError, "layer 0: kernel_size: 20 with padding 1 does not fit"),
    (1, dict(weights=1), TypeError, "layer 1: weights: unknown key; a layer has inputs, deriv"),
    (0, dict(kernel_size=(3, 3)), TypeError, "layer 0: kernel_size: (3, 3) is no whole number"),
    (0, dict(padding="same"), TypeError, "layer 0: padding: 'same' is no whole number"),
    (0, dict(inputs=np.ones((M, 2, 7, 6)), derivatives=np.ones((M, 3, 7, 6))), ValueError,
     "and the maps out, which are the last axis of both"),
])  # fmt: skip
def test_what_does_not_fit_is_named_with_its_layer(layers, number, change, error, message):
    layers[number] |= change
    with pytest.raises(error, match=re.escape(message)):
        KroneckerFisher.from_arrays(layers)


@pytest.mark.parametrize("wrong, error, message", [
    (dict(inputs=np.ones((M, 4))), TypeError, "layers: expected a list of mappings, one for each"),
    ([(np.ones((M, 4)), np.ones((M, 3)))], TypeError, "layer 0: expected a mapping .* got a tuple"),
    ([dict(inputs=np.ones((M, 4)))], TypeError, "layer 0: derivatives: missing; a layer has"),
    ([], ValueError, "factors: none given"),
])  # fmt: skip
def test_what_is_no_list_of_layers_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        KroneckerFisher.from_arrays(wrong)


@pytest.mark.parametrize("damping", [-1, np.nan, [0.1, -0.1], [0.1, 0.2, 0.3]])
def test_a_damping_that_is_none_is_refused_and_not_made_nan(layers, damping):
    fisher = KroneckerFisher.from_arrays(layers)
    v = np.ones(fisher.shape[0])
    for use in (fisher.damped, fisher.log_determinant, lambda damping: fisher.solve(v, damping)):
        with pytest.raises(ValueError, match="^damping: "):
            use(damping)


def test_a_vector_of_another_size_is_refused(layers):
    fisher = KroneckerFisher.from_arrays(layers)
    with pytest.raises(ValueError, match=r"v: shape \(2, 3\) given; the operator takes \(\d+,\)"):
        fisher.solve(np.ones((2, 3)), 0.1)
