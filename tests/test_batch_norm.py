"""Batch normalisation: learned scale and shift, their curvature, and statistics as constants."""

import numpy as np
import pytest
from checks import assert_close, derivative
from networks import INPUT_SHAPE, batches, network, settings
from runs import SGD, small

from kfcnet import data
from kfcnet.config import ConfigError
from kfcnet.curvature.scale_shift import ScaleShiftBlock
from kfcnet.layers import Mode, ScaleShift
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.optimizers import build_optimizer
from kfcnet.runs.checkpoint import load_checkpoint
from kfcnet.runs.folder import RunFolder
from kfcnet.training import trainer
from kfcnet.training.train import train
from kfcnet.training.trainer import Trainer

AFFINE = dict(layer="batch_norm", epsilon=0.1, affine=True)
LAYERS = [
    dict(layer="conv", name="conv1", filters=3, kernel=3, padding=1, std=0.5),
    AFFINE,
    dict(layer="relu"),
    dict(layer="max_pool", size=3, stride=2),
    dict(layer="dense", name="dense1", units=4, std=0.5),
    AFFINE,
    dict(layer="relu"),
    dict(layer="dense", name="dense2", units=3, std=0.4),
]
LABELS = np.array([0, 2, 1, 1, 0], np.int32)


@pytest.fixture
def inputs(rng):
    return rng.standard_normal((5, *INPUT_SHAPE))


def kfc_pre(ops, **changes):
    net = network(ops, LAYERS)
    return build_optimizer(settings("kfc_pre", **changes), net, SoftmaxCrossEntropy(ops, 3))


def test_scale_and_shift_start_as_the_identity_and_are_counted(ops64, inputs):
    plain = [dict(layer, affine=False) if layer is AFFINE else layer for layer in LAYERS]
    with_affine, without = (build_network(layers, INPUT_SHAPE, ops64) for layers in (LAYERS, plain))
    for mine, other in ((0, 0), (2, 1), (4, 2)):
        with_affine.weighted[mine].weight[...] = without.weighted[other].weight
    assert [layer.name for layer in with_affine.weighted] == [
        "conv1",
        "batch_norm1_affine",
        "dense1",
        "batch_norm2_affine",
        "dense2",
    ]
    assert len(with_affine.theta) == len(without.theta) + 2 * (3 + 4)
    assert_close(with_affine.forward(inputs, training=True), without.forward(inputs, training=True))


def test_every_map_is_scaled_and_shifted_by_its_own_numbers(ops64, rng):
    net = build_network([AFFINE, dict(layer="dense", units=2)], (3, 2, 2), ops64)
    x = rng.standard_normal((4, 3, 2, 2))
    net.weighted[0].weight[...] = [[5.0, 2.0], [-1.0, 0.0]]  # (shift, scale); a scale may vanish
    net.forward(x, training=True)
    normalised = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 0.1)
    assert_close(net.weighted[1].inputs.reshape(x.shape)[..., 0], 5 + 2 * normalised[..., 0])
    assert_close(net.weighted[1].inputs.reshape(x.shape)[..., 1], -np.ones((4, 3, 2)))


def test_gradient_goes_through_the_statistics_and_to_scale_and_shift(ops64, rng, inputs):
    net, loss = network(ops64, LAYERS), SoftmaxCrossEntropy(ops64)

    def mean_loss(theta):
        with net.using(theta):
            return loss.evaluate(net.forward(inputs, training=True), LABELS)[2][0] / 5

    _, dz, _ = loss.evaluate(net.forward(inputs, training=True), LABELS)
    net.backward(dz)
    net.compute_gradient()
    for index, expected in enumerate(net.gradient.copy()):
        unit = np.eye(1, len(net.theta), index)[0]
        assert abs(derivative(mean_loss, net.theta.copy(), unit, 1e-6) - expected) < 1e-7


def test_the_sampled_and_the_tangent_pass_take_statistics_as_constants(ops64, rng, inputs):
    """Both are the derivatives of evaluation at the batch's statistics, for a part of the batch."""
    net = network(ops64, LAYERS)
    net.measure_statistics(inputs)
    net.forward(inputs, training=True)
    direction, r = rng.standard_normal(len(net.theta)), rng.standard_normal((3, 3))
    tangent = net.tangent(direction, 3)
    net.backward(r, per_example=True)
    net.compute_gradient()
    along = net.gradient @ direction * 3  # undo the mean over the three examples

    def outputs(theta):
        with net.using(theta):
            return net.forward(inputs)[:3]

    expected = derivative(outputs, net.theta.copy(), direction, 1e-6)
    assert_close(tangent, expected, 1e-7)
    assert_close(along, (expected * r).sum(), 1e-7)

    def through_statistics(theta):
        with net.using(theta):
            return net.forward(inputs, training=True)[:3]

    other = derivative(through_statistics, net.theta.copy(), direction, 1e-6)
    assert np.abs(other - expected).max() > 0.1 * np.abs(expected).max()


def test_the_gradient_in_evaluation_is_that_of_evaluation(ops64, rng, inputs):
    """Whose statistics do not depend on the examples, so that a part of them will do."""
    net = network(ops64, LAYERS)
    net.measure_statistics(2 * inputs)
    net.forward(inputs)
    direction, r = rng.standard_normal(len(net.theta)), rng.standard_normal((3, 3))
    net.backward(r)
    net.compute_gradient()

    def outputs(theta):
        with net.using(theta):
            return net.forward(inputs)[:3]

    expected = (derivative(outputs, net.theta.copy(), direction, 1e-6) * r).sum()
    assert_close(net.gradient @ direction * 3, expected, 1e-7)


def test_training_leaves_the_measured_statistics_alone(ops64, inputs):
    """Evaluation keeps to those of `measure_statistics`, whatever mini-batches come between."""
    net = network(ops64, LAYERS)
    net.measure_statistics(inputs)
    expected = net.forward(inputs)
    net.forward(2 * inputs + 1, training=True)
    np.testing.assert_array_equal(net.forward(inputs), expected)


def test_the_gradient_through_statistics_is_refused_for_a_part_of_their_examples(ops64, inputs):
    """What the others add to it would be whatever lay in memory."""
    net = network(ops64, LAYERS)
    net.forward(inputs, training=True)
    with pytest.raises(ValueError, match=r"batch_norm2: derivatives of 3 examples .* all of its 5"):
        net.backward(np.ones((3, 3)))
    net.backward(np.ones((3, 3)), per_example=True)
    net.backward(np.ones((5, 3)))


@pytest.mark.parametrize("layer", [1, 3], ids=["maps", "units"])
def test_the_block_of_scale_and_shift_is_the_exact_fisher_block(ops64, rng, inputs, layer):
    """The second moment of each example's own gradient, example by example."""
    net, loss = network(ops64, LAYERS), SoftmaxCrossEntropy(ops64)
    block = ScaleShiftBlock(net.weighted[layer], ops64)
    expected = 0.0
    for step, decay in ((0, 0.0), (1, 0.3)):
        p, _, _ = loss.evaluate(net.forward(inputs * (1 + step), training=True), LABELS)
        sampled = loss.sampled_gradient(p, step)
        net.backward(sampled, per_example=True)
        block.update_factors(decay)
        rows = []
        for m in range(5):
            alone = np.zeros_like(sampled)
            alone[m] = sampled[m]
            net.backward(alone, per_example=True)
            net.compute_gradient()
            rows.append(5 * net.views(net.gradient)[layer].ravel())
        expected = decay * expected + (1 - decay) * np.transpose(rows) @ rows / 5
    assert_close(block.matrix(), expected)


def test_the_natural_gradient_of_scale_and_shift_is_a_damped_solve(ops64, rng):
    opt = kfc_pre(ops64, damping=0.02, weight_decay={"batch_norm1_affine": 0.03})
    opt.prepare(batches(ops64, rng, 1))
    block, gradient = opt.blocks[1], rng.standard_normal((3, 2))
    expected = np.linalg.solve(block.matrix() + 0.05 * np.eye(6), gradient.ravel())
    assert_close(block.precondition(gradient), expected.reshape(3, 2), 1e-9)
    out = np.empty((3, 2))
    block.precondition(gradient, out)
    assert_close(out, expected.reshape(3, 2), 1e-9)


def test_the_damping_that_scale_and_shift_need_is_reported_for_plain_tikhonov(ops64):
    block = ScaleShiftBlock(network(ops64, LAYERS).weighted[1], ops64)
    block.Omega[...] = np.diag([-2.0, 1, 1, 1, 1, 7])
    with pytest.raises(
        np.linalg.LinAlgError,
        match=("batch_norm1_affine: .* eigenvalue of Omega -2, .* is 0.1, from 2 on it is safe"),
    ):
        block.update_inverses(0.1)
    block.update_inverses(2.001)
    assert np.isfinite(block.Omega_inv).all()


def test_one_weight_decay_for_all_leaves_scale_and_shift_alone_unless_they_are_named(ops64):
    for decay, expected in ((0.5, 0.0), ({"batch_norm1_affine": 0.5}, 0.5)):
        opt = kfc_pre(ops64, weight_decay=decay, max_norm=0.7)
        assert_close(opt.network.views(opt.decay_vector)[1], np.outer(np.ones(3), [0, expected]))
        assert opt.max_norms == [0.7, None, 0.7, None, 0.7]


def test_kfc_pre_trains_scale_and_shift_and_resumes_bit_for_bit(ops64, rng):
    straight, resumed = kfc_pre(ops64), kfc_pre(ops64)
    first, *data = batches(ops64, rng, 7)
    straight.prepare([first])
    initial = straight.network.theta.copy()
    for batch in data[:3]:
        straight.step(batch)
    resumed.load_state(straight.state())
    for batch in data[3:]:
        straight.step(batch)
        resumed.step(batch)
    assert np.isfinite(straight.network.theta).all()
    assert np.array_equal(straight.network.theta, resumed.network.theta)
    moved = straight.network.views(straight.network.theta - initial)
    assert min(np.abs(part).min() for part in (moved[1], moved[3])) > 0


def test_the_config_names_scale_and_shift():
    affine = "network.2={layer: batch_norm, affine: true, name: bn}"
    config = small(affine, "optimizer.weight_decay={bn_affine: 0.1}", text=SGD)
    assert config.optimizer.weight_decay == {"bn_affine": 0.1}
    assert config.network[2].name == "bn" and config.network[2].affine
    assert small(text=SGD).network[2].name == "batch_norm1"
    for refused in (
        "optimizer.weight_decay={batch_norm1_affine: 0.1}",
        "optimizer.weight_decay={batch_norm1: 0.1}",
        "network.2={layer: batch_norm, name: conv1}",
    ):
        with pytest.raises(ConfigError):
            small(refused, text=SGD)


def test_averaged_parameters_are_evaluated_with_statistics_of_their_own(tmp_path, no_figures):
    """Measured anew on training examples drawn at random, the same for every run."""
    config = small("network.2.affine=true", "dtype=float64", text=SGD)
    train(config, tmp_path / "run")
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.h5")
    fresh = Trainer(config, RunFolder("unused"), data.load(config.data))
    net = fresh.network
    x = fresh.train_set.batch(fresh.shuffled[: trainer.STATISTICS_EXAMPLES]).inputs
    with net.using(saved["optimizer"]["average"]):
        convolved = net.weighted[0].forward(x, Mode())  # dropout is the identity when measuring
    assert len(x) == 1024
    statistics = saved["statistics"]["batch_norm1"]
    assert_close(statistics["mean"], convolved.mean((0, 1, 2)))
    assert_close(statistics["inv_std"], 1 / np.sqrt(convolved.var((0, 1, 2)) + 1e-5))


def test_scale_and_shift_are_the_same_on_every_device(ops, ops64, rng):
    x, dy = (rng.standard_normal((3, 5, 4, 6)) for _ in range(2))
    weight, direction = rng.standard_normal((2, 6, 2))
    results = []
    for device in (ops, ops64):
        layer = ScaleShift(device, (5, 4, 6), "affine")
        layer.weight = device.asarray(weight)
        block, out = ScaleShiftBlock(layer, device), device.empty((6, 2))
        passes = [
            layer.forward(device.asarray(x), None),
            layer.backward(device.asarray(dy)),
            layer.tangent(device.asarray(dy[:2]), device.asarray(direction), 2),
        ]
        layer.gradient(out)
        block.update_factors(0.0)
        block.update_inverses(0.1)
        natural = block.precondition(device.asarray(direction))
        results.append([device.to_numpy(a) for a in (*passes, out, block.Omega, natural)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 1e-4 if ops.dtype == np.float32 else None)
