import concurrent.futures
import errno
import os
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

from kfcnet.data import DataError, cache
from kfcnet.data.dataset import Arrays
from kfcnet.runs.locks import locked


def some_arrays(seed=0, train=700, test=5):
    rng = np.random.default_rng(seed)
    return Arrays(
        rng.integers(0, 256, (train, 32, 32, 3), np.uint8),
        rng.integers(0, 10, train, np.uint8),
        rng.integers(0, 256, (test, 32, 32, 3), np.uint8),
        rng.integers(0, 10, test, np.uint8),
    )


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def refuse():
    raise AssertionError("the cache should have been read")


def test_a_cache_gives_back_what_was_written(tmp_path):
    arrays = some_arrays()
    sha256 = cache.write(tmp_path / "new" / "data.h5", arrays)
    read, read_sha256 = cache.read(tmp_path / "new" / "data.h5")
    assert_same(read, arrays)
    assert read_sha256 == sha256


def test_a_cache_is_chunked_bytes_with_a_checksum(tmp_path):
    sha256 = cache.write(tmp_path / "data.h5", some_arrays())
    with h5py.File(tmp_path / "data.h5") as file:
        assert file["train_images"].dtype == np.uint8
        assert 1 < file["train_images"].chunks[0] < 700
        assert file.attrs["sha256"] == sha256
    assert [path.name for path in tmp_path.iterdir()] == ["data.h5"]


def test_the_same_arrays_make_the_same_file(tmp_path):
    for name in ("one.h5", "two.h5"):
        cache.write(tmp_path / name, some_arrays())
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_a_cache_is_read_without_locks_which_a_file_system_may_not_have(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    cache.write(tmp_path / "data.h5", some_arrays())
    with open(tmp_path / "data.h5", "rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # refuses HDF5's own lock, as such a file system does
        assert_same(cache.read(tmp_path / "data.h5")[0], some_arrays())


def test_data_are_built_once(tmp_path):
    arrays = some_arrays()
    built, sha256 = cache.cached([tmp_path / "data.h5"], lambda: arrays)
    read, read_sha256 = cache.cached([tmp_path / "data.h5"], refuse)
    assert_same(built, arrays)
    assert_same(read, arrays)
    assert read_sha256 == sha256


def test_several_can_write_one_cache_at_once(tmp_path, monkeypatch):
    meeting, replace = threading.Barrier(3), os.replace

    def wait_and_replace(*paths):
        meeting.wait(10)
        replace(*paths)

    monkeypatch.setattr(cache.os, "replace", wait_and_replace)
    monkeypatch.setattr(cache.os, "getpid", lambda: 1)  # as that of several containers
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for future in [
            pool.submit(cache.write, tmp_path / "data.h5", some_arrays()) for _ in range(3)
        ]:
            future.result()
    assert [path.name for path in tmp_path.iterdir()] == ["data.h5"]
    assert_same(cache.read(tmp_path / "data.h5")[0], some_arrays())


def flip_a_pixel(path, _):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path, _):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_the_checksum(path, _):
    with h5py.File(path, "r+") as file:
        del file.attrs["sha256"]


def drop_an_array(path, _):
    with h5py.File(path, "r+") as file:
        del file["test_labels"]


def change_a_type(path, arrays):
    with h5py.File(path, "r+") as file:
        del file["test_labels"]
        file["test_labels"] = arrays.test_labels.astype(np.int32)


def empty(path, _):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [flip_a_pixel, cut_in_half, drop_the_checksum, drop_an_array, change_a_type, empty]
)
def test_a_damaged_cache_is_noticed_and_made_again(tmp_path, caplog, damage):
    path, arrays = tmp_path / "data.h5", some_arrays()
    cache.write(path, arrays)
    damage(path, arrays)
    with pytest.raises(DataError, match="data.h5"):
        cache.read(path)
    again, _ = cache.cached([path], lambda: arrays)
    assert_same(again, arrays)
    assert "made again" in caplog.text
    assert_same(cache.read(path)[0], arrays)


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def fail():
        raise DataError("no")

    with pytest.raises(DataError):
        cache.cached([tmp_path / "data.h5"], fail)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_cache_alone(tmp_path, monkeypatch):
    path, arrays = tmp_path / "data.h5", some_arrays()
    cache.write(path, arrays)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.write(path, some_arrays(seed=1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.h5"]
    assert_same(cache.read(path)[0], arrays)


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="data.h5 cannot be written"):
        cache.write(tmp_path / "file" / "data.h5", some_arrays())


def test_a_cache_beside_data_that_may_only_be_read_is_kept_elsewhere(tmp_path, caplog):
    (tmp_path / "shared").write_bytes(b"")  # in its way; permissions do not count for root
    places = [tmp_path / "shared" / "data.h5", tmp_path / "own" / "data.h5"]
    arrays = some_arrays()
    built, sha256 = cache.cached(places, lambda: arrays)
    assert_same(built, arrays)
    assert caplog.text.count("shared/data.h5 cannot be written") == 1
    assert f"It is {places[1]} instead" in caplog.text
    caplog.clear()
    read, read_sha256 = cache.cached(places, refuse)
    assert_same(read, arrays)
    assert read_sha256 == sha256 and not caplog.text


def test_without_any_place_for_a_cache_the_data_are_used_without_one(tmp_path, caplog):
    (tmp_path / "shared").write_bytes(b"")
    arrays = some_arrays()
    built, sha256 = cache.cached([tmp_path / "shared" / "data.h5"], lambda: arrays)
    assert_same(built, arrays)
    assert sha256 == cache.write(tmp_path / "data.h5", arrays)
    assert len(caplog.records) == 1 and "XDG_CACHE_HOME" in caplog.text


FILL_THE_DISK = """
import pathlib, resource, signal, sys
from kfcnet.data import DataError, cache
from test_data_cache import some_arrays

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    cache.write(pathlib.Path(sys.argv[1]), some_arrays())
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [0, 100, 5_000, 1_500_000, 2_160_000])
def test_a_full_disk_is_a_clear_error_and_nothing_stays(tmp_path, room):
    """In a process of its own: the HDF5 library could bring it down after the error was handled."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, tmp_path / "data.h5", str(room)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be written: File too large" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    pytest.importorskip("fcntl")
    for name in ("dead", "alive"):
        (tmp_path / f".data.h5.{name}").mkdir()
        (tmp_path / f".data.h5.{name}" / "data.h5").write_bytes(b"a part")
    with locked(tmp_path / ".data.h5.alive"):
        cache.cached([tmp_path / "data.h5"], some_arrays)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".data.h5.alive", "data.h5"]
    cache.cached([tmp_path / "data.h5"], refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["data.h5"]


def test_where_nobody_can_tell_the_living_from_the_killed_nothing_is_removed(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse_lock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / ".data.h5.alive").mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse_lock)
    cache.cached([tmp_path / "data.h5"], some_arrays)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data.h5.alive", "data.h5"]
