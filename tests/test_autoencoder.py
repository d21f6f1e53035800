"""Squared error: a network that learns to give its inputs back."""

import re

import numpy as np
import pytest
from checks import assert_close
from runs import small

from kfcnet import data, load_run
from kfcnet.batches import Examples
from kfcnet.config import ConfigError
from kfcnet.losses import SquaredError
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.train import train

pytestmark = pytest.mark.usefixtures("no_figures")

TEXT = """
data: {name: digits, input_scale: auto}
network: [{layer: dense, units: 6}, {layer: relu}, {layer: dense}]
loss: squared_error
optimizer: {name: kfac, batch_size: 240, initial_examples: 300, damping: 1.0, inverse_period: 5,
  factor_damping_period: 5, fisher_fraction: 1.0, averaging_timescale: 500}
evaluation: {every: 3, unit: updates}
epochs: 2
device: cpu
ops: {native: "off"}
"""


def test_the_targets_are_the_inputs(ops, rng):
    images = rng.integers(0, 256, (7, 3, 2, 2), np.uint8)
    labels, mean = np.zeros(7, np.int32), np.full((3, 2, 2), 100.0, np.float32)
    batch = Examples(ops, images, labels, mean, 50.0, reconstructs=True).batch(np.array([4, 1]))
    expected = (images[[4, 1]] - 100.0) / 50
    assert_close(ops.to_numpy(batch.inputs), expected, 1e-6)
    assert_close(ops.to_numpy(batch.targets), expected.reshape(2, 12), 1e-6)


def test_the_error_is_the_mean_square_of_what_the_outputs_miss(ops, rng):
    z, y = rng.standard_normal((2, 5, 3))
    found = SquaredError(ops).evaluate(ops.asarray(z), ops.asarray(y))
    squares = np.square(z - y).sum()
    assert_close(ops.to_numpy(found.totals), [squares / 2, squares / 3], 1e-5)
    assert_close(ops.to_numpy(found.dz), z - y, 1e-6)


@pytest.mark.parametrize("shape", [(4, 1), (3,), (4,), (1, 3), (4, 3, 1)])
def test_squared_error_refuses_targets_of_another_shape_than_the_outputs(ops, shape):
    with pytest.raises(ValueError, match=re.escape(f"targets have shape {shape}; ") + ".*4, 3"):
        SquaredError(ops).evaluate(ops.zeros((4, 3)), ops.zeros(shape))


def test_an_autoencoder_learns_to_give_the_digits_back(tmp_path):
    config = small(text=TEXT)
    train(config, tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    error = metrics["test_error"]
    assert error[0] > 0.9 and error[-1] < 0.7 * error[0], error
    assert_close(metrics["train_loss"], metrics["train_error"] * 64 / 2, 1e-6)
    run, digits = load_run(tmp_path / "run"), data.load(config.data)
    images = run.predict(digits.test_images)
    missed = (images - digits.test_images) / run.config.data.input_scale
    assert images.shape == digits.test_images.shape
    assert_close(np.square(missed).mean(), error[-1], 1e-5)
    _, again = run.evaluate(digits.test_images, np.full(len(digits.test_images), 77))
    assert_close(again, error[-1], 1e-6)
    named = np.full(len(digits.test_images), "three")  # an autoencoder does not look at labels
    assert run.evaluate(digits.test_images, named)[1] == again


def test_outputs_that_are_not_one_a_pixel_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"output has shape \(10,\), but digits has 64 values"):
        train(small("network.2.units=10", text=TEXT), tmp_path / "run")


def test_an_autoencoder_that_stays_as_it_began_warns(tmp_path):
    with pytest.warns(UserWarning, match="no better than always the mean image"):
        train(
            small("optimizer={name: sgd, learning_rate: 1e-30, batch_size: 240}", text=TEXT),
            tmp_path / "run",
        )
