"""Structures of a Fisher block: each against its definition in plain loops, and what it keeps."""

import itertools

import numpy as np
import pytest
from checks import assert_close, patches_loops
from networks import EVERY_LAYER, INPUT_SHAPE, batches, network, optimizer, settings

from kfcnet.batches import Batch
from kfcnet.curvature.damping import precondition_product
from kfcnet.curvature.structures import STRUCTURES, build_block
from kfcnet.curvature.sua import location_counts
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import build_optimizer
from kfcnet.runs import labels

LAYERS = [
    dict(layer="conv", name="conv1", filters=2, kernel=3, padding=1, std=0.5),
    dict(layer="max_pool", size=2, stride=2),
    dict(layer="conv", name="conv2", filters=3, kernel=2, stride=2, padding=1, std=0.5),
    dict(layer="relu"),
    dict(layer="dense", name="dense1", units=4, std=0.5),
]
SHAPE = (5, 4, 2)


def sampled_pass(ops, M=6, seed=0):
    """A network after a pass at sampled targets; its layers hold what factors are made of."""
    net = network(ops, LAYERS, SHAPE)
    loss = SoftmaxCrossEntropy(ops, seed)
    x = ops.asarray(np.random.default_rng(seed).standard_normal((M, *SHAPE)))
    p, _, _ = loss.evaluate(net.forward(x), np.zeros(M, np.int32))
    net.backward(loss.sampled_gradient(p, step=0), per_example=True)
    return net


def filled(ops, structure, index, **arguments):
    """The block of layer `index` with factors, basis and moments from one and the same pass."""
    net = sampled_pass(ops, **arguments)
    block = build_block(structure, net.weighted[index], ops, weight_decay=0.03)
    block.update_factors(0.0)
    block.update_inverses(0.02)
    block.update_factors(0.0)
    block.update_inverses(0.02)
    return block


def example_gradients(layer):
    """The gradients of each example's own loss as rows (M, I*P), from explicit patches."""
    M, I = len(layer.derivatives), layer.weight_shape[0]
    rows = patches_loops(layer.inputs[:M], *layer.window).reshape(M, -1, layer.weight_shape[1])
    derivatives = layer.derivatives.reshape(M, -1, I)
    return np.stack([(ds.T @ a).ravel() for ds, a in zip(derivatives, rows, strict=True)])


def damped_matrix(block):
    """The block as it is inverted: Eq. 21 for Kronecker products, c for every value of EKFAC."""
    if block.INVERSES != ("Omega_inv", "Gamma_inv"):
        return block.matrix() + 0.05 * np.eye(len(block.matrix()))
    Omega, Gamma = block.project(block.ops, block.Omega, block.Gamma)
    pi = np.sqrt((np.trace(Omega) / len(Omega)) / (np.trace(Gamma) / len(Gamma)))
    root = np.sqrt(0.05)
    return np.kron(Gamma + root / pi * np.eye(len(Gamma)), Omega + root * pi * np.eye(len(Omega)))


@pytest.mark.parametrize("index", [0, 1, 2], ids=["conv1", "conv2", "dense1"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_preconditioning_is_the_dense_solve_of_the_damped_block(ops64, rng, structure, index):
    block = filled(ops64, structure, index)
    gradient = rng.standard_normal(block.layer.weight_shape)
    expected = np.linalg.solve(damped_matrix(block), gradient.ravel()).reshape(gradient.shape)
    assert_close(block.precondition(gradient), expected)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_device_preconditions_like_the_reference(ops, ops64, rng, structure):
    gradient = rng.standard_normal((3, 9))
    expected = filled(ops64, structure, 1).precondition(gradient)
    got = filled(ops, structure, 1).precondition(ops.asarray(gradient))
    assert_close(ops.to_numpy(got), expected, 1e-3 if ops.dtype == np.float32 else 1e-10)


WIDE = [
    dict(layer="conv", filters=2, kernel=3, std=0.5),
    dict(layer="dense", units=7, std=0.5),
    dict(layer="batch_norm", affine=True),
    dict(layer="relu"),
    dict(layer="dense", units=3, std=0.5),
]


@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_natural_gradient_is_that_of_the_gradient_also_where_its_rows_are_taken(
    ops, structure, decay, rng, monkeypatch
):
    """Five rows for a dense layer of 7 x 41: the rows cost less, as in SVHN's first dense layer."""
    opt = optimizer(ops, "kfc_pre", WIDE, structure=structure, weight_decay=decay)
    first, batch = batches(ops, rng, 2, M=5)
    opt.prepare([first])
    products = []
    monkeypatch.setattr(
        "kfcnet.curvature.block.precondition_product",
        lambda *args: products.append(args[1].shape) or precondition_product(*args),
    )
    opt.step(batch)
    of_rows = not decay and structure != "ekfac"
    assert set(products) == ({(5, 7)} if of_rows else set())
    expected = ops.zeros(opt.direction.shape)
    opt._precondition(opt.network.gradient, expected)
    got, expected = map(ops.to_numpy, (opt.direction, expected))
    assert np.isfinite(got).all()
    assert_close(got, expected, 1e-3 if ops.dtype == np.float32 else 1e-10)


@pytest.mark.parametrize("index", [0, 1, 2], ids=["conv1", "conv2", "dense1"])
def test_diagonal_is_the_diagonal_of_kfc(ops64, index):
    kfc, diagonal = (filled(ops64, name, index).matrix() for name in ("kfc", "diagonal"))
    assert_close(diagonal, np.diag(np.diag(kfc)))


def test_white_derivatives_keep_the_trace_of_gamma_and_all_of_omega(ops64):
    block = filled(ops64, "white_derivatives", 1)
    scale = np.trace(block.Gamma) / 3
    assert_close(block.matrix(), np.kron(scale * np.eye(3), block.Omega))


@pytest.mark.parametrize("index", [0, 1])
def test_location_counts_are_those_of_plain_loops(ops64, index):
    layer = network(ops64, LAYERS, SHAPE).weighted[index]
    rows = patches_loops(np.ones((1, *layer.input_shape[:2], 1)), *layer.window)
    assert np.array_equal(location_counts(ops64, layer), rows.T @ rows)


@pytest.mark.parametrize("index", [0, 1], ids=["stride 1", "stride 2"])
def test_sua_is_its_definition_in_plain_loops(ops64, index):
    """Blocks of one offset as they are; between offsets the means of what both of them see."""
    block = filled(ops64, "sua", index)
    layer, J = block.layer, block.layer.input_shape[2]
    M, K2 = len(layer.inputs), layer.window[0] ** 2
    rows = patches_loops(layer.inputs, *layer.window).reshape(M, -1, layer.weight_shape[1])
    ones = np.ones((1, *layer.input_shape[:2], 1))
    inside = patches_loops(ones, *layer.window)[:, 1:].astype(bool)  # (T, K2)
    expected = sum(a.T @ a for a in rows) / M
    for d, e in itertools.product(range(K2), repeat=2):
        if d == e:
            continue
        mean_d, mean_e = (
            rows[:, inside[:, o], 1 + o * J : 1 + (o + 1) * J].mean((0, 1)) for o in (d, e)
        )
        both = (inside[:, d] & inside[:, e]).sum()
        expected[1 + d * J : 1 + (d + 1) * J, 1 + e * J : 1 + (e + 1) * J] = both * np.outer(
            mean_d, mean_e
        )
    Omega, Gamma = block.project(ops64, block.Omega, block.Gamma)
    assert_close(Omega, expected)
    assert Gamma is block.Gamma
    assert np.abs(Omega - block.Omega).max() > 0.1 * np.abs(Omega).max()


@pytest.mark.parametrize("correlated", [False, True])
def test_sua_is_kfc_where_activations_are_uncorrelated_and_only_there(ops64, rng, correlated):
    """Theorem 4: white noise around a mean for every map; the control is a moving average of it."""
    noise = rng.standard_normal((20_000, 6, 5, 2)) @ rng.standard_normal((2, 2))
    white = noise[:, 1:, 1:] + (noise[:, :-1, :-1] if correlated else 0) + [0.5, -1.0]
    net = network(ops64, [LAYERS[0]], SHAPE)
    net.backward(np.ones_like(net.forward(white)))
    block = build_block("sua", net.weighted[0], ops64)
    block.update_factors(0.0)
    Omega, _ = block.project(ops64, block.Omega, block.Gamma)
    error = np.abs(Omega - block.Omega).max() / np.abs(Omega).max()
    assert error > 0.2 if correlated else error < 0.02


def test_sua_is_positive_semidefinite_for_activations_of_any_kind(ops64, rng):
    """Neither stationary nor of equal mean, and fewer examples than entries."""
    net = network(ops64, [LAYERS[0]], SHAPE)
    x = rng.standard_normal((2, *SHAPE)) + np.arange(5)[:, None, None] * [3.0, -2.0]
    net.backward(np.ones_like(net.forward(x)))
    block = build_block("sua", net.weighted[0], ops64)
    block.update_factors(0.0)
    values = np.linalg.eigvalsh(block.project(ops64, block.Omega, block.Gamma)[0])
    assert values[0] > -1e-12 * values[-1]


def test_sua_of_a_dense_layer_is_kfc(ops64):
    assert np.array_equal(filled(ops64, "sua", 2).matrix(), filled(ops64, "kfc", 2).matrix())


@pytest.mark.parametrize("index", [0, 1, 2], ids=["conv1", "conv2", "dense1"])
def test_eigenvalue_corrected_kfc_is_no_farther_from_the_exact_block_than_kfc(ops64, index):
    """With the same samples for the exact block, the basis and the eigenvalues."""
    corrected, kfc = (filled(ops64, name, index) for name in ("ekfac", "kfc"))
    gradients = example_gradients(corrected.layer)
    exact = gradients.T @ gradients / len(gradients)
    distances = [np.linalg.norm(block.matrix() - exact) for block in (corrected, kfc)]
    assert np.isfinite(distances).all()
    assert distances[0] < 0.99 * distances[1]


def test_the_moments_are_the_diagonal_of_the_exact_block_in_the_basis(ops64):
    block = filled(ops64, "ekfac", 1)
    gradients = example_gradients(block.layer)
    basis = np.kron(block.derivative_basis, block.input_basis)
    assert_close(block.moments.ravel(), np.square(gradients @ basis).mean(axis=0))
    exact = gradients.T @ gradients / len(gradients)
    assert_close(np.trace(block.matrix()), np.trace(exact))


def test_before_the_first_pass_the_moments_are_the_eigenvalues_of_kfc(ops64):
    block = build_block("ekfac", sampled_pass(ops64).weighted[1], ops64)
    block.update_factors(0.0)
    block.update_inverses(0.1)
    assert_close(block.matrix(), np.kron(block.Gamma, block.Omega))


def test_moments_are_the_mean_of_the_first_passes_and_then_a_running_average(ops64):
    block = build_block("ekfac", sampled_pass(ops64).weighted[1], ops64)
    block.update_factors(0.0)
    block.update_inverses(0.1)
    basis = np.kron(block.derivative_basis, block.input_basis)
    passes = []
    for seed in range(4):
        block.layer = sampled_pass(ops64, seed=seed).weighted[1]
        passes.append(np.square(example_gradients(block.layer) @ basis).mean(axis=0))
        block.update_factors(0.7)
        if seed == 1:
            assert_close(block.moments.ravel(), (passes[0] + passes[1]) / 2)
    mean = sum(passes[:3]) / 3  # 2/3 is still below the decay, 3/4 no longer
    assert_close(block.moments.ravel(), 0.7 * mean + 0.3 * passes[3])


def test_a_new_basis_takes_the_moments_along_as_the_old_block_seen_in_it(ops64):
    block = filled(ops64, "ekfac", 1)
    old = block.matrix()
    block.layer = sampled_pass(ops64, seed=9).weighted[1]
    super(type(block), block).update_factors(0.5)  # the factors alone
    block.update_inverses(0.02)
    basis = np.kron(block.derivative_basis, block.input_basis)
    assert_close(block.moments.ravel(), np.diag(basis.T @ old @ basis))
    assert np.linalg.norm(block.matrix() - old) > 0.01 * np.linalg.norm(old)


DAMPED = [*(dict(structure=structure) for structure in STRUCTURES), dict(tikhonov="exact")]


def test_exact_tikhonov_takes_eigenvalues_that_rounding_made_negative_for_zero(ops64, rng):
    """Two negative ones would make a large product, and one with a positive one less than c."""
    block = build_block("kfc", network(ops64).weighted[0], ops64, tikhonov="exact")
    values = []
    for name in block.FACTORS:
        factor = getattr(block, name)
        basis, _ = np.linalg.qr(rng.standard_normal(factor.shape))
        d = np.linspace(1, 2, len(factor))
        d[:1] = -1e-3
        factor[...] = basis * d @ basis.T
        values.append(np.where(d > 0, d, 0))
    block.update_inverses(1e-4)
    expected = 1 / (np.outer(*values[::-1]) + 1e-4)
    assert_close(np.sort(block.inverse_values.ravel()), np.sort(expected.ravel()), 1e-7)


def test_exact_tikhonov_adds_the_damping_to_the_product(ops64, rng):
    opt = optimizer(
        ops64, "kfc_pre", LAYERS[:1] + LAYERS[4:], tikhonov="exact", weight_decay=0.03, damping=0.02
    )
    opt.prepare(batches(ops64, rng, 1, classes=4))
    for block in opt.blocks:
        gradient = rng.standard_normal(block.layer.weight_shape)
        damped = np.kron(block.Gamma, block.Omega) + 0.05 * np.eye(gradient.size)
        expected = np.linalg.solve(damped, gradient.ravel()).reshape(gradient.shape)
        assert_close(block.natural_gradient(gradient, np.empty_like(gradient)), expected)


@pytest.mark.parametrize("options", DAMPED, ids=lambda options: "-".join(options.values()))
def test_training_with_any_structure_goes_on_bit_for_bit_from_its_state(options, rng):
    ops = CpuOps("float32", shards=2)
    data = [
        Batch(
            ops.asarray(rng.standard_normal((8, *INPUT_SHAPE))),
            rng.integers(0, 3, 8).astype(np.int32),
        )
        for _ in range(8)
    ]
    straight, resumed = (
        build_optimizer(
            settings("kfc_pre", **options, inverse_period=2),
            network(ops, EVERY_LAYER, seed=3),
            SoftmaxCrossEntropy(ops, 3),
        )
        for _ in range(2)
    )
    straight.prepare(data[:1])
    for batch in data[1:5]:
        straight.step(batch)
    resumed.load_state(straight.state())
    for batch in data[5:]:
        straight.step(batch)
        resumed.step(batch)
    assert np.isfinite(straight.network.theta).all()
    assert np.array_equal(straight.network.theta, resumed.network.theta)


@pytest.mark.parametrize("window", [(3, 1, 1), (2, 1, 0), (2, 2, 1), (1, 1, 0)], ids=str)
def test_autocovariances_are_means_over_all_pairs_of_locations_of_one_offset(ops64, rng, window):
    """Eq. 19 in loops, on 3 images of 5 x 4 pixels and 2 maps."""
    kernel, stride, padding = window
    layer = dict(layer="conv", filters=1, kernel=kernel, stride=stride, padding=padding)
    net = network(ops64, [layer], SHAPE)
    block = build_block("autocovariance", net.weighted[0], ops64)
    x = 1 + rng.standard_normal((3, *SHAPE))
    block.Omega[...] = 7.0
    block.update_input_factor(x, 0.25)
    pixels = list(itertools.product(range(5), range(4)))

    def autocovariance(i, j, d1, d2):
        values = [
            x[m, r, c, i] * x[m, r + d1, c + d2, j]
            for m in range(3)
            for r, c in pixels
            if 0 <= r + d1 < 5 and 0 <= c + d2 < 4
        ]
        return np.mean(values)

    ones = patches_loops(np.ones((1, 5, 4, 1)), *window).reshape(-1, 1 + kernel**2)
    beta = ones.T @ ones  # how many locations see both of two offsets
    expected = np.full(block.Omega.shape, beta[0, 0])
    offsets = list(itertools.product(range(kernel), range(kernel), range(2)))
    for row, (r, c, i) in enumerate(offsets, 1):
        here = 1 + r * kernel + c
        expected[row, 0] = expected[0, row] = beta[0, here] * x[..., i].mean()
        for column, (r2, c2, j) in enumerate(offsets, 1):
            count = beta[here, 1 + r2 * kernel + c2]
            if count:
                expected[row, column] = count * autocovariance(i, j, r2 - r, c2 - c)
            else:
                expected[row, column] = 0
    assert_close(block.Omega, 0.25 * 7 + 0.75 * expected)
    if kernel == 1:  # nothing to be assumed: Theorem 2
        other = build_block("kfc", net.weighted[0], ops64)
        other.update_input_factor(x, 0.0)
        assert_close(expected, other.Omega)


def test_plugged_in_autocovariances_need_not_be_positive_semidefinite(ops64):
    """A bright frame around a dark middle: means over all locations know neither of the two."""
    x = np.ones((1, 4, 4, 1))
    x[0, 1:3, 1:3] = 0
    net = network(ops64, [dict(layer="conv", filters=1, kernel=3, padding=1)], (4, 4, 1))
    smallest = {}
    for structure in ("kfc", "autocovariance"):
        block = build_block(structure, net.weighted[0], ops64)
        block.update_input_factor(x, 0.0)
        smallest[structure] = np.linalg.eigvalsh(block.Omega)[0]
    assert smallest["kfc"] > -1e-12 and smallest["autocovariance"] < -1, smallest


@pytest.mark.parametrize("options", DAMPED, ids=lambda options: "-".join(options.values()))
def test_training_with_any_structure_lowers_the_loss(ops64, rng, options):
    opt = build_optimizer(
        settings(
            "kfc_pre",
            **options,
            damping=0.03,
            learning_rate=0.1,
            momentum=0.5,
            statistics_period=1,
            inverse_period=2,
        ),
        network(ops64, LAYERS, SHAPE),
        SoftmaxCrossEntropy(ops64),
    )
    x = rng.standard_normal((40, *SHAPE))
    labels = (x[..., 0].sum((1, 2)) > 0).astype(np.int32) + 2 * (x[:, 0, 0, 1] > 0)
    batch = Batch(x, labels.astype(np.int32))
    opt.prepare([batch])
    losses = [opt.step(batch).totals[0] / 40 for _ in range(25)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.6 * losses[0], losses


def test_an_unknown_structure_is_refused_with_the_known_ones(ops64):
    with pytest.raises(
        ValueError,
        match="'full' is not one of kfc, diagonal, sua, white_derivatives, ekfac, autocovariance",
    ):
        build_optimizer(
            settings("kfc_pre", structure="full"), network(ops64), SoftmaxCrossEntropy(ops64)
        )


def test_every_structure_but_kfc_has_a_name_in_figures():
    assert set(labels.STRUCTURES) == set(STRUCTURES) - {"kfc"}
