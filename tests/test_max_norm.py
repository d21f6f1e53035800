"""Max-norm: the primitive row by row, and what the optimizers do with it."""

import math

import numpy as np
import pytest
from checks import assert_close
from networks import EVERY_LAYER, INPUT_SHAPE, batches, optimizer

from kfcnet.batches import Batch

LAYERS = EVERY_LAYER[1:]


def norms(weight):
    """The lengths of the units' incoming weights, the biases left out."""
    return np.sqrt((weight[:, 1:] ** 2).sum(axis=1))


def test_max_norm_shortens_the_rows_that_are_too_long_and_no_others(ops, rng):
    before = rng.standard_normal((3, 5)) * np.array([[0.1], [3.0], [1.0]])
    assert norms(before)[0] < 2 < norms(before)[1]
    before[2, 1:] *= 1.999 / norms(before)[2]
    weight, average = ops.asarray(before.copy()), ops.asarray(np.ones((3, 5)))
    ops.max_norm(weight, average, 2.0, 0.75)
    before, weight = before.astype(ops.dtype), ops.to_numpy(weight)
    assert np.array_equal(weight[[0, 2]], before[[0, 2]])
    assert_close(norms(weight)[1], 2.0, dtype=ops.dtype)
    assert_close(weight[1, 1:] / norms(weight)[1], before[1, 1:] / norms(before)[1])
    assert np.array_equal(weight[:, 0], before[:, 0])
    assert_close(ops.to_numpy(average), 1 + 0.25 * (weight - before))  # its share of the change


@pytest.mark.parametrize("limit", [1.0, 5e-324])
def test_max_norm_leaves_rows_of_zeros_alone(ops, limit):
    """Whether or not the limit is zero, too, in the device's precision."""
    weight, average = ops.zeros((2, 4)), ops.zeros((2, 4))
    ops.max_norm(weight, average, limit, 0.5)
    for array in (weight, average):
        assert np.array_equal(ops.to_numpy(array), np.zeros((2, 4)))


def test_after_a_loss_that_is_not_finite_no_weight_is_shortened(ops):
    """Not even an initial one: the step's parameters stay as it met them."""
    opt = optimizer(ops, "sgd", layers=LAYERS, max_norm=0.3)
    weights = opt.network.views(ops.to_numpy(opt.network.theta))
    assert all(norms(weight).max() > 0.4 for weight in weights)
    before = [ops.to_numpy(ops.copy(array)) for array in (opt.network.theta, opt.average)]
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="the loss of update 1 is not finite"):
            opt.step(Batch(ops.asarray(np.full((4, *INPUT_SHAPE), np.nan)), np.zeros(4, np.int32)))
    assert opt.running_sums.read().nonfinite_step == 0
    for array, expected in zip((opt.network.theta, opt.average), before, strict=True):
        assert np.array_equal(ops.to_numpy(array), expected)


@pytest.mark.parametrize("name", ["sgd", "kfc_pre", "adagrad", "rmsprop", "adam"])
def test_no_incoming_weights_are_ever_longer_than_the_limit(ops64, rng, name):
    """And the parameters are averaged as they are after the constraint."""
    limits = {"conv2": 0.9, "dense1": 0.5}
    opt = optimizer(ops64, name, layers=LAYERS, max_norm=limits)
    first, *data = batches(ops64, rng, 5)
    opt.prepare([first])
    average, shortened = opt.average.copy(), 0
    for batch in data:
        before = optimizer(ops64, name, layers=LAYERS)  # the same step, free
        before.load_state(opt.state())
        before.step(batch)
        opt.step(batch)
        free, held = (
            dict(
                zip(
                    ("conv1", "conv2", "dense1", "dense2"),
                    o.network.views(o.network.theta),
                    strict=True,
                )
            )
            for o in (before, opt)
        )
        for layer, weight in held.items():
            limit = limits.get(layer, math.inf)
            scale = np.minimum(1, limit / norms(free[layer]))[:, None]
            shortened += (scale < 1).sum()
            assert_close(weight[:, 1:], scale * free[layer][:, 1:], 1e-12)
            assert_close(weight[:, 0], free[layer][:, 0], 1e-12)
        xi = math.exp(-8 / 100)
        average = xi * average + (1 - xi) * opt.network.theta
        assert_close(opt.average, average, 1e-12)
    assert shortened > 0


def test_one_number_holds_for_every_layer(ops64, rng):
    opt = optimizer(ops64, "sgd", layers=LAYERS, max_norm=0.3)
    opt.step(*batches(ops64, rng, 1))
    for weight in opt.network.views(opt.network.theta):
        assert norms(weight).max() <= 0.3 * (1 + 1e-12)


def test_a_max_norm_for_an_unknown_layer_is_refused(ops64):
    with pytest.raises(ValueError, match="max_norm.*conv9"):
        optimizer(ops64, "sgd", max_norm={"conv9": 1.0})
