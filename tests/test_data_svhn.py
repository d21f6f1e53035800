import io

import numpy as np
import pytest
import scipy.io
from data_sources import data_config, put, svhn_file, svhn_part

from kfcnet.data import DataError, load


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("KFCNET_DATA", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def svhn_files(**counts):
    return {
        f"{part}_32x32.mat": svhn_file(*svhn_part(seed, count))
        for seed, (part, count) in enumerate(counts.items())
    }


def test_matlab_files_are_read_and_ten_means_zero(tmp_path, caplog):
    path = put(tmp_path / "set", svhn_files(train=7, test=4))
    dataset = load(data_config("svhn", path))
    for images, labels, (expected_images, expected_digits) in (
        (dataset.train_images, dataset.train_labels, svhn_part(0, 7)),
        (dataset.test_images, dataset.test_labels, svhn_part(1, 4)),
    ):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_digits)
        assert labels[0] == 0
    assert "train_32x32.mat and 1 more are not published" in caplog.text


def test_the_extra_images_join_the_training_set_when_asked(tmp_path):
    path = put(tmp_path / "set", svhn_files(train=7, test=4, extra=5))
    without, with_extra = (load(data_config("svhn", path, extra)) for extra in (False, True))
    assert len(without.train_images) == 7
    np.testing.assert_array_equal(with_extra.train_images[:7], without.train_images)
    np.testing.assert_array_equal(with_extra.train_images[7:], svhn_part(2, 5)[0])
    np.testing.assert_array_equal(with_extra.train_labels[7:], svhn_part(2, 5)[1])
    np.testing.assert_array_equal(with_extra.test_images, without.test_images)


def test_a_missing_extra_file_is_an_error_that_names_the_way_to_do_without(tmp_path):
    path = put(tmp_path / "set", svhn_files(train=7, test=4))
    with pytest.raises(DataError, match="lacks extra_32x32.mat.\n.*, set data.extra=false, or"):
        load(data_config("svhn", path, extra=True))
    (path / "test_32x32.mat").unlink()
    with pytest.raises(DataError, match="lacks test.*extra_32x32.mat.\n.*, remove the other files"):
        load(data_config("svhn", path, extra=True))


def test_one_training_image_is_read(tmp_path):
    path = put(tmp_path / "set", svhn_files(train=1, test=2))
    assert load(data_config("svhn", path)).train_images.shape == (1, 32, 32, 3)


def variables(**arrays):
    stream = io.BytesIO()
    scipy.io.savemat(stream, arrays)
    return stream.getvalue()


IMAGES = np.zeros((32, 32, 3, 4), np.uint8)
LABELS = np.ones((4, 1), np.uint8)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot be read"),
        (svhn_file(*svhn_part(0, 4))[:-500], "cannot be read"),
        (variables(X=IMAGES), "cannot be read.*'y'"),
        (variables(X=IMAGES.astype(float), y=LABELS), "holds X float64"),
        (variables(X=IMAGES[:, :, :2], y=LABELS), r"holds X uint8 \(32, 32, 2, 4\)"),
        (variables(X=IMAGES, y=LABELS[:3]), r"and y \(3, 1\)"),
        (variables(X=IMAGES, y=LABELS * 11), "label of image 0 is 11, not one of 1 to 10"),
        (variables(X=IMAGES, y=LABELS * 0), "label of image 0 is 0, not one of 1 to 10"),
        (variables(X=IMAGES, y=[[1], [2], [np.nan], [1]]), "label of image 2 is nan, not one of"),
        (variables(X=IMAGES, y=[[1], [2.5], [3], [1]]), "label of image 1 is 2.5, not one of"),
        (variables(X=IMAGES, y=list("1234")), "label of image 0 is '1', not one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_file_is_a_clear_error(tmp_path, content, message):
    files = svhn_files(train=7, test=4)
    files["test_32x32.mat"] = content
    with pytest.raises(DataError, match=f"test_32x32.mat.*{message}"):
        load(data_config("svhn", put(tmp_path / "set", files)))
    assert not (tmp_path / "home").exists()
