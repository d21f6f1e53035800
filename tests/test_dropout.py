"""Dropout: the true, the sampled and the tangent pass share one and the same thinned network."""

import numpy as np
import pytest
from checks import assert_close
from networks import settings

from kfcnet import philox
from kfcnet.batches import Batch
from kfcnet.curvature import input_factor
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.optimizers import build_optimizer

M, J, HIDDEN, CLASSES, KEEP, SEED = 7, 4, 5, 3, 0.6, 11
LAYERS = [
    dict(layer="dropout", keep=0.8),
    dict(layer="dense", units=HIDDEN, std=0.7),
    dict(layer="relu"),
    dict(layer="dropout", keep=KEEP),
    dict(layer="dense", units=CLASSES, std=0.7),
]


@pytest.fixture
def thinned(ops64, rng):
    """(network after a training pass at step 4, inputs, masks / keep of its two dropout layers)."""
    net = build_network(LAYERS, (1, 1, J), ops64, SEED)
    net.theta += 0.1 * rng.standard_normal(net.theta.shape)
    x = rng.standard_normal((M, 1, 1, J))
    net.forward(x, training=True, step=4)
    masks = [
        (philox.uniforms(SEED, philox.DROPOUT, 4, M * units, stream).reshape(M, units) < keep)
        / keep
        for stream, units, keep in ((0, J, 0.8), (3, HIDDEN, KEEP))
    ]
    assert all(0 < mask.mean() < 1 / keep for mask, keep in zip(masks, (0.8, KEEP), strict=True))
    return net, x.reshape(M, J), masks


def test_every_device_keeps_a_unit_exactly_where_its_uniform_is_below_keep(ops):
    """In float32 a keep of 0.9 is smaller than a uniform that is below 0.9: none may be lost."""
    keep = float(np.nextafter(philox.uniforms(3, philox.DROPOUT, 6, 30, 2)[17], 1))
    x = np.ones((5, 6))
    y, mask = ops.dropout(ops.asarray(x), keep, 3, 6, 2)
    expected = philox.uniforms(3, philox.DROPOUT, 6, 30, 2).reshape(5, 6) < keep
    assert expected.flat[17] and 0 < expected.sum() < 29
    assert_close(ops.to_numpy(y), expected / keep, 1e-6)
    dx = ops.dropout_backward(ops.asarray(2 * x), mask, keep)
    assert_close(ops.to_numpy(dx), 2 * expected / keep, 1e-6)


def hidden(net, x, masks):
    """(thinned inputs, hidden pre-activations, thinned hidden activations) in plain NumPy."""
    first, _ = net.views(net.theta)
    a = x * masks[0]
    s = a @ first[:, 1:].T + first[:, 0]
    return a, s, np.maximum(s, 0) * masks[1]


def test_the_forward_pass_thins_by_the_uniforms_of_its_step(thinned):
    net, x, masks = thinned
    last = net.views(net.theta)[1]
    z = hidden(net, x, masks)[2] @ last[:, 1:].T + last[:, 0]
    assert_close(net.forward(x.reshape(M, 1, 1, J), training=True, step=4), z)


@pytest.mark.parametrize("count", [M, 3], ids=["whole batch", "part of it"])
def test_the_true_and_the_sampled_pass_go_back_through_the_masks_of_the_forward_pass(
    ops64, thinned, count
):
    net, x, masks = thinned
    loss, last = SoftmaxCrossEntropy(ops64, SEED), net.views(net.theta)[1]
    a, s, h = hidden(net, x, masks)
    p, true, _ = loss.evaluate(h @ last[:, 1:].T + last[:, 0], np.arange(M, dtype=np.int32) % 3)
    sampled = loss.sampled_gradient(p, step=4)
    assert not np.allclose(true, sampled)
    for dz, per_example in ((true, False), (sampled, True), (true, False)):
        net.backward(dz[:count], per_example)
        net.compute_gradient()
        ds = (dz @ last[:, 1:] * masks[1] * (s > 0))[:count]
        assert_close(net.weighted[0].derivatives.reshape(count, HIDDEN), ds)
        assert_close(net.weighted[0].inputs.reshape(M, J), a)
        assert_close(net.views(net.gradient)[0][:, 1:], ds.T @ a[:count] / count)
        assert_close(net.views(net.gradient)[1][:, 1:], dz[:count].T @ h[:count] / count)


@pytest.mark.parametrize("count", [M, 3], ids=["whole batch", "part of it"])
def test_the_tangent_pass_goes_through_the_masks_of_the_forward_pass(thinned, rng, count):
    net, x, masks = thinned
    a, s, h = hidden(net, x, masks)
    direction = rng.standard_normal(len(net.theta))
    (first, last), weights = net.views(direction), net.views(net.theta)[1]
    rs = a @ first[:, 1:].T + first[:, 0]
    rz = rs * (s > 0) * masks[1] @ weights[:, 1:].T + h @ last[:, 1:].T + last[:, 0]
    assert_close(net.tangent(direction, count), rz[:count])


def test_a_step_draws_its_masks_once_and_every_step_draws_others(ops64, rng):
    """Statistics, gradient and clip of one step of KFC-pre share them: one draw a layer."""
    net = build_network(LAYERS, (1, 1, J), ops64, SEED)
    opt = build_optimizer(
        settings("kfc_pre", statistics_period=1, inverse_period=1),
        net,
        SoftmaxCrossEntropy(ops64, SEED),
    )
    batch = Batch(rng.standard_normal((M, 1, 1, J)), np.arange(M, dtype=np.int32) % 3)
    opt.prepare([batch])
    drawn, draw = [], ops64.dropout
    masks = []

    def noted(x, keep, seed, step, stream):
        drawn.append((int(np.ravel(step)[0]), stream))  # a counter may go on
        return draw(x, keep, seed, step, stream)

    ops64.dropout = noted
    for _ in range(3):
        opt.step(batch)
        masks.append(net.layers[0].saved.copy())
    assert drawn == [(step, stream) for step in range(3) for stream in (0, 3)]
    assert not any(np.array_equal(a, b) for a, b in zip(masks, masks[1:], strict=False))


def test_the_first_estimate_of_the_factors_averages_over_masks(ops64, rng):
    """Each batch of the preparation is thinned by other masks, also where it comes again."""
    net = build_network(LAYERS, (1, 1, J), ops64, SEED)
    opt = build_optimizer(settings("kfc_pre"), net, SoftmaxCrossEntropy(ops64, SEED))
    batch = Batch(rng.standard_normal((M, 1, 1, J)), np.arange(M, dtype=np.int32) % 3)
    opt.prepare([batch, batch])
    factors = []
    for step in range(2):
        net.forward(batch.inputs, training=True, step=step)
        factors.append(input_factor(net.weighted[0].inputs))
    assert not np.allclose(*factors)
    assert_close(opt.blocks[0].Omega, sum(factors) / 2)
