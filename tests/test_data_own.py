"""A user's own images: what is read, what is refused and how, and that a network trains on them."""

import gc
import json
import logging
import shutil
import tempfile
import warnings
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

import kfcnet
from kfcnet import cli, data
from kfcnet.cli import main
from kfcnet.config import ConfigError, dump_config, load_config, parse_config
from kfcnet.config.schema import SgdConfig
from kfcnet.data import DataError, cache, folder, own
from kfcnet.runs.files import WriteError, read_json
from kfcnet.runs.folder import RunFolderError
from kfcnet.training import build, fit
from kfcnet.training.build import resolved
from kfcnet.training.fit import settings_for
from kfcnet.training.sweep import sweep
from kfcnet.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::kfcnet.training.errors.TrainingWarning")

NETWORK = [
    {"layer": "conv", "filters": 3, "kernel": 3, "padding": 1},
    {"layer": "relu"},
    {"layer": "dense"},
]
TEXT = f"""
data: {{name: NAME, path: PATH}}
network: {json.dumps(NETWORK)}
optimizer: {{name: sgd, learning_rate: 0.01, batch_size: 8, averaging_timescale: 50}}
epochs: 1
device: cpu
ops: {{native: "off"}}
"""


@pytest.fixture(autouse=True)
def data_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KFCNET_DATA", str(tmp_path / "home"))


@pytest.fixture
def arrays(rng):
    """24 training and 8 test images of three classes, 5 x 4 pixels in colour."""
    return {
        "train_images": rng.integers(0, 256, (24, 5, 4, 3), np.uint8),
        "train_labels": np.arange(24) % 3,
        "test_images": rng.integers(0, 256, (8, 5, 4, 3), np.uint8),
        "test_labels": np.arange(8) % 3,
    }


def config(path, *overrides, name="arrays"):
    text = TEXT.replace("NAME", name).replace("PATH", str(path))
    return parse_config(text, "test", overrides)


def save(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file[key] = array


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".mat"])
def test_a_file_of_arrays_is_read_as_it_is(tmp_path, arrays, suffix):
    path = tmp_path / f"flowers{suffix}"
    save(path, arrays)
    for _ in range(2):  # the second time from the cache
        dataset = data.load(config(path).data)
        for key, expected in arrays.items():
            assert np.array_equal(getattr(dataset, key), expected), key
        assert dataset.classes == 3 and dataset.provenance["title"] == "flowers"
    assert len(list((tmp_path / "home" / "cache").iterdir())) == 1


def test_arrays_are_read_without_locks_which_a_file_system_may_not_have(tmp_path, arrays):
    fcntl = pytest.importorskip("fcntl")
    save(tmp_path / "a.h5", arrays)
    with open(tmp_path / "a.h5", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # refuses HDF5's own lock, as such a file system does
        assert data.load(config(tmp_path / "a.h5").data).classes == 3


def test_a_label_that_is_no_number_is_refused_with_what_it_should_be(arrays):
    with pytest.raises(DataError, match="image 0 is '0', not one of 0 to 999. Number the classes"):
        data.from_arrays(arrays["train_images"], arrays["train_labels"].astype(str))


def test_a_home_directory_that_is_not_there_is_named(monkeypatch, tmp_path, arrays):
    with pytest.raises(DataError, match="data.path: ~no-such-user/a.npz names no home directory"):
        data.load(config("~no-such-user/a.npz").data)
    save(tmp_path / "a.npz", arrays)
    monkeypatch.setenv("KFCNET_DATA", "~no-such-user")
    with pytest.raises(DataError, match="KFCNET_DATA: ~no-such-user names no home directory"):
        data.load(config(tmp_path / "a.npz").data)


def test_a_file_that_changes_is_read_again(tmp_path, arrays):
    path = tmp_path / "a.npz"
    save(path, arrays)
    before = data.load(config(path).data)
    save(path, arrays | {"train_images": 255 - arrays["train_images"]})
    after = data.load(config(path).data)
    assert np.array_equal(after.train_images, 255 - before.train_images)
    assert after.provenance["sha256"] != before.provenance["sha256"]


@pytest.mark.parametrize("module, number", [(cache, "FORMAT"), (own, "VERSION")])
def test_a_cache_of_an_earlier_version_is_not_read(tmp_path, arrays, monkeypatch, module, number):
    save(tmp_path / "a.npz", arrays)
    data.load(config(tmp_path / "a.npz").data)
    monkeypatch.setattr(module, number, getattr(module, number) + 1)
    data.load(config(tmp_path / "a.npz").data)
    assert len(list((tmp_path / "home" / "cache").iterdir())) == 2


def test_grey_and_floating_pixels_keep_their_values(tmp_path, arrays, rng):
    grey = {key: array[..., 0] if "images" in key else array for key, array in arrays.items()}
    grey = {key: array / 255 if "images" in key else array for key, array in grey.items()}
    save(tmp_path / "a.npz", grey)
    dataset = data.load(config(tmp_path / "a.npz").data)
    assert dataset.train_images.shape == (24, 5, 4, 1)
    assert dataset.train_images.dtype == np.float32
    np.testing.assert_allclose(dataset.train_images[..., 0], grey["train_images"], rtol=1e-6)
    np.testing.assert_allclose(dataset.mean[..., 0], grey["train_images"].mean(0), rtol=1e-5)


def test_without_a_test_part_a_share_is_drawn_and_said_so(tmp_path, arrays, caplog):
    del arrays["test_images"], arrays["test_labels"]
    arrays["train_images"][:] = np.arange(24)[:, None, None, None]  # an image's number
    save(tmp_path / "a.npz", arrays)
    with caplog.at_level(logging.WARNING):
        dataset = data.load(config(tmp_path / "a.npz", "data.test_share=0.25").data)
    assert "a.npz has no test part: 6 of its 24 images, drawn at random" in caplog.text
    train, test = (images[:, 0, 0, 0] for images in (dataset.train_images, dataset.test_images))
    assert sorted([*train, *test]) == list(range(24)) and len(test) == 6
    assert np.array_equal(dataset.test_labels, test % 3)
    again = data.load(config(tmp_path / "a.npz", "data.test_share=0.25").data)
    assert np.array_equal(again.test_images, dataset.test_images)
    other = data.load(config(tmp_path / "a.npz", "data.test_share=0.25", "data.split_seed=1").data)
    assert not np.array_equal(other.test_images, dataset.test_images)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_split_leaves_every_class_an_image_to_train_on(rng, share):
    labels = np.repeat(np.arange(150), [1, 2, 3] * 50)
    dataset = data.from_arrays(rng.random((300, 2, 2)), labels, test_share=share)
    assert np.array_equal(np.unique(dataset.train_labels), np.arange(150))
    assert len(dataset.test_labels) == min(round(share * 300), 150)
    assert np.array_equal(np.sort(np.r_[dataset.train_labels, dataset.test_labels]), labels)


def test_of_one_image_a_class_none_is_held_out(rng):
    with pytest.raises(DataError, match="the data: every class has one image only"):
        data.from_arrays(rng.random((3, 2, 2)), [0, 1, 2])


BAD_ARRAYS = {
    "a label below zero": ({"train_labels": np.r_[0, 1, -1, np.arange(21) % 3]}, "image 2 is -1"),
    "a label that is no number": (
        {"train_labels": np.r_[0.0, np.nan, np.arange(22) % 3]},
        "label of image 1 is nan",
    ),
    "a missing class": ({"train_labels": 2 * (np.arange(24) % 2)}, "no training image has label 1"),
    "a class of the test part alone": (
        {"test_labels": np.arange(8) % 4},
        "no training image has label 3, though labels go up to 3",
    ),
    "one class": (
        {"train_labels": np.zeros(24, int), "test_labels": np.zeros(8, int)},
        "there is one class only",
    ),
    "one-hot labels": (
        {"train_labels": np.eye(3)[np.arange(24) % 3]},
        "labels of shape (24, 3); there must be one label for each image: of a row for each",
    ),
    "labels that are names": (
        {"train_labels": np.array(["a", "b", "c"])[np.arange(24) % 3]},
        "label of image 0 is 'a', not one of 0 to 999. Number the classes from 0, as numpy.unique(",
    ),
    "labels from one": (
        {"train_labels": 1 + np.arange(24) % 3},
        "no training image has label 0, though labels go up to 3; number the classes from 0",
    ),
    "fewer labels": ({"train_labels": np.arange(23) % 3}, "24 images and labels of shape (23,)"),
    "channels first": (
        {"train_images": np.zeros((24, 3, 5, 5), np.uint8)},
        "3 x 5 pixels and 5 channels; channels come last: numpy.moveaxis(images, 1, -1)",
    ),
    "wide pixels": (
        {"train_images": np.zeros((24, 5, 4, 3), int)},
        "int64; they must be uint8 or floating: images.astype",
    ),
    "no images": ({"train_images": np.zeros((0, 5, 4, 3), np.uint8)}, "images of shape (0,"),
    "flat images": ({"train_images": np.zeros((24, 60), np.uint8)}, "images of shape (24, 60)"),
    "other sides": ({"test_images": np.zeros((8, 4, 4, 3), np.uint8)}, "they must have one shape"),
    "half a test part": ({"test_labels": None}, "only one is there"),
    "no training part": ({"train_images": None}, "it holds test_images, test_labels, train_labels"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_in_a_line_that_names_file_and_index(tmp_path, arrays, case):
    changes, message = BAD_ARRAYS[case]
    arrays = {key: array for key, array in (arrays | changes).items() if array is not None}
    save(tmp_path / "a.npz", arrays)
    with pytest.raises(DataError) as error:
        data.load(config(tmp_path / "a.npz").data)
    text = str(error.value)
    assert message in text and "a.npz" in text and "\n" not in text


@pytest.mark.parametrize("C", [2, 4, 13])
def test_images_have_as_many_channels_as_their_last_axis_and_a_notice_says_so(rng, caplog, C):
    images, labels = rng.random((24, 6, 5, C)), np.arange(24) % 3
    found = data.from_arrays(images, labels, images[:4], labels[:4])
    np.testing.assert_array_equal(found.train_images, images.astype(np.float32))
    said = [each for each in caplog.messages if f"read as 6 x 5 pixels of {C} channels" in each]
    assert len(said) == 2  # of either part
    layers = [{"layer": "conv", "filters": 2, "kernel": 3}, {"layer": "dense"}]
    fitted = kfcnet.fit(images, labels, layers, epochs=1, validation=(images[:4], labels[:4]))
    assert fitted.network.layers[0].input_shape == (6, 5, C)
    assert np.isfinite(fitted.evaluate(images, labels)[0])


def test_grey_and_colour_images_are_read_without_a_notice_of_their_channels(rng, caplog):
    for C in (1, 3):
        data.from_arrays(rng.random((24, 1, 4, C)), np.arange(24) % 3)
    assert not [each for each in caplog.messages if "channels" in each]


def test_a_file_with_arrays_of_other_names_is_refused_with_the_names(tmp_path, arrays):
    for suffix in (".npz", ".h5", ".mat"):
        save(tmp_path / f"a{suffix}", {"y_train": arrays["train_labels"], "X": np.zeros(3)})
        with pytest.raises(DataError, match=f"a{suffix}: expected arrays .*; it holds X, y_train"):
            data.load(config(tmp_path / f"a{suffix}").data)


def test_images_of_several_shapes_are_no_array(tmp_path, arrays):
    several = [np.zeros((5, 4)), np.zeros((4, 4))] * 12
    with pytest.raises(DataError, match="the training part: images are of several shapes"):
        data.from_arrays(several, arrays["train_labels"])
    objects = np.empty(24, object)
    objects[:] = several
    save(tmp_path / "a.npz", arrays | {"train_images": objects})
    with pytest.raises(DataError, match="a.npz, train_images: cannot be read as an array of num"):
        data.load(config(tmp_path / "a.npz").data)


@pytest.mark.parametrize("value", [np.inf, 1e300])
def test_a_pixel_that_is_not_finite_in_float32_is_refused_by_its_image(arrays, value):
    images = arrays["train_images"].astype(float)
    images[7, 2, 1, 0] = value
    with pytest.raises(DataError, match="the training part: a pixel of image 7 is not finite"):
        data.from_arrays(images, arrays["train_labels"])


@pytest.mark.parametrize("name, message", [
    ("a.txt", "is no file of arrays; these end in .npz"), ("b.npz", "cannot be read as arrays"),
    ("c.h5", "cannot be read as arrays"), ("d.mat", "cannot be read as arrays"),
])  # fmt: skip
def test_a_file_that_holds_no_arrays_is_refused(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"no arrays at all, and long enough to have a header" * 9)
    with pytest.raises(DataError, match=message):
        data.load(config(tmp_path / name).data)


def test_a_path_is_needed_and_must_be_there(tmp_path):
    with pytest.raises(DataError, match="data.path: missing; name the arrays of images"):
        data.load(config(tmp_path, "data.path=null").data)
    with pytest.raises(DataError, match="nowhere.npz does not exist"):
        data.load(config(tmp_path / "nowhere.npz").data)


# Folders


def picture(path, size=(4, 5), mode="RGB", value=0):
    """A picture of width and height `size`; its first pixel has the given value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.new(mode, size)
    made.putpixel((0, 0), value if mode in ("L", "P") else (value,) * len(mode))
    made.save(path)


@pytest.fixture
def flowers(tmp_path):
    """train/ and test/ of two classes with 6 and 2 images each."""
    root = tmp_path / "flowers"
    for part, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("daisy", "rose")):
            for number in range(count):
                picture(root / part / name / f"{number}.png", value=10 * label + number)
    return root


def test_pixels_of_a_picture_are_its_own_in_rows_columns_and_channels(tmp_path, rng):
    pixels = rng.integers(0, 256, (8, 5, 4, 3), np.uint8)
    for number, each in enumerate(pixels):
        path = tmp_path / "set" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(path)
    found = data.load(config(tmp_path / "set", name="folder").data)
    there = np.concatenate([found.train_images, found.test_images])
    assert {each.tobytes() for each in there} == {each.tobytes() for each in pixels}


def test_a_photograph_is_read_upright(tmp_path, rng):
    """EXIF orientation 6: the camera was turned by 90 degrees, counter-clockwise as seen."""
    pixels = rng.integers(0, 256, (5, 4, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    for label in "ab":
        for number in range(2):
            path = tmp_path / "set" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, exif=turned)
    found = data.load(config(tmp_path / "set", name="folder").data)
    np.testing.assert_array_equal(found.train_images[0], np.rot90(pixels, -1))


def test_of_a_file_with_several_pages_the_first_is_read_and_a_notice_says_so(tmp_path, rng, caplog):
    pages = [Image.fromarray(rng.integers(0, 256, (5, 4), np.uint8)) for _ in range(3)]
    for label in "ab":
        for number in range(2):
            path = tmp_path / "set" / label / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            more = {"save_all": True, "append_images": pages[1:]} if label == "b" else {}
            pages[0].save(path, **more)
    found = data.load(config(tmp_path / "set", name="folder").data)
    np.testing.assert_array_equal(found.train_images[-1, ..., 0], np.asarray(pages[0]))
    (said,) = [each for each in caplog.messages if "pages" in each]
    assert said.startswith("2 files hold several pages or frames, such as") and "0.tif" in said


def test_a_photograph_of_a_telephone_is_read_without_a_notice(tmp_path, rng, caplog):
    views = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(2)]
    for label in "ab":
        for number in range(2):
            path = tmp_path / "set" / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            views[0].save(path, "MPO", save_all=True, append_images=views[1:])
    data.load(config(tmp_path / "set", name="folder").data)
    assert not [each for each in caplog.messages if "pages" in each]


def test_a_matlab_file_of_version_7_3_is_read_as_matlab_means_it(tmp_path, arrays):
    """It is HDF5 behind 512 bytes, with the last axis first."""
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = np.atleast_2d(array).T if array.ndim == 1 else array.T
    content = bytearray(path.read_bytes())
    content[:19] = b"MATLAB 7.3 MAT-file"
    path.write_bytes(content)
    found = data.load(config(path).data)
    np.testing.assert_array_equal(found.train_images, arrays["train_images"])
    np.testing.assert_array_equal(found.test_labels, arrays["test_labels"])


def test_folders_are_classes_in_the_order_of_their_names(flowers):
    dataset = data.load(config(flowers, name="folder").data)
    assert dataset.class_names == ("daisy", "rose") and dataset.classes == 2
    assert dataset.train_images.shape == (12, 5, 4, 3) and dataset.test_images.shape[0] == 4
    assert dataset.train_images[:, 0, 0, 0].tolist() == [*range(6), *range(10, 16)]
    assert dataset.train_labels.tolist() == 6 * [0] + 6 * [1]
    assert dataset.provenance["classes"] == ["daisy", "rose"]


def test_folders_without_parts_are_split(flowers):
    dataset = data.load(config(flowers / "train", name="folder").data)
    assert len(dataset.train_images) == 10 and len(dataset.test_images) == 2


def test_a_picture_that_is_added_is_seen(flowers):
    data.load(config(flowers, name="folder").data)
    picture(flowers / "train" / "rose" / "more.jpg")
    assert len(data.load(config(flowers, name="folder").data).train_images) == 13


def test_pictures_are_grey_only_if_all_are(flowers, tmp_path):
    picture(flowers / "train" / "daisy" / "0.png", mode="L", value=7)
    dataset = data.load(config(flowers, name="folder").data)
    assert dataset.train_images[0, 0, 0].tolist() == [7, 7, 7]
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"):
        picture(tmp_path / "grey" / name, mode="L", value=9)
    assert data.load(config(tmp_path / "grey", name="folder").data).mean.shape == (5, 4, 1)


def test_pictures_of_other_sizes_are_resized_when_asked_to(flowers):
    odd = flowers / "test" / "rose" / "odd.png"
    picture(odd, size=(8, 6))
    with pytest.raises(DataError, match=r"odd.png: is 6 x 8, but .*0.png is 5 x 4; .*data.size"):
        data.load(config(flowers, name="folder").data)
    picture(flowers / "test" / "rose" / "turned.png", size=(6, 8))
    dataset = data.load(config(flowers, "data.size=[6, 8]", name="folder").data)
    assert dataset.train_images.shape == (12, 6, 8, 3)


def test_grey_pixels_of_more_than_8_bits_keep_their_values(tmp_path):
    values = 300 * np.arange(20, dtype=np.uint16).reshape(5, 4)
    for number, name in enumerate(("a/1.png", "a/2.png", "b/1.png", "b/2.png")):
        (tmp_path / "deep" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values + number).save(tmp_path / "deep" / name)
    dataset = data.load(config(tmp_path / "deep", name="folder").data)
    assert dataset.train_images.dtype == np.float32 and dataset.mean.shape == (5, 4, 1)
    whole = np.concatenate([dataset.train_images, dataset.test_images])[..., 0]
    assert sorted(whole[:, 0, 0]) == [0, 1, 2, 3]
    assert np.array_equal(whole - whole[:, :1, :1], np.broadcast_to(values, whole.shape))
    halved = data.load(config(tmp_path / "deep", "data.size=[3, 2]", name="folder").data)
    assert halved.mean.shape == (3, 2, 1) and halved.mean.max() > 4000
    picture(tmp_path / "deep" / "b" / "3.png")
    with pytest.raises(DataError, match="3.png: has 8 bits a pixel, but .*1.png more than 8 bits"):
        data.load(config(tmp_path / "deep", name="folder").data)


def test_what_is_left_aside_in_the_folders_of_classes_is_said(flowers, caplog):
    (flowers / "train" / "rose" / "deeper").mkdir()
    (flowers / "test" / "daisy" / "photo.heic").write_bytes(b"a form that Pillow does not read")
    with caplog.at_level(logging.WARNING):
        data.load(config(flowers, name="folder").data)
    assert "2 files or folders are left aside, such as test/daisy/photo.heic: images" in caplog.text


def test_more_folders_than_classes_may_be_are_refused(flowers, monkeypatch):
    monkeypatch.setattr(folder, "MOST_CLASSES", 1)
    with pytest.raises(DataError, match="train: holds 2 folders; there may be at most 1 classes"):
        data.load(config(flowers, name="folder").data)


def test_hidden_files_are_no_pictures(flowers):
    (flowers / "train" / "rose" / "._0.png").write_bytes(b"what macOS keeps beside a file")
    assert len(data.load(config(flowers, name="folder").data).train_images) == 12


def test_a_folder_that_may_not_be_read_is_named(flowers, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folder.Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"train cannot be read \(Permission denied\)"):
        data.load(config(flowers, name="folder").data)


def broken(root):
    (root / "train" / "rose" / "3.png").write_bytes(b"\x89PNG not really")


def transparent(root):
    picture(root / "train" / "rose" / "3.png", mode="RGBA")


def emptied(root):
    for path in (root / "train" / "rose").iterdir():
        path.unlink()


def misnamed(root):
    (root / "train").rename(root / "Training")


def without_classes(root):
    for path in (root / "test").rglob("*.png"):
        path.rename(root / "test" / f"{path.parent.name}{path.name}")


def not_finite(root):
    pixels = np.full((5, 4), np.nan, np.float32)
    Image.fromarray(pixels).save(root / "train" / "rose" / "3.tif")


def leading_nowhere(root):
    (root / "train" / "rose" / "link.png").symlink_to(root / "nowhere.png")


@pytest.mark.parametrize("change, message", [
    (leading_nowhere, "rose/link.png cannot be read (No such file or directory)"),
    (broken, "rose/3.png: cannot be read as an image"), (transparent, "3.png: has transparency"),
    (emptied, "train/rose: holds no image; images end in .png"),
    (misnamed, "Training: holds folders, but no image; parts are named train and test"),
    (without_classes, "test: holds no image in a folder of a class"),
    (not_finite, "rose/3.tif: a pixel is not finite"),
])  # fmt: skip
def test_what_is_wrong_with_a_folder_is_named_in_a_line(flowers, change, message):
    change(flowers)
    with pytest.raises(DataError) as error:
        data.load(config(flowers, name="folder").data)
    assert message in str(error.value).replace("\\", "/") and "\n" not in str(error.value)


def test_a_folder_of_one_class_or_a_file_is_refused(tmp_path):
    picture(tmp_path / "one" / "daisy" / "0.png")
    with pytest.raises(DataError, match="holds 1 folders; there must be one for each"):
        data.load(config(tmp_path / "one", name="folder").data)
    with pytest.raises(DataError, match="is no folder"):
        data.load(config(tmp_path / "one" / "daisy" / "0.png", name="folder").data)


# Training


def test_a_network_trains_on_a_folder_and_knows_the_names_of_its_classes(
    flowers, tmp_path, capsys, monkeypatch
):
    (tmp_path / "own.yaml").write_text(TEXT.replace("NAME", "folder").replace("PATH", str(flowers)))
    out = tmp_path / "run"
    argv = ["train", "--config", str(tmp_path / "own.yaml"), "--out", str(out)]
    assert main(argv) == 0
    assert main([*argv, "--resume", "--set", "epochs=2"]) == 0
    run = kfcnet.load(out)
    assert run.class_names == ("daisy", "rose")
    assert run.config.network[-1].units == 2 and run.config.data.input_scale > 0
    assert run.predict_proba(np.zeros((3, 5, 4, 3), np.uint8)).shape == (3, 2)
    assert read_json(out / "run.json")["data"]["classes"] == ["daisy", "rose"]
    assert read_json(out / "run.json")["data"]["title"] == "flowers"
    dataset = data.load(run.config.data.model_copy(update={"path": flowers}))
    wrong = run.predict(dataset.test_images) != dataset.test_labels
    expected = {"daisy": wrong[:2].mean(), "rose": wrong[2:].mean()}
    errors = run.class_errors(dataset.test_images, dataset.test_labels)
    assert errors == expected and list(errors.values()) == sorted(expected.values(), reverse=True)
    assert errors == run.class_errors(dataset.test_images, dataset.test_labels[:, None])
    assert not run.class_errors(dataset.test_images[:0], dataset.test_labels[:0])
    capsys.readouterr()
    evaluation = ["evaluate", str(out), "--data", str(flowers), "--device", "cpu"]
    assert main(evaluation) == 0
    shown = [f"{name} {error:.2%}" for name, error in errors.items()]
    assert capsys.readouterr().out.splitlines()[1] == f"error by class: {', '.join(shown)}"
    monkeypatch.setattr(cli, "MOST_CLASSES_SHOWN", 1)
    assert main(evaluation) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"error by class: {shown[0]}, ..."


def test_timescales_of_own_data_go_with_their_number_unless_they_are_given(flowers):
    text = TEXT.replace("NAME", "folder").replace("PATH", str(flowers))
    text = text.replace(", averaging_timescale: 50", "")
    kfc = "optimizer={name: kfc_pre, learning_rate: 0.1, batch_size: 4}"
    for changes, expected in (
        ([], (12.0, None)),
        ([kfc], (12.0, 24.0)),
        (["optimizer.averaging_timescale=70"], (70, None)),
        ([kfc, "optimizer.averaging_timescale=70"], (70, 70)),
        ([kfc, "optimizer.statistics_timescale=70"], (12.0, 70)),
    ):
        config = parse_config(text, "own.yaml", changes)
        found = resolved(config, data.load(config.data)).optimizer
        assert (
            found.averaging_timescale,
            getattr(found, "statistics_timescale", None),
        ) == expected, changes
    assert build.timescales(10**6) == dict(averaging_timescale=50000, statistics_timescale=10000)
    assert load_config("cifar_kfc").optimizer.averaging_timescale == 50000


@pytest.mark.parametrize("name", ["arrays", "folder", "idx", "digits"])
def test_the_damping_of_own_data_is_auto_unless_it_is_given(name):
    path = "path=null" if name == "digits" else "path=x"
    settings = ["optimizer={name: kfc_pre, learning_rate: 0.03}", f"data.{path}"]
    found = config("x", *settings, name=name)
    assert found.optimizer.damping == (1e-3 if name == "digits" else "auto")
    assert parse_config(dump_config(found)) == found
    given = config("x", *settings, "optimizer.damping=0.001", name=name)
    assert given.optimizer.damping == 1e-3 and parse_config(dump_config(given)) == given


def test_only_the_last_layer_leaves_its_units_to_the_data(tmp_path):
    with pytest.raises(ConfigError, match="network.1.units: missing; only the last layer"):
        config(tmp_path, "network.1={layer: dense}")


def test_fit_trains_on_arrays_and_gives_a_network_that_can_be_kept(arrays, tmp_path):
    images, labels = arrays["train_images"], arrays["train_labels"]
    held_out = arrays["test_images"], arrays["test_labels"]
    run = kfcnet.fit(images, labels, NETWORK, epochs=2, validation=held_out, device="cpu")
    assert run.predict(images).shape == (24,) and run.predict(images).max() <= 2
    assert run.history["epoch"][-1] >= 2 and run.evaluate(*held_out)[1] <= 1
    deviation = (images - images.mean(axis=0)).std()
    assert run.config.data.input_scale == pytest.approx(deviation, rel=1e-5)
    run.save(tmp_path / "kept")
    again = kfcnet.load(tmp_path / "kept")
    assert np.array_equal(again.predict_proba(images), run.predict_proba(images))
    with pytest.raises(RunFolderError, match="is there already"):
        run.save(tmp_path / "kept")
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot write .*name another folder"):
        run.save(tmp_path / "file" / "kept")


@pytest.mark.parametrize("optimizer", [None, {"name": "adam", "batch_size": 6}])
def test_a_fit_goes_on_for_more_epochs_with_the_timescales_that_it_began_with(
    arrays, tmp_path, optimizer
):
    def fitted(epochs, given=optimizer, resume=True):
        data = arrays["train_images"], arrays["train_labels"]
        settings = {"epochs": epochs, "device": "cpu", "out": tmp_path / "run", "resume": resume}
        return kfcnet.fit(*data, NETWORK, given, **settings)

    begun = fitted(1, resume=False).config.optimizer
    for epochs in (3, 6):
        more = fitted(epochs)
        assert more.history["epoch"][-1] >= epochs and more.config.optimizer == begun
    with pytest.raises(RunFolderError, match="averaging_timescale is 9.0 now and was 3.8"):
        fitted(6, {**(optimizer or {}), "averaging_timescale": 9})
    with pytest.raises(RunFolderError, match=" is .* now and was "):
        fitted(6, "sgd")
    with pytest.raises(ConfigError, match="optimizer.dampingg: "):
        fitted(6, {"dampingg": 0.1})


def test_data_that_have_changed_are_named_before_the_settings_that_follow_from_them(
    arrays, tmp_path
):
    images, labels = arrays["train_images"], arrays["train_labels"]
    again = {"epochs": 1, "device": "cpu", "out": tmp_path / "fitted", "resume": True}
    kfcnet.fit(images, labels, NETWORK, "sgd", **again)
    changed = r"checksum of the data is \w+ now and was \w+ when the run in .* was saved: .* out="
    for other in (images[:-3], labels[:-3]), (images, np.roll(labels, 1)):
        with pytest.raises(RunFolderError, match=changed):
            kfcnet.fit(*other, NETWORK, "sgd", **again)
    save(tmp_path / "a.npz", arrays)
    own = config(tmp_path / "a.npz", "data.input_scale=auto")
    train(own, tmp_path / "run")
    save(tmp_path / "a.npz", arrays | {"train_images": images // 2})
    with pytest.raises(RunFolderError, match="checksum of the data is"):
        train(own, tmp_path / "run", resume=True)


def test_a_run_that_cannot_be_kept_whole_is_not_kept(arrays, tmp_path, monkeypatch):
    run = kfcnet.fit(arrays["train_images"], arrays["train_labels"], NETWORK, "sgd", epochs=1)

    def full(source, target, **_):
        Path(target).write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit.shutil, "copytree", partial(shutil.copytree, copy_function=full))
    with pytest.raises(WriteError, match="cannot write .*kept: .*No space left"):
        run.save(tmp_path / "kept")
    assert not list(tmp_path.iterdir())


def test_fit_without_a_temporary_folder_asks_for_one(arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(WriteError, match="cannot make a temporary folder .* with out="):
        kfcnet.fit(arrays["train_images"], arrays["train_labels"], NETWORK)


def test_what_fit_left_without_a_folder_goes_with_the_network(arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = kfcnet.fit(arrays["train_images"], arrays["train_labels"], NETWORK, "sgd", epochs=1)
    assert [folder.is_dir() for folder in tmp_path.iterdir()] == [True]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del run
        gc.collect()
    assert not told and not list(tmp_path.iterdir())


def test_fit_takes_grey_floating_images_and_predicts_them(rng, tmp_path):
    images = rng.random((40, 6, 5))
    labels = (images.mean(axis=(1, 2)) > 0.5).astype(int)
    out = tmp_path / "out"
    run = kfcnet.fit(images, labels, NETWORK, "sgd", epochs=1, device="cpu", out=out)
    with pytest.raises(ValueError, match=r"images of shape \(6, 5, 1\) given"):
        run.predict(np.zeros((6, 5, 1), np.float32))
    assert run.predict(images).shape == (40,) and run.pixels == np.float32
    assert run.predict(images[:0]).shape == (0,)
    with pytest.raises(ValueError, match="a pixel of image 3 is not finite in float32"):
        run.predict(np.where(np.arange(40)[:, None, None] == 3, 1e300, images))
    with pytest.raises(ValueError, match="images of uint8 given; the network takes floating pix"):
        run.predict((255 * images).astype(np.uint8))
    for wrong in (images.astype(str), images.astype(complex)):
        with pytest.raises(ValueError, match="images of .* given; pixels are numbers"):
            run.predict(wrong)
    assert (out / "metrics.csv").exists() and run.history["test_error"].size


@pytest.mark.parametrize("name", ["kfc_pre", "sgd", "adam", "kfac", "hessian_free"])
@pytest.mark.parametrize("examples", [3, 1437, 200_000])
def test_the_settings_that_fit_chooses_are_valid_for_any_number_of_images(name, examples):
    settings = settings_for(name, examples)
    parsed = config("x", f"optimizer={json.dumps(settings)}").optimizer
    assert parsed.name == name and parsed.batch_size <= examples
    own = settings_for({"name": name, "batch_size": 2}, examples)
    assert own["batch_size"] == 2


@pytest.mark.parametrize("batch, fraction", [(64, 1.0), (256, 0.5), (1024, 0.25)])
def test_with_a_damping_that_is_given_fit_bounds_steps_by_the_clip_counting_momentum(
    batch, fraction
):
    given = {"damping": 1e-3, "momentum": 0.8, "batch_size": batch}
    settings = settings_for(given, 10_000)
    assert settings["clip"] == pytest.approx(0.3 * 0.2**2) and settings["learning_rate"] == 0.01
    assert settings["statistics_fraction"] == fraction  # 128 examples, at least a quarter
    assert settings_for({"batch_size": batch}, 10_000)["clip"] == 0.3  # damping: auto


@pytest.mark.parametrize("name, epochs, error", [("kfac", 3, 0.1), ("adagrad", 6, 0.2)])
def test_fit_chooses_what_learns_the_digits_in_a_few_epochs(name, epochs, error):
    """With K-FAC's damping for autoencoders a fifth is wrong by then, with Adagrad at Adam's rate
    two thirds.
    """
    digits = data.load(load_config("digits_kfc").data)
    layers = [{"layer": "conv", "filters": 16, "kernel": 3}, {"layer": "relu"}, {"layer": "dense"}]
    images, labels = digits.train_images, digits.train_labels
    run = kfcnet.fit(images, labels, layers, name, epochs=epochs, device="cpu")
    assert run.history["train_error"][-1] < error
    assert settings_for({"name": "kfac", "damping": 0.25}, 100)["damping"] == 0.25


def test_fit_says_what_is_wrong_with_its_arguments(arrays):
    images, labels = arrays["train_images"], arrays["train_labels"]
    with pytest.raises(DataError, match="24 images and labels of shape"):
        kfcnet.fit(images, labels[:-1], NETWORK)
    with pytest.raises(ConfigError, match="fit: optimizer.learning_rat: unknown key; did you mean"):
        kfcnet.fit(images, labels, NETWORK, {"name": "sgd", "learning_rat": 1})
    with pytest.raises(ConfigError, match="fit: network.0.layer: unknown value cnov"):
        kfcnet.fit(images, labels, [{"layer": "cnov"}])
    for wrong in ("dense", {"layer": "dense"}, None):
        with pytest.raises(ConfigError, match="fit: network: expected a list of layers such as"):
            kfcnet.fit(images, labels, wrong)
    for wrong in (0.2, images, (images, labels, 3)):
        with pytest.raises(ConfigError, match=r"fit: validation: expected a pair \(images, labels"):
            kfcnet.fit(images, labels, NETWORK, validation=wrong)


@pytest.mark.parametrize("optimizer, message", [
    (3, "fit: optimizer: expected a name or settings such as {'name': 'sgd'}, got 3"),
    ({"batch_size": 0}, "fit: optimizer.batch_size: must be at least 1, got 0"),
    ({"batch_size": "all"}, "fit: optimizer.batch_size: must be a whole number, got 'all'"),
    ({"momentum": "0.9", "damping": 1.0}, "fit: optimizer.momentum: must be a number, got '0.9'"),
    ({"damping": object}, "fit: <class 'object'> is no value of a setting"),
    ({"damping": "atuo"}, "fit: optimizer.damping: must be a number or auto, got 'atuo'"),
])  # fmt: skip
def test_a_wrong_optimizer_is_said_in_a_line(arrays, optimizer, message):
    with pytest.raises(ConfigError) as error:
        kfcnet.fit(arrays["train_images"], arrays["train_labels"], NETWORK, optimizer)
    assert str(error.value) == message


@pytest.mark.parametrize("settings, message", [
    ({"test_share": 1.5}, "test_share: 1.5 is not between 0 and 1"),
    ({"test_share": 0}, "test_share: 0 is not between 0 and 1"),
    ({"test_share": float("nan")}, "test_share: nan is not between 0 and 1"),
    ({"test_share": "a"}, "test_share: 'a' is not between 0 and 1"),
    ({"split_seed": -1}, "split_seed: -1 is no whole number from 0"),
    ({"test_labels": [0, 1]}, "the test part: of its images and labels only one is given"),
])  # fmt: skip
def test_a_split_that_cannot_be_made_is_refused(arrays, settings, message):
    with pytest.raises(DataError, match=message):
        data.from_arrays(arrays["train_images"], arrays["train_labels"], **settings)


def test_settings_may_be_numpy_numbers_and_a_model(arrays, tmp_path):
    model = SgdConfig(learning_rate=0.02, batch_size=4)
    images, labels = arrays["train_images"], arrays["train_labels"]
    run = kfcnet.fit(images, labels, NETWORK, model, epochs=np.float32(0.5), seed=np.int64(3))
    assert run.config.seed == 3 and run.config.epochs == 0.5
    mapping = {"name": "sgd", "learning_rate": 0.02, "batch_size": 4}
    same = kfcnet.fit(images, labels, NETWORK, mapping, epochs=0.5)
    assert run.config.optimizer == same.config.optimizer
    assert run.config.optimizer.averaging_timescale < 50  # chosen, as for a mapping
    with pytest.raises(ValueError, match="no images given"):
        run.evaluate(images[:0], labels[:0])


def test_a_sweep_finds_the_runs_of_what_the_data_decide(arrays, tmp_path):
    """A run records the scale of its inputs and the units of its last layer as numbers."""
    save(tmp_path / "a.npz", arrays)
    text = TEXT.replace("NAME", "arrays").replace("PATH", str(tmp_path / "a.npz"))
    (tmp_path / "own.yaml").write_text(text)
    rates = {"optimizer.learning_rate": [0.01, 0.001]}
    results = sweep(str(tmp_path / "own.yaml"), rates, [], tmp_path / "out")
    assert [bool(result.row) for result in results] == [True, True]
    again = sweep(str(tmp_path / "own.yaml"), rates, [], tmp_path / "out")
    seconds = [[result.row["seconds"] for result in each] for each in (results, again)]
    assert seconds[0] == seconds[1]  # nothing was trained again
