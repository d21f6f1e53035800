"""The data sets that need no files: the embedded digits and the synthetic images."""

import json
import subprocess
import sys

import numpy as np
import pytest
from data_sources import data_config

from kfcnet.data import DataError, digits, from_arrays, load, synthetic
from kfcnet.data.dataset import deviation, pixel_mean


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("KFCNET_DATA", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_the_digits_are_embedded_and_leave_nothing_behind(tmp_path):
    dataset = load(data_config("digits"))
    assert dataset.train_images.shape == (1437, 8, 8, 1)
    assert dataset.test_images.shape == (360, 8, 8, 1)
    assert (dataset.train_images.min(), dataset.train_images.max()) == (0, 16)
    assert set(dataset.train_labels) == set(dataset.test_labels) == set(range(10))
    assert dataset.train_images.dtype == np.uint8 and dataset.train_labels.dtype == np.int32
    assert not list(tmp_path.iterdir())


def test_the_digits_are_those_of_scikit_learn_in_its_order():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    dataset = load(data_config("digits"))
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    np.testing.assert_array_equal(images[..., 0], source.images)
    np.testing.assert_array_equal(labels, source.target)


def test_the_digits_name_their_source_and_licence():
    provenance = load(data_config("digits")).provenance
    assert "UCI" in provenance["source"] and provenance["licence"] == "CC BY 4.0"
    import h5py

    with h5py.File(digits.FILE) as file:
        assert (file.attrs["source"], file.attrs["licence"]) == (digits.SOURCE, digits.LICENCE)


def test_damaged_digits_are_a_clear_error(tmp_path, monkeypatch):
    content = bytearray(digits.FILE.read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "digits.h5").write_bytes(content)
    monkeypatch.setattr(digits, "FILE", tmp_path / "digits.h5")
    with pytest.raises(DataError, match="digits.h5.*install the package again"):
        load(data_config("digits"))


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_a_path_for_a_set_without_files_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match=f"{name} is not read from files"):
        load(data_config(name, tmp_path))


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_the_provenance_is_json(name):
    provenance = load(data_config(name)).provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["name"] == name and len(provenance["sha256"]) == 64


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_mean_is_exact(dtype):
    images = np.full((70_001, 1, 2, 1), 255, dtype)  # beyond where float32 sums stay exact
    images[0] = 254
    np.testing.assert_array_equal(pixel_mean(images), np.float32(255 - 1 / 70_001))


def test_the_mean_of_a_data_set_is_that_of_its_training_images_alone():
    dataset = load(data_config("digits"))
    expected = dataset.train_images.astype(float).mean(axis=0)
    np.testing.assert_allclose(dataset.mean, expected, rtol=1e-6)
    assert np.abs(dataset.test_images.mean(axis=0) - expected).max() > 0.1


def test_images_of_one_colour_are_divided_by_one():
    dataset = from_arrays(np.full((6, 2, 3), 7, np.uint8), [0, 1, 1] * 2)
    assert deviation(dataset) == 1


def test_synthetic_images_have_the_shape_of_cifar():
    dataset = load(data_config("synthetic", examples=150))
    assert dataset.train_images.shape == (150, 32, 32, 3)
    assert dataset.test_images.shape == (30, 32, 32, 3)
    assert dataset.train_images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [15] * 10)
    assert 90 < dataset.train_images.mean() < 165
    assert 30 < dataset.train_images.std() < 65


def test_synthetic_images_are_the_same_every_time_and_in_every_number():
    few, again, more = (synthetic.generate(examples) for examples in (20, 20, 200))
    np.testing.assert_array_equal(few.train_images, again.train_images)
    np.testing.assert_array_equal(few.train_images, more.train_images[:20])
    assert (more.train_images[:40] != more.test_images).any(axis=(1, 2, 3)).all()
    assert len({image.tobytes() for image in more.train_images}) == 200


def test_synthetic_images_come_from_the_cache_the_second_time(monkeypatch):
    first = load(data_config("synthetic"))
    monkeypatch.setattr(synthetic, "generate", None)
    second = load(data_config("synthetic"))
    np.testing.assert_array_equal(first.train_images, second.train_images)
    np.testing.assert_array_equal(first.test_labels, second.test_labels)


def test_the_amplitude_spectrum_falls_as_one_over_frequency():
    images = synthetic.fields(0, synthetic.TRAIN).mean(axis=3)
    power = np.mean(np.abs(np.fft.fft2(images)) ** 2, axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    ring = (frequency > 0) & (frequency <= 0.5)
    slope, _ = np.polyfit(np.log(frequency[ring]), np.log(power[ring]) / 2, 1)
    assert abs(slope + 1) < 0.02


def test_fields_have_unit_variance_in_every_channel():
    variance = synthetic.fields(0, synthetic.TRAIN).var(axis=(0, 1, 2))
    np.testing.assert_allclose(variance, 1, atol=0.1)


def test_an_image_tells_its_class_wherever_the_pattern_moved():
    arrays = synthetic.generate(60)
    patterns = synthetic.fields(0, synthetic.PATTERNS)[:10]
    gain = synthetic.amplitudes()[:, :, np.newaxis]

    def whitened(images):
        return np.fft.rfft2(images, axes=(1, 2)) / gain

    products = whitened(arrays.train_images - 128.0)[:, np.newaxis] * whitened(patterns).conj()
    matches = np.fft.irfft2(products, axes=(2, 3)).sum(axis=4).max(axis=(2, 3))  # over all shifts
    assert np.mean(matches.argmax(axis=1) == arrays.train_labels) > 0.9


@pytest.mark.parametrize("part, stream", [("train", synthetic.TRAIN), ("test", synthetic.TEST)])
def test_a_tenth_of_the_variance_of_a_synthetic_image_is_that_of_its_class(part, stream):
    image = getattr(synthetic.generate(20), f"{part}_images")[1]
    pattern, own = synthetic.fields(0, synthetic.PATTERNS)[1], synthetic.fields(0, stream)[1]
    seen = (image > 0) & (image < 255)
    differences = [
        image - 128.0 - 50 * (np.sqrt(0.1) * np.roll(pattern, shift, (0, 1)) + np.sqrt(0.9) * own)
        for shift in np.ndindex(9, 9)
    ]
    rounding = min(np.abs(difference[seen]).max() for difference in differences)
    assert seen.mean() > 0.9 and rounding < 0.501


def test_moving_is_cyclic_and_each_image_has_its_own_shift():
    images = np.random.default_rng(0).random((2, 32, 32, 3))
    moved = synthetic._moved(images, np.array([[1, 0], [3, 5]], np.uint32))
    np.testing.assert_array_equal(moved[0], np.roll(images[0], 1, axis=0))
    np.testing.assert_array_equal(moved[1], np.roll(images[1], (3, 5), axis=(0, 1)))


def test_importing_the_package_loads_no_heavy_library():
    program = (
        "import sys, kfcnet; kfcnet.data, kfcnet.ranks.Alone(); print([name for name in "
        "('h5py', 'scipy', 'tqdm', 'urllib.request') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=digits.FILE.parents[2],
    )
    assert done.stdout.strip() == "[]"
