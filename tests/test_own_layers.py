"""Layers of a user's own: checked by `check_layer`, trained by `fit`, read by `load`."""

import json

import numpy as np
import pytest

import kfcnet
from kfcnet.config import ConfigError, parse_config
from kfcnet.layers import (
    AvgPool,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Layer,
    LayerError,
    MaxPool,
    ReLU,
    ResponseNorm,
    ScaleShift,
    check_layer,
)
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps

pytestmark = pytest.mark.filterwarnings("ignore::kfcnet.training.errors.TrainingWarning")


class Softplus(Layer):
    def __init__(self, ops, input_shape, name, sharpness=1.0):
        super().__init__(ops, input_shape, name)
        self.sharpness = sharpness

    def forward(self, x, mode):
        self.saved = 1 / (1 + np.exp(-self.sharpness * x))
        return np.logaddexp(0, self.sharpness * x) / self.sharpness

    def backward(self, dy):
        return dy * self.saved[: len(dy)]

    tangent = backward


@pytest.mark.parametrize("layer, shape, training", [
    (Conv2d.of(filters=4, kernel=3, stride=2, padding=1), (7, 6, 3), False),
    (Dense.of(units=4), (5, 4, 3), False),
    (ScaleShift, (5, 4, 3), False),
    (ReLU, (4,), False),
    (MaxPool.of(size=3, stride=2), (7, 6, 2), False),
    (AvgPool.of(size=3, stride=2), (7, 6, 2), False),
    (ResponseNorm.of(size=3, scale=0.5, power=0.75), (5, 6, 3), False),
    (Dropout.of(keep=0.5, seed=1, stream=0), (5, 4, 3), True),
    (Softplus, (5, 4, 3), False),
    (Softplus.of(sharpness=3.0), (5,), True),
    (BatchNorm, (5, 4, 3), True),
])  # fmt: skip
def test_every_layer_passes_the_check(layer, shape, training):
    check = check_layer(layer, shape, training=training)
    assert np.isfinite(check).all() and max(check) < 1e-8


class BatchMean(Layer):
    """Subtracts the mini-batch's mean: in training a function of the whole of it."""

    def forward(self, x, mode):
        return x - x.mean(axis=0) if mode.training else x

    def backward(self, dy):
        return dy - dy.mean(axis=0)

    def backward_per_example(self, dy):
        return dy

    def tangent(self, rx):
        return rx


class BatchMeanIgnored(BatchMean):
    def backward(self, dy):
        return dy


class BatchMeanTangent(BatchMean):
    def tangent(self, rx):
        return 2 * rx


def test_a_layer_that_mixes_the_examples_in_training_is_told_which_map_is_wrong():
    assert max(check_layer(BatchMean, (5, 4, 3), training=True)) < 1e-8
    with pytest.raises(LayerError, match="Ignored: backward: .* the differences of forward"):
        check_layer(BatchMeanIgnored, (5, 4, 3), training=True)
    with pytest.raises(LayerError, match="Tangent: backward_per_example: .* adjoint of tangent:"):
        check_layer(BatchMeanTangent, (5, 4, 3), training=True)


class WrongTangent(Softplus):
    def tangent(self, rx):
        return 2 * self.backward(rx)


class WrongBackward(Softplus):
    def backward(self, dy):
        return dy * self.saved[: len(dy)] ** 2

    def tangent(self, rx):
        return rx * self.saved[: len(rx)]


class ForgetsPart(Softplus):
    def backward(self, dy):
        return dy * self.saved[-len(dy) :]

    tangent = backward


class TakesWhole(Softplus):
    def backward(self, dy):
        return dy * self.saved

    tangent = backward


class ChangesArgument(Softplus):
    def backward(self, dy):
        dy *= self.saved[: len(dy)]
        return dy


class ChangesInput(Softplus):
    def forward(self, x, mode):
        x += 1
        return super().forward(x, mode)


class Hidden(Softplus):
    def backward(self, dy):
        self.saved = self.saved**2
        return super().backward(dy)


class OtherShape(Softplus):
    def forward(self, x, mode):
        return super().forward(x, mode)[..., :1]


class Infinite(Softplus):
    def forward(self, x, mode):
        return super().forward(x, mode) / 0


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("layer, message", [
    (WrongTangent, "tangent: differs from the differences of forward by 1 of their norm"),
    (WrongBackward, "backward: is not the adjoint of tangent"),
    (ForgetsPart, "tangent: the pass of the first 2 examples is not that part of the whole"),
    (TakesWhole, "tangent: the pass of the first 2 examples of 3 fails .*; use saved"),
    (ChangesArgument, "backward: changes its argument in place"),
    (ChangesInput, "forward: changes its argument in place"),
    (Hidden, "backward: a second pass gives other numbers"),
    (OtherShape, r"forward: the output has shape \(3, 5, 4, 1\), not"),
    (Infinite, "forward: the output is not finite"),
])  # fmt: skip
def test_the_check_says_which_map_is_wrong(layer, message):
    with pytest.raises(LayerError, match=f"{layer.__name__}: {message}"):
        check_layer(layer, (5, 4, 3))


@pytest.mark.parametrize("make, words", [
    (ReLU, r"ReLU\(\) is a layer without a place .* makes it of ReLU, or of ReLU.of"),
    (lambda: Conv2d(filters=4, kernel=3), r"Conv2d\(filters=4, kernel=3\) is a layer without"),
    (lambda: Conv2d(4, 3), r"Conv2d\(4, 3\) is a layer without"),
    (lambda: Softplus(sharpness=2.0), r"Softplus\(sharpness=2.0\) is a layer without"),
])  # fmt: skip
def test_a_layer_made_as_in_other_frameworks_says_what_fit_takes(make, words):
    with pytest.raises(TypeError, match=words):
        make()


class NoTangent(Layer):
    def forward(self, x, mode):
        return x

    def backward(self, dy):
        return dy


@pytest.mark.parametrize("layer", ["relu", lambda x: x, ReLU(None, (5, 4, 3), "relu")])
def test_what_is_no_layer_is_not_checked(layer):
    with pytest.raises(TypeError, match="check_layer: expected a subclass of kfcnet.layers.Layer"):
        check_layer(layer, (5, 4, 3))


def test_a_map_that_is_missing_is_named():
    with pytest.raises(NotImplementedError, match="^NoTangent has no tangent$"):
        check_layer(NoTangent, (5, 4, 3))


class Mean(Layer):
    """Of every map. Neither a view of one number nor a list is what a kernel takes."""

    def __init__(self, ops, input_shape, name):
        super().__init__(ops, input_shape, name)
        self.output_shape = input_shape[-1:]

    def forward(self, x, mode):
        return x.mean(axis=(1, 2), dtype=np.float64)

    def backward(self, dy):
        pixels = self.input_shape[0] * self.input_shape[1]
        return np.broadcast_to(dy[:, None, None] / pixels, (len(dy), *self.input_shape))

    def tangent(self, rx):
        return rx.mean(axis=(1, 2)).tolist()


def test_a_layer_that_passes_the_check_trains_whatever_arrays_it_gives(data):
    assert max(check_layer(Mean, (5, 4, 3))) < 1e-6
    run = kfcnet.fit(*data, [Conv2d.of(filters=3, kernel=3), Mean, Dense], epochs=1)
    assert np.isfinite(run.logits(data[0])).all()


class WrongGradient(Dense):
    def gradient(self, out):
        super().gradient(out)
        out[0, 0] *= 2


def test_the_check_looks_at_weights_too():
    with pytest.raises(LayerError, match="WrongGradient: weights: tangent or gradient"):
        check_layer(WrongGradient.of(units=4), (5,))


@pytest.fixture
def data(rng):
    images = rng.integers(0, 256, (40, 6, 5), np.uint8)
    return images, (images.mean(axis=(1, 2)) > 127).astype(int)


def test_a_layer_of_ones_own_trains_and_is_read_again(data, tmp_path):
    layers = [Conv2d.of(filters=3, kernel=3), Softplus.of(sharpness=2.0), Dense]
    run = kfcnet.fit(*data, layers, epochs=1, out=tmp_path / "run")
    probabilities = run.predict_proba(data[0])
    assert np.isfinite(probabilities).all() and run.network.layers[1].sharpness == 2.0
    for given in ([Softplus], layers, [Softplus.of(sharpness=2.0)]):
        again = kfcnet.load(tmp_path / "run", layers=given)
        assert np.array_equal(again.predict_proba(data[0]), probabilities)
    for given, message in ((Softplus, "a list of classes, got Softplus alone"), ([3], "3 is no c")):
        with pytest.raises(ConfigError, match=f"layers: .*{message}"):
            kfcnet.load(tmp_path / "run", layers=given)
    with pytest.raises(ConfigError, match=r"Softplus is a custom layer.*layers=\[Softplus\]"):
        kfcnet.load(tmp_path / "run")


def test_classes_of_the_package_are_the_same_as_mappings(data):
    mappings = [{"layer": "conv", "filters": 3, "kernel": 3}, {"layer": "relu"}, {"layer": "dense"}]
    classes = [Conv2d.of(filters=3, kernel=3), ReLU, Dense]
    runs = [kfcnet.fit(*data, layers, "sgd", epochs=1) for layers in (mappings, classes)]
    assert runs[0].config == runs[1].config
    assert np.array_equal(runs[0].predict_proba(data[0]), runs[1].predict_proba(data[0]))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_settings_that_are_not_finite_are_refused(data, value):
    with pytest.raises(ConfigError, match=f"fit: network.0.sharpness: {value} is not finite"):
        kfcnet.fit(*data, [Softplus.of(sharpness=value), Dense])
    for several in ([1.0, value], (value,), np.array([[0.0, value]])):
        with pytest.raises(ConfigError, match="fit: network.0.sharpness: .* is not finite"):
            kfcnet.fit(*data, [Softplus.of(sharpness=several), Dense])


@pytest.mark.parametrize("layer", ["relu", 3, ReLU(CpuOps(), (3,), "relu")])
def test_what_is_no_layer_is_refused_by_its_number(data, layer):
    with pytest.raises(ConfigError, match="fit: network.0: .* is no layer; give a mapping such as"):
        kfcnet.fit(*data, [layer, Dense])


def test_wrong_settings_of_a_class_are_refused_in_a_line(data):
    with pytest.raises(ConfigError, match=r"network.1 \(custom\): .*unexpected.*'sharp'"):
        kfcnet.fit(*data, [Dense.of(units=3), Softplus.of(sharp=2.0), Dense])
    with pytest.raises(ConfigError, match="fit: network.0.filter: unknown key"):
        kfcnet.fit(*data, [Conv2d.of(filter=2, kernel=3), Dense])


def test_custom_layers_have_no_weights_and_stay_on_the_cpu():
    spec = {"layer": "custom", "type": WrongGradient, "settings": {"units": 2}}
    with pytest.raises(ValueError, match="WrongGradient must be a subclass .* without weights"):
        build_network([spec], (5, 4, 3), CpuOps())
    other = CpuOps()
    other.name = "cuda"
    with pytest.raises(ValueError, match="Softplus is a custom layer, .*; set device=cpu"):
        build_network([spec | {"type": Softplus, "settings": {}}], (5, 4, 3), other)


def test_a_file_names_a_class_and_imports_nothing():
    text = json.dumps({
        "data": {"name": "digits"}, "epochs": 1, "optimizer": {"name": "sgd", "learning_rate": 1},
        "network": [{"layer": "custom", "type": "os:system"}, {"layer": "dense", "units": 10}],
    })  # fmt: skip
    config = parse_config(text)
    assert config.network[0].type == "os:system"
    with pytest.raises(ValueError, match="os:system is a custom layer, and its class is not known"):
        build_network(config.network, (8, 8, 1), CpuOps())
    with pytest.raises(ConfigError, match="network.0.type: must be a class or its name, got 3"):
        parse_config(text.replace('"os:system"', "3"))
