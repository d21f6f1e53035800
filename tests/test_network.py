"""Layers and networks: gradients and tangents against finite differences in float64."""

import copy
import pickle
import re
import threading

import numpy as np
import pytest
from checks import assert_close, derivative
from networks import EVERY_LAYER, INPUT_SHAPE, network

from kfcnet.config.schema import ConvConfig, DenseConfig, MaxPoolConfig, ResponseNormConfig
from kfcnet.layers import AvgPool, Mode, ReLU, ResponseNorm
from kfcnet.losses import SoftmaxCrossEntropy, SquaredError
from kfcnet.network import Network, build_network
from kfcnet.ops.cpu import CpuOps, has_extension

BATCH_NORM = [layer for layer in EVERY_LAYER if layer["layer"] != "response_norm"]
BATCH_NORM = BATCH_NORM[:2] + [dict(layer="batch_norm", epsilon=0.1)] + BATCH_NORM[2:]
LOSSES = {
    "softmax": (SoftmaxCrossEntropy, np.array([0, 2, 1, 1, 0], np.int32)),
    "squared": (SquaredError, np.linspace(-1, 1, 15).reshape(5, 3)),
}


@pytest.fixture
def inputs(rng):
    return rng.standard_normal((5, *INPUT_SHAPE))


def mean_loss(net, loss, x, targets):
    """The mean loss as a function of the parameters, with the same dropout masks each time."""

    def value(theta):
        with net.using(theta):
            totals = loss.evaluate(net.forward(x, training=True, step=4), targets)[2]
        return totals[0] / len(x)

    return value


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layers", [EVERY_LAYER, BATCH_NORM], ids=["every layer", "batch norm"])
def test_gradient_matches_finite_differences(ops64, rng, inputs, layers, loss):
    make, targets = LOSSES[loss]
    net, loss = network(ops64, layers), make(ops64)
    value = mean_loss(net, loss, inputs, targets)
    _, dz, _ = loss.evaluate(net.forward(inputs, training=True, step=4), targets)
    net.backward(dz)
    net.compute_gradient()
    for direction in rng.standard_normal((5, len(net.theta))):
        expected = derivative(value, net.theta.copy(), direction, 1e-6)
        assert_close(net.gradient @ direction, expected, 1e-6)
    for index in rng.integers(0, len(net.theta), 20):  # and entry by entry
        unit = np.zeros(len(net.theta))
        unit[index] = 1
        expected = derivative(value, net.theta.copy(), unit, 1e-6)
        assert abs(net.gradient[index] - expected) < 1e-7


def test_tangent_matches_finite_differences(ops64, rng, inputs):
    net = network(ops64)
    net.forward(inputs, training=True, step=4)
    direction = rng.standard_normal(len(net.theta))
    tangent = net.tangent(direction, 3)

    def outputs(theta):
        with net.using(theta):
            return net.forward(inputs, training=True, step=4)

    assert_close(tangent, derivative(outputs, net.theta.copy(), direction, 1e-6)[:3], 1e-7)


def test_tangent_takes_batch_statistics_as_constants(ops64, rng, inputs):
    """Half of the batch through the tangent: the same as evaluation at the batch's statistics."""
    layers = [
        dict(layer="conv", filters=3, kernel=3, std=0.5),
        dict(layer="batch_norm"),
        dict(layer="relu"),
        dict(layer="dense", units=2, std=0.5),
    ]
    net = network(ops64, layers)
    net.measure_statistics(inputs)
    net.forward(inputs, training=True)
    direction = rng.standard_normal(len(net.theta))
    tangent = net.tangent(direction, 3)

    def outputs(theta):
        with net.using(theta):
            return net.forward(inputs)

    assert_close(tangent, derivative(outputs, net.theta.copy(), direction, 1e-6)[:3], 1e-7)


def test_a_part_of_the_batch_goes_backward_by_itself(ops64, inputs):
    net, loss = network(ops64), SoftmaxCrossEntropy(ops64)
    labels = LOSSES["softmax"][1]
    _, dz, _ = loss.evaluate(net.forward(inputs, training=True, step=4), labels)
    net.backward(dz)
    whole = [layer.derivatives.copy() for layer in net.weighted]
    net.backward(dz[:2])
    for layer, derivatives in zip(net.weighted, whole, strict=True):
        assert_close(layer.derivatives, derivatives[:2])
    net.compute_gradient()
    part = net.gradient.copy()
    _, dz, _ = loss.evaluate(net.forward(inputs[:2], training=True, step=4), labels[:2])
    net.backward(dz)
    net.compute_gradient()
    assert_close(net.gradient, part)


def test_a_gradient_is_written_where_its_whole_vector_lies(ops64, inputs):
    net = network(ops64)
    net.backward(np.ones((5, 3)) + net.forward(inputs, training=True))
    net.compute_gradient()
    n = net.theta.size
    out = np.zeros(n)
    net.compute_gradient(out)
    np.testing.assert_array_equal(out, net.gradient)
    assert np.isfinite(out).all() and out.any()
    for wrong in np.zeros(2 * n)[::2], np.zeros(n + 1), np.zeros(n, np.float32), np.zeros((1, n)):
        with pytest.raises(ValueError, match=rf"expected a C-contiguous array of shape \({n},\)"):
            net.compute_gradient(wrong)


def test_a_network_is_copied_but_not_pickled(ops64, inputs):
    net = network(ops64)
    expected = net.forward(inputs)
    other = copy.deepcopy(net)
    other.theta[...] = 0
    assert not other.forward(inputs).any()
    np.testing.assert_array_equal(net.forward(inputs), expected)
    with pytest.raises(TypeError, match="holds functions of its device, and is not pickled: keep"):
        pickle.dumps(net)


def test_a_mini_batch_without_examples_is_refused(ops64, inputs):
    with pytest.raises(ValueError, match="inputs hold no example"):
        network(ops64).forward(inputs[:0])


@pytest.mark.parametrize("across, sums", [(False, [4, 6, 9]), (True, [2, 3, 3])])
def test_response_norm_divides_its_scale_by_the_whole_neighbourhood(ops64, across, sums):
    """cuda-convnet: 3 x 3 pixels or 3 maps also where the border leaves fewer of them to sum."""
    arguments = dict(size=3, scale=0.9, power=2.0, across=across)
    y = ResponseNorm(ops64, (3, 3, 3), "norm", **arguments).forward(np.ones((1, 3, 3, 3)), Mode())
    at_border, half_inside, inside = sums
    scale = 0.9 / (3 if across else 9)
    got = [y[0, 0, 0, 0], y[0, 0, 1, 1], y[0, 1, 1, 1]]
    assert_close(got, [(1 + scale * n) ** -2.0 for n in (at_border, half_inside, inside)])


def test_evaluation_draws_no_dropout_and_training_draws_by_step(ops64, inputs):
    net = network(
        ops64,
        [
            dict(layer="dense", units=6, std=0.5),
            dict(layer="dropout", keep=0.5),
            dict(layer="dense", units=3, std=0.5),
        ],
    )
    assert np.array_equal(net.forward(inputs), net.forward(inputs))
    step4, again, step5 = (net.forward(inputs, training=True, step=s) for s in (4, 4, 5))
    assert np.array_equal(step4, again)
    assert not np.allclose(step4, step5)


def test_batch_norm_refuses_to_evaluate_before_statistics_are_measured(ops64, inputs):
    net = network(
        ops64,
        [
            dict(layer="conv", filters=2, kernel=3),
            dict(layer="batch_norm"),
            dict(layer="dense", units=2),
        ],
    )
    with pytest.raises(RuntimeError, match="batch_norm1"):
        net.forward(inputs)
    net.measure_statistics(inputs)
    assert np.isfinite(net.forward(inputs)).all()


def test_initial_weights_have_their_deviations_and_biases_are_zero(ops64):
    layers = [
        dict(layer="conv", filters=40, kernel=5, std=0.02),
        dict(layer="dense", units=30, std="he"),
    ]
    net = build_network(layers, (9, 8, 5), ops64, seed=1)
    conv, dense = net.views(net.theta)
    assert np.array_equal(conv[:, 0], np.zeros(40))
    assert abs(conv[:, 1:].std() / 0.02 - 1) < 0.05
    assert abs(dense[:, 1:].std() / np.sqrt(2 / (5 * 4 * 40)) - 1) < 0.05


def test_the_paper_network_has_its_89578_parameters(ops64):
    pool = dict(size=3, stride=2)
    conv = dict(layer="conv", kernel=5, padding=2)
    layers = [
        conv | dict(filters=32),
        dict(layer="max_pool") | pool,
        conv | dict(filters=32),
        dict(layer="avg_pool") | pool,
        conv | dict(filters=64),
        dict(layer="avg_pool") | pool,
        dict(layer="dense", units=10),
    ]
    net = build_network(layers, (32, 32, 3), ops64)
    assert [layer.weight_shape for layer in net.weighted] == [
        (32, 76),
        (32, 801),
        (64, 801),
        (10, 1025),
    ]
    assert len(net.theta) == 89_578


@pytest.mark.parametrize(
    "layers, message",
    [
        ([dict(layer="conv", filters=2, kernel=9)], "does not fit"),
        *(
            ([dict(layer="dense", units=4), second], f"{second['layer']}1 takes images")
            for second in (
                dict(layer="conv", filters=2, kernel=3),
                dict(layer="max_pool", size=2, stride=2),
                dict(layer="avg_pool", size=2, stride=2),
                dict(layer="response_norm", size=3, scale=1.0, power=0.75),
                dict(layer="response_norm", size=3, scale=1.0, power=0.75, across=True),
            )
        ),
        ([dict(layer="sigmoid")], "sigmoid"),
        ([dict(layer="relu")], "no layer has weights"),
        ([dict(layer="dense", units=2, name="a"), dict(layer="dense", units=2, name="a")], "'a'"),
        ([dict(layer="conv", filters=2)], "kernel"),
        ([dict(layer="max_pool", size=2, stride=3), dict(layer="dense", units=2)], "stride"),
        ([dict(layer="max_pool", size=7, stride=3, clipped=False)], "no window of 7 lies inside"),
    ],
)
def test_impossible_networks_are_refused_by_name(ops64, layers, message):
    with pytest.raises(ValueError, match=message):
        build_network(layers, (7, 6, 2), ops64)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", None])
def test_a_seed_that_would_be_another_one_is_refused(ops64, seed):
    with pytest.raises(ValueError, match=r"^seed: .* is no whole number from 0 to 2\*\*32 - 1$"):
        build_network([dict(layer="dense", units=2)], (2, 2, 1), ops64, seed)
    build_network([dict(layer="dense", units=2)], (2, 2, 1), ops64, np.uint32(2**32 - 1))


CONV, POOL = dict(layer="conv", filters=2, kernel=3), dict(size=3, stride=2)


@pytest.mark.parametrize(
    "layer, message",
    [
        (CONV | dict(stride=0), "stride: must be at least 1, got 0"),
        (CONV | dict(padding=-1), "padding: must be at least 0, got -1"),
        (CONV | dict(kernel=0), "kernel: must be at least 1, got 0"),
        (CONV | dict(kernel=3.0), "kernel: must be a whole number, got 3.0"),
        (CONV | dict(filters=0), "filters: must be at least 1, got 0"),
        (CONV | dict(std=-1.0), "std: must be above 0, got -1.0"),
        (CONV | dict(kernl=3), "kernl: unknown key; did you mean kernel?"),
        (dict(layer="dense", units=0), "units: must be at least 1, got 0"),
        (dict(layer="dense", units=None), ".*missing.*'units'"),
        (dict(layer="max_pool", **POOL) | dict(size=0), "size: must be at least 1, got 0"),
        (dict(layer="max_pool", **POOL) | dict(size=17), "size: must be at most 16, got 17"),
        (dict(layer="avg_pool", **POOL) | dict(stride=0), "stride: must be at least 1, got 0"),
        (dict(layer="avg_pool", **POOL) | dict(stride=4), "stride: 4 is above the window's size"),
        (dict(layer="response_norm", size=0), "size: must be at least 1, got 0"),
        (dict(layer="batch_norm", epsilon=0.0), "epsilon: must be above 0, got 0.0"),
        (dict(layer="dropout", keep=1.5), "keep: must be at most 1, got 1.5"),
        (dict(layer="custom", type=3), "type: must be a class or its name, got 3"),
        (dict(layer="custom"), "type: missing"),
    ],
)
def test_build_network_names_the_layer_of_every_argument_out_of_bounds(ops64, layer, message):
    layers = [dict(layer="relu"), layer, dict(layer="dense", units=2)]
    with pytest.raises(ValueError, match=rf"^network.1 \({layer['layer']}\): {message}"):
        build_network(layers, (7, 6, 2), ops64)


def test_build_network_takes_numbers_of_numpy(ops64, inputs):
    layers = [dict(layer="conv", filters=np.int64(2), kernel=np.int32(3), std=np.float32(0.5))]
    plain = [dict(layer="conv", filters=2, kernel=3, std=0.5)]
    last = dict(layer="dense", units=3)
    found, expected = (
        build_network([*first, last], INPUT_SHAPE, ops64).forward(inputs)
        for first in (layers, plain)
    )
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, expected)


def test_layers_may_come_one_by_one(ops64, inputs):
    built = network(ops64)
    again = Network(iter(build_network(EVERY_LAYER, INPUT_SHAPE, ops64, seed=3).layers), ops64)
    again.theta[...] = built.theta
    np.testing.assert_array_equal(again.forward(inputs), built.forward(inputs))


@pytest.mark.parametrize("native", ["on", "off"])
@pytest.mark.parametrize("shape", [(3, 3), (0, 3), (2, 4), (2,)])
def test_derivatives_that_no_forward_pass_belongs_to_are_refused(shape, native, rng):
    """Where more are given than were sent forward the gradient would be one of some of them."""
    if native == "on" and not has_extension():
        pytest.skip("the C extension is not built")
    ops = CpuOps("float64", shards=1, native=native)
    net = build_network([dict(layer="dense", units=3)], INPUT_SHAPE, ops)
    with pytest.raises(RuntimeError, match="needs a forward pass before it"):
        net.backward(np.ones((2, 3)))
    net.forward(rng.standard_normal((2, *INPUT_SHAPE)))
    text = rf"derivatives of shape {re.escape(str(shape))} .* M = 2 .* \(m, 3\), m from 1 to M"
    for backward in (net.backward, net.backward_with_gradient):
        with pytest.raises(ValueError, match=text):
            backward(np.ones(shape))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_another_length_is_refused_and_the_parameters_stay(ops64, inputs, change):
    """A longer one would pass: of a flat vector each layer takes its own part."""
    net = network(ops64)
    expected = net.forward(inputs)
    vector = np.ones(len(net.theta) + change)
    text = rf"shape \({len(vector)},\) given; the network's are \({len(net.theta)},\)"
    with pytest.raises(ValueError, match=text):
        net.views(vector)
    with pytest.raises(ValueError, match=text):
        net.bind(vector)
    with pytest.raises(ValueError, match=text), net.using(vector):
        pass
    np.testing.assert_array_equal(net.forward(inputs), expected)
    with pytest.raises(ValueError):
        net.tangent(vector, 2)


def test_first_nonfinite_names_the_layer(ops64, inputs):
    net = network(ops64)
    assert net.first_nonfinite(inputs) is None
    net.views(net.theta)[1][0, 0] = np.inf
    assert net.first_nonfinite(inputs) == "conv2"
    net.views(net.theta)[1][0, 0] = 0
    net.views(net.theta)[1][:, 0] = -np.inf  # of which the ReLU behind it makes zeros
    assert net.first_nonfinite(inputs) == "conv2"


def test_a_copy_leaves_what_the_layers_remember_alone(ops64, rng, inputs):
    net = network(ops64)
    net.forward(inputs, training=True, step=4)
    direction = rng.standard_normal(len(net.theta))
    expected = net.tangent(direction, 3)
    other = net.copy()
    other.bind(2 * net.theta)
    assert not np.allclose(other.forward(inputs[:2] + 1), net.forward(inputs[:2] + 1))
    net.forward(inputs, training=True, step=4)
    other.forward(inputs[:2] + 1)
    assert np.array_equal(net.tangent(direction, 3), expected)


def test_training_a_copy_leaves_the_network_alone(ops64, inputs):
    net, loss = network(ops64), SoftmaxCrossEntropy(ops64)
    with net.using(2 * net.theta):
        other = net.copy()
    theta, gradient, expected = net.theta.copy(), net.gradient.copy(), net.forward(inputs)
    np.testing.assert_array_equal(other.theta, 2 * theta)
    _, dz, _ = loss.evaluate(other.forward(inputs), np.zeros(5, np.int32))
    other.backward(dz)
    other.compute_gradient()
    assert other.gradient.any()
    other.theta -= 0.1 * other.gradient
    assert not np.allclose(other.forward(inputs), expected)
    np.testing.assert_array_equal(net.theta, theta)
    np.testing.assert_array_equal(net.gradient, gradient)
    np.testing.assert_array_equal(net.forward(inputs), expected)


def test_settings_left_out_are_those_of_a_configuration(ops64):
    mappings = [
        dict(layer="conv", filters=4, kernel=3),
        dict(layer="response_norm", size=3),
        dict(layer="max_pool", size=2, stride=2),
        dict(layer="dense", units=3),
    ]
    models = [ConvConfig(**mappings[0]), ResponseNormConfig(**mappings[1]),
              MaxPoolConfig(**mappings[2]), DenseConfig(**mappings[3])]  # fmt: skip
    of_mappings, of_models = (
        build_network(layers, (6, 5, 2), ops64) for layers in (mappings, models)
    )
    np.testing.assert_array_equal(of_mappings.theta, of_models.theta)
    assert of_mappings.layers[1].parameters == of_models.layers[1].parameters
    weight = of_mappings.layers[0].weight[:, 1:]
    assert 0.7 < weight.std() / np.sqrt(2 / 18) < 1.3  # he


def test_a_pass_in_another_thread_leaves_the_result_of_a_relu_alone(ops64, rng):
    """The former array goes where the new one is kept, and another thread may run then."""
    net = build_network([dict(layer="relu"), dict(layer="dense", units=3)], (2, 2, 1), ops64)
    mine, others = rng.standard_normal((2, 4, 2, 2, 1))
    expected = net.forward(mine).copy()

    class Meanwhile:
        def __del__(self):
            thread = threading.Thread(target=net.forward, args=(others,))
            thread.start()
            thread.join()

    net.layers[0].saved = Meanwhile()
    np.testing.assert_array_equal(net.forward(mine), expected)


def unfused(net):
    """The network, its ReLUs and normalisations in passes of their own."""
    for layer in net.layers:
        layer.applies_relu = layer.fused = layer.forward_fused = layer.derivative_fused = False
        layer.takes_relu_derivative, layer.norm, layer.pool = False, None, None
    return net


RELUS_BESIDE_POOLS = [
    dict(layer="conv", filters=4, kernel=3, padding=1, std=0.5),
    dict(layer="max_pool", size=3, stride=2),
    dict(layer="relu"),
    dict(layer="conv", filters=8, kernel=3, padding=1, std=0.5),
    dict(layer="relu"),
    dict(layer="avg_pool", size=2, stride=1),
    dict(layer="max_pool", size=2, stride=1),
    dict(layer="relu"),
    dict(layer="avg_pool", size=2, stride=2),
    dict(layer="dense", units=3, std=0.5),
]


def test_relu_beside_a_pool_is_taken_in_its_passes_with_the_same_results(ops, rng):
    fused = build_network(RELUS_BESIDE_POOLS, (9, 8, 3), ops)
    apart = unfused(build_network(RELUS_BESIDE_POOLS, (9, 8, 3), ops))
    relus = [layer for layer in fused.layers if isinstance(layer, ReLU)]
    assert [layer.forward_fused for layer in relus] == [True] * 3
    assert [layer.derivative_fused for layer in relus] == [True] * 3
    pools = [layer for layer in fused.layers if isinstance(layer, AvgPool)]
    assert [layer.takes_relu_derivative for layer in pools] == [True, False]
    x, direction = (ops.asarray(rng.standard_normal(s)) for s in ((5, 9, 8, 3), fused.theta.shape))
    dz = ops.asarray(rng.standard_normal((3, 3)))  # of a part of the mini-batch
    results = []
    for net in fused, apart:
        z = ops.to_numpy(net.forward(x, training=True))
        net.backward(dz)
        net.compute_gradient()
        tangent = ops.to_numpy(net.tangent(direction, 3))
        results.append((z, ops.to_numpy(net.gradient).copy(), tangent))
    for one, other in zip(*results, strict=True):
        assert np.isfinite(one).all() and np.any(one)
        assert np.array_equal(one, other)


def test_relu_behind_a_weighted_layer_is_taken_in_its_pass_with_the_same_result(ops, rng):
    fused, apart = network(ops), unfused(network(ops))
    x = ops.asarray(rng.standard_normal((3, *INPUT_SHAPE)))
    assert [layer.applies_relu for layer in fused.weighted] == [False, False, True, False]
    assert np.array_equal(*(ops.to_numpy(net.forward(x)) for net in (fused, apart)))
