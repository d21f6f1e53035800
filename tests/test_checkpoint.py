"""The checkpoint: comes back bit for bit, or not at all with an error that names the file."""

import h5py
import numpy as np
import pytest

from kfcnet.runs import checkpoint, files
from kfcnet.runs.checkpoint import BLOCK, CheckpointError, load_checkpoint, save_checkpoint
from kfcnet.runs.files import WriteError


@pytest.fixture
def state(rng):
    return {
        "optimizer": {
            "steps": 7,
            "theta": rng.normal(size=5).astype(np.float32),
            "blocks": {"conv1": {"Omega": rng.normal(size=(3, 3))}},
        },
        "mask": np.array([[1, 0, 255]], np.uint8),
        "empty": np.zeros((0, 2), np.int64),
        "nothing": {},
        "seconds": 0.1 + 0.2,
        "native": True,
        "config": "seed: 0  # é\n",
    }


def assert_same(actual, expected):
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_same(actual[name], expected[name])
    elif isinstance(expected, np.ndarray):
        assert isinstance(actual, np.ndarray)
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        assert actual.tobytes() == expected.tobytes()
    else:
        assert type(actual) is type(expected) and actual == expected


@pytest.fixture
def saved(tmp_path, state):
    save_checkpoint(tmp_path / "checkpoint.h5", state)
    return tmp_path / "checkpoint.h5"


def test_a_state_comes_back_bit_for_bit(saved, state):
    assert_same(load_checkpoint(saved), state)


def test_the_file_is_hdf5_for_any_other_tool(saved, state):
    with h5py.File(saved) as file:
        assert (file["optimizer/theta"][()] == state["optimizer"]["theta"]).all()


def test_saving_leaves_one_file_and_the_same_bytes_for_the_same_state(saved, state):
    before = saved.read_bytes()
    save_checkpoint(saved, state)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.h5"]


@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, 0.99])
def test_one_changed_bit_is_an_error_naming_the_file(saved, place):
    content = bytearray(saved.read_bytes())
    content[BLOCK + int(place * (len(content) - BLOCK))] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint.h5 is damaged.*, or move the folder"):
        load_checkpoint(saved)


@pytest.mark.parametrize("length", [0, 10, BLOCK - 1, BLOCK, -1])
def test_a_truncated_file_is_an_error_naming_the_file(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="checkpoint.h5 is .*move the folder"):
        load_checkpoint(saved)


def test_a_file_that_cannot_be_read_is_an_error_naming_it(tmp_path):
    (tmp_path / "checkpoint.h5").mkdir()
    with pytest.raises(CheckpointError, match="cannot read the checkpoint .*checkpoint.h5: Is a"):
        load_checkpoint(tmp_path / "checkpoint.h5")


def test_a_foreign_file_is_an_error_naming_the_file(tmp_path):
    path = tmp_path / "checkpoint.h5"
    with h5py.File(path, "w") as file:
        file["theta"] = np.arange(3)
    with pytest.raises(CheckpointError, match="checkpoint.h5 is no kfcnet checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_format_is_an_error_naming_both(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 8)
    monkeypatch.setattr(checkpoint, "READABLE", (8,))
    with pytest.raises(
        CheckpointError, match=r"checkpoint.h5 is of another version .*\(format 3, here 8\)"
    ):
        load_checkpoint(saved)


def test_an_entry_that_is_not_there_is_an_error_naming_it(saved):
    state = load_checkpoint(saved)
    with pytest.raises(CheckpointError, match="checkpoint.h5 lacks row: it is of another version"):
        state["row"]
    with pytest.raises(CheckpointError, match="lacks optimizer.blocks.conv1.Gamma:"):
        state["optimizer"]["blocks"]["conv1"]["Gamma"]


def test_a_missing_file_is_an_error_naming_it_and_the_way_out(tmp_path):
    def told(folder):
        with pytest.raises(CheckpointError, match=r"no checkpoint.h5") as error:
            load_checkpoint(folder / "checkpoint.h5")
        return str(error.value)

    assert told(tmp_path / "none").endswith("name the folder that a run was written to with --out")
    run = tmp_path / "demo" / "sgd"
    run.mkdir(parents=True)
    (run / "metrics.csv").touch()
    assert told(tmp_path / "demo").endswith(f"in it there are {run}")
    for others, end in (("adam", ""), ("kfac", " and others")):
        (tmp_path / "demo" / others).mkdir()
        (tmp_path / "demo" / others / "metrics.csv").touch()
        first, second = sorted((tmp_path / "demo").iterdir())[:2]
        assert told(tmp_path / "demo").endswith(f"in it there are {first}, {second}{end}")
    assert f"--config {run}/config.yaml and another --out" in told(run)


def test_a_failed_write_leaves_the_last_checkpoint_valid(saved, state, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(WriteError, match="checkpoint.h5: No space left on device"):
        save_checkpoint(saved, {"optimizer": {"steps": 8}})
    monkeypatch.undo()
    assert_same(load_checkpoint(saved), state)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.h5"]


def test_the_temporary_file_lies_in_the_same_folder(saved, state, monkeypatch):
    moves = []
    replace = files.os.replace
    monkeypatch.setattr(files.os, "replace", lambda *pair: (moves.append(pair), replace(*pair)))
    save_checkpoint(saved, state)
    assert [source.parent for source, _ in moves] == [saved.parent]


def test_a_value_that_cannot_be_kept_is_an_error(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save_checkpoint(tmp_path / "checkpoint.h5", {"none": None})
    assert not list(tmp_path.iterdir())
