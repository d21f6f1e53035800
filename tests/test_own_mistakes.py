"""What people do with images of their own and would not notice: it works, or they are told."""

import errno
import logging
import pickle
import re
import struct
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from PIL import Image

import kfcnet
from kfcnet import data
from kfcnet.config import ConfigError
from kfcnet.config.schema import FolderDataConfig
from kfcnet.data import DataError, digits
from kfcnet.data.dataset import why_no_classes
from kfcnet.layers import Conv2d, Dense, Layer, MaxPool, Mode, ReLU, check_layer
from kfcnet.runs.files import WriteError, read_json
from kfcnet.runs.folder import RunFolderError
from kfcnet.training import fit
from kfcnet.training.clock import Signals, StopRequested
from kfcnet.training.errors import TrainingInterrupted
from kfcnet.training.sweep import SweepError, parse_grid, sweep

pytestmark = pytest.mark.filterwarnings("ignore::kfcnet.training.errors.TrainingWarning")

SMALL = [{"layer": "conv", "filters": 2, "kernel": 3}, {"layer": "relu"}, {"layer": "dense"}]


@pytest.fixture(autouse=True)
def data_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KFCNET_DATA", str(tmp_path / "home"))


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (60, 6, 5, 1), np.uint8)


@pytest.fixture
def labels():
    return np.arange(60) % 2


def train(images, labels, network=SMALL, optimizer="sgd", **settings):
    return kfcnet.fit(images, labels, network, optimizer, device="cpu", **{"epochs": 1} | settings)


# Right results


def test_batch_statistics_are_those_of_all_classes_though_the_data_are_sorted(rng):
    """Of 1,500 images in the order of their classes the first 1,024 hold no third class."""
    labels = np.repeat([0, 1, 2], 500)
    grey = np.array([40, 120, 210])[labels][:, None, None, None]
    images = np.clip(grey + rng.normal(0, 20, (1500, 6, 5, 1)), 0, 255).astype(np.uint8)
    network = [SMALL[0], {"layer": "batch_norm"}, *SMALL[1:]]
    optimizer = {"name": "sgd", "learning_rate": 0.05, "batch_size": 50}
    run = train(images, labels, network, optimizer, epochs=3, validation=(images, labels))
    assert (run.predict(images) == labels).mean() > 0.95
    x = run.examples(images, labels).batch(range(1500)).inputs
    y = run.network.layers[0].forward(x, Mode())
    of_all, spread = y.mean(axis=(0, 1, 2)), y.std(axis=(0, 1, 2))
    mean, _ = run.network.layers[1].population
    assert (abs(mean - of_all) < 0.1 * spread).all()


@pytest.mark.parametrize("epochs", [0.5, 1, 2])
def test_a_short_run_gives_what_was_learned_and_not_the_initial_parameters(epochs):
    d = digits.load()
    run = kfcnet.fit(
        d.train_images,
        d.train_labels,
        [{"layer": "conv", "filters": 8, "kernel": 3}, {"layer": "relu"}, {"layer": "dense"}],
        epochs=epochs,
        validation=(d.test_images, d.test_labels),
        device="cpu",
    )
    averaged, latest = (run.history[name][-1] for name in ("test_error", "raw_test_error"))
    assert averaged < latest + 0.05 < 0.55
    chosen = fit.settings_for(None, 1437, epochs)["averaging_timescale"]
    assert np.exp(-epochs * 1437 / chosen) <= np.exp(-5) * (1 + 1e-9)


def test_a_run_of_ten_epochs_averages_over_two_as_ever():
    settings = fit.settings_for(None, 2000)
    assert settings["averaging_timescale"] == 4000 and settings["schedule"]["warm_up"] == 2000


class Leaky(ReLU):
    def forward(self, x, mode):
        self.saved = np.where(x > 0, 1.0, 0.5)
        return x * self.saved

    def backward(self, dy):
        return dy * self.saved[: len(dy)]

    tangent = backward


class Largest(MaxPool):
    """A maximum pool whose result is doubled."""

    def forward(self, x, mode):
        return 2 * super().forward(x, mode)

    def backward(self, dy):
        return super().backward(2 * dy)

    def tangent(self, rx):
        return 2 * super().tangent(rx)


@pytest.mark.parametrize("native", ["off", "auto"])
def test_a_layer_derived_from_one_of_the_package_computes_what_it_says(images, labels, native):
    """No other layer's pass applies the ReLU, or the pool, that it was derived from."""
    assert max(check_layer(Leaky, (6, 5, 2))) < 1e-8
    conv = Conv2d.of(filters=3, kernel=3, padding=1)
    run = train(images, labels, [conv, Leaky, Dense], ops={"native": native})
    run.predict(images)
    first, second, _ = run.network.layers
    assert second.is_custom and not first.applies_relu
    assert (second.saved == 0.5).any()
    pool = Largest.of(size=3, stride=2)
    run = train(images, labels, [conv, pool, ReLU, Dense], ops={"native": native})
    inputs = run.examples(images, labels).batch(range(8)).inputs
    conv, pool, relu, dense = run.network.layers
    assert conv.pool is None and not pool.applies_relu and not relu.forward_fused
    run.network.forward(inputs)
    assert np.isfinite(dense.inputs).all() and (dense.inputs >= 0).all()


def of_factor(factor):
    class Scaled(Layer):
        def forward(self, x, mode):
            return factor * x

        def backward(self, dy):
            return factor * dy

        tangent = backward

    return Scaled


def test_two_classes_of_one_name_are_refused(images, labels):
    network = [of_factor(1.0), Conv2d.of(filters=2, kernel=3), of_factor(100.0), Dense]
    with pytest.raises(ConfigError, match="two classes of layers are called Scaled"):
        train(images, labels, network)
    twice = of_factor(2.0)
    run = train(images, labels, [twice, Conv2d.of(filters=2, kernel=3), twice, Dense])
    assert [layer.is_custom for layer in run.network.layers] == [True, False, True, False]


# The data that are meant


def folder_of(root, *classes, grey=10, count=4):
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((5, 4), grey, np.uint8)).save(root / name / f"{number}.bmp")
    return root


@pytest.fixture
def times(monkeypatch):
    """[time of writing, time of change] that every file has, as in an image of a file system."""
    found, stat = [1, 1], Path.stat

    def with_times(path, **options):
        real = stat(path, **options)
        written, changed = found
        return SimpleNamespace(
            st_mode=real.st_mode, st_size=real.st_size, st_mtime_ns=written, st_ctime_ns=changed
        )

    monkeypatch.setattr(Path, "stat", with_times)
    return found


def test_folders_whose_files_look_alike_have_caches_of_their_own(tmp_path, times):
    for name, grey in (("one", 10), ("two", 200)):
        folder_of(tmp_path / name, "cat", "dog", grey=grey)
    for name, grey in (("one", 10), ("two", 200), ("one", 10)):
        found = data.load(FolderDataConfig(path=tmp_path / name))
        assert set(found.train_images.ravel()) == {grey}


@pytest.mark.parametrize("which", [0, 1], ids=["of writing", "of change"])
def test_files_are_read_again_where_either_of_their_times_is_another(tmp_path, times, which):
    """An archive restores the time of writing, and Windows has no time of change."""
    root = folder_of(tmp_path / "set", "cat", "dog", grey=10)
    data.load(FolderDataConfig(path=root))
    for path in root.rglob("*.bmp"):
        Image.fromarray(np.full((5, 4), 200, np.uint8)).save(path)
    times[which] += 1
    assert set(data.load(FolderDataConfig(path=root)).train_images.ravel()) == {200}


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_part_for_validation_is_the_test_part(tmp_path, name, caplog):
    folder_of(tmp_path / "set" / "train", "cat", "dog")
    folder_of(tmp_path / "set" / name, "cat", "dog", count=2)
    folder_of(tmp_path / "set" / "more", "cat")
    with caplog.at_level(logging.WARNING):
        found = data.load(FolderDataConfig(path=tmp_path / "set"))
    assert (len(found.train_labels), len(found.test_labels)) == (8, 4)
    assert f"{tmp_path / 'set'}: not read, beside train: more" in caplog.text
    assert "no test part" not in caplog.text


def test_a_part_called_test_comes_before_one_for_validation(tmp_path, caplog):
    folder_of(tmp_path / "set" / "train", "cat", "dog")
    folder_of(tmp_path / "set" / "val", "cat", "dog", count=2)
    folder_of(tmp_path / "set" / "test", "cat", "dog", count=3)
    with caplog.at_level(logging.WARNING):
        found = data.load(FolderDataConfig(path=tmp_path / "set"))
    assert len(found.test_labels) == 6 and "not read, beside train: val" in caplog.text


def test_train_may_be_the_name_of_a_class(tmp_path):
    found = data.load(FolderDataConfig(path=folder_of(tmp_path / "set", "bus", "train")))
    assert found.class_names == ("bus", "train") and set(found.train_labels) == {0, 1}


def test_a_sweep_does_not_take_runs_on_other_images_for_its_own(tmp_path, images, labels):
    path, out = tmp_path / "own.npz", tmp_path / "out"
    np.savez(path, train_images=images, train_labels=labels)
    (tmp_path / "own.yaml").write_text(
        f"data: {{name: arrays, path: {path}}}\n"
        "network: [{layer: dense, units: 2}]\n"
        "optimizer: {name: sgd, learning_rate: 0.01, batch_size: 8}\n"
        "epochs: 1\n"
    )
    grid = {"optimizer.learning_rate": [0.01, 0.1]}
    assert len(sweep(str(tmp_path / "own.yaml"), grid, [], out)) == 2
    assert len(sweep(str(tmp_path / "own.yaml"), grid, [], out)) == 2  # nothing is trained
    np.savez(path, train_images=images, train_labels=1 - labels)
    with pytest.raises(SweepError, match="was trained on other data called arrays"):
        sweep(str(tmp_path / "own.yaml"), grid, [], out)


@pytest.mark.parametrize("key", ["data.path", "evaluation.every", "checkpoint_minutes"])
def test_a_grid_over_what_tells_no_runs_apart_is_refused(key):
    with pytest.raises(ValueError, match=f"runs that differ in {key} alone are one run to a sweep"):
        parse_grid([f"{key}=1,2"])
    with pytest.raises(ValueError, match="--stage says how many epochs"):
        parse_grid(["epochs=1,2"])
    assert parse_grid(["seed=0,1"]) == {"seed": [0, 1]}


def test_a_saved_run_is_the_one_that_was_trained_wherever_one_is(
    images, labels, tmp_path, monkeypatch
):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    run = train(images, labels, out="run")
    monkeypatch.chdir(tmp_path / "b")
    train(images, labels, out="run", seed=7)
    run.save("copy")
    copied = kfcnet.load("copy")
    np.testing.assert_array_equal(copied.network.theta, run.network.theta)


def test_the_settings_of_the_split_are_those_that_are_given(images, labels, tmp_path):
    run = train(images, labels, data={"test_share": 0.5, "split_seed": 3}, out=tmp_path / "run")
    assert read_json(tmp_path / "run" / "run.json")["data"]["test_examples"] == 30
    assert run.config.data.split_seed == 3 and run.config.data.input_scale != "auto"
    for wrong, message in (
        ({"name": "cifar10"}, "data: the images are those that fit is given"),
        ({"path": "images.npz"}, "data: the images are those that fit is given"),
        ({"test_share": 2}, "data.test_share"),
        ({"test_shares": 0.5}, "data.test_shares: unknown key"),
        ("cifar10", "data: expected settings"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(images, labels, data=wrong)


# Going on, and what is kept


def interrupted(monkeypatch, after):
    """Let a SIGINT come at the check number `after` from now on."""
    checks = []

    def check(self):
        checks.append(1)
        if len(checks) == after:
            raise StopRequested(2)

    monkeypatch.setattr(Signals, "check", check)


def test_a_run_that_was_interrupted_goes_on_by_the_same_call(images, labels, tmp_path, monkeypatch):
    whole = train(images, labels, epochs=3)
    with monkeypatch.context() as patch:
        interrupted(patch, 4)
        with pytest.raises(TrainingInterrupted) as stop:
            train(images, labels, epochs=3, out=tmp_path / "run")
    assert "go on with the same call and resume=True" in str(stop.value)
    with pytest.raises(RunFolderError, match=r"go on with it by resume=True, replace it by overwr"):
        train(images, labels, epochs=3, out=tmp_path / "run")
    run = train(images, labels, epochs=3, out=tmp_path / "run", resume=True)
    np.testing.assert_array_equal(run.network.theta, whole.network.theta)
    other = train(images, labels, out=tmp_path / "run", overwrite=True, seed=1)
    with pytest.raises(ConfigError, match="a run is gone on with or replaced, not both"):
        train(images, labels, out=tmp_path / "run", overwrite=True, resume=True, seed=1)
    assert other.steps < run.steps


def test_what_a_command_would_say_of_its_options_is_said_of_arguments(
    images, labels, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        with pytest.raises(TrainingInterrupted, match="the same call and resume=True$"):
            train(images, labels, out=tmp_path / "early")

    def full(file, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kfcnet.runs.files._write_all", full)
        with pytest.raises(WriteError, match=r"goes on with resume=True") as error:
            train(images, labels, out=tmp_path / "full")
    assert "--" not in str(error.value)


def test_a_run_without_a_folder_that_is_interrupted_says_that_nothing_is_kept(
    images, labels, monkeypatch
):
    interrupted(monkeypatch, 4)
    with pytest.raises(TrainingInterrupted, match="nothing is kept: a run with out= goes on by"):
        train(images, labels, epochs=3)


def test_a_fitted_network_says_how_it_is_kept(images, labels):
    run = train(images, labels)
    with pytest.raises(TypeError, match=r"keep it by run.save\(path\)"):
        pickle.dumps(run)


def test_figures_drawn_in_threads_leave_the_style_alone(images, labels):
    before = dict(matplotlib.rcParams)
    threads = [threading.Thread(target=train, args=(images, labels)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changed = {key for key, value in matplotlib.rcParams.items() if before[key] != value}
    assert not changed


# Labels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([0, 1], object), r"dtype object; labels.astype\(int\)"),
        (np.array([None, 1], object), "the label of image 0 is None, not one of 0 to 9"),
        (np.array(["cat", "dog"]), "the label of image 0 is 'cat', not one of 0 to 9"),
        (np.array([0.0, 1.5]), "the label of image 1 is 1.5"),
        (np.array([0, np.nan]), "the label of image 1 is nan"),
        (np.array([3, 10]), "the label of image 1 is 10, not one of 0 to 9"),
        (np.array([True, False]), "^$"),
    ],
)
def test_labels_that_are_no_classes_are_told_as_they_are(given, message):
    assert re.search(message, why_no_classes(given, 0, 9))


def test_there_may_be_a_thousand_classes_and_a_message_says_so(images):
    with pytest.raises(DataError, match="is 1000, not one of 0 to 999.*there may be 1,000 of them"):
        train(images, 1000 + np.arange(60))


def test_labels_in_a_column_are_taken_by_all(images, labels):
    run = train(images, labels[:, None])
    assert run.evaluate(images, labels[:, None]) == run.evaluate(images, labels)


def test_an_autoencoder_needs_no_labels(images):
    network = [{"layer": "dense", "units": 4}, {"layer": "dense"}]
    run = train(images, None, network, loss="squared_error", validation=(images[:9], None))
    assert run.predict(images).shape == images.shape
    assert run.evaluate(images, None) == run.evaluate(images, np.zeros(60, int))


def test_classes_without_labels_name_the_network_that_needs_none(images, labels):
    for given, validation in ((None, None), (labels, (images, None))):
        with pytest.raises(ConfigError, match="labels: None is for an autoencoder, loss='squared_"):
            train(images, given, validation=validation)


# What would have passed unseen


@pytest.mark.parametrize(
    "given, said",
    [
        ("photos", "images: expected an array; kfcnet.train trains on a file, a folder or a Dat"),
        (Path("photos"), "images: expected an array"),
    ],
)
def test_a_place_in_place_of_images_names_what_trains_on_it(labels, given, said):
    with pytest.raises(ConfigError, match=said):
        train(given, labels)


def test_a_split_beside_a_validation_part_is_refused(images, labels):
    with pytest.raises(ConfigError, match="data.test_share: nothing is split where validation is"):
        train(images, labels, validation=(images, labels), data={"test_share": 0.5})


def test_hidden_pixels_of_a_masked_array_are_not_trained_on(images, labels):
    masked = np.ma.masked_greater(images, 200)
    with pytest.raises(DataError, match="images are a masked array"):
        train(masked, labels)
    assert train(np.ma.masked_array(images), labels).history["epoch"][-1] == 1  # nothing hidden


def test_colours_of_16_bits_are_refused_and_not_cut_to_8(tmp_path):
    rows = np.arange(3 * 4 * 5, dtype=">u2").reshape(4, 5, 3)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    png += chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.png").write_bytes(png)
    with pytest.raises(DataError, match="a/0.png: has colours of 16 bits, of which only 8 would"):
        data.load(FolderDataConfig(path=str(tmp_path)))


@pytest.mark.parametrize("behind", ["dense", "one pixel"])
def test_batch_normalisation_of_a_single_value_is_refused(images, labels, behind):
    before = {"layer": "dense", "units": 3}
    if behind == "one pixel":
        before = {"layer": "avg_pool", "size": 6, "stride": 6}
    network = [before, {"layer": "batch_norm"}, {"layer": "dense"}]
    with pytest.raises(ConfigError, match="batch_size: batch_norm1 normalises each map over a min"):
        train(images, labels, network, {"name": "sgd", "batch_size": 1})
    train(images, labels, network, {"name": "sgd", "batch_size": 2})


@pytest.mark.parametrize("optimizer, batches", [("kfc_pre", (6, 64, 100)), ("sgd", (6, 8, 100))])
def test_few_images_make_batches_of_half_of_them_at_most(optimizer, batches):
    found = [
        fit.settings_for(optimizer, n)["batch_size"]
        for n in (12, 128 if optimizer == "kfc_pre" else 40, 800)
    ]
    assert tuple(found) == batches


def test_kfac_sees_128_examples_for_its_factors_where_a_batch_has_them():
    few, many = (fit.settings_for("kfac", n) for n in (400, 8192))
    assert (few["batch_size"], few["statistics_fraction"], few["fisher_fraction"]) == (64, 1, 1)
    assert (many["batch_size"], many["statistics_fraction"], many["fisher_fraction"]) == (
        512,
        0.25,
        0.25,
    )
    assert few["min_damping"] == 1e-2
    assert fit.settings_for({"name": "kfac", "damping": 1e-3}, 400)["min_damping"] == 1e-3
