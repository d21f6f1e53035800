"""metrics.csv and run.json: complete rows or none, errors that name file and line."""

import concurrent.futures
import errno
import os
import subprocess
import threading

import numpy as np
import pytest
from runs import small

from kfcnet.ops.cpu import CpuOps
from kfcnet.runs import files, provenance
from kfcnet.runs.files import RecordError, WriteError
from kfcnet.runs.metrics import (
    COLUMNS,
    LATER_COLUMNS,
    append_metrics,
    create_metrics,
    first_crossing,
    last_iteration,
    read_metrics,
    truncate_metrics,
)


def row(iteration, **values):
    """A row of made-up, pairwise different numbers."""
    made_up = {name: iteration + index / 7 for index, name in enumerate(COLUMNS)}
    return {**made_up, "iteration": iteration, "examples": 128 * iteration, **values}


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    create_metrics(path)
    for iteration in (0, 10, 20, 30):
        append_metrics(path, row(iteration))
    return path


def test_metrics_come_back_with_all_their_digits(metrics):
    read = read_metrics(metrics)
    for name in COLUMNS:
        assert read[name].tolist() == [row(i)[name] for i in (0, 10, 20, 30)]
    assert read["iteration"].dtype == read["examples"].dtype == np.int64


def test_metrics_hold_the_promised_columns(metrics):
    header = metrics.read_text().splitlines()[0].split(",")
    assert header[:15] == [
        "iteration",
        "epoch",
        "examples",
        "seconds",
        "train_loss",
        "train_error",
        "test_loss",
        "test_error",
        "train_objective",
        "raw_train_error",
        "raw_test_error",
        "learning_rate",
        "update_norm",
        "clipped",
        "nu",
    ]
    assert header[15:] == [
        "seconds_gradient",
        "seconds_statistics",
        "seconds_inverses",
        "seconds_preconditioning",
        "seconds_clip",
    ]


def test_columns_that_older_metrics_lack_read_as_nan_and_are_written_from_then_on(metrics):
    rows = [dict(zip(COLUMNS, line.split(","), strict=True)) for line in metrics.open()]
    older = [name for name in COLUMNS if name not in LATER_COLUMNS]
    text = "".join(",".join(row[name].strip() for name in older) + "\n" for row in rows)
    metrics.write_text(text)
    assert last_iteration(metrics) == 30
    assert np.isnan([read_metrics(metrics)[name] for name in LATER_COLUMNS]).all()
    assert metrics.read_text() == text
    truncate_metrics(metrics, 20)
    append_metrics(metrics, row(40))
    read = read_metrics(metrics)
    assert list(read) == list(COLUMNS)
    for name in COLUMNS:
        values = [row(i)[name] for i in (0, 10, 20, 40)]
        expected = [np.nan] * 3 + values[3:] if name in LATER_COLUMNS else values
        np.testing.assert_array_equal(read[name], expected, name)


def test_columns_of_a_later_version_stay_where_a_run_goes_on(tmp_path):
    (tmp_path / "metrics.csv").write_text("iteration,epoch,later\n0,0.0,1.5\n5,0.5,2.5\n")
    truncate_metrics(tmp_path / "metrics.csv", 0, columns=("iteration", "nu"))
    assert (tmp_path / "metrics.csv").read_text() == "iteration,nu,epoch,later\n0,nan,0.0,1.5\n"


def test_metrics_keep_a_loss_that_is_not_finite(metrics):
    append_metrics(metrics, row(40, train_loss=np.nan, test_loss=np.inf))
    read = read_metrics(metrics)
    assert np.isnan(read["train_loss"][-1]) and np.isposinf(read["test_loss"][-1])


@pytest.mark.parametrize(
    "line, broken, reason",
    [
        (3, "10,oops", "fields"),
        (3, ",".join(["10"] + ["0.5"] + ["128"] + ["x"] * (len(COLUMNS) - 3)), "seconds is 'x'"),
        (3, ",".join(["10.5"] + ["0"] * (len(COLUMNS) - 1)), "iteration is '10.5'"),
        (4, ",".join(["10"] + ["0"] * (len(COLUMNS) - 1)), "not above"),
        (1, "iteration,epoch", "no column 'examples'"),
    ],
)
def test_an_unreadable_row_is_an_error_naming_file_and_line(metrics, line, broken, reason):
    lines = metrics.read_text().splitlines()
    lines[line - 1] = broken
    metrics.write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordError, match=rf"metrics.csv, line {line}: .*{reason}.*folder away"):
        read_metrics(metrics)


def test_a_line_cut_short_is_an_error_when_reading(metrics):
    metrics.write_bytes(metrics.read_bytes()[:-1])
    with pytest.raises(RecordError, match="line 5: the line is cut short"):
        read_metrics(metrics)


def test_missing_and_binary_metrics_are_errors_naming_the_file(tmp_path):
    with pytest.raises(RecordError, match="absent.csv"):
        read_metrics(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="binary.csv"):
        read_metrics(tmp_path / "binary.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(RecordError, match="empty.csv, line 1"):
        read_metrics(tmp_path / "empty.csv")


def test_truncation_drops_the_rows_after_an_iteration_and_nothing_else(metrics):
    before = metrics.read_text().splitlines()
    truncate_metrics(metrics, 19)
    assert metrics.read_text().splitlines() == before[:3]


def test_truncation_drops_a_line_that_a_kill_cut_short(metrics):
    before = metrics.read_text()
    metrics.write_text(before + "40,1.25,51")
    truncate_metrics(metrics, 40)
    assert metrics.read_text() == before


def test_the_last_iteration_is_that_of_the_last_whole_row(metrics):
    assert last_iteration(metrics) == 30
    metrics.write_text(metrics.read_text() + "40,1.25,51")
    assert last_iteration(metrics) == 30
    create_metrics(metrics)
    assert last_iteration(metrics) == -1


class FullDisk:
    """A file on a disk that takes `room` more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(content[: self.room])
        self.room -= written
        return written


@pytest.fixture
def full_disk(monkeypatch):
    monkeypatch.setattr(files, "open", lambda *a, **k: FullDisk(open(*a, **k), 20), raising=False)


def test_a_full_disk_leaves_the_metrics_as_they_were(metrics, full_disk):
    before = metrics.read_bytes()
    with pytest.raises(WriteError, match="metrics.csv: No space left on device"):
        append_metrics(metrics, row(40))
    assert metrics.read_bytes() == before


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, full_disk):
    path = tmp_path / "run.json"
    path.write_text("{}")
    with pytest.raises(WriteError, match="run.json: No space left on device"):
        files.write_json(path, {"long": "x" * 100})
    assert path.read_text() == "{}"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    files.write_json(path, {"old": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}


@pytest.mark.skipif(os.name != "posix", reason="other systems cannot flush a folder")
def test_files_rows_and_the_folder_of_a_renamed_file_are_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed, path = [], tmp_path / "metrics.csv"
    monkeypatch.setattr(files.os, "fsync", lambda file: flushed.append(os.fstat(file).st_ino))
    files.write_text(path, "iteration\n")
    assert flushed == [path.stat().st_ino, tmp_path.stat().st_ino]
    files.append_line(path, "0")
    assert flushed[2:] == [path.stat().st_ino]


def test_lines_of_a_table_end_as_in_any_other_text(tmp_path):
    files.write_csv(tmp_path / "sweep.csv", [["seed", "failure"], [1, "no, none"]])
    assert (tmp_path / "sweep.csv").read_bytes() == b'seed,failure\n1,"no, none"\n'


def test_several_can_write_one_file_at_once(tmp_path, monkeypatch):
    meeting, replace = threading.Barrier(3), os.replace

    def wait_and_replace(*paths):
        meeting.wait(10)
        replace(*paths)

    monkeypatch.setattr(files.os, "replace", wait_and_replace)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for future in [
            pool.submit(files.write_text, tmp_path / "sweep.md", "a table") for _ in range(3)
        ]:
            future.result()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"sweep.md": "a table"}


def test_unreadable_json_is_an_error_naming_file_and_line(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"seed": 1,\n "device": }')
    with pytest.raises(RecordError, match="run.json, line 2"):
        files.read_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(RecordError, match="cannot read .*run.json"):
        files.read_json(path)


def test_first_crossing_is_the_first_row_at_or_below_the_threshold():
    read = {
        "epoch": np.array([0, 0.5, 1.0, 1.5]),
        "iteration": np.array([0, 40, 80, 120]),
        "seconds": np.array([0, 3.5, 7.25, 11]),
        "test_error": np.array([np.nan, 0.3, 0.19, 0.2]),
    }
    assert first_crossing(read, "test_error", 0.19) == (1.0, 80, 7.25)
    assert first_crossing(read, "test_error", 0.5) == (0.5, 40, 3.5)
    assert first_crossing(read, "test_error", 0.1) is None


def test_no_path_of_the_machine_stays_in_a_record():
    given = {
        "command": [
            "train.py",
            "--set",
            "data.path=/home/someone/cifar",
            "--out",
            "results/run",
            "--config=/abs/my.yaml",
            "../shared/data",
            "/home/someone/sweep/learning_rate=0.1",
            "cifar10 = /home/a=b/cifar",
            "data={name: folder, path: /home/some one/c: d}",
            'optimizer={name: sgd, x: ["../a/b", C:\\c\\d], y: 1/2}',
        ],
        "files": [{"name": "C:\\data\\x.bin", "sha256": "00"}],
        "n": 3,
        "s": "a b",
    }
    assert provenance.base_names(given) == {
        "command": [
            "train.py",
            "--set",
            "data.path=cifar",
            "--out",
            "results/run",
            "--config=my.yaml",
            "data",
            "learning_rate=0.1",
            "cifar10 = cifar",
            "data={name: folder, path: c: d}",
            'optimizer={name: sgd, x: ["b", d], y: 1/2}',
        ],
        "files": [{"name": "x.bin", "sha256": "00"}],
        "n": 3,
        "s": "a b",
    }


def test_a_record_begins_with_how_the_run_was_started(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/abs/train.py", "--config", "mine"])
    ops = CpuOps("float32", shards=3, native="off")
    record = provenance.describe_run(small("seed=7"), ops, {"sha256": "00"}, "all images")
    assert record["command"] == ["train.py", "--config", "mine"]
    assert (record["seed"], record["device"]["shards"]) == (7, 3)
    assert (record["data"], record["train_measured_on"]) == ({"sha256": "00"}, "all images")
    assert record["machine"]["cores"] == os.cpu_count()
    assert record["outcome"] == {"state": "running"}


def test_a_folder_is_made_with_those_above_it_where_it_is_not_there(tmp_path):
    for _ in range(2):
        assert files.make_folder(tmp_path / "a" / "b").is_dir()


def test_the_commit_is_that_of_the_project_or_none(tmp_path, monkeypatch):
    package = tmp_path / "kfcnet" / "runs"
    package.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert provenance._commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    if subprocess.run([*git, "init", "-q"]).returncode:
        pytest.skip("git is not installed")
    (tmp_path / "results").mkdir()
    for name in ("file", "results/file"):
        (tmp_path / name).write_text("one")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert provenance._commit() == head.strip()
    (tmp_path / "results/file").write_text("two")
    assert provenance._commit() == head.strip()
    (tmp_path / "file").write_text("two")
    assert provenance._commit() == head.strip() + "-dirty"
