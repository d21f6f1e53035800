"""CIFAR-100: two labels an image, files of unequal length; the rest is as with CIFAR-10."""

import hashlib
import pickle

import numpy as np
import pytest
from data_sources import archive, data_config, put

from kfcnet.data import DataError, cifar100, load

IMAGES = {"train": 4, "test": 3}


@pytest.fixture(autouse=True)
def small_files_and_own_home(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar100, "IMAGES", IMAGES)
    monkeypatch.setenv("KFCNET_DATA", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def part(name):
    """Images uint8 (N, 32, 32, 3), superclasses (N,), classes (N,)."""
    rng, N = np.random.default_rng(len(name)), IMAGES[name]
    return rng.integers(0, 256, (N, 32, 32, 3), np.uint8), rng.integers(0, 20, N), 97 + np.arange(N)


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def files(binary, shift=-1):
    """{base name: content}, binary or pickled; the highest class is 99 with a shift of -1."""
    found = {}
    for name in IMAGES:
        images, coarse, fine = part(name)
        fine = fine + shift
        if binary:
            rows = np.column_stack([coarse, fine, planes(images)]).astype(np.uint8)
            found[f"{name}.bin"] = rows.tobytes()
        else:
            content = {
                b"data": planes(images), b"coarse_labels": coarse.tolist(),
                b"fine_labels": fine.tolist(),
            }  # fmt: skip
            found[name] = pickle.dumps(content, 2)
    return found


def assert_is_the_made_up_set(dataset):
    for name in IMAGES:
        images, _, fine = part(name)
        np.testing.assert_array_equal(getattr(dataset, f"{name}_images"), images)
        np.testing.assert_array_equal(getattr(dataset, f"{name}_labels"), fine - 1)
    assert dataset.classes == 100 and dataset.name == "cifar100"


@pytest.mark.parametrize("binary", [True, False])
def test_unpacked_files_are_read(tmp_path, binary):
    path = put(tmp_path / "set", files(binary))
    for _ in ("from the files", "from the cache"):
        assert_is_the_made_up_set(load(data_config("cifar100", path)))


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_archives_are_read_if_they_are_the_published_ones(tmp_path, monkeypatch, kind):
    name = f"cifar-100-{kind}.tar.gz"
    content = archive(files(kind == "binary"), f"cifar-100-{kind}")
    path = put(tmp_path / "set", {name: content}) / name
    with pytest.raises(DataError, match=f"{name} is not the published file of CIFAR-100"):
        load(data_config("cifar100", path))
    published = cifar100.distributions(None)
    for distribution in published:
        if name in distribution.files:
            distribution.files[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(cifar100, "distributions", lambda _: published)
    assert_is_the_made_up_set(load(data_config("cifar100", path)))


@pytest.mark.parametrize("binary, name", [(True, "train.bin"), (False, "train")])
def test_a_class_out_of_range_is_named(tmp_path, binary, name):
    path = put(tmp_path / "set", files(binary, shift=0))
    with pytest.raises(DataError, match=f"{name}: the label of image 3 is 100, not one of 0 to 99"):
        load(data_config("cifar100", path))


def test_a_file_cut_between_two_images_is_refused(tmp_path):
    contents = files(binary=True)
    contents["train.bin"] = contents["train.bin"][: -(2 + 3072)]
    with pytest.raises(DataError, match="train.bin has 9,222 bytes, not 12,296"):
        load(data_config("cifar100", put(tmp_path / "set", contents)))
