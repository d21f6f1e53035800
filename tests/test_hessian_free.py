"""Hessian-free optimization: its steps against dense solves, and what preconditioning saves."""

import math

import numpy as np
import pytest
from checks import assert_close
from networks import network
from quadratics import SHAPE, SMALL, batches, dense_model, objective, objective_gradient
from scipy.sparse.linalg import cg

from kfcnet.batches import Batch
from kfcnet.config import load_config
from kfcnet.config.schema import HessianFreeConfig
from kfcnet.curvature import FisherOperator, KroneckerFisher, input_factor
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import build_optimizer
from kfcnet.training.diagnostics import measure


def hessian_free(ops, layers=SMALL, shape=SHAPE, **changes):
    values = dict(
        damping=0.1,
        averaging_timescale=100.0,
        statistics_timescale=100.0,
        statistics_fraction=0.5,
        fisher_fraction=0.5,
        weight_decay=0.01,
        cg_iterations=200,
        cg_tolerance=1e-5,
    )
    config = HessianFreeConfig().model_copy(update=values | changes)
    return build_optimizer(config, network(ops, layers, shape), SoftmaxCrossEntropy(ops, 3))


def solved(opt, batch):
    """(d, M(d) - M(0)) that conjugate gradients come to, whatever the line search makes of it."""
    objective_gradient(opt, batch, opt.steps)
    return opt._solve(batch)


@pytest.mark.parametrize("preconditioner", ["kfc", "none"])
def test_a_step_goes_along_the_dense_solve_of_the_damped_model(ops64, rng, preconditioner):
    """F on the first half of the batch, dropout, weight decay; whatever the preconditioner."""
    opt = hessian_free(ops64, preconditioner=preconditioner)
    first, *rest = batches(ops64, rng, 4)
    opt.prepare([first])
    for step, batch in enumerate(rest):
        theta, average = opt.network.theta.copy(), opt.average.copy()
        g, C = dense_model(opt, batch, step)
        d, change = solved(opt, batch)
        assert_close(d, np.linalg.solve(C, -g), 1e-3)
        assert np.isclose(change, g @ d + d @ C @ d / 2, rtol=1e-10)
        opt.step(batch)
        assert opt.learning_rate > 0
        assert_close(opt.velocity, opt.learning_rate * np.linalg.solve(C, -g), 1e-3)
        assert_close(opt.network.theta, theta + opt.velocity, 1e-13)
        decay = math.exp(-8 / 100)
        assert_close(opt.average, decay * average + (1 - decay) * opt.network.theta, 1e-12)


@pytest.mark.parametrize("tikhonov", ["factored", "exact"])
def test_the_preconditioner_is_the_inverse_of_kfcs_damped_matrix(ops64, rng, tikhonov):
    opt = hessian_free(ops64, tikhonov=tikhonov)
    opt.prepare(batches(ops64, rng, 1))
    v, c = rng.standard_normal(len(opt.network.theta)), 0.1 + 0.01
    fisher = KroneckerFisher.of(opt.blocks)
    expected = fisher.solve(v, c) if tikhonov == "exact" else fisher.damped(c).inverse() @ v
    assert_close(opt.preconditioner() @ v, expected, 1e-10)


def test_the_preconditioner_is_kept_up_to_date(ops64, rng):
    """Its factors are averages over first halves of mini-batches; its damping is the step's."""
    periods = dict(statistics_period=1, inverse_period=1)
    opt = hessian_free(ops64, tikhonov="factored", damping_decay=0.5, **periods)
    first, *rest = batches(ops64, rng, 4)
    opt.prepare([first])
    for step, batch in enumerate(rest):
        before, damping = [block.Omega.copy() for block in opt.blocks], opt.damping
        opt.network.forward(batch.inputs[:4], training=True, step=step)
        decay = math.exp(-8 / 100)
        expected = [
            decay * Omega + (1 - decay) * input_factor_of(block.layer)
            for Omega, block in zip(before, opt.blocks, strict=True)
        ]
        opt.step(batch)
        for block, Omega in zip(opt.blocks, expected, strict=True):
            assert_close(block.Omega, Omega, 1e-12)
        v = rng.standard_normal(len(opt.network.theta))
        damped = KroneckerFisher.of(opt.blocks).damped(damping + 0.01)
        assert_close(opt.preconditioner() @ v, damped.inverse() @ v, 1e-10)
        assert opt.damping != damping


def test_factors_and_inverses_are_renewed_at_the_ends_of_their_periods(ops64, rng, monkeypatch):
    opt = hessian_free(ops64, statistics_period=2, inverse_period=4, cg_iterations=1)
    first, *rest = batches(ops64, rng, 9)
    opt.prepare([first])
    renewed = []

    def watch(name):
        update = getattr(opt, name)
        monkeypatch.setattr(
            opt, name, lambda *args: (renewed.append((opt.steps + 1, name)), update(*args))
        )

    watch("_update_statistics")
    watch("_update_inverses")
    for batch in rest:
        opt.step(batch)
    at = {what: [n for n, each in renewed if each == what] for _, what in renewed}
    assert at == {"_update_statistics": [2, 4, 6, 8], "_update_inverses": [4, 8]}


def input_factor_of(layer):
    """Omega of the layer's latest inputs."""
    if layer.locations == 1:
        rows = layer.inputs.reshape(len(layer.inputs), -1)
        rows = np.hstack([np.ones((len(rows), 1)), rows])
        return rows.T @ rows / len(rows)
    return input_factor(layer.inputs, *layer.window)


def test_conjugate_gradients_end_at_their_tolerance(ops64, rng):
    residuals = []
    for tolerance in (0.5, 1e-5):
        opt = hessian_free(ops64, cg_tolerance=tolerance, warm_start=0.0)
        opt.prepare(batches(ops64, np.random.default_rng(0), 1))
        (batch,) = batches(ops64, np.random.default_rng(2), 1)
        g, C = dense_model(opt, batch, 0)
        d, _ = solved(opt, batch)
        residuals.append(np.linalg.norm(C @ d + g) / np.linalg.norm(g))
        assert residuals[-1] <= tolerance
    assert residuals[0] > 100 * residuals[1]


def test_conjugate_gradients_start_from_a_part_of_the_previous_update(ops64, rng):
    """With a single iteration allowed, where they start shows in where they end."""
    steps = []
    for warm_start in (0.0, 0.95):
        opt = hessian_free(ops64, warm_start=warm_start, cg_iterations=1)
        opt.prepare(batches(ops64, np.random.default_rng(0), 1))
        opt.velocity[...] = np.random.default_rng(1).standard_normal(len(opt.velocity))
        (batch,) = batches(ops64, np.random.default_rng(2), 1)
        g, C = dense_model(opt, batch, 0)
        d = warm_start * opt.velocity
        direction = opt.preconditioner() @ (-g - C @ d)
        expected = d - direction * (direction @ (g + C @ d)) / (direction @ C @ direction)
        assert_close(solved(opt, batch)[0], expected, 1e-9)
        steps.append(expected)
    assert np.abs(steps[0] - steps[1]).max() > 0.1


def test_a_step_that_raises_the_objective_is_halved_until_it_does_not(ops64, rng):
    opt = hessian_free(ops64, damping=0.02, damping_decay=0.5)
    first, batch = batches(ops64, rng, 2)
    opt.prepare([first])
    theta, before = opt.network.theta.copy(), objective(opt, batch, 0)
    d, _ = solved(opt, batch)
    opt.step(batch)
    changes = []
    for halvings in range(6):
        with opt.network.using(theta + 0.5**halvings * d):
            z = opt.network.forward(batch.inputs, training=True, step=0)
            loss = opt.loss.evaluate(z, batch.targets)[2][0] / 8
        moved = theta + 0.5**halvings * d
        changes.append(loss + moved @ (opt.decay_vector * moved) / 2 - before)
    first_lower = int(np.argmax(np.array(changes) <= 0))
    assert changes[0] > 0 and opt.learning_rate == 0.5**first_lower < 1
    assert_close(opt.velocity, opt.learning_rate * d, 1e-3)
    assert opt.damping == 0.04


def test_a_step_that_never_lowers_the_objective_is_not_taken(ops64, rng, monkeypatch):
    opt = hessian_free(ops64)
    first, batch = batches(ops64, rng, 2)
    opt.prepare([first])
    theta = opt.network.theta.copy()
    monkeypatch.setattr(opt, "_objective_after", lambda *_: math.inf)
    opt.step(batch)
    assert opt.learning_rate == 0 and not opt.velocity.any()
    assert np.array_equal(opt.network.theta, theta)
    assert np.isclose(opt.damping, 0.1 * 3 / 2)
    assert (opt.steps, opt.examples) == (1, 8)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_hessian_free_raises_where_conjugate_gradients_overflow_and_moves_nothing(rng):
    ops = CpuOps("float32", shards=1)
    layers = [
        dict(layer="dense", units=5, std=1e-20),
        dict(layer="relu"),
        dict(layer="dense", units=4),
    ]
    config = HessianFreeConfig(preconditioner="none")
    net = build_network(layers, SHAPE, ops, seed=3)
    opt = build_optimizer(config, net, SoftmaxCrossEntropy(ops, 3))
    before = opt.state()
    inputs = ops.asarray(1e15 * rng.standard_normal((64, *SHAPE)))
    with pytest.raises(FloatingPointError, match="the quadratic model of the step is not finite"):
        opt.step(Batch(inputs, rng.integers(0, 4, 64).astype(np.int32)))
    after = opt.state()
    for name in ("theta", "velocity", "average"):
        assert np.isfinite(after[name]).all(), name
        np.testing.assert_array_equal(after[name], before[name])


def test_without_a_preconditioner_there_are_no_factors_to_prepare(ops64, rng, monkeypatch):
    monkeypatch.setattr(type(ops64), "memory", 1)  # which no factor would fit into
    opt = hessian_free(ops64, preconditioner="none")
    assert not opt.needs_preparation and not opt.blocks
    before, (batch,) = opt.network.theta.copy(), batches(ops64, rng, 1)
    opt.step(batch)
    assert np.isfinite(opt.network.theta).all() and (opt.network.theta != before).any()
    row = measure(opt, before, batch)
    assert np.isnan(row["conv1_pi"]) and np.isfinite(row["conv1_nu"])
    opt.load_state(opt.state())
    assert not opt.needs_preparation


def test_a_restored_optimizer_goes_on_bit_for_bit(rng):
    ops = CpuOps("float32", shards=2)
    data = batches(ops, rng, 6)
    straight, stopped, resumed = (hessian_free(ops, cg_iterations=5) for _ in range(3))
    resumed.network.theta += 1
    for opt in (straight, stopped):
        opt.prepare(data[:1])
        for batch in data[1:4]:
            opt.step(batch)
    resumed.load_state(stopped.state())
    for batch in data[4:]:
        straight.step(batch)
        resumed.step(batch)
    for name in ("velocity", "average", "damping", "learning_rate"):
        assert np.array_equal(getattr(straight, name), getattr(resumed, name)), name
    assert np.array_equal(straight.network.theta, resumed.network.theta)


def test_it_takes_the_same_steps_on_every_device(ops, rng):
    data = batches(CpuOps("float64", shards=1), rng, 3)
    opt = hessian_free(ops, cg_iterations=4)
    exact = hessian_free(CpuOps("float64", shards=1, native="off"), cg_iterations=4)
    start = exact.network.theta.copy()
    for each in (opt, exact):
        placed = [Batch(each.ops.asarray(batch.inputs), batch.targets) for batch in data]
        each.prepare(placed[:1])
        for batch in placed[1:]:
            each.step(batch)
    assert (opt.damping, opt.learning_rate) == (exact.damping, exact.learning_rate)
    tolerance = 1e-9 if ops.dtype == np.float64 else 2e-3
    assert_close(ops.to_numpy(opt.network.theta) - start, exact.network.theta - start, tolerance)


def test_kfc_saves_iterations_of_conjugate_gradients_on_the_cifar_network():
    """To a hundredth of the gradient's norm, with weights of the usual size; less than half.

    With the published initial weights, conv1's almost zero, the matrix has so few eigenvalues above
    the damping that plain conjugate gradients need few iterations themselves.
    """
    ops, rng = CpuOps("float32", shards=2), np.random.default_rng(0)
    layers = [layer.model_dump() for layer in load_config("cifar_kfc").network]
    layers = [layer | {"std": "he"} if "std" in layer else layer for layer in layers]
    coarse, fine = rng.standard_normal((8, 8, 8, 3)), rng.standard_normal((8, 32, 32, 3))
    images = ops.asarray(coarse.repeat(4, axis=1).repeat(4, axis=2) + 0.25 * fine)
    batch = Batch(images, rng.integers(0, 10, 8).astype(np.int32))
    net, loss = build_network(layers, (32, 32, 3), ops), SoftmaxCrossEntropy(ops)
    opt = build_optimizer(HessianFreeConfig(damping=1e-3), net, loss)
    opt.prepare([batch])
    gradient = objective_gradient(opt, batch, 0).astype(np.float64)
    fisher = FisherOperator(net, loss, images, damping=1e-3)
    iterations = {}
    for name, preconditioner in (("kfc", opt.preconditioner()), ("none", None)):
        steps = []
        solution, info = cg(
            fisher,
            -gradient,
            atol=1e-2 * np.linalg.norm(gradient),
            maxiter=200,
            M=preconditioner,
            callback=lambda _, steps=steps: steps.append(1),
        )
        assert info == 0
        assert np.linalg.norm(fisher @ solution + gradient) < 0.02 * np.linalg.norm(gradient)
        iterations[name] = len(steps)
    assert 0 < iterations["kfc"] < iterations["none"] / 2
