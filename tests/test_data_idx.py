"""IDX files: a user's own, and the published MNIST and Fashion-MNIST."""

import gzip
import hashlib
import re

import numpy as np
import pytest
from data_sources import data_config

from kfcnet.config import parse_config
from kfcnet.data import DataError, idx, load, mnist

SHAPES = {"train": (9, 5, 4), "t10k": (6, 5, 4)}


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("KFCNET_DATA", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def idx_bytes(array):
    """An IDX file of unsigned bytes: the header, then the elements."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays(rng):
    """{name of a file: its array}, of three classes."""
    found = {}
    for part, shape in SHAPES.items():
        found[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, shape)
        found[f"{part}-labels-idx1-ubyte"] = np.arange(shape[0]) % 3
    return found


def put(folder, arrays, compressed=()):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = idx_bytes(array)
        if name in compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def own(path, **settings):
    text = f"""
data: {{name: idx, path: {path}}}
network: [{{layer: dense}}]
optimizer: {{name: sgd, learning_rate: 0.1}}
epochs: 1
"""
    return parse_config(text, "test", [f"data.{key}={value}" for key, value in settings.items()])


@pytest.mark.parametrize("compressed", [(), idx.FILES, idx.FILES[1:3]])
def test_the_four_files_of_a_folder_are_read_compressed_or_not(tmp_path, arrays, compressed):
    folder = put(tmp_path / "letters", arrays, compressed)
    for _ in ("from the files", "from the cache"):
        dataset = load(own(folder).data)
        for part, name in (("train", "train"), ("test", "t10k")):
            images = getattr(dataset, f"{part}_images")
            assert images.dtype == np.uint8 and images.shape == (*SHAPES[name], 1)
            np.testing.assert_array_equal(images[..., 0], arrays[f"{name}-images-idx3-ubyte"])
            labels = getattr(dataset, f"{part}_labels")
            np.testing.assert_array_equal(labels, arrays[f"{name}-labels-idx1-ubyte"])
        assert dataset.classes == 3 and dataset.provenance["title"] == "letters"
        assert [record["name"].removesuffix(".gz") for record in dataset.provenance["files"]] == [
            *idx.FILES
        ]


def test_the_spelling_with_a_dot_is_found(tmp_path, arrays):
    put(tmp_path / "set", {name.replace("-idx", ".idx"): a for name, a in arrays.items()})
    assert load(own(tmp_path / "set").data).classes == 3


def cut(folder):
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def cut_archive(folder):
    path = folder / "train-images-idx3-ubyte"
    (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-9])
    path.unlink()


def of_floats(folder):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 0x0D]) + path.read_bytes()[3:])


def exchanged(folder):
    images = (folder / "train-images-idx3-ubyte").read_bytes()
    (folder / "train-labels-idx1-ubyte").write_bytes(images)


def without_one(folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()


def empty_file(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")


def fewer_labels(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(8) % 3))


def other_sides(folder):
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((6, 4, 5))))


def missing_class(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(2 * (np.arange(9) % 2)))


@pytest.mark.parametrize("spoil, message", [
    (cut, "t10k-images-idx3-ubyte: is cut short or too long: it has 119 bytes for an array of "
     "shape (6, 5, 4)"),
    (cut_archive, "train-images-idx3-ubyte.gz: cannot be read"),
    (of_floats, "train-images-idx3-ubyte: is no IDX file of unsigned bytes with 3 dimensions "
     "(it begins with 00 00 0d 03)"),
    (exchanged, "train-labels-idx1-ubyte: is no IDX file of unsigned bytes with 1 dimensions"),
    (without_one, "lacks t10k-labels-idx1-ubyte (or t10k-labels-idx1-ubyte.gz)"),
    (empty_file, "t10k-labels-idx1-ubyte: is no IDX file"),
    (fewer_labels, "train-labels-idx1-ubyte: 9 images and labels of shape (8,)"),
    (other_sides, "training images are (5, 4, 1), test images (4, 5, 1)"),
    (missing_class, "no training image has label 1"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_a_line_that_names_the_file(tmp_path, arrays, spoil, message):
    folder = put(tmp_path / "letters", arrays)
    spoil(folder)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        load(own(folder).data)
    assert "letters" in str(error.value) and "\n" not in str(error.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DataError, match="is no folder; name the one of the four IDX files"):
        load(own(tmp_path / "a").data)


PUBLISHED = {"mnist": mnist.MNIST, "fashion_mnist": mnist.FASHION_MNIST}


def publish(monkeypatch, name, folder):
    """Let the sums of made-up files count as the published ones."""
    files = {f"{each}.gz": (folder / f"{each}.gz").read_bytes() for each in idx.FILES}
    sums = tuple(hashlib.md5(content).hexdigest() for content in files.values())
    monkeypatch.setattr(
        "kfcnet.data.PUBLISHED",
        {name: mnist.MnistLike(PUBLISHED[name].TITLE, "", sums, PUBLISHED[name].CLASS_NAMES)},
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_are_read_from_the_folder_of_their_set(
    tmp_path, monkeypatch, arrays, name
):
    folder = put(tmp_path / "home" / name, arrays, idx.FILES)
    publish(monkeypatch, name, folder)
    dataset = load(data_config(name), download=False)
    np.testing.assert_array_equal(dataset.train_images[..., 0], arrays["train-images-idx3-ubyte"])
    assert dataset.classes == 10 and all(r["published"] for r in dataset.provenance["files"])
    assert dataset.class_names == PUBLISHED[name].CLASS_NAMES


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_with_another_sum_are_refused(tmp_path, arrays, name):
    """The files of the two sets have the same names: only their sums tell them apart."""
    folder = put(tmp_path / "set", arrays, idx.FILES)
    title = PUBLISHED[name].TITLE
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.gz is not the .* of {title}"):
        load(data_config(name, folder))


def test_the_two_published_sets_have_different_sums_for_every_file():
    sums = [*mnist.MNIST.sums, *mnist.FASHION_MNIST.sums]
    assert len(set(sums)) == 8 and all(re.fullmatch("[0-9a-f]{32}", each) for each in sums)
