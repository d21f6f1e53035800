"""K-FAC: each of its decisions against dense matrices, and the steps they add up to."""

import math

import numpy as np
import pytest
from checks import assert_close
from networks import EVERY_LAYER, INPUT_SHAPE, network
from quadratics import SHAPE, SMALL, batches, dense_model, objective
from scipy.sparse.linalg import cg

from kfcnet.batches import Batch
from kfcnet.config.schema import HessianFreeConfig, KfacConfig
from kfcnet.curvature import EigenbasisBlock, input_factor
from kfcnet.losses import SoftmaxCrossEntropy, SquaredError
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import build_optimizer
from kfcnet.optimizers.levenberg_marquardt import adapted_damping, minimise_quadratic

NEVER = 10**9  # as a period


def kfac(ops, layers=SMALL, shape=SHAPE, loss=SoftmaxCrossEntropy, **changes):
    """An optimizer; `changes` may be values that a configuration would refuse."""
    values = dict(
        damping=0.5,
        factor_damping=0.2,
        averaging_timescale=100.0,
        statistics_timescale=100.0,
        statistics_fraction=0.5,
        weight_decay=0.01,
    )
    config = KfacConfig().model_copy(update=values | changes)
    net = network(ops, layers, shape)
    return build_optimizer(config, net, loss(ops, seed=3))


def least_squares_minimum(C, g, V):
    """argmin over x of M(V x) - M(0) = g^T V x + 1/2 x^T V^T C V x, as a least-squares problem."""
    root = np.linalg.cholesky(C).T
    return np.linalg.lstsq(root @ V, -np.linalg.solve(root.T, g), rcond=None)[0]


# The plane


def test_the_minimum_over_a_plane_is_the_dense_one(rng):
    root, V, g = rng.standard_normal((9, 9)), rng.standard_normal((9, 2)), rng.standard_normal(9)
    C = root @ root.T + np.eye(9)
    x, least = minimise_quadratic(V.T @ C @ V, V.T @ g)
    assert_close(x, least_squares_minimum(C, g, V), 1e-11)
    assert np.isclose(least, g @ V @ x / 2, rtol=1e-12)


def test_vectors_of_very_different_lengths_are_both_used(rng):
    root, g = rng.standard_normal((2, 2)), rng.standard_normal(2)
    curvature, scale = root @ root.T + np.eye(2), np.array([1e8, 1e-8])
    x, least = minimise_quadratic(scale[:, None] * curvature * scale, scale * g)
    expected = np.linalg.solve(curvature, -g)
    assert_close(scale * x, expected, 1e-11)
    assert np.isclose(least, g @ expected / 2, rtol=1e-11)


def test_a_vector_of_zeros_and_a_parallel_one_are_left_out():
    x, least = minimise_quadratic(np.array([[2.0, 0], [0, 0]]), np.array([-4.0, 0]))
    assert x.tolist() == [2, 0] and least == -4
    x, least = minimise_quadratic(np.array([[2.0, 4], [4, 8]]), np.array([-4.0, -8]))
    assert np.isfinite(x).all() and np.isclose(x @ [1, 2], 2) and np.isclose(least, -4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), None])
def test_a_model_that_is_not_finite_has_no_minimum(place, bad, capfd):
    curvature, slope = np.eye(2), np.ones(2)
    if place is None:
        slope[1] = bad
    else:
        curvature[place] = curvature[place[::-1]] = bad
    with pytest.raises(FloatingPointError, match="quadratic model of the step is not finite"):
        minimise_quadratic(curvature, slope)
    assert capfd.readouterr().err == ""  # LAPACK has lines of its own for it


# The step


@pytest.mark.parametrize("tikhonov", ["factored", "exact"])
def test_each_step_is_the_dense_argmin_over_direction_and_previous_update(ops64, rng, tikhonov):
    """F on the first half of the batch, dropout, weight decay, damping, momentum from step two."""
    opt = kfac(
        ops64,
        tikhonov=tikhonov,
        fisher_fraction=0.5,
        damping_period=NEVER,
        factor_damping_period=NEVER,
    )
    first, *rest = batches(ops64, rng, 4)
    opt.prepare([first])
    for step, batch in enumerate(rest):
        theta, before = opt.network.theta.copy(), opt.velocity.copy()
        g, C = dense_model(opt, batch, step)
        opt.step(batch)
        V = np.stack([-opt.direction, before], axis=1)[:, : 1 if step == 0 else 2]
        x = least_squares_minimum(C, g, V)
        assert_close(opt.velocity, V @ x, 1e-8)
        assert_close(opt.network.theta, theta + V @ x, 1e-8)
        assert_close([opt.learning_rate], x[:1], 1e-8)


def test_the_model_does_not_cancel_where_predictions_are_nearly_certain(ops64, rng):
    """Tangents of about one and a Fisher matrix of about 1e-6 between them, in float32."""
    z = rng.standard_normal((8, 3)) + [14, 0, 0]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    inputs, vectors = rng.standard_normal((8, *SHAPE)), rng.standard_normal((2, 57))
    found = []
    for ops in (ops64, CpuOps("float32", shards=1)):
        opt = kfac(ops, weight_decay=0.0, fisher_fraction=1.0)
        opt.damping = 0.0
        opt.network.forward(ops.asarray(inputs))
        curvature, _ = opt._model(ops.asarray(p), [ops.asarray(v) for v in vectors])
        found.append(curvature)
    assert_close(found[1], found[0], 1e-4)


def test_the_direction_is_the_damped_factors_natural_gradient(ops64, rng):
    opt = kfac(ops64, damping_period=NEVER, factor_damping_period=NEVER)
    first, batch = batches(ops64, rng, 2)
    opt.prepare([first])
    opt.step(batch)
    parts = zip(
        opt.blocks,
        opt.network.views(opt.network.gradient),
        opt.network.views(opt.direction),
        strict=True,
    )
    for block, gradient, direction in parts:
        c = 0.2 + 0.01  # factor_damping and weight decay
        size, width = len(block.Omega), len(block.Gamma)
        pi = np.sqrt(np.trace(block.Omega) / size / (np.trace(block.Gamma) / width))
        dense = np.kron(
            block.Gamma + np.sqrt(c) / pi * np.eye(width),
            block.Omega + np.sqrt(c) * pi * np.eye(size),
        )
        assert_close(direction.ravel(), np.linalg.solve(dense, gradient.ravel()), 1e-9)


def test_the_eigenbasis_solve_is_the_dense_solve(ops64, rng):
    """Exact Tikhonov: Gamma (x) Omega + c*I and nothing else."""
    opt = kfac(ops64, tikhonov="exact", damping_period=NEVER, factor_damping_period=NEVER)
    first, batch = batches(ops64, rng, 2)
    opt.prepare([first])
    opt.step(batch)
    assert all(isinstance(block, EigenbasisBlock) for block in opt.blocks)
    parts = zip(
        opt.blocks,
        opt.network.views(opt.network.gradient),
        opt.network.views(opt.direction),
        strict=True,
    )
    for block, gradient, direction in parts:
        dense = np.kron(block.Gamma, block.Omega) + (0.2 + 0.01) * np.eye(gradient.size)
        assert_close(direction.ravel(), np.linalg.solve(dense, gradient.ravel()), 1e-10)


@pytest.mark.parametrize("tikhonov", ["factored", "exact"])
def test_large_damping_leaves_a_gradient_step(ops64, rng, tikhonov):
    """Both the direction and, with lambda as large, the step: -gradient / lambda."""
    opt = kfac(ops64, tikhonov=tikhonov, damping=1e9, factor_damping=1e9, damping_period=NEVER)
    first, batch = batches(ops64, rng, 2)
    opt.prepare([first])
    opt.step(batch)
    assert_close(1e9 * opt.direction, opt.network.gradient, 1e-3)
    assert_close(1e9 * opt.velocity, -opt.network.gradient, 1e-3)


def test_statistics_come_from_the_first_part_of_the_batch(ops64, rng):
    opt = kfac(ops64, SMALL[1:], statistics_fraction=0.25, damping_period=NEVER)
    first, batch = batches(ops64, rng, 2)
    opt.prepare([first])
    before = opt.blocks[0].Omega.copy()
    opt.step(batch)
    decay = math.exp(-8 / 100)
    fresh = input_factor(batch.inputs[:2], 2)
    assert_close(opt.blocks[0].Omega, decay * before + (1 - decay) * fresh, 1e-12)


def test_iterates_are_averaged_like_those_of_the_other_optimizers(ops64, rng):
    opt = kfac(ops64)
    average = opt.network.theta.copy()
    first, *rest = batches(ops64, rng, 4)
    opt.prepare([first])
    for batch in rest:
        opt.step(batch)
        decay = math.exp(-8 / 100)
        average = decay * average + (1 - decay) * opt.network.theta
        assert_close(opt.average, average, 1e-12)
    assert (opt.steps, opt.examples) == (3, 24)


def test_inverses_follow_every_third_update_after_the_first_three(ops64, rng):
    opt = kfac(ops64, inverse_period=3, factor_damping_period=NEVER)
    first, *rest = batches(ops64, rng, 9)
    opt.prepare([first])
    changed = []
    for batch in rest:
        before = opt.blocks[0].Omega_inv.copy()
        opt.step(batch)
        changed.append(not np.array_equal(before, opt.blocks[0].Omega_inv))
    assert changed == [True, True, True, False, False, True, False, False]


def test_on_a_fixed_quadratic_the_exact_momentum_is_preconditioned_conjugate_gradients(ops64, rng):
    """A linear layer with Gaussian outputs, the same batch at every step, no damping of M."""
    layers = [dict(layer="dense", units=3, std=0.5)]
    opt = kfac(
        ops64,
        layers,
        (1, 1, 4),
        SquaredError,
        damping=0.0,
        fisher_fraction=1.0,
        weight_decay=0.05,
        damping_period=NEVER,
        factor_damping_period=NEVER,
        inverse_period=NEVER,
        statistics_period=NEVER,
    )
    x, y = rng.standard_normal((6, 1, 1, 4)) * [1, 3, 0.3, 1], rng.standard_normal((6, 3))
    batch = Batch(x, y)
    opt.prepare([batch])
    g, A = dense_model(opt, batch, 0)
    start, n = opt.network.theta.copy(), len(opt.network.theta)
    block, iterates = opt.blocks[0], []
    inverse = [block.precondition(unit.reshape(3, 5)).ravel() for unit in np.eye(n)]
    cg(
        A,
        A @ start - g,
        x0=start,
        M=np.array(inverse),
        maxiter=7,
        atol=0,
        callback=lambda iterate: iterates.append(iterate.copy()),
    )
    assert len(iterates) == 7
    for iterate in iterates:
        opt.step(batch)
        assert_close(opt.network.theta - start, iterate - start, 1e-6)


# The damping of the model


@pytest.mark.parametrize(
    "ratio, expected",
    [
        (0.76, 8.0),
        (5.0, 8.0),
        (0.75, 10.0),
        (0.5, 10.0),
        (0.25, 10.0),
        (0.24, 12.5),
        (-3.0, 12.5),
        (math.nan, 12.5),
        (-math.inf, 12.5),
    ],
)
def test_the_levenberg_marquardt_rule(ratio, expected):
    assert adapted_damping(10.0, ratio, factor=0.8) == expected


@pytest.mark.parametrize(
    "damping, moved_by", [(1e3, 0.9**2), (1e-9, 1 / 0.9**2)], ids=["timid", "rash"]
)
def test_damping_follows_the_ratio_of_actual_to_predicted_change(ops64, rng, damping, moved_by):
    """Every second step, by two updates' factor, with the masks that the step was made with."""
    opt = kfac(
        ops64,
        damping=damping,
        factor_damping=1e-3,
        fisher_fraction=0.25,
        weight_decay=1e-4,
        damping_period=2,
        damping_decay=0.9,
        factor_damping_period=NEVER,
    )
    first, *rest = batches(ops64, rng, 3)
    opt.prepare([first])
    opt.step(rest[0])
    assert opt.damping == damping
    g, C = dense_model(opt, rest[1], step=1)
    before = objective(opt, rest[1], step=1)
    opt.step(rest[1])
    d = opt.velocity
    ratio = (objective(opt, rest[1], step=1) - before) / (g @ d + d @ C @ d / 2)
    assert (ratio > 0.75) if damping == 1e3 else (ratio < 0.25)
    assert np.isclose(opt.damping, damping * moved_by, rtol=1e-12)


@pytest.mark.parametrize("config", [KfacConfig, HessianFreeConfig])
def test_a_model_that_promises_nothing_leaves_the_damping_alone(ops64, rng, config):
    """Outputs that are the targets: no gradient, no step, and a ratio that would be 0/0."""
    values = dict(averaging_timescale=100.0, statistics_timescale=100.0, damping_period=1)
    net = network(ops64, [dict(layer="dense", units=3, std=0.5)], SHAPE)
    opt = build_optimizer(config().model_copy(update=values), net, SquaredError(ops64, 3))
    inputs, theta = rng.standard_normal((8, *SHAPE)), net.theta.copy()
    batch = Batch(inputs, net.forward(inputs).copy())
    opt.prepare([batch])
    damping = opt.damping
    for _ in range(2):
        opt.step(batch)
    assert opt.damping == damping and opt.steps == 2
    assert np.array_equal(net.theta, theta)


# The damping of the factors


def test_factor_damping_starts_like_the_models_unless_given(ops64):
    assert kfac(ops64, damping=7.0, factor_damping=None).factor_damping == 7.0
    assert kfac(ops64, damping=7.0, factor_damping=2.0).factor_damping == 2.0


@pytest.mark.parametrize("start, factor", [(1e-2, 4), (1.0, 1), (100.0, 1 / 4)])
def test_factor_damping_is_the_best_of_three_candidates(ops64, rng, start, factor):
    """M(d) of each candidate from dense matrices; the winner's inverses and direction stay."""
    opt = kfac(
        ops64,
        factor_damping=start,
        damping_period=NEVER,
        factor_damping_period=2,
        inverse_period=2,
        damping_decay=0.5,
        fisher_fraction=1.0,
    )
    first, *rest = batches(ops64, rng, 3, M=64)
    opt.prepare([first])
    opt.step(rest[0])
    assert opt.factor_damping == start
    before = opt.velocity.copy()
    g, C = dense_model(opt, rest[1], step=1)
    opt.step(rest[1])
    inverses = [block.Omega_inv.copy() for block in opt.blocks]
    changes, updates = {}, {}
    for candidate in (start / 4, start, 4 * start):
        direction = np.empty_like(g)
        for block, part, out in zip(
            opt.blocks, opt.network.views(g), opt.network.views(direction), strict=True
        ):
            block.update_inverses(candidate)
            block.precondition(part, out)
        V = np.stack([-direction, before], axis=1)
        d = V @ least_squares_minimum(C, g, V)
        changes[candidate], updates[candidate] = g @ d + d @ C @ d / 2, d
    best = min(changes, key=changes.get)
    assert opt.factor_damping == best == start * factor
    assert_close(opt.velocity, updates[best], 1e-7)
    for block, kept in zip(opt.blocks, inverses, strict=True):
        block.update_inverses(best)
        assert np.array_equal(kept, block.Omega_inv)


@pytest.mark.parametrize("least", [0.0, 80.0])
def test_neither_damping_falls_below_the_least(ops64, rng, least):
    """The model's after a timid step, the factors' where the smallest candidate is the best."""
    first, *rest = batches(ops64, rng, 3, M=64)
    model = kfac(ops64, damping=100.0, min_damping=least, damping_period=2, damping_decay=0.5)
    factors = kfac(
        ops64,
        factor_damping=100.0,
        min_damping=least,
        damping_period=NEVER,
        factor_damping_period=2,
        inverse_period=2,
        damping_decay=0.5,
        fisher_fraction=1.0,
    )
    for opt in (model, factors):
        opt.prepare([first])
        for batch in rest:
            opt.step(batch)
    assert model.damping == factors.factor_damping == max(least, 25)


def test_at_the_least_factor_damping_two_candidates_are_inverted(ops64, rng, monkeypatch):
    """Not the same one twice."""
    opt = kfac(ops64, factor_damping=80.0, min_damping=80.0, factor_damping_period=4)
    first, *rest = batches(ops64, rng, 5)
    opt.prepare([first])
    dampings, invert = [], opt._update_inverses
    monkeypatch.setattr(
        opt, "_update_inverses", lambda: (dampings.append(opt.factor_damping), invert())
    )
    for batch in rest:
        opt.step(batch)
    larger = 80.0 / opt.config.damping_decay**4
    assert dampings[:5] == [80.0, 80.0, 80.0, larger, 80.0]  # of the first three updates, then two
    assert dampings[5:] == ([larger] if opt.factor_damping == larger else [])


# What a run needs


@pytest.mark.parametrize("tikhonov", ["factored", "exact"])
def test_a_restored_optimizer_goes_on_bit_for_bit(tikhonov, rng):
    """Stopped between two adaptations of either damping, with all of them still to come."""
    ops = CpuOps("float32", shards=2)
    data = batches(ops, rng, 12)
    straight, stopped, resumed = (
        kfac(ops, tikhonov=tikhonov, inverse_period=2, damping_period=3, factor_damping_period=4)
        for _ in range(3)
    )
    resumed.network.theta += 1
    for opt in (straight, stopped):
        opt.prepare(data[:1])
        for batch in data[1:6]:
            opt.step(batch)
    resumed.load_state(stopped.state())
    assert not resumed.needs_preparation and resumed.learning_rate == stopped.learning_rate > 0
    for batch in data[6:]:
        straight.step(batch)
        resumed.step(batch)
    for name in ("velocity", "average", "damping", "factor_damping", "learning_rate"):
        assert np.array_equal(getattr(straight, name), getattr(resumed, name)), name
    assert np.array_equal(straight.network.theta, resumed.network.theta)


@pytest.mark.parametrize("tikhonov", ["factored", "exact"])
def test_it_takes_the_same_steps_on_every_device(ops, rng, tikhonov):
    changes = dict(tikhonov=tikhonov, inverse_period=2, damping_period=2, factor_damping_period=2)
    layers = EVERY_LAYER[1:]
    data = batches(CpuOps("float64", shards=1), rng, 4, shape=INPUT_SHAPE)
    opt = kfac(ops, layers, INPUT_SHAPE, **changes)
    exact = kfac(CpuOps("float64", shards=1, native="off"), layers, INPUT_SHAPE, **changes)
    for each in (opt, exact):
        placed = [Batch(each.ops.asarray(batch.inputs), batch.targets) for batch in data]
        each.prepare(placed[:1])
        for batch in placed[1:]:
            each.step(batch)
    assert (opt.damping, opt.factor_damping) == (exact.damping, exact.factor_damping)
    start = network(exact.ops, layers, INPUT_SHAPE).theta
    tolerance = 1e-9 if ops.dtype == np.float64 else 2e-3
    assert_close(ops.to_numpy(opt.network.theta) - start, exact.network.theta - start, tolerance)


@pytest.mark.parametrize("tikhonov", ["factored", "exact"])
def test_learned_scales_take_part(ops64, rng, tikhonov):
    layers = [SMALL[1], dict(layer="batch_norm", affine=True), *SMALL[2:]]
    opt = kfac(ops64, layers, tikhonov=tikhonov)
    first, *rest = batches(ops64, rng, 5)
    opt.prepare([first])
    before = opt.network.views(opt.network.theta)[1].copy()
    losses = [opt.step(batch).totals[0] for batch in [rest[0]] * 4]
    assert (np.diff(losses) < 0).all()
    assert np.abs(opt.network.views(opt.network.theta)[1] - before).min() > 0
