"""Inverses of all factors at once, within a captured graph."""

from functools import cache

import numpy as np
import pytest
from checks import assert_close

from kfcnet.config import load_config
from kfcnet.curvature.damping import damped_inverses
from kfcnet.data import load
from kfcnet.ops.cpu import CpuOps
from kfcnet.training.build import build_for, examples_of

C = 0.03  # weight decay + damping


def factor(rng, side, scale=1.0):
    root = rng.standard_normal((side, side)) * np.geomspace(1, 0.03, side)
    return (scale * root @ root.T / side).astype(np.float32)


def flat(matrices):
    return np.concatenate([matrix.ravel() for matrix in matrices])


def split(vector, sides):
    ends = np.cumsum([side**2 for side in sides])[:-1]
    parts = np.split(vector, ends)
    return [part.reshape(side, side) for part, side in zip(parts, sides, strict=True)]


def adopt(cuda, matrices, failures=None):
    """([inverse, ...], failures); where nothing is adopted sevens stay."""
    sides = [len(matrix) for matrix in matrices]
    inverses = cuda.asarray(np.full(sum(side**2 for side in sides), 7.0))
    failures = cuda.to_device(np.zeros(len(sides) // 2, np.int32) if failures is None else failures)
    damping = cuda.asarray(np.full(len(sides) // 2, C))
    cuda.adopt_inverses(cuda.asarray(flat(matrices)), sides, damping, inverses, failures)
    return split(cuda.to_numpy(inverses), sides), cuda.to_numpy(failures).tolist()


@pytest.mark.parametrize("sides", [(9, 4), (33, 5, 130, 64), (1, 65)])
def test_damped_factors_are_inverted_together(cuda, rng, sides):
    matrices = [factor(rng, side, scale=1 + side) for side in sides]
    inverses, failures = adopt(cuda, matrices)
    assert failures == [0] * (len(sides) // 2)
    reference = CpuOps("float64", shards=1)
    for index in range(0, len(sides), 2):
        exact = damped_inverses(reference, *map(reference.asarray, matrices[index : index + 2]), C)
        for inverse, expected in zip(inverses[index : index + 2], exact, strict=True):
            assert np.isfinite(inverse).all()
            assert_close(inverse, expected, 1e-4)
            assert np.array_equal(inverse, inverse.T)


def test_a_factor_that_vanishes_is_damped_with_the_root_alone(cuda):
    (omega, gamma), _ = adopt(cuda, [np.zeros((3, 3)), np.eye(2)])
    assert_close(omega, np.eye(3) / C**0.5, 1e-6)
    assert_close(gamma, np.eye(2) / (1 + C**0.5), 1e-6)


@pytest.mark.parametrize("scales", [(1e3, 1e-36), (1e-36, 1e3)])
def test_pi_is_finite_where_the_ratio_of_the_traces_is_not_within_a_graph(cuda, scales):
    matrices = [np.diag([2.0, 1.5, 1.0]) * scales[0], np.diag([2.0, 1.0]) * scales[1]]
    inverses, failures = adopt(cuda, matrices)
    assert failures == [0]
    exact = damped_inverses(CpuOps("float64", shards=1), *matrices, C)
    for inverse, expected in zip(inverses, exact, strict=True):
        assert_close(inverse, expected, 1e-5)


@pytest.mark.parametrize("spoil", [-50.0, np.nan, np.inf])
@pytest.mark.parametrize("row, column", [(0, 0), (31, 31), (40, 40), (3, 39)])
def test_a_layer_with_a_factor_that_is_not_positive_definite_keeps_its_inverses(
    cuda, spoil, row, column
):
    bad = np.eye(41)
    bad[row, column] = bad[column, row] = spoil
    matrices = [np.eye(3), np.eye(2), np.eye(2), bad, np.eye(70), np.eye(5)]
    inverses, failures = adopt(cuda, matrices, np.array([0, 4, 0], np.int32))
    assert failures == [0, 5, 0]
    assert (inverses[2] == 7).all() and (inverses[3] == 7).all()
    for index in (0, 1, 4, 5):
        assert_close(inverses[index], np.eye(len(inverses[index])) / (1 + C**0.5), 1e-6)


@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_sweeps_are_about_as_exact_as_a_cholesky_factorization(cuda, rng, condition):
    basis = np.linalg.qr(rng.standard_normal((100, 100)))[0]
    omega = ((basis * np.geomspace(1, 1 / condition, 100)) @ basis.T).astype(np.float32)
    gamma = np.array([[np.trace(omega, dtype=np.float64) / 100]])  # pi is one
    shift = C**0.5 / condition
    damping, inverses = cuda.asarray([shift**2]), cuda.empty(100**2 + 1)
    failures = cuda.to_device(np.zeros(1, np.int32))
    cuda.adopt_inverses(cuda.asarray(flat([omega, gamma])), (100, 1), damping, inverses, failures)
    exact = np.linalg.inv(omega.astype(np.float64) + shift * np.eye(100))
    factored = CpuOps(shards=1).spd_inverse(omega, np.full(1, shift, np.float32))
    errors = [
        np.abs(inverse - exact).max()
        for inverse in (split(cuda.to_numpy(inverses), (100, 1))[0], factored)
    ]
    assert errors[0] < 8 * errors[1]


@cache
def trained_factors():
    """[(Omega, Gamma)] of the first two layers, after some steps of KFC-pre on the digits."""
    config = load_config("digits_kfc")
    ops, dataset = CpuOps("float32", shards=1), load(config.data)
    optimizer = build_for(dataset, config, ops)
    examples = examples_of(dataset, "train", config, ops)
    batches = [examples.batch(np.arange(128 * i, 128 * i + 128)) for i in range(10)]
    optimizer.prepare(batches[:2])
    for batch in batches:
        optimizer.step(batch)
    return [(block.Omega, block.Gamma) for block in optimizer.blocks[:2]]


@pytest.mark.parametrize(
    "layer, c", [(0, 1e-3), (0, 1e-1), (1, 1e-3), pytest.param(1, 1e-1, marks=pytest.mark.slow)]
)
def test_gradients_preconditioned_by_sweeps_are_those_of_float64(cuda, rng, layer, c):
    factors, reference = trained_factors()[layer], CpuOps("float64", shards=1)
    sides = [len(factor) for factor in factors]
    inverses, failures = cuda.empty(sum(side**2 for side in sides)), np.zeros(1, np.int32)
    failures = cuda.to_device(failures)
    cuda.adopt_inverses(cuda.asarray(flat(factors)), sides, cuda.asarray([c]), inverses, failures)
    assert cuda.to_numpy(failures).tolist() == [0]
    swept = split(cuda.to_numpy(inverses).astype(np.float64), sides)
    exact = damped_inverses(reference, *map(reference.asarray, factors), c)
    gradient = rng.standard_normal(sides[::-1])
    found, expected = (Gamma @ gradient @ Omega for Omega, Gamma in (swept, exact))
    cosine = np.vdot(found, expected) / np.linalg.norm(found) / np.linalg.norm(expected)
    assert np.isfinite(found).all() and cosine > 0.9999
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
