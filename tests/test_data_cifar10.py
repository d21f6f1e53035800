import hashlib
import pickle

import numpy as np
import pytest
from data_sources import (
    IMAGES,
    archive,
    binary_batch,
    cifar_batch,
    cifar_files,
    data_config,
    put,
    python2_batch,
    python3_batch,
)

from kfcnet.data import DataError, cifar10, load

ARCHIVES = {
    "cifar-10-binary.tar.gz": (binary_batch, ".bin", "cifar-10-batches-bin"),
    "cifar-10-python.tar.gz": (python2_batch, "", "cifar-10-batches-py"),
}


@pytest.fixture(autouse=True)
def small_batches_and_own_home(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar10, "BATCH_IMAGES", IMAGES)
    monkeypatch.setenv("KFCNET_DATA", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def put_archive(directory, name, monkeypatch, publish=True):
    """Write a made-up archive; with `publish` its checksum counts as the published one."""
    write, suffix, folder = ARCHIVES[name]
    content = archive(cifar_files(write, suffix), folder)
    put(directory, {name: content})
    if publish:
        published = cifar10.distributions(None)
        for distribution in published:
            if name in distribution.files:
                distribution.files[name] = hashlib.md5(content).hexdigest()
        monkeypatch.setattr(cifar10, "distributions", lambda _: published)
    return directory / name


def assert_is_the_made_up_set(dataset):
    batches = [cifar_batch(i) for i in range(1, 7)]
    train_images = np.concatenate([images for images, _ in batches[:5]])
    np.testing.assert_array_equal(dataset.train_images, train_images)
    np.testing.assert_array_equal(dataset.train_labels, np.concatenate([b[1] for b in batches[:5]]))
    np.testing.assert_array_equal(dataset.test_images, batches[5][0])
    np.testing.assert_array_equal(dataset.test_labels, batches[5][1])
    assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.mean.dtype == np.float32
    np.testing.assert_allclose(dataset.mean, train_images.astype(float).mean(axis=0), rtol=1e-6)
    assert dataset.train_images.flags.c_contiguous and dataset.test_images.flags.c_contiguous
    assert dataset.classes == 10


@pytest.mark.parametrize(
    "write, suffix",
    [
        (binary_batch, ".bin"),
        (python2_batch, ""),
        (python3_batch, ""),
        (lambda *batch: python3_batch(*batch, protocol=2), ""),
    ],
)
def test_unpacked_files_are_read(tmp_path, write, suffix):
    path = put(tmp_path / "set", cifar_files(write, suffix))
    for _ in ("from the files", "from the cache"):
        assert_is_the_made_up_set(load(data_config("cifar10", path)))


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_read_and_not_unpacked(tmp_path, monkeypatch, caplog, name):
    path = put_archive(tmp_path / "set", name, monkeypatch)
    dataset = load(data_config("cifar10", path))
    assert_is_the_made_up_set(dataset)
    assert [entry.name for entry in (tmp_path / "set").iterdir()] == [name]
    assert [(r["name"], r["published"]) for r in dataset.provenance["files"]] == [(name, True)]
    assert not caplog.records


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch, name):
    path = put_archive(tmp_path / "set", name, monkeypatch, publish=False)
    with pytest.raises(DataError, match=f"{name} is not the published file"):
        load(data_config("cifar10", path))
    assert not (tmp_path / "home").exists()


def test_a_cut_archive_is_refused(tmp_path, monkeypatch):
    path = put_archive(tmp_path / "set", "cifar-10-binary.tar.gz", monkeypatch)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="cut short"):
        load(data_config("cifar10", path))


def test_an_archive_without_all_its_batches_is_refused(tmp_path):
    files = cifar_files(binary_batch, ".bin")
    del files["data_batch_4.bin"]
    put(tmp_path, {"a.tar.gz": archive(files, "cifar-10-batches-bin")})
    with pytest.raises(DataError, match="data_batch_4.bin"):
        cifar10.distributions(None)[0].read([tmp_path / "a.tar.gz"])


def test_unpublished_files_are_taken_with_one_line_and_their_sums(tmp_path, caplog):
    files = cifar_files(binary_batch, ".bin")
    dataset = load(data_config("cifar10", put(tmp_path / "set", files)))
    assert len(caplog.records) == 1
    assert "data_batch_1.bin and 5 more are not published" in caplog.text
    expected = [
        {
            "name": name,
            "bytes": len(content),
            "published": False,
            "md5": hashlib.md5(content).hexdigest(),
        }
        for name, content in files.items()
    ]
    assert dataset.provenance["files"] == expected
    assert str(tmp_path) not in str(dataset.provenance)


def test_the_same_content_has_the_same_checksum_in_every_form(tmp_path):
    binary = put(tmp_path / "binary", cifar_files(binary_batch, ".bin"))
    python = put(tmp_path / "python", cifar_files(python2_batch))
    one, other = (load(data_config("cifar10", path)) for path in (binary, python))
    assert one.provenance["sha256"] == other.provenance["sha256"]


def test_changed_files_are_never_answered_from_an_old_cache(tmp_path):
    files = cifar_files(binary_batch, ".bin")
    path = put(tmp_path / "set", files)
    load(data_config("cifar10", path))
    changed = bytearray(files["test_batch.bin"])
    changed[1] ^= 255  # the first red pixel
    put(path, {"test_batch.bin": bytes(changed)})
    assert load(data_config("cifar10", path)).test_images[0, 0, 0, 0] == changed[1]


def test_a_cut_binary_file_is_refused_even_between_two_images(tmp_path):
    files = cifar_files(binary_batch, ".bin")
    files["data_batch_3.bin"] = files["data_batch_3.bin"][: -(1 + 3072)]
    with pytest.raises(DataError, match="data_batch_3.bin has 6,146 bytes, not 9,219"):
        load(data_config("cifar10", put(tmp_path / "set", files)))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "write, name", [(binary_batch, "data_batch_2.bin"), (python2_batch, "data_batch_2")]
)
def test_a_label_out_of_range_is_named(tmp_path, write, name):
    files = cifar_files(write, ".bin" if name.endswith(".bin") else "")
    files[name] = write(cifar_batch(2)[0], np.array([3, 10, 1]))
    with pytest.raises(DataError, match=f"{name}: the label of image 1 is 10, not one of 0 to 9"):
        load(data_config("cifar10", put(tmp_path / "set", files)))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("wrong", [2.5, np.nan, "2", None])
def test_a_label_that_is_no_whole_number_is_named_and_not_cut(tmp_path, wrong):
    files = cifar_files(python3_batch)
    batch = pickle.loads(files["data_batch_2"])
    files["data_batch_2"] = pickle.dumps({**batch, "labels": [wrong, 3, 1]})
    with pytest.raises(DataError, match=f"the label of image 0 is {wrong!r}, not one of 0 to 9"):
        load(data_config("cifar10", put(tmp_path / "set", files)))


class Hostile:
    """Pickles to a call of an arbitrary function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def load_with_batch(tmp_path, content):
    files = cifar_files(python2_batch)
    files["data_batch_2"] = content
    return load(data_config("cifar10", put(tmp_path / "set", files)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_runs_no_code(tmp_path, protocol):
    trace = tmp_path / "trace"
    content = pickle.dumps({"data": Hostile(open, str(trace), "w"), "labels": []}, protocol)
    with pytest.raises(DataError, match="data_batch_2 is not a batch.*io.open, which is not"):
        load_with_batch(tmp_path, content)
    assert not trace.exists()
    pickle.loads(content)["data"].close()
    assert trace.exists()  # with the ordinary unpickler it does


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    ],
)
def test_every_name_but_those_needed_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="which is not allowed"):
        load_with_batch(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"labels": [0, 1, 2]}),
        pickle.dumps({"data": np.zeros((3, 3072)), "labels": [0, 1, 2]}, 4),
        pickle.dumps(
            {"data": np.asfortranarray(np.zeros((3, 3072), np.uint8)), "labels": [0] * 3}, 4
        ),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, 4),
        pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1]}, 4),
        pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": "012"}, 4),
        python2_batch(*cifar_batch(2))[:-2000],
    ],
    ids=str,
)
def test_a_malformed_pickle_is_a_clear_error(tmp_path, content):
    with pytest.raises(DataError, match="data_batch_2 "):
        load_with_batch(tmp_path, content)
