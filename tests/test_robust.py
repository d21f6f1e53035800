"""Numbers that go wrong: failing inversions, vanishing derivatives, layers at the edge."""

import warnings

import numpy as np
import pytest
from checks import assert_close
from networks import network, settings

from kfcnet.batches import Batch
from kfcnet.curvature import damped_inverses, damping_floor
from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.damping import damping_shifts
from kfcnet.curvature.eigenbasis import EigenbasisBlock
from kfcnet.curvature.inversion import InversionWarning, all_finite, inverted
from kfcnet.curvature.scale_shift import ScaleShiftBlock
from kfcnet.curvature.structures import STRUCTURES, build_block
from kfcnet.layers import ScaleShift
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import build_optimizer

CONV = dict(layer="conv", name="conv1", filters=3, kernel=2, std=0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_element_is_found_and_large_ones_are_not_bad(ops, bad):
    matrix = np.full((7, 5), 1e30)
    assert all_finite(ops, ops.asarray(matrix))
    matrix[4, 3] = bad
    assert not all_finite(ops, ops.asarray(matrix))


def ill_conditioned(n=10, seed=1):
    """An integer matrix that float32 holds exactly but cannot factorize, and its exact inverse."""
    rng = np.random.default_rng(seed)
    lower = np.tril(rng.integers(-2, 3, (n, n)), -1) + np.eye(n)
    upper = np.triu(rng.integers(-2, 3, (n, n)), 1) + np.eye(n)
    inverse_root = np.round(np.linalg.inv(upper)) @ np.round(np.linalg.inv(lower))
    return (lower @ upper).T @ (lower @ upper), inverse_root @ inverse_root.T


def plain_inverse(ops, matrix):
    return [ops.spd_inverse(matrix, ops.zeros(1))]


@pytest.mark.parametrize("scales", [(1e3, 1e-36), (1e-36, 1e3)])
def test_pi_is_finite_where_the_ratio_of_the_traces_is_not(ops, scales):
    Omega, Gamma = np.diag([2.0, 1.5, 1.0]) * scales[0], np.diag([2.0, 1.0]) * scales[1]
    shifts = damping_shifts(ops, ops.asarray(Omega), ops.asarray(Gamma), 1e-3)
    pi = np.sqrt(Omega.trace() / 3) / np.sqrt(Gamma.trace() / 2)
    for shift, expected in zip(shifts, (pi * 1e-3**0.5, 1e-3**0.5 / pi), strict=True):
        assert np.isclose(ops.to_numpy(shift)[0], expected, rtol=1e-5)


def test_what_float32_cannot_factorize_is_inverted_in_float64():
    ops = CpuOps("float32", shards=1)
    matrix, expected = ill_conditioned()
    with pytest.raises(np.linalg.LinAlgError):
        plain_inverse(ops, ops.asarray(matrix))
    (result,) = inverted(ops, plain_inverse, {"Omega": ops.asarray(matrix)})
    assert result.dtype == np.float32
    assert_close(result, expected, 1e-6)


def test_an_inverse_that_float32_cannot_hold_is_a_failure():
    ops = CpuOps("float32", shards=1)
    matrix = ops.asarray(np.diag([1.0, 1e-44]))
    with pytest.raises(np.linalg.LinAlgError):
        inverted(ops, plain_inverse, {"Omega": matrix})


@pytest.mark.parametrize("factor", ["Omega", "Gamma"])
def test_the_damping_floor_is_where_the_factors_become_positive_definite(rng, factor):
    basis, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    indefinite = basis * [-0.5, 1.0, 2.0, 3.5] @ basis.T
    factors = {"Omega": np.diag([2.0, 3.0]), "Gamma": np.diag([1.0, 5.0]), factor: indefinite}
    floor = damping_floor(**factors)
    assert 0.01 < floor < 1
    assert all(np.isfinite(a).all() for a in damped_inverses(*factors.values(), 1.001 * floor))
    with pytest.raises(np.linalg.LinAlgError):
        damped_inverses(*factors.values(), 0.999 * floor)


def test_the_damping_floor_of_a_singular_factor_is_its_rounding():
    """float32 needs a shift of about n*eps times the largest eigenvalue, float64 far less."""
    Omega, Gamma = np.full((50, 50), 3.0), np.eye(2)
    floors = [damping_floor(Omega.astype(t), Gamma.astype(t)) for t in (np.float32, np.float64)]
    assert_close(
        floors, [(50 * np.finfo(t).eps * 150) ** 2 / 3 for t in (np.float32, np.float64)], 1e-6
    )


BLOCKS = STRUCTURES | {"exactly damped": EigenbasisBlock}


def fresh_block(ops, rng, structure="kfc"):
    """A block of a small convolution with factors from a pass, and its network's layer."""
    net = network(ops, [CONV], (4, 3, 2))
    y = net.forward(ops.asarray(rng.standard_normal((6, 4, 3, 2))))
    net.backward(ops.asarray(rng.standard_normal(y.shape)))
    block = BLOCKS[structure](net.weighted[0], ops, weight_decay=0.01)
    block.update_factors(0.0)
    return block


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_first_inversion_that_fails_is_an_error_naming_the_layer(ops64, rng, structure):
    block = fresh_block(ops64, rng, structure)
    block.Gamma[1, 1] = np.nan
    with pytest.raises(np.linalg.LinAlgError, match="conv1: Gamma is not finite"):
        block.update_inverses(0.1)


def test_an_indefinite_factor_is_reported_with_its_eigenvalue_and_the_damping_it_needs(ops64, rng):
    block = fresh_block(ops64, rng)
    block.Omega[...] = np.diag([-2.0] + 8 * [1.0])
    block.Gamma[...] = np.diag([0.25, 0.5, 0.75])
    floor = damping_floor(block.Omega, block.Gamma)
    assert_close(floor, 4 / ((6 / 9) / 0.5))  # shift pi*sqrt(c) of Eq. 21 must exceed 2
    with pytest.raises(
        np.linalg.LinAlgError,
        match=(
            "conv1: .*not positive definite.* smallest eigenvalue of Omega -2, of Gamma 0.25; "
            "weight decay . damping is 0.11, from 3 on"
        ),
    ):
        block.update_inverses(0.1)
    block.update_inverses(1.001 * floor)
    assert np.isfinite(block.Omega_inv).all()


@pytest.mark.parametrize("structure", ["ekfac", "exactly damped"])
def test_eigenvalues_of_zero_without_damping_are_refused_not_divided_by(ops64, rng, structure):
    block = fresh_block(ops64, rng, structure)
    block.weight_decay = 0.0
    block.Omega[4], block.Omega[:, 4] = 0, 0
    with pytest.raises(
        np.linalg.LinAlgError,
        match=("conv1: an eigenvalue is zero, and weight decay . damping too$"),
    ):  # no floor of Eq. 21
        block.update_inverses(0.0)
    block.update_inverses(1e-6)
    assert np.isfinite(block.inverse_values).all()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("spoilt", [("Omega", np.nan), ("Gamma", np.inf), ("Omega", -1e3)])
def test_a_later_failure_keeps_all_of_the_last_good_inverses_and_warns(
    ops64, rng, structure, spoilt
):
    name, value = spoilt
    block = fresh_block(ops64, rng, structure)
    block.update_inverses(0.1)
    good = {key: getattr(block, key).copy() for key in block.INVERSES}
    getattr(block, name)[0, 0] = value
    if structure in ("ekfac", "autocovariance") and np.isfinite(value):
        # EKFAC's eigenvalues are moments, which are never negative; the other has a plain inverse.
        block.update_inverses(0.1)
        assert all(np.isfinite(getattr(block, key)).all() for key in block.INVERSES)
        return
    with pytest.warns(InversionWarning, match="step 7, conv1: .* last good inverses stay"):
        block.update_inverses(0.1, step=7)
    for key, inverse in good.items():
        assert np.array_equal(getattr(block, key), inverse)


def test_of_many_failed_inversions_few_are_told_with_their_count(ops64, rng):
    block = fresh_block(ops64, rng)
    block.update_inverses(0.1)
    block.Omega[0, 0] = np.nan
    with pytest.warns(InversionWarning) as warned:
        for step in range(120):
            block.update_inverses(0.1, step)
    told = [str(warning.message).split("stay")[-1] for warning in warned]
    assert told == ["", ", failure 10 of this layer", ", failure 100 of this layer"]
    assert [str(warning.message).split(",")[0] for warning in warned] == [
        "step 0",
        "step 9",
        "step 99",
    ]


def test_training_goes_on_past_a_spoilt_factor_and_returns_to_fresh_inverses(ops64, rng):
    opt = build_optimizer(
        settings("kfc_pre", statistics_period=1, inverse_period=1),
        network(ops64, [CONV, dict(layer="dense", units=3)], (4, 3, 2)),
        SoftmaxCrossEntropy(ops64),
    )
    batches = [
        Batch(rng.standard_normal((6, 4, 3, 2)), np.arange(6, dtype=np.int32) % 3) for _ in range(4)
    ]
    opt.prepare(batches[:1])
    opt.step(batches[1])
    before, kept = opt.blocks[0].Omega.copy(), opt.blocks[0].Omega_inv.copy()
    opt.blocks[0].Omega[2, 2] = np.nan
    with pytest.warns(InversionWarning, match="step 1, conv1: Omega is not finite"):
        opt.step(batches[2])
    assert np.array_equal(opt.blocks[0].Omega_inv, kept)
    opt.blocks[0].Omega[...] = before
    opt.step(batches[3])
    assert not np.array_equal(opt.blocks[0].Omega_inv, kept)
    assert np.isfinite(opt.network.theta).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_identical_passes_give_the_factors_of_one_to_rounding(ops64, rng, structure):
    """No identity, and nothing of the empty start, is left in the averages."""
    block = fresh_block(ops64, rng, structure)
    block.update_inverses(0.1)
    block.update_factors(0.3)
    averages = [name for name in block.FACTORS if name in ("Omega", "Gamma", "moments")]
    once = [getattr(block, name).copy() for name in averages]
    for decay in (0.9, 0.5, 0.99, 0.01, 0.0):
        block.update_factors(decay)
    for name, expected in zip(averages, once, strict=True):
        assert_close(getattr(block, name), expected, 1e-14)


DENSE = dict(layer="dense", units=3, std=0.5)
RELU = dict(layer="relu")
EDGES = {
    "one output": ([CONV | dict(filters=1), RELU, DENSE], (4, 3, 2), 5),
    "one input": ([CONV | dict(kernel=1), RELU, DENSE], (4, 3, 1), 5),
    "one location": ([CONV | dict(kernel=3), RELU, DENSE], (3, 3, 2), 5),
    "one number in and out": ([dict(layer="dense", units=1, std=1.0), DENSE], (1, 1, 1), 5),
    "one class, so no derivatives": ([CONV, DENSE | dict(units=1)], (4, 3, 2), 5),
    "batch of one": ([CONV, RELU, DENSE], (4, 3, 2), 1),
    "offsets that never meet the image": ([CONV | dict(kernel=3, padding=1), DENSE], (1, 3, 2), 5),
}


def train(ops, structure, layers, shape, M, change=lambda net: None):
    """The network after six steps with statistics and inverses at each; no warning may fall."""
    net = network(ops, layers, shape)
    change(net)
    classes = net.layers[-1].output_shape[0]
    opt = build_optimizer(
        settings(
            "kfc_pre",
            structure=structure,
            statistics_period=1,
            inverse_period=1,
            statistics_fraction=1.0,
        ),
        net,
        SoftmaxCrossEntropy(ops),
    )
    rng = np.random.default_rng(1)
    batches = [
        Batch(
            ops.asarray(rng.standard_normal((M, *shape))),
            rng.integers(0, classes, M).astype(np.int32),
        )
        for _ in range(7)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.prepare(batches[:1])
        for batch in batches[1:]:
            opt.step(batch)
    return net, opt


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("edge", EDGES)
def test_layers_at_the_edge_keep_weights_finite(structure, edge):
    net, _ = train(CpuOps("float32", shards=1), structure, *EDGES[edge])
    assert np.isfinite(net.theta).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_dead_unit_stays_where_it_is_and_the_others_learn(structure):
    def kill(net):
        net.weighted[0].weight[1] = 0
        net.weighted[0].weight[1, 0] = -1e6

    layers = [CONV, RELU, DENSE]
    net, _ = train(CpuOps("float32", shards=1), structure, layers, (4, 3, 2), 5, kill)
    untrained = network(CpuOps("float32", shards=1), layers, (4, 3, 2))
    assert np.isfinite(net.theta).all()
    assert net.weighted[0].weight[1, 0] == -1e6
    assert np.abs(net.weighted[0].weight[1, 1:]).max() < 1e-12  # a rotation there and back
    assert (net.weighted[0].weight[[0, 2]] != untrained.weighted[0].weight[[0, 2]]).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_derivatives_that_vanish_altogether_move_nothing(structure):
    """Logits so far apart that softmax is exactly one-hot: the samples agree with it."""

    def be_certain(net):
        net.weighted[-1].weight[:] = 0
        net.weighted[-1].weight[1, 0] = 1e4

    ops = CpuOps("float32", shards=1)
    net = network(ops, [CONV, RELU, DENSE], (4, 3, 2))
    be_certain(net)
    opt = build_optimizer(
        settings("kfc_pre", structure=structure, statistics_period=1, inverse_period=1),
        net,
        SoftmaxCrossEntropy(ops),
    )
    x = ops.asarray(np.random.default_rng(0).standard_normal((5, 4, 3, 2)))
    batch, before = Batch(x, np.ones(5, np.int32)), net.theta.copy()
    opt.prepare([batch])
    for _ in range(3):
        opt.step(batch)
    assert all((block.Gamma == 0).all() for block in opt.blocks)
    assert np.array_equal(net.theta, before)
    assert all(
        np.isfinite(block.state()[name]).all() for block in opt.blocks for name in block.INVERSES
    )


def test_a_block_restored_from_its_state_has_inverses_to_keep(ops64, rng):
    block = fresh_block(ops64, rng)
    block.update_inverses(0.1)
    restored = KroneckerBlock(block.layer, ops64, 0.01)
    restored.load_state(block.state())
    restored.Omega[0, 0] = np.nan
    with pytest.warns(InversionWarning):
        restored.update_inverses(0.1)
    assert np.array_equal(restored.Omega_inv, block.Omega_inv)


@pytest.mark.parametrize("structure", [*STRUCTURES, "exact Tikhonov", "scale and shift"])
def test_a_block_restored_from_before_the_first_inversion_has_none_to_keep(ops64, structure):
    if structure == "scale and shift":
        layer = ScaleShift(ops64, (4, 3, 2), "affine")
        before, restored = (ScaleShiftBlock(layer, ops64) for _ in range(2))
    else:
        (layer,) = network(ops64, [CONV], (4, 3, 2)).weighted
        kind = ("kfc", "exact") if structure == "exact Tikhonov" else (structure, "factored")
        before, restored = (build_block(kind[0], layer, ops64, 0.0, kind[1]) for _ in range(2))
    restored.load_state(before.state())
    assert not restored.has_inverses
    ops64.write(before.Omega, np.eye(len(before.Omega)))
    ops64.write(before.Gamma, np.eye(len(before.Gamma)))
    before.update_inverses(0.1)
    restored.load_state(before.state())
    assert restored.has_inverses
