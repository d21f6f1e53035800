"""What goes wrong first from Python is said in a line that names it and the way out."""

import numpy as np
import pytest
from networks import batches, network, settings

import kfcnet
from kfcnet import data
from kfcnet.batches import Batch
from kfcnet.config import ConfigError
from kfcnet.config.schema import KfcPreConfig
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.ops.cpu import CpuOps


@pytest.fixture
def ops():
    return CpuOps("float32", shards=1)


@pytest.fixture
def optimizer(ops):
    return kfcnet.build_optimizer(settings("kfc_pre"), network(ops), SoftmaxCrossEntropy(ops))


def raises(error, message):
    return pytest.raises(error, match=f"^{message}")


@pytest.mark.parametrize("config", [{"data": {"name": "digits"}}, "digits_kfc", None])
def test_what_is_no_config_is_not_trained(config, tmp_path):
    with raises(ConfigError, r"train: expected a Config, got .*kfcnet.load_config\(name\) reads"):
        kfcnet.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_are_no_config_to_load():
    with raises(ConfigError, "load_config: expected a name or a path, got {'epochs': 3}; kfcnet"):
        kfcnet.load_config({"epochs": 3})
    for overrides in ("epochs=3", {"epochs": 3}):
        with raises(ConfigError, "digits_sgd.yaml: overrides: expected a list of texts such as"):
            kfcnet.load_config("digits_sgd", overrides)


@pytest.mark.parametrize("config", ["digits", {"name": "digits"}])
def test_what_describes_no_data_is_not_loaded(config):
    with raises(
        TypeError, r"data.load: expected the data of a configuration, .*\(name\).data, got"
    ):
        data.load(config)


@pytest.mark.parametrize("config", [{"name": "sgd", "learning_rate": 0.1}, "sgd"])
def test_what_is_no_optimizers_model_is_not_built(ops, config):
    with raises(TypeError, "config: expected a model such as kfcnet.config.schema.KfcPreConfig"):
        kfcnet.build_optimizer(config, network(ops), SoftmaxCrossEntropy(ops))


@pytest.mark.parametrize("settings, message", [
    (dict(optimiser="sgd"), "fit: optimiser: unknown key; did you mean optimizer?"),
    (dict(batch_size=3), "fit: batch_size: unknown key; did you mean optimizer.batch_size?"),
])  # fmt: skip
def test_a_wrong_keyword_of_fit_is_named_with_the_right_one(settings, message):
    images = np.zeros((9, 5, 4), np.uint8)
    with pytest.raises(ConfigError) as error:
        kfcnet.fit(images, np.arange(9) % 3, [{"layer": "dense"}], **settings)
    assert str(error.value) == message


@pytest.mark.parametrize("settings, message", [
    (dict(learning_rat=1), "KfcPreConfig: learning_rat: unknown key; did you mean learning_rate?"),
    (dict(learning_rate=-1), "KfcPreConfig: learning_rate: must be above 0, got -1"),
    (dict(), "KfcPreConfig: learning_rate: missing"),
])  # fmt: skip
def test_a_wrong_setting_of_an_optimizers_model_is_said_in_a_line(settings, message):
    with pytest.raises(ConfigError) as error:
        KfcPreConfig(**settings)
    assert str(error.value) == message


def test_a_layer_without_a_kind_is_named(ops):
    with raises(ValueError, "network.1: has no key layer, one of conv, dense"):
        kfcnet.build_network([{"layer": "relu"}, {"kind": "dense"}], (5, 4, 3), ops)


@pytest.mark.parametrize("change, error, message", [
    (lambda x: x.astype(np.float64), TypeError, "inputs are float64; .* with float32: ops.asarray"),
    (lambda x: x.astype(np.uint8), TypeError, "inputs are uint8; .*: scale pixels first"),
    (lambda x: x.tolist(), TypeError, "inputs are list; "),
    (lambda x: x[0], ValueError, r"inputs have shape \(7, 6, 2\); .* takes \(M, 7, 6, 2\)"),
    (lambda x: x[:, 1:], ValueError, r"inputs have shape \(8, 6, 6, 2\); the network takes"),
])  # fmt: skip
def test_inputs_that_the_network_cannot_take_are_named(optimizer, rng, change, error, message):
    [batch] = batches(optimizer.ops, rng, 1)
    with raises(error, message):
        optimizer.network.forward(change(batch.inputs))


def test_a_network_that_begins_with_a_dense_layer_takes_images(ops, rng):
    net = network(ops, [dict(layer="dense", units=3)])
    assert net.forward(ops.asarray(rng.standard_normal((2, 7, 6, 2)))).shape == (2, 3)
    with raises(ValueError, "inputs have shape"):
        net.forward(ops.asarray(rng.standard_normal((2, 84))))


@pytest.mark.parametrize("change, message", [
    (lambda y: np.where(np.arange(8) == 5, 3, y), "the label of example 5 is 3, not one of 0 to 2"),
    (lambda y: np.where(np.arange(8) == 2, -1, y), "the label of example 2 is -1, not one of 0"),
    (lambda y: y.astype(np.float32), r"labels are float32 \(8,\); for outputs \(8, 3\) they must"),
    (lambda y: y[:7], r"labels are int32 \(7,\); for outputs \(8, 3\) they must be whole"),
])  # fmt: skip
def test_labels_that_are_no_classes_are_named_before_anything_moves(
    optimizer, rng, change, message
):
    [first, batch] = batches(optimizer.ops, rng, 2)
    optimizer.prepare([first])
    before = optimizer.network.theta.copy()
    with raises(ValueError, message):
        optimizer.step(Batch(batch.inputs, change(batch.targets)))
    assert np.array_equal(optimizer.network.theta, before)


def test_a_step_before_prepare_says_so(optimizer, rng):
    with raises(RuntimeError, r"the factors have no first estimate yet: call prepare\(batches\)"):
        optimizer.step(batches(optimizer.ops, rng, 1)[0])


def test_a_pair_is_no_batch(optimizer, rng):
    [batch] = batches(optimizer.ops, rng, 1)
    with raises(TypeError, r"step: expected a kfcnet.batches.Batch\(inputs, targets\), got a tup"):
        optimizer.step(tuple(batch))
