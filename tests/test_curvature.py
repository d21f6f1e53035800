"""The Kronecker factors against the Fisher matrix, the damping against a dense solve."""

import itertools

import numpy as np
import pytest
from checks import assert_close, patches_loops
from networks import network

from kfcnet.curvature import (
    damped_inverses,
    damping_floor,
    derivative_factor,
    input_factor,
    precondition,
)
from kfcnet.losses import SoftmaxCrossEntropy, SquaredError
from kfcnet.network import build_network


def random_spd(rng, n):
    root = rng.standard_normal((n, n + 2))
    return root @ root.T / n


def beta(kernel, T1, T2, padding):
    """beta(delta, delta') of Eq. 17 for all pairs of offsets, (K*K, K*K); offsets from -padding."""
    offsets = [
        (r - padding, c - padding) for r, c in itertools.product(range(kernel), range(kernel))
    ]

    def side(T, d, e):
        return max(0, T - max(d, e, 0) + min(d, e, 0))

    return np.array(
        [[side(T1, d[0], e[0]) * side(T2, d[1], e[1]) for e in offsets] for d in offsets]
    )


def test_omega_of_an_image_of_ones_is_beta():
    """Theorem 2 on constant activations gives the counts of Eq. 17, and |T| for the bias."""
    Omega = input_factor(np.ones((3, 5, 4, 1)), kernel_size=3, padding=1)
    counts = beta(3, 5, 4, 1)
    assert Omega[0, 0] == 20
    assert np.array_equal(Omega[1:, 1:], counts)
    assert np.array_equal(Omega[0, 1:], counts.diagonal())


def test_omega_is_the_mean_over_examples_of_the_sum_over_locations(rng):
    x = rng.standard_normal((4, 5, 6, 3))
    rows = patches_loops(x, 3, 2, 1)
    assert_close(input_factor(x, 3, 2, 1), rows.T @ rows / 4)


def test_gamma_is_the_mean_over_examples_and_locations(rng):
    ds = rng.standard_normal((4, 5, 6, 3))
    rows = ds.reshape(-1, 3)
    assert_close(derivative_factor(ds), rows.T @ rows / (4 * 30))


def test_dense_factors_are_the_convolution_factors_of_one_pixel(rng):
    a, ds = rng.standard_normal((7, 5)), rng.standard_normal((7, 3))
    rows = np.hstack([np.ones((7, 1)), a])
    assert_close(input_factor(a), rows.T @ rows / 7)
    assert_close(derivative_factor(ds), ds.T @ ds / 7)


def test_a_1x1_convolution_is_dense_on_every_location_with_omega_times_locations(rng):
    x = rng.standard_normal((4, 5, 6, 3))
    assert_close(input_factor(x), 30 * input_factor(x.reshape(-1, 3)))


def test_a_layer_has_the_sizes_of_the_papers_example(ops64):
    """Section 3: the second layer of one of AlexNet's two columns."""
    layer = {"layer": "conv", "filters": 128, "kernel": 5, "padding": 2}
    (conv,) = build_network([layer], (27, 27, 48), ops64).weighted
    assert conv.weight_shape == (128, 1201)
    assert input_factor(np.zeros((1, 27, 27, 48)), 5, padding=2).shape == (1201, 1201)
    assert derivative_factor(np.zeros((1, *conv.output_shape))).shape == (128, 128)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_public_functions_keep_the_dtype(rng, dtype):
    x, ds = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 4, 4, 2), (3, 4)))
    Omega, Gamma = input_factor(x, 3), derivative_factor(ds)
    inverses = damped_inverses(Omega, Gamma, 0.1)
    result = precondition(np.ones((4, 19), dtype), *inverses)
    assert {a.dtype for a in (Omega, Gamma, *inverses, result)} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    "bad, error",
    [
        (lambda: input_factor(np.ones((2, 3, 4))), ValueError),
        (lambda: input_factor(np.ones((2, 3), int)), TypeError),
        (lambda: damped_inverses(np.eye(3), np.eye(2), 0.0), ValueError),
        (lambda: damped_inverses(-np.eye(3), np.eye(2), 1e-3), np.linalg.LinAlgError),
    ],
)
def test_public_functions_refuse_what_they_cannot_mean(bad, error):
    with pytest.raises(error):
        bad()


@pytest.mark.parametrize("shape, window", [((3, 4), (4, 1, 0)), ((4, 3), (6, 2, 1))])
def test_a_kernel_that_does_not_fit_the_activations_is_refused(shape, window):
    kernel, _, padding = window
    with pytest.raises(
        ValueError,
        match=(
            f"kernel_size: {kernel} with padding {padding} does not "
            f"fit into activations of {shape[0]} x {shape[1]}"
        ),
    ):
        input_factor(np.ones((2, *shape, 1)), *window)


def test_factors_of_a_batch_are_the_mean_of_its_parts_weighted_by_their_examples(rng):
    x, ds = rng.standard_normal((7, 4, 5, 2)), rng.standard_normal((7, 4, 5, 3))
    for factor, arrays in ((lambda a: input_factor(a, 3, 1, 1), x), (derivative_factor, ds)):
        whole = factor(arrays)
        assert_close((2 * factor(arrays[:2]) + 5 * factor(arrays[2:])) / 7, whole, 1e-13)
        assert_close(factor(arrays[::-1]), whole, 1e-13)
        assert_close(factor(np.concatenate([arrays] * 3)), whole, 1e-13)


def test_factors_are_quadratic_in_what_they_are_made_of(rng):
    """Only the homogeneous row of Omega, whose activation is one, is linear; its corner is |T|."""
    x, ds = rng.standard_normal((3, 4, 5, 2)), rng.standard_normal((3, 4, 5, 3))
    assert_close(derivative_factor(-3 * ds), 9 * derivative_factor(ds), 1e-13)
    expected = 9 * input_factor(x, 3, 1, 1)
    expected[0] /= -3
    expected[:, 0] /= -3
    assert_close(input_factor(-3 * x, 3, 1, 1), expected, 1e-13)
    assert_close(expected[0, 0], 20)


def test_factors_are_symmetric_and_positive_semidefinite(rng):
    x = np.maximum(rng.standard_normal((2, 5, 4, 3)), 0)  # fewer rows than columns
    for factor in (input_factor(x, 5, 1, 2), derivative_factor(rng.standard_normal((1, 4)))):
        assert np.array_equal(factor, factor.T)
        values = np.linalg.eigvalsh(factor)
        assert values[0] > -1e-12 * values[-1] and values[-1] > 0


def linear_convolution_fisher(ops, window, shape=(3, 5, 4, 2), filters=3):
    """The exact Fisher matrix of one convolution with Gaussian outputs, and its KFC factors.

    Outputs z = S have targets N(z, I), so DS is white noise, E[Gamma] = I, and the Fisher matrix
    is the mean over examples of (dz/dtheta)^T (dz/dtheta), in theta's order.
    """
    kernel, stride, padding = window
    layers = [dict(layer="conv", filters=filters, kernel=kernel, stride=stride, padding=padding)]
    net = network(ops, layers, shape[1:])
    x = np.random.default_rng(0).standard_normal(shape)
    net.forward(x)
    n = len(net.theta)
    jacobian = np.stack([net.tangent(unit, len(x)).ravel() for unit in np.eye(n)], axis=1)
    return jacobian.T @ jacobian / len(x), input_factor(x, kernel, stride, padding), net, x


@pytest.mark.parametrize("window", [(3, 1, 1), (3, 1, 0), (2, 2, 1), (3, 2, 2), (1, 1, 0)])
def test_kfc_is_the_exact_fisher_of_a_linear_convolution_with_gaussian_outputs(ops64, window):
    """Gamma (x) Omega with E[Gamma] = I: a |T| lost or doubled in Omega would show at order one."""
    fisher, Omega, _, _ = linear_convolution_fisher(ops64, window)
    assert_close(np.kron(np.eye(3), Omega), fisher, 1e-12)


def test_gamma_of_white_derivatives_is_near_the_identity(ops64):
    """The other half of the product: a constant moved between the factors shows here."""
    _, _, net, x = linear_convolution_fisher(ops64, (3, 1, 1), shape=(2000, 4, 5, 2))
    z = net.forward(x)
    net.backward(SquaredError(ops64).sampled_gradient(z, step=1))
    Gamma = derivative_factor(net.weighted[0].derivatives)
    assert_close(Gamma, np.eye(3), 0.02)


def test_one_example_of_a_dense_layer_gives_its_exact_fisher_block(ops64, rng):
    """With |T| = 1 and one datum nothing is approximated; Gamma is enumerated over the classes."""
    net = network(ops64, [dict(layer="dense", units=4, std=0.5)], (1, 1, 3))
    x = rng.standard_normal((1, 1, 1, 3))
    p, _, _ = SoftmaxCrossEntropy(ops64).evaluate(net.forward(x), np.array([0], np.int32))
    Gamma, fisher = np.zeros((4, 4)), np.zeros((16, 16))
    for label in range(4):
        net.backward(p - np.eye(4)[[label]])
        net.compute_gradient()
        Gamma += p[0, label] * derivative_factor(net.weighted[0].derivatives)
        fisher += p[0, label] * np.outer(net.gradient, net.gradient)
    assert_close(np.kron(Gamma, input_factor(x.reshape(1, 3))), fisher)


def test_three_thousand_samples_converge_to_the_enumerated_gamma(ops64, rng):
    net = network(
        ops64,
        [
            dict(layer="conv", filters=3, kernel=2, std=0.5),
            dict(layer="relu"),
            dict(layer="dense", units=4, std=0.5),
        ],
        (4, 3, 2),
    )
    loss = SoftmaxCrossEntropy(ops64, seed=5)
    x = rng.standard_normal((3, 4, 3, 2))
    p, _, _ = loss.evaluate(net.forward(x), np.zeros(3, np.int32))
    exact = np.zeros((3, 3))
    for labels in itertools.product(range(4), repeat=3):
        net.backward(p - np.eye(4)[list(labels)])
        exact += p[[0, 1, 2], labels].prod() * derivative_factor(net.weighted[0].derivatives)
    sampled = np.zeros((3, 3))
    for step in range(1000):  # three examples each
        net.backward(loss.sampled_gradient(p, step))
        sampled += derivative_factor(net.weighted[0].derivatives) / 1000
    assert_close(sampled, exact, 0.05)


def test_fisher_quadratic_form_of_the_tangent_is_that_of_the_exact_fisher(ops64, rng):
    """nu of the clip: forward mode against the Fisher matrix from enumerated gradients."""
    net = network(ops64)
    loss = SoftmaxCrossEntropy(ops64)
    x = rng.standard_normal((3, *net.layers[0].input_shape))
    p, _, _ = loss.evaluate(net.forward(x), np.zeros(3, np.int32))
    v, expected = rng.standard_normal(len(net.theta)), 0.0
    for m, label in itertools.product(range(3), range(3)):
        dz = np.zeros((3, 3))
        dz[m] = p[m] - np.eye(3)[label]
        net.backward(dz)
        net.compute_gradient()  # a third of the example's gradient: the mean over three
        expected += p[m, label] * (3 * net.gradient @ v) ** 2 / 3
    net.forward(x)
    r = net.tangent(v, 3)
    got = loss.fisher_form(p, r, r, scale=1 / 3)
    assert_close(got, [expected])


def theorem_1(kernel, T1, T2, padding, covariance, J):
    """Omega without its row 0 from the autocovariance function: beta * Omega(j, j', d' - d)."""
    counts = beta(kernel, T1, T2, padding)
    offsets = list(itertools.product(range(kernel), range(kernel)))
    blocks = [
        [counts[a, b] * covariance(e[0] - d[0], e[1] - d[1]) for b, e in enumerate(offsets)]
        for a, d in enumerate(offsets)
    ]
    return np.block(blocks).reshape(kernel**2 * J, kernel**2 * J)


def test_theorem_2_estimates_theorem_1_on_stationary_fields(rng):
    """A moving average of white noise has a known autocovariance; 20,000 images come near it."""
    mix = rng.standard_normal((2, 2, 2, 2))  # (dr, dc, source, map)
    noise = rng.standard_normal((20_000, 6, 5, 2))
    a = sum(noise[:, r : r + 5, c : c + 4] @ mix[r, c] for r in range(2) for c in range(2))

    def covariance(dr, dc):
        return sum(
            (
                mix[r, c].T @ mix[r - dr, c - dc]
                for r in range(2)
                for c in range(2)
                if 0 <= r - dr < 2 and 0 <= c - dc < 2
            ),
            np.zeros((2, 2)),
        )

    expected = theorem_1(3, 5, 4, 1, covariance, J=2)
    assert_close(input_factor(a, 3, padding=1)[1:, 1:], expected, 0.03)


def simulated_fields(rng, M, broken=None):
    """Activations (M, 5, 4, 2), derivatives (M, 5, 4, 2), and theory's (Omega, Gamma) for them.

    Activations are a mean plus a moving average of white noise, derivatives white noise in space
    that is independent of them. broken: the assumption that does not hold, while the mean of
    Omega's and Gamma's estimates over locations stays what theory has.
    """
    mix, mean = rng.standard_normal((2, 2, 2, 2)), np.array([0.7, -0.4])
    noise = rng.standard_normal((M, 6, 5, 2))
    a = mean + sum(noise[:, r : r + 5, c : c + 4] @ mix[r, c] for r in range(2) for c in range(2))

    def moment(dr, dc):
        return np.outer(mean, mean) + sum(
            (
                mix[r, c].T @ mix[r - dr, c - dc]
                for r in range(2)
                for c in range(2)
                if 0 <= r - dr < 2 and 0 <= c - dc < 2
            ),
            np.zeros((2, 2)),
        )

    counts = beta(3, 5, 4, 1)
    Omega = np.empty((19, 19))
    Omega[0, 0], Omega[1:, 1:] = 20, theorem_1(3, 5, 4, 1, moment, J=2)
    Omega[0, 1:] = Omega[1:, 0] = np.kron(counts.diagonal(), mean)
    root = rng.standard_normal((2, 2))
    white = rng.standard_normal((M, 6, 5, 2))
    ds = white[:, 1:, 1:] @ root
    if broken == "IAD":
        ds *= a[..., :1] / np.sqrt(moment(0, 0)[0, 0])
    elif broken == "SUD":
        ds = (white[:, 1:, 1:] + white[:, :-1, 1:]) @ root / np.sqrt(2)
    elif broken == "SH":
        profile = np.array([0.2, 0.4, 1.0, 1.4, 1.3])[:, None, None]
        a, ds = a * profile, ds * (profile / np.sqrt(np.square(profile).mean()))
    return a, ds, Omega, root.T @ root


def theorem_1_error(rng, broken=None):
    """Largest entry of E[Dw Dw'] minus theory's beta * Omega * Gamma, relative to the largest."""
    M, fisher = 30_000, 0.0
    a, ds, Omega, Gamma = simulated_fields(rng, M, broken)
    for part in np.split(np.arange(M), 10):
        rows = patches_loops(a[part], 3, 1, 1).reshape(len(part), 20, 19)
        gradients = np.einsum("mti,mtp->mip", ds[part].reshape(len(part), 20, 2), rows)
        gradients = gradients.reshape(len(part), 38)
        fisher = fisher + gradients.T @ gradients / M
    assert np.isfinite(fisher).all()
    if broken == "SH":  # theory has to be given the mean over locations that it is about
        Omega = input_factor(a, 3, padding=1)
    return np.abs(fisher - np.kron(Gamma, Omega)).max() / np.abs(fisher).max()


def test_theorem_1_holds_where_its_assumptions_do(rng):
    """The covariance of simulated gradients, biases included, against beta * Omega * Gamma."""
    assert theorem_1_error(rng) < 0.03


@pytest.mark.parametrize("broken", ["IAD", "SH", "SUD"])
def test_theorem_1_fails_where_an_assumption_is_broken(rng, broken):
    """The controls: the same simulation with one assumption less."""
    assert theorem_1_error(rng, broken) > 0.15


def test_theorem_2_departs_from_theorem_1_where_fields_are_not_stationary(rng):
    """The control: without spatial homogeneity the two must differ."""
    a = rng.standard_normal((5000, 5, 4, 2)) * np.linspace(0, 2, 5)[:, None, None]
    variance = np.square(a).mean()

    def covariance(dr, dc):
        return variance * np.eye(2) * (dr == dc == 0)

    got, expected = input_factor(a, 3, padding=1)[1:, 1:], theorem_1(3, 5, 4, 1, covariance, J=2)
    assert np.abs(got - expected).max() > 0.2 * np.abs(expected).max()


def test_damped_inverse_is_the_dense_solve_of_the_damped_product(rng):
    """Eq. 20-22 in theta's order: (Gamma + sqrt(c)/pi I) (x) (Omega + pi sqrt(c) I)."""
    Omega, Gamma, gradient = random_spd(rng, 7), random_spd(rng, 3), rng.standard_normal((3, 7))
    c = 0.02
    pi = np.sqrt((np.trace(Omega) / 7) / (np.trace(Gamma) / 3))
    dense = np.kron(Gamma + np.sqrt(c) / pi * np.eye(3), Omega + pi * np.sqrt(c) * np.eye(7))
    expected = np.linalg.solve(dense, gradient.ravel()).reshape(3, 7)
    assert_close(precondition(gradient, *damped_inverses(Omega, Gamma, c)), expected, 1e-12)


def test_a_constant_moved_between_the_factors_leaves_the_update_alone(rng):
    Omega, Gamma, gradient = random_spd(rng, 7), random_spd(rng, 3), rng.standard_normal((3, 7))
    update = precondition(gradient, *damped_inverses(Omega, Gamma, 0.02))
    moved = precondition(gradient, *damped_inverses(50 * Omega, Gamma / 50, 0.02))
    assert_close(moved, update, 1e-11)


def test_large_damping_turns_the_natural_gradient_into_the_gradient(rng):
    Omega, Gamma, gradient = random_spd(rng, 7), random_spd(rng, 3), rng.standard_normal((3, 7))
    c = 1e12
    assert_close(c * precondition(gradient, *damped_inverses(Omega, Gamma, c)), gradient, 1e-5)


def test_vanishing_derivatives_keep_the_inverses_finite(rng):
    Omega_inv, Gamma_inv = damped_inverses(random_spd(rng, 5), np.zeros((3, 3)), 0.04)
    assert np.isfinite(Omega_inv).all()
    assert_close(Gamma_inv, np.eye(3) / 0.2)


@pytest.mark.parametrize(
    "window, match",
    [((0, 1, 0), "kernel_size: 0"), ((3, 0, 1), "stride: 0"), ((3, 1, -1), "padding: -1")],
)
def test_a_window_that_is_none_is_refused_by_name(window, match):
    with pytest.raises(ValueError, match=match):
        input_factor(np.ones((2, 5, 4, 3)), *window)


@pytest.mark.parametrize("factor", [input_factor, derivative_factor])
def test_factors_need_an_example(factor):
    with pytest.raises(ValueError, match=r"shape \(0, 5, 4, 3\) is empty"):
        factor(np.ones((0, 5, 4, 3)))


@pytest.mark.parametrize(
    "refused, error, message",
    [
        (
            lambda: damped_inverses(np.ones((2, 3)), np.eye(2), 0.1),
            ValueError,
            r"Omega: .*\(2, 3\)",
        ),
        (lambda: damped_inverses(np.eye(3), np.ones(3), 0.1), ValueError, r"Gamma: .*\(3,\)"),
        (lambda: damping_floor(np.ones((0, 0)), np.eye(2)), ValueError, r"Omega: .*\(0, 0\)"),
        (lambda: damping_floor(np.eye(2), np.eye(2, dtype=int)), TypeError, "Gamma: int64 is"),
        (lambda: input_factor(np.ones((2, 3), np.float16)), TypeError, "activations: float16 is"),
        (lambda: precondition(np.ones(2), np.eye(2), np.eye(1)), ValueError, "gradient: "),
        (lambda: precondition(np.ones((2, 3)), np.eye(2), np.eye(3)), ValueError, "Omega_inv: "),
        (lambda: precondition(np.ones((2, 3)), np.eye(3), np.eye(3)), ValueError, "Gamma_inv: "),
    ],
)
def test_a_matrix_that_cannot_be_used_is_refused_by_name(refused, error, message):
    with pytest.raises(error, match=message):
        refused()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrices_take_either_byte_order_and_may_be_lists(rng, dtype):
    matrices = [random_spd(rng, n).astype(dtype) for n in (4, 3)]
    swapped = [matrix.astype(matrix.dtype.newbyteorder()) for matrix in matrices]
    inverses = damped_inverses(*matrices, 0.1)
    assert all(map(np.array_equal, damped_inverses(*swapped, 0.1), inverses))
    assert damping_floor(*swapped) == damping_floor(*matrices)
    gradient = rng.standard_normal((3, 4)).astype(dtype)
    expected = precondition(gradient, *inverses)
    assert np.array_equal(precondition(gradient.astype(swapped[0].dtype), *inverses), expected)
    lists = precondition(gradient.tolist(), *(inverse.tolist() for inverse in inverses))
    assert lists.dtype == np.float64
    assert_close(lists, expected, 1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factors_take_either_byte_order(rng, dtype):
    x = rng.standard_normal((3, 5, 4, 2)).astype(dtype)
    swapped = x.astype(x.dtype.newbyteorder())
    assert np.array_equal(input_factor(swapped, 3, 2, 1), input_factor(x, 3, 2, 1))
    assert derivative_factor(swapped).dtype == dtype


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_inverses_of_a_factor_that_is_not_finite_are_refused(wrong):
    Omega = np.diag([1.0, wrong, 2.0])
    with pytest.raises(ValueError, match="Omega: has entries that are not finite"):
        damped_inverses(Omega, np.eye(2), 0.1)
