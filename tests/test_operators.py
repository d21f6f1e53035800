"""The Fisher matrix and its Kronecker form as operators, against the matrices they stand for."""

import math

import numpy as np
import pytest
from checks import assert_close
from networks import EVERY_LAYER, INPUT_SHAPE, network, settings
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg, eigsh

from kfcnet.batches import Batch
from kfcnet.curvature import FisherOperator, KroneckerFisher, derivative_factor, input_factor
from kfcnet.curvature.structures import build_block
from kfcnet.losses import LOSSES, SoftmaxCrossEntropy, SquaredError
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import build_optimizer

SMALL = [
    dict(layer="conv", filters=2, kernel=2, std=0.5),
    dict(layer="relu"),
    dict(layer="dense", units=3, std=0.5),
]
SMALL_SHAPE = (3, 4, 2)


def spd(rng, n, rank=None):
    root = rng.standard_normal((n, rank or n + 2))
    return root @ root.T / n


def dense(operator):
    return operator @ np.eye(operator.shape[1])


def enumerated_fisher(net, loss, x):
    """The mean over examples of the expected outer product of the gradient, class by class."""
    fisher = np.zeros((len(net.theta),) * 2)
    for example in range(len(x)):
        p = loss.predictive(net.forward(x[example : example + 1]))
        for label in range(p.shape[1]):
            net.backward(p - np.eye(p.shape[1])[[label]])
            net.compute_gradient()
            fisher += p[0, label] * np.outer(net.gradient, net.gradient) / len(x)
    return fisher


@pytest.fixture
def classifier(ops64, rng):
    """A small network, its loss and five inputs."""
    net = network(ops64, SMALL, SMALL_SHAPE)
    return net, SoftmaxCrossEntropy(ops64, seed=2), rng.standard_normal((5, *SMALL_SHAPE))


def test_the_fisher_operator_is_the_expected_outer_product_of_gradients(classifier):
    net, loss, x = classifier
    assert_close(dense(FisherOperator(net, loss, x)), enumerated_fisher(net, loss, x), 1e-11)


def test_a_fisher_operator_stays_what_it_is_while_recorded_steps_use_its_network(new_cuda, rng):
    ops = new_cuda()
    net, loss = network(ops, SMALL, SMALL_SHAPE), SoftmaxCrossEntropy(ops, seed=2)
    x, v = rng.standard_normal((5, *SMALL_SHAPE)), rng.standard_normal(len(net.theta))
    sgd = build_optimizer(settings("sgd"), net, loss)
    batch = Batch(ops.asarray(rng.standard_normal((5, *SMALL_SHAPE))), np.zeros(5, np.int32))
    sgd.step(batch), sgd.step(batch)
    operator = FisherOperator(net, loss, ops.asarray(x))
    before = operator @ v
    sgd.step(batch)
    np.testing.assert_array_equal(operator @ v, before)


def test_the_tangent_is_the_product_with_the_explicit_jacobian(ops64, rng):
    """Jv against central differences of the logits in every parameter."""
    net = network(ops64, SMALL, SMALL_SHAPE)
    x, v, step = rng.standard_normal((3, *SMALL_SHAPE)), rng.standard_normal(len(net.theta)), 1e-6
    columns = []
    for unit in np.eye(len(net.theta)):
        with net.using(net.theta + step * unit):
            above = net.forward(x)
        with net.using(net.theta - step * unit):
            columns.append((above - net.forward(x)).ravel() / (2 * step))
    net.forward(x)
    assert_close(net.tangent(v, 3).ravel(), np.stack(columns, axis=1) @ v, 1e-7)


def test_with_gaussian_outputs_it_is_the_gauss_newton_matrix(ops64, rng):
    net, x = network(ops64, SMALL, SMALL_SHAPE), rng.standard_normal((4, *SMALL_SHAPE))
    net.forward(x)
    J = np.stack([net.tangent(unit, 4).ravel() for unit in np.eye(len(net.theta))], axis=1)
    assert_close(dense(FisherOperator(net, SquaredError(ops64), x)), J.T @ J / 4, 1e-11)


def test_batch_statistics_count_as_constants(ops64, rng):
    """Those that were measured, and with a step the batch's own."""
    layers = [SMALL[0], dict(layer="batch_norm", epsilon=0.1, affine=True), *SMALL[1:]]
    net, x = network(ops64, layers, SMALL_SHAPE), rng.standard_normal((4, *SMALL_SHAPE))
    net.measure_statistics(x)
    net.forward(x)
    J = np.stack([net.tangent(unit, 4).ravel() for unit in np.eye(len(net.theta))], axis=1)
    for step in (None, 0):
        fisher = dense(FisherOperator(net, SquaredError(ops64), x, step=step))
        assert_close(fisher, J.T @ J / 4, 1e-11)


def test_the_fisher_operator_is_symmetric_and_positive_semi_definite(ops64, rng):
    """On every kind of layer, with the masks of a training step."""
    net = network(ops64)
    x = rng.standard_normal((3, *INPUT_SHAPE))
    F = dense(FisherOperator(net, SoftmaxCrossEntropy(ops64), x, step=7))
    assert np.abs(F).max() > 0
    assert_close(F, F.T, 1e-11)
    assert np.linalg.eigvalsh(F).min() > -1e-12 * np.abs(F).max()


def test_weight_decay_and_damping_stand_on_the_diagonal(classifier, rng):
    net, loss, x = classifier
    decay = rng.random(len(net.theta))
    F = dense(FisherOperator(net, loss, x))
    damped = dense(FisherOperator(net, loss, x, weight_decay=decay, damping=0.3))
    assert_close(damped, F + np.diag(decay + 0.3), 1e-12)
    uniform = dense(FisherOperator(net, loss, x, weight_decay=0.2))
    assert_close(uniform, F + 0.2 * np.eye(len(F)), 1e-12)


def test_the_quadratic_form_is_that_of_the_clip(classifier, rng):
    net, loss, x = classifier
    v = rng.standard_normal(len(net.theta))
    product = v @ (FisherOperator(net, loss, x) @ v)
    net.forward(x)
    r = net.tangent(v, len(x))
    p = loss.predictive(net.forward(x))
    assert_close([product], loss.fisher_form(p, r, r, 1 / len(x)))


def test_the_operator_keeps_its_parameters_and_batch_whatever_the_network_does(classifier, rng):
    net, loss, x = classifier
    operator, v = FisherOperator(net, loss, x), rng.standard_normal(len(net.theta))
    expected = operator @ v
    net.theta += 1.0
    net.forward(2 * x)
    net.gradient[...] = 5.0
    assert_close(operator @ v, expected, 1e-13)
    assert (net.gradient == 5.0).all()
    assert np.shares_memory(net.weighted[0].weight, net.theta)
    net.first_nonfinite(3 * x)
    assert_close(operator @ v, expected, 1e-13)


def test_the_fisher_operator_belongs_to_the_parameters_in_use(classifier):
    net, loss, x = classifier
    with net.using(2 * net.theta):
        expected = enumerated_fisher(net, loss, x)
        operator = FisherOperator(net, loss, x)
    assert_close(dense(operator), expected, 1e-11)


def test_dropout_is_the_mask_of_the_step_that_was_asked_for(ops64, rng):
    net, loss = network(ops64), SoftmaxCrossEntropy(ops64)
    x, v = rng.standard_normal((3, *INPUT_SHAPE)), rng.standard_normal(len(net.theta))
    z = net.forward(x, training=True, step=4)
    net.backward(loss.fisher_product(loss.predictive(z), net.tangent(v, 3)))
    net.compute_gradient()
    assert_close(FisherOperator(net, loss, x, step=4) @ v, net.gradient, 1e-12)
    assert np.abs(FisherOperator(net, loss, x) @ v - net.gradient).max() > 1e-3


def test_the_fisher_operator_is_the_same_on_every_device(ops, rng):
    specification = EVERY_LAYER[1:]
    x = rng.standard_normal((3, *INPUT_SHAPE)).astype(ops.dtype)
    net = network(ops, specification)
    v = rng.standard_normal(len(net.theta))
    operator = FisherOperator(net, SoftmaxCrossEntropy(ops), ops.asarray(x), damping=0.1)
    assert operator.dtype == ops.dtype and isinstance(operator, LinearOperator)
    exact = CpuOps("float64", shards=1, native="off")
    reference = FisherOperator(
        network(exact, specification), SoftmaxCrossEntropy(exact), x.astype(float), damping=0.1
    )
    assert_close(operator @ v, reference @ v, 1e-9 if ops.dtype == np.float64 else 1e-4)


@pytest.fixture
def factors(rng):
    """Two layers' Omega and Gamma, the second with an Omega of deficient rank."""
    return [(spd(rng, 4), spd(rng, 3)), (spd(rng, 5, rank=3), spd(rng, 2))]


def dense_kronecker(factors):
    blocks = [np.kron(Gamma, Omega) for Omega, Gamma in factors]
    n = sum(len(block) for block in blocks)
    out, at = np.zeros((n, n)), 0
    for block in blocks:
        out[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return out


def test_the_kronecker_operator_is_its_dense_matrix_in_thetas_order(factors, rng):
    K, expected = KroneckerFisher(factors), dense_kronecker(factors)
    v = rng.standard_normal(len(expected))
    assert K.shape == expected.shape and K.dtype == np.float64
    assert_close(dense(K), expected, 1e-13)
    assert_close(K.rmatvec(v), expected.T @ v, 1e-13)
    assert_close(K.T @ v, expected.T @ v, 1e-13)


def test_closed_forms_are_those_of_the_dense_matrix(factors):
    K, expected = KroneckerFisher(factors), dense_kronecker(factors)
    assert np.isclose(K.trace(), np.trace(expected), rtol=1e-13)
    assert np.isclose(K.frobenius_norm(), np.linalg.norm(expected), rtol=1e-13)
    assert_close(K.eigenvalues(), np.linalg.eigvalsh(expected), 1e-12)
    damped = np.linalg.slogdet(expected + 0.1 * np.eye(len(expected)))[1]
    assert np.isclose(K.log_determinant(damping=0.1), damped, rtol=1e-12)


def test_the_log_determinant_without_damping(rng):
    regular = [(spd(rng, 4), spd(rng, 3)), (spd(rng, 2), spd(rng, 2))]
    K = KroneckerFisher(regular)
    assert np.isclose(K.log_determinant(), np.linalg.slogdet(dense_kronecker(regular))[1])
    assert KroneckerFisher([(np.diag([1.0, 0.0]), np.eye(2))]).log_determinant() == -np.inf


def test_solve_is_the_dense_solve_with_exact_damping(factors, rng):
    K, expected = KroneckerFisher(factors), dense_kronecker(factors)
    v = rng.standard_normal(len(expected))
    assert_close(K.solve(v, 0.1), np.linalg.solve(expected + 0.1 * np.eye(len(v)), v), 1e-11)
    per_layer = np.repeat([0.1, 0.4], [12, 10])
    assert_close(K.solve(v, [0.1, 0.4]), np.linalg.solve(expected + np.diag(per_layer), v), 1e-11)
    assert_close(
        KroneckerFisher(factors[:1]).solve(v[:12]),
        np.linalg.solve(expected[:12, :12], v[:12]),
        1e-9,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("units", [(4, 3), (40, 30)])
def test_factors_of_fewer_examples_than_units_are_singular(rng, dtype, units):
    inputs, derivatives = (rng.standard_normal((2, count)).astype(dtype) for count in units)
    K = KroneckerFisher.from_arrays([{"inputs": inputs, "derivatives": derivatives}])
    # Their ranks are two; what rounding leaves of the other eigenvalues has either sign.
    assert np.count_nonzero(K.eigenvalues()) == 2 * 2
    assert K.log_determinant() == -np.inf
    with pytest.raises(np.linalg.LinAlgError):
        K.inverse()
    with pytest.raises(np.linalg.LinAlgError):
        K.solve(np.ones(K.shape[0], dtype))
    assert np.isfinite(K.damped(0.1).inverse() @ np.ones(K.shape[0], dtype)).all()


def test_damping_keeps_the_number_type_and_copies(rng):
    Omega, Gamma = (spd(rng, n).astype(np.float32) for n in (4, 3))
    K = KroneckerFisher([(Omega, Gamma)])
    for damped in (K.damped(0.1), K.damped([0.1]), K.damped(0.1).inverse()):
        assert damped.dtype == np.float32
        assert {factor.dtype.name for pair in damped.factors for factor in pair} == {"float32"}
    trace = K.trace()
    Omega[...] = 0
    assert K.trace() == trace == pytest.approx(K.eigenvalues().sum(), rel=1e-5)


@pytest.mark.parametrize("scales", [(1e-30, 1e-30), (1e20, 1e-20)])
def test_norm_and_determinant_of_very_small_and_large_factors(scales):
    Omega, Gamma = (
        np.float32(s) * np.eye(n, dtype=np.float32) for s, n in ((scales[0], 3), (scales[1], 2))
    )
    K = KroneckerFisher([(Omega, Gamma)])
    size = math.prod(scales)
    assert K.frobenius_norm() == pytest.approx(math.sqrt(6) * size, rel=1e-6)
    assert K.log_determinant() == pytest.approx(6 * math.log(size), abs=1e-4)


def test_the_decay_of_an_exact_fisher_matrix_is_one_number_or_one_for_each_parameter(ops64, rng):
    net, loss = network(ops64, SMALL, SMALL_SHAPE), SoftmaxCrossEntropy(ops64)
    x, n = rng.standard_normal((3, *SMALL_SHAPE)), len(net.theta)
    decay = np.ones(n)
    F = FisherOperator(net, loss, x, decay)
    before = F @ np.ones(n)
    decay[...] = 7
    assert np.array_equal(F @ np.ones(n), before)
    with pytest.raises(ValueError, match=r"weight_decay: shape \(2,\) given"):
        FisherOperator(net, loss, x, [1.0, 2.0])


def test_solve_without_damping_refuses_a_singular_matrix():
    with pytest.raises(np.linalg.LinAlgError, match="damping"):
        KroneckerFisher([(np.diag([1.0, 0.0]), np.eye(2))]).solve(np.ones(4))


def test_factored_damping_and_inverse_are_those_of_equation_21(factors, rng):
    damped = KroneckerFisher(factors).damped([0.1, 0.4])
    expected = []
    for (Omega, Gamma), c in zip(factors, (0.1, 0.4), strict=True):
        pi = np.sqrt(np.trace(Omega) / len(Omega) / (np.trace(Gamma) / len(Gamma)))
        expected.append(
            (
                Omega + pi * np.sqrt(c) * np.eye(len(Omega)),
                Gamma + np.sqrt(c) / pi * np.eye(len(Gamma)),
            )
        )
    assert_close(dense(damped), dense_kronecker(expected), 1e-12)
    v = rng.standard_normal(len(dense_kronecker(expected)))
    assert_close(damped.inverse() @ v, np.linalg.solve(dense_kronecker(expected), v), 1e-11)


def test_both_are_operators_from_either_side_on_vectors_and_matrices(classifier, rng):
    net, loss, x = classifier
    n = len(net.theta)
    for operator in (FisherOperator(net, loss, x), KroneckerFisher.estimate(net, loss, x)):
        assert isinstance(operator, LinearOperator)
        assert operator.shape == (n, n) and operator.dtype == np.float64
        matrix, V = dense(operator), rng.standard_normal((n, 3))
        assert_close(operator.matvec(V[:, :1]), matrix @ V[:, :1], 1e-12)
        assert_close(operator.rmatvec(V[:, 0]), V[:, 0] @ matrix, 1e-12)
        assert_close(operator.matmat(V), matrix @ V, 1e-12)
        assert_close(operator.rmatmat(V), matrix.T @ V, 1e-12)


def test_lanczos_conjugate_gradients_and_hutchinsons_trace_run_on_both(classifier, rng):
    net, loss, x = classifier
    n = len(net.theta)
    for operator in (FisherOperator(net, loss, x), KroneckerFisher.estimate(net, loss, x)):
        matrix = dense(operator)
        largest = eigsh(operator, k=2, v0=np.ones(n), return_eigenvectors=False)
        assert_close(np.sort(largest), np.linalg.eigvalsh(matrix)[-2:], 1e-9)
        damped = operator + 0.1 * aslinearoperator(np.eye(n))
        solution, info = cg(damped, np.ones(n), atol=1e-10)
        assert info == 0
        assert_close(solution, np.linalg.solve(matrix + 0.1 * np.eye(n), np.ones(n)), 1e-4)
        signs = rng.choice([-1.0, 1.0], (n, 500))
        trace = (signs * (operator @ signs)).sum(axis=0).mean()
        assert np.isclose(trace, np.trace(matrix), rtol=0.1)


def test_the_estimate_has_the_factors_of_the_batch(classifier):
    net, loss, x = classifier
    K = KroneckerFisher.estimate(net, loss, x, draws=3)
    net.forward(x)
    assert_close(K.factors[0][0], input_factor(x, 2), 1e-12)
    assert_close(K.factors[1][0], input_factor(net.weighted[1].inputs.reshape(5, -1)), 1e-12)
    p, Gamma = loss.predictive(net.forward(x)), 0.0
    for draw in range(3):
        net.backward(loss.sampled_gradient(p, draw))
        Gamma = Gamma + derivative_factor(net.weighted[0].derivatives) / 3
    assert_close(K.factors[0][1], Gamma, 1e-12)


def permuted(x):
    """The same images, in memory map by map."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)


def grey(x):
    """The same images of one map, whose axis NumPy gave a stride of no meaning."""
    return np.ascontiguousarray(x[..., 0])[..., None]


@pytest.mark.parametrize("native", ["off", "auto"])
@pytest.mark.parametrize("maps, placed", [(2, permuted), (2, np.asfortranarray), (1, grey)])
@pytest.mark.parametrize("padding", [0, 1])
def test_factors_do_not_depend_on_how_the_inputs_lie_in_memory(rng, native, maps, placed, padding):
    ops = CpuOps("float64", shards=1, native=native)
    layers = [dict(layer="conv", filters=2, kernel=3, padding=padding, std=0.5), *SMALL[1:]]
    net, loss = network(ops, layers, (6, 5, maps)), SoftmaxCrossEntropy(ops, seed=2)
    x = rng.standard_normal((4, 6, 5, maps))
    elsewhere = placed(x)
    assert np.array_equal(elsewhere, x) and elsewhere.strides != x.strides
    expected = KroneckerFisher.estimate(net, loss, x).factors
    found = KroneckerFisher.estimate(net, loss, elsewhere).factors
    for pair, same in zip(found, expected, strict=True):
        assert np.isfinite(pair[0]).all() and np.isfinite(pair[1]).all()
        np.testing.assert_array_equal(pair[0], same[0])
        np.testing.assert_array_equal(pair[1], same[1])
    assert_close(input_factor(elsewhere, 3, 1, padding), expected[0][0], 1e-12)
    rows = ops.patches(x, 3, 1, padding)
    np.testing.assert_array_equal(ops.patches(elsewhere, 3, 1, padding), rows)


def test_an_estimate_without_a_draw_is_refused(classifier):
    net, loss, x = classifier
    for draws in (0, -1):
        with pytest.raises(ValueError, match=f"draws: {draws} is below 1"):
            KroneckerFisher.estimate(net, loss, x, draws)


def test_an_optimizers_blocks_give_the_structure_that_they_keep(ops64, rng):
    """Learned scales have an exact block, which stands in Omega's place."""
    layers = [SMALL[0], dict(layer="batch_norm", affine=True), *SMALL[1:]]
    net = network(ops64, layers, SMALL_SHAPE)
    net.forward(rng.standard_normal((5, *SMALL_SHAPE)), training=True)
    net.backward(rng.standard_normal((5, 3)), per_example=True)
    for structure in "kfc", "diagonal", "sua", "white_derivatives":
        blocks = [build_block(structure, layer, ops64) for layer in net.weighted]
        for block in blocks:
            block.update_factors(decay=0)
        K = dense(KroneckerFisher.of(blocks))
        ends = np.cumsum([layer.weight.size for layer in net.weighted])
        for block, first, last in zip(blocks, [0, *ends], ends, strict=False):
            assert_close(K[first:last, first:last], block.matrix(), 1e-12)


def test_blocks_may_come_one_by_one(classifier):
    net, loss, x = classifier
    net.backward(loss.sampled_gradient(loss.predictive(net.forward(x)), 0), per_example=True)
    blocks = [build_block("kfc", layer, net.ops) for layer in net.weighted]
    for block in blocks:
        block.update_factors(decay=0)
    expected = dense(KroneckerFisher.of(blocks))
    assert expected.any()
    np.testing.assert_array_equal(dense(KroneckerFisher.of(iter(blocks))), expected)


def test_a_block_that_is_no_kronecker_product_is_refused(classifier):
    blocks = [build_block("ekfac", layer, layer.ops) for layer in classifier[0].weighted]
    with pytest.raises(ValueError, match="conv1: a block of structure ekfac"):
        KroneckerFisher.of(blocks)


@pytest.mark.parametrize(
    "bad, error",
    [
        ([(np.eye(3), np.ones((2, 3)))], ValueError),
        ([(np.eye(3, dtype=int), np.eye(2, dtype=int))], TypeError),
    ],
)
def test_impossible_factors_are_refused(bad, error):
    with pytest.raises(error, match="factors"):
        KroneckerFisher(bad)


def test_factors_agree_with_those_of_curvlinops(ops64, rng):
    """Trace, norm and product with a vector; the expectation is taken over all classes."""
    reason = "curvlinops-for-pytorch, the reference, is not installed"
    curvlinops = pytest.importorskip("curvlinops", reason=reason)
    torch = pytest.importorskip("torch", reason=reason)
    layers = [
        dict(layer="conv", filters=3, kernel=3, padding=1, std=0.5),
        dict(layer="relu"),
        dict(layer="dense", units=4, std=0.5),
    ]
    net, x = network(ops64, layers, (4, 3, 2)), rng.standard_normal((6, 4, 3, 2))
    p = SoftmaxCrossEntropy(ops64).predictive(net.forward(x))
    Gammas = [0.0, 0.0]
    for label in range(4):
        net.backward(np.sqrt(p[:, [label]]) * (p - np.eye(4)[label]))
        Gammas = [
            Gamma + derivative_factor(layer.derivatives)
            for Gamma, layer in zip(Gammas, net.weighted, strict=True)
        ]
    ours = KroneckerFisher(
        [
            (input_factor(x, 3, 1, 1), Gammas[0]),
            (input_factor(net.weighted[1].inputs.reshape(6, -1)), Gammas[1]),
        ]
    )

    def to_torch(flat):
        """weight, bias of both layers as PyTorch has them: (I, J, K, K), and (I, C*H*W)."""
        (conv, dense) = net.views(flat)
        conv_weight = conv[:, 1:].reshape(3, 3, 3, 2).transpose(0, 3, 1, 2)
        dense_weight = dense[:, 1:].reshape(4, 4, 3, 3).transpose(0, 3, 1, 2).reshape(4, -1)
        return [
            torch.tensor(a.copy()) for a in (conv_weight, conv[:, 0], dense_weight, dense[:, 0])
        ]

    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(36, 4),
    ).double()
    for parameter, value in zip(model.parameters(), to_torch(net.theta), strict=True):
        parameter.data[...] = value
    data = [(torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.zeros(6, dtype=torch.long))]
    theirs = curvlinops.KFACLinearOperator(
        model,
        torch.nn.CrossEntropyLoss(),
        list(model.parameters()),
        data,
        fisher_type="type-2",
        separate_weight_and_bias=False,
    )
    assert_close([theirs.trace, theirs.frobenius_norm], [ours.trace(), ours.frobenius_norm()], 1e-5)
    v = rng.standard_normal(len(net.theta))
    product = theirs @ torch.cat([part.flatten() for part in to_torch(v)])
    assert_close(product, torch.cat([part.flatten() for part in to_torch(ours @ v)]), 1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_expectation_over_the_targets_is_what_many_draws_come_near_to(ops64, rng, loss):
    net = network(ops64)
    inputs = ops64.asarray(rng.standard_normal((3, *INPUT_SHAPE)))
    loss = LOSSES[loss](ops64, 0)
    exact = KroneckerFisher.estimate(net, loss, inputs, draws=None)
    drawn = KroneckerFisher.estimate(net, loss, inputs, draws=1000)
    for (Omega, Gamma), (same, near) in zip(exact.factors, drawn.factors, strict=True):
        assert_close(Omega, same, 1e-12)
        assert np.abs(Gamma - near).max() < 0.1 * np.abs(Gamma).max()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_outer_products_of_a_losss_factors_are_its_fisher_matrix(ops, rng, loss):
    loss = LOSSES[loss](ops, 0)
    z = ops.asarray(rng.standard_normal((4, 3)))
    predictive = loss.predictive(z)
    r = ops.asarray(rng.standard_normal((4, 3)))
    factors = [ops.to_numpy(dz) for dz in loss.fisher_factors(predictive)]
    product = sum(dz * (dz * ops.to_numpy(r)).sum(axis=1, keepdims=True) for dz in factors)
    assert_close(product, ops.to_numpy(loss.fisher_product(predictive, r)), 1e-5)
