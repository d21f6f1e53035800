"""A maximum pool, the ReLU and the response normalisation behind it in one pass, on a GPU."""

import numpy as np
import pytest
from checks import assert_close

from kfcnet.layers import MaxPool, ReLU, ResponseNorm
from kfcnet.layers.base import Mode
from kfcnet.network import build_network

SHAPES = [  # M, H, W, J, pool, stride, clipped, norm
    (3, 7, 6, 5, 3, 2, True, 3),
    (2, 8, 5, 24, 2, 2, False, 4),
    (2, 9, 7, 12, 3, 2, False, 1),
]
SCALE, POWER = 0.7, 0.75


def layers_of(ops, shape):
    """Pool, ReLU and normalisation, each by itself."""
    _, *input_shape, size, stride, clipped, norm_size = shape
    pool = MaxPool(ops, input_shape, "pool", size, stride, clipped)
    norm = ResponseNorm(ops, pool.output_shape, "norm", norm_size, SCALE, POWER)
    return pool, ReLU(ops, pool.output_shape, "relu"), norm


@pytest.mark.parametrize("shape", SHAPES)
def test_all_passes_are_those_of_the_three_layers(cuda, ops64, rng, shape):
    fused = layers_of(cuda, shape)[0]
    apart = layers_of(ops64, shape)
    fused.norm = apart[2].parameters
    # Negative means: many windows are cut by the ReLU.
    x = rng.standard_normal(shape[:4]) - 1
    dy = rng.standard_normal((shape[0], *fused.output_shape))
    rx = rng.standard_normal(x.shape)

    def through(layers, name, value, *more):
        for layer in layers:
            value = getattr(layer, name)(value, *more)
        return value

    y = fused.forward(cuda.asarray(x), Mode())
    expected = through(apart, "forward", x.astype(np.float32).astype(np.float64), Mode())
    assert (expected == 0).any() and (expected > 0).any()
    assert_close(cuda.to_numpy(y), expected, 1e-5)
    for m in (shape[0], 1):  # the passes of a part too
        dx = cuda.to_numpy(fused.backward(cuda.asarray(dy[:m])))
        assert_close(dx, through(apart[::-1], "backward", dy[:m]), 1e-5)
        ry = cuda.to_numpy(fused.tangent(cuda.asarray(rx[:m])))
        assert_close(ry, through(apart, "tangent", rx[:m]), 1e-5)


def specifications(**norm):
    return [
        {"layer": "conv", "filters": 8, "kernel": 3, "padding": 1},
        {"layer": "max_pool", "size": 3, "stride": 2},
        {"layer": "relu"},
        {"layer": "response_norm", "size": 3, "scale": SCALE, "power": POWER, **norm},
        {"layer": "dense", "units": 3},
    ]


def is_fused(ops, shape, **norm):
    pool, relu, norm = build_network(specifications(**norm), shape, ops).layers[1:4]
    assert (pool.norm is None) != norm.fused and relu.forward_fused
    return norm.fused


def test_a_network_fuses_them_where_an_image_fits_into_a_block(cuda, ops64):
    assert is_fused(cuda, (9, 8, 2))
    assert not is_fused(ops64, (9, 8, 2))
    assert not is_fused(cuda, (9, 8, 2), across=True)
    assert not is_fused(cuda, (128, 128, 2))


def test_a_network_with_them_fused_computes_the_same(cuda, ops64, rng):
    x, dz = rng.standard_normal((4, 9, 8, 2)), rng.standard_normal((4, 3))
    results = []
    for ops in (cuda, ops64):
        network = build_network(specifications(), (9, 8, 2), ops)
        z = network.forward(ops.asarray(x), training=True)
        network.backward_with_gradient(ops.asarray(dz))
        direction = ops.asarray(np.cos(np.arange(len(network.theta))))
        rz = network.tangent(direction, 3)
        results.append([ops.to_numpy(a) for a in (z, network.gradient, rz)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 1e-4)
