"""Where files are looked for, and what is said when they are not there."""

import hashlib
import urllib.error

import pytest
from data_sources import IMAGES, binary_batch, cifar_files, data_config, put, svhn_file, svhn_part

from kfcnet.data import DataError, cifar10, download, load

CIFAR = cifar_files(binary_batch, ".bin")


@pytest.fixture(autouse=True)
def empty_directory_and_no_network(monkeypatch, tmp_path):
    """Small batches, nothing set, and a network that no test reaches by mistake."""
    monkeypatch.setattr(cifar10, "BATCH_IMAGES", IMAGES)
    monkeypatch.delenv("KFCNET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def refuse(request, timeout):
        raise urllib.error.URLError("there is no network")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)


def marked(value):
    """The made-up CIFAR-10 with `value` as the first pixel of the test set."""
    batch = bytearray(CIFAR["test_batch.bin"])
    batch[1] = value
    return {**CIFAR, "test_batch.bin": bytes(batch)}


def mark_of(dataset):
    return dataset.test_images[0, 0, 0, 0]


@pytest.mark.parametrize(
    "folder",
    ["data", "data/cifar-10-batches-bin", "data/cifar10", "data/cifar10/cifar-10-batches-bin"],
)
def test_the_data_directory_and_its_usual_folders_are_searched(tmp_path, folder):
    put(tmp_path / folder, marked(7))
    assert mark_of(load(data_config("cifar10"))) == 7


def test_the_variable_is_searched_after_the_data_directory(tmp_path, monkeypatch):
    put(tmp_path / "elsewhere" / "cifar10", marked(8))
    monkeypatch.setenv("KFCNET_DATA", str(tmp_path / "elsewhere"))
    assert mark_of(load(data_config("cifar10"))) == 8
    put(tmp_path / "data", marked(7))
    assert mark_of(load(data_config("cifar10"))) == 7


def test_a_given_path_is_the_only_place_looked_at(tmp_path, monkeypatch):
    put(tmp_path / "data", marked(7))
    put(tmp_path / "given" / "cifar-10-batches-bin", marked(9))
    assert mark_of(load(data_config("cifar10", tmp_path / "given"))) == 9
    monkeypatch.setattr(download, "fetch", None)
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match=f"CIFAR-10 is not at data.path: {path} ") as error:
            load(data_config("cifar10", path))
        assert "digits_kfc.yaml" in str(error.value) and "--data" in str(error.value)
        assert len(str(error.value).splitlines()) == 2


def test_a_path_may_start_at_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "sets", marked(6))
    assert mark_of(load(data_config("cifar10", "~/sets"))) == 6


def test_a_path_to_another_file_is_an_error(tmp_path):
    put(tmp_path, {"cifar-10.zip": b""})
    with pytest.raises(DataError, match="cifar-10.zip is no file of it"):
        load(data_config("cifar10", tmp_path / "cifar-10.zip"))


@pytest.mark.parametrize("given", [True, False])
def test_a_missing_batch_is_named_and_not_replaced(tmp_path, given):
    files = dict(CIFAR)
    del files["data_batch_4.bin"]
    path = put(tmp_path / "data", files)
    with pytest.raises(
        DataError,
        match="in data.* is incomplete: it lacks data_batch_4.bin.|"
        f"{path} is incomplete: it lacks data_batch_4.bin.",
    ):
        load(data_config("cifar10", path if given else None))


def test_a_whole_set_elsewhere_wins_over_a_part(tmp_path, monkeypatch):
    put(tmp_path / "data", {"test_batch.bin": CIFAR["test_batch.bin"]})
    put(tmp_path / "elsewhere", marked(8))
    monkeypatch.setenv("KFCNET_DATA", str(tmp_path / "elsewhere"))
    assert mark_of(load(data_config("cifar10"))) == 8


@pytest.mark.parametrize(
    "name, title, file",
    [("cifar10", "CIFAR-10", "cifar-10-binary.tar.gz"), ("svhn", "SVHN", "train_32x32.mat")],
)
def test_absent_data_name_the_ways_out(tmp_path, name, title, file):
    with pytest.raises(DataError) as error:
        load(data_config(name))
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{title} was found neither in data/ nor in $KFCNET_DATA")
    assert f"{file} could not be downloaded to data/{name}/{file}: there is no network" in first
    for way in (
        file,
        str(tmp_path / "data" / name),
        "KFCNET_DATA",
        "data.path",
        "evaluate: --data",
        "reproduce: --data NAME=PATH",
        "kfcnet train --config digits_kfc.yaml",
    ):
        assert way in second


def test_nothing_is_downloaded_when_that_is_switched_off(monkeypatch):
    monkeypatch.setattr(download, "fetch", None)
    with pytest.raises(DataError, match="Downloading is switched off"):
        load(data_config("cifar10"), download=False)


def fake_site(monkeypatch, contents):
    """Answers `fetch` from base name -> content; returns the list of addresses asked for."""
    asked = []

    def fetch(url, path, md5):
        asked.append(url)
        put(path.parent, {path.name: contents[path.name]})

    monkeypatch.setattr(download, "fetch", fetch)
    return asked


def svhn_contents():
    return {
        "train_32x32.mat": svhn_file(*svhn_part(0, 5)),
        "test_32x32.mat": svhn_file(*svhn_part(1, 3)),
    }


@pytest.mark.parametrize("variable", [None, "elsewhere"])
def test_absent_data_are_downloaded_once(tmp_path, monkeypatch, variable):
    if variable:
        monkeypatch.setenv("KFCNET_DATA", str(tmp_path / variable))
    asked = fake_site(monkeypatch, svhn_contents())
    for _ in range(2):
        assert len(load(data_config("svhn")).train_images) == 5
    assert asked == [
        f"http://ufldl.stanford.edu/housenumbers/{part}_32x32.mat" for part in ("train", "test")
    ]
    home = tmp_path / (variable or "data")
    assert sorted(path.name for path in home.iterdir()) == ["cache", "svhn"]


def test_what_another_process_has_brought_meanwhile_is_taken(tmp_path, monkeypatch):
    def fail(url, path, md5):
        put(path.parent, {path.name: svhn_contents()[path.name]})
        raise DataError("the connection was cut")

    monkeypatch.setattr(download, "fetch", fail)
    assert len(load(data_config("svhn")).train_images) == 5


def test_only_what_is_missing_is_downloaded(tmp_path, monkeypatch):
    contents = svhn_contents()
    put(tmp_path / "data", {"train_32x32.mat": contents["train_32x32.mat"]})
    asked = fake_site(monkeypatch, contents)
    assert len(load(data_config("svhn")).train_images) == 5
    assert len(asked) == 1
    assert (tmp_path / "data" / "test_32x32.mat").exists()


def test_the_published_addresses_and_sums_are_used(tmp_path, monkeypatch):
    def stop(url, path, md5):
        raise DataError(f"{url} {md5}")

    monkeypatch.setattr(download, "fetch", stop)
    with pytest.raises(
        DataError,
        match="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz "
        "c32a1d4ab5d03f1284b67883e8d87530",
    ):
        load(data_config("cifar10"))


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = put(tmp_path / "set", CIFAR)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="data_batch_1.bin cannot be read: Permission denied"):
        load(data_config("cifar10", path))


def test_the_cache_is_named_after_the_contents_of_the_files(tmp_path):
    for folder in ("one", "copy"):
        load(data_config("cifar10", put(tmp_path / folder, CIFAR)))
    assert len(list((tmp_path / "data" / "cache").iterdir())) == 1
    load(data_config("cifar10", put(tmp_path / "other", marked(9))))
    assert len(list((tmp_path / "data" / "cache").iterdir())) == 2


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_shared_data_that_may_only_be_read_are_cached_in_the_users_own_folder(
    tmp_path, monkeypatch, variable
):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "user"))
    monkeypatch.setenv("KFCNET_DATA", str(put(tmp_path / "shared", {**marked(7), "cache": b""})))
    assert mark_of(load(data_config("cifar10"))) == 7
    (path,) = (tmp_path / "user").rglob("*.h5")
    assert path.parent.name == "kfcnet"


def test_files_of_the_data_directory_are_recorded_with_their_sums(tmp_path):
    put(tmp_path / "data", CIFAR)
    records = load(data_config("cifar10")).provenance["files"]
    assert {r["name"]: r["md5"] for r in records} == {
        name: hashlib.md5(content).hexdigest() for name, content in CIFAR.items()
    }
