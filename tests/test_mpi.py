"""Runs of real processes under mpiexec: what they leave, and how they end when something fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from runs import SGD, SMALL, assert_same_run

from kfcnet.benchmarks import processes
from kfcnet.config import load_config
from kfcnet.runs.checkpoint import load_checkpoint
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.train import train

PROGRAM = Path(__file__).with_name("mpi_program.py")
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent)]))
PATIENCE = 60  # seconds; on a busy machine two processes take ten to start


def missing():
    """Why processes cannot be started here, or None."""
    if MPIEXEC is None:
        return f"there is no mpiexec beside {sys.executable}: pip install '.[mpi]' brings one"
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        return "mpi4py is not installed"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
HIDDEN = re.compile("PMI|OMPI|PMIX|HYD|MPI")


def environment(**more):
    """That of the tests, without what an mpiexec around them may have set."""
    kept = {name: value for name, value in os.environ.items() if not HIDDEN.match(name)}
    return {**kept, "PYTHONPATH": str(PROGRAM.parents[1]), **more}


def start(*commands, count=2):
    """Start count processes that run the commands, [FAULT, ARGUMENTS...] each, one by one."""
    words = [word for command in commands for word in ("++", *command)][1:]
    return subprocess.Popen(
        [MPIEXEC, "-n", str(count), sys.executable, str(PROGRAM), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def ended(process):
    """(exit status, standard output, lines of standard error) of what was started."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"it still runs after {PATIENCE} s; {out}\n{err}")
    return process.returncode, out, [line for line in err.splitlines() if line.strip()]


def run(*commands, count=2):
    """(exit status, standard output, lines of standard error) of `start`."""
    return ended(start(*commands, count=count))


def by_command(lines):
    """[(exit status, lines), ...] of the commands, from all lines."""
    result, part = [], []
    for line in lines:
        if found := re.match(r"== (\d+)$", line):
            result.append((int(found[1]), part))
            part = []
        else:
            part.append(line)
    return result


@pytest.fixture
def config(tmp_path):
    """config(*changes, text=SMALL): the arguments of `train` for a short run in float64."""

    def write(*changes, text=SMALL):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        fixed = ["dtype=float64", "ops.shards=1"]
        return ["train", "--config", str(path), "--set", *fixed, *changes]

    return write


def assert_close(run, expected):
    """The same parameters and rows to rounding, but for the times."""
    states = [load_checkpoint(folder / "checkpoint.h5") for folder in (run, expected)]
    for name in ("theta", "velocity", "average"):
        value, wanted = (state["optimizer"][name] for state in states)
        assert np.isfinite(wanted).all()
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)
    rows, others = (read_metrics(folder / "metrics.csv") for folder in (run, expected))
    for name, column in rows.items():
        if not name.startswith("seconds"):
            np.testing.assert_allclose(column, others[name], rtol=1e-11, err_msg=name)


# What a run of two processes leaves


@pytest.mark.usefixtures("no_figures")
def test_two_processes_leave_the_run_of_one_and_the_same_bits_twice(tmp_path, config):
    arguments = config("optimizer.inverse_delay=2", "diagnostics.every=6")
    folders = [tmp_path / name for name in ("two", "again", "failing")]
    two, again, failing = ([*arguments, "--out", str(folder)] for folder in folders)
    status, out, lines = run(["none", *two], ["none", *again], ["inversion", *failing])
    assert status == 0, lines
    assert out.count("update 12, ") == 3  # the first process shows them
    train(load_config(str(tmp_path / "run.yaml"), arguments[4:]), tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")
    assert_same_run(tmp_path / "two", tmp_path / "again")
    tables = [
        read_metrics(tmp_path / name / "diagnostics.csv", columns=()) for name in ("one", "two")
    ]
    assert len(tables[0]) > 20
    for name, column in tables[0].items():
        np.testing.assert_allclose(tables[1][name], column, rtol=1e-9, atol=1e-15, err_msg=name)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert [record["device"].get("processes") for record in records] == [None, 2]
    assert records[1]["outcome"]["state"] == "finished"
    # Where an inversion fails on one process, every evaluation has compared the parameters.
    warned = [line for line in lines if "planted" in line]
    assert len(warned) == 1 and "good inverses stay" in warned[0], lines


@pytest.mark.slow
def test_four_processes_leave_the_run_of_one(tmp_path, config):
    arguments = config("optimizer.statistics_fraction=0.5", "optimizer.clip_fraction=0.5")
    for count in (1, 4):
        result = run(["none", *arguments, "--out", str(tmp_path / str(count))], count=count)
        assert result[0] == 0, result
    assert_close(tmp_path / "4", tmp_path / "1")


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_two_bit_for_bit_and_with_one_to_rounding(tmp_path, config):
    arguments = config("epochs=2", text=SGD)
    process = start(["slow", *arguments, "--out", str(tmp_path / "two")])
    for line in process.stdout:
        if line.startswith("epoch 0.42"):
            break
    process.send_signal(signal.SIGINT)
    status, _, lines = ended(process)
    assert status == 130, (status, lines)
    assert len([line for line in lines if "stopped by SIGINT after update" in line]) == 1, lines
    shutil.copytree(tmp_path / "two", tmp_path / "other")
    resumed = [*arguments, "--out", str(tmp_path / "two"), "--resume"]
    whole = [*arguments, "--out", str(tmp_path / "whole")]
    status, _, lines = run(["none", *resumed], ["none", *whole])
    assert status == 0 and "bit for bit" not in "".join(lines), lines
    assert_same_run(tmp_path / "two", tmp_path / "whole")
    other = [*arguments, "--out", str(tmp_path / "other"), "--resume"]
    status, _, lines = run(["none", *other], count=1)
    assert status == 0, lines
    said = [line for line in lines if "saved by 2 processes and goes on with 1" in line]
    assert len(said) == 1, lines
    assert_close(tmp_path / "other", tmp_path / "whole")


# Failing


def test_what_all_processes_find_is_told_once(tmp_path, config):
    often = ["--set", "checkpoint_minutes=1e-9", "--out", str(tmp_path / "run"), "--overwrite"]
    unequal = "optimizer.batch_size: 121 examples cannot be shared equally by 2 processes: take 120"
    part = "optimizer.clip_fraction: 0.375 of 120 are 45 examples, which cannot be shared equally"
    on_gpu = config("dtype=float32", "device=cuda")
    expected = [
        (["none", *config("optimizer.batch_size=121"), *often], 2, unequal),
        (["none", *config("optimizer.clip_fraction=0.375"), *often], 2, part),
        (["none", *config("optimizer.learning_rat=1"), *often], 2, "learning_rat"),
        (["none", *config(), *often, "--pick-periods"], 2, "the periods are timed in one process"),
        (["none", "train", "--confg", "digits_kfc"], 2, "--confg: no such argument"),
        (["none", "sweep", "--config", "digits_kfc", "--grid", "seed=1,2"], 2, "sweep runs in one"),
        (["other_arguments", *config(), *often], 2, "all processes need the same arguments"),
        (["no_data", *config(), *often], 2, "process 2 of 2: error: no data set here"),
        (["no_gpu", *on_gpu, *often], 2, "process 2 of 2: error: no GPU here"),
        (["other_data", *config(), *often], 2, "checksum of the data of process 2 of 2 is 000"),
        (["full_disk", *config(), *often], 1, "cannot write checkpoint.h5: no space left"),
        (["drift", *config(), *often], 2, "after update 10 the parameters of process 2 of 2 are"),
        (["device_of_before", *config(), *often[:-1], "--resume"], 2, "device is cpu now and was"),
        (["average_of_one", *config(), *often], 1, "after update 8 the parameters are not finite"),
    ]
    status, _, lines = run(*(command for command, _, _ in expected))
    assert status == expected[-1][1], lines
    found = by_command(lines)
    assert [status for status, _ in found] == [status for _, status, _ in expected], lines
    for (_, told), (command, _, message) in zip(found, expected, strict=True):
        errors = [line for line in told if re.match(r"(process \d of \d: )?error: ", line)]
        assert len(errors) == 1 and message in errors[0], (command, told)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.h5")["optimizer"]["steps"] == 7


@pytest.mark.parametrize(
    "fault, status, message",
    [
        ("exception", 1, "process 2 of 2: Traceback"),
        pytest.param("failure_of_one", 1, "process 2 of 2: Traceback", marks=pytest.mark.slow),
        pytest.param("exit_of_one", 3, "process 2 of 2: error: exit 3", marks=pytest.mark.slow),
    ],
)
def test_a_fault_of_one_process_alone_is_told_once_and_ends_both(
    tmp_path, config, fault, status, message
):
    arguments = config("checkpoint_minutes=1e-9", text=SGD)
    found, _, lines = run([fault, *arguments, "--out", str(tmp_path / "run")])
    assert found == status, (found, lines)
    assert len([line for line in lines if line.startswith(message)]) == 1, lines
    assert not [line for line in lines if "process 1 of 2" in line], lines
    assert load_checkpoint(tmp_path / "run" / "checkpoint.h5")["optimizer"]["steps"] == 7


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_death_of_a_process_ends_the_other_and_leaves_the_checkpoint_whole(
    tmp_path, config, victim
):
    arguments = config("checkpoint_minutes=1e-9", "epochs=20", text=SGD)
    process = start(["slow", *arguments, "--out", str(tmp_path / "run")])
    numbers = {}
    for line in process.stdout:
        if found := re.match(r"rank (\d) is (\d+)", line):
            numbers[int(found[1])] = int(found[2])
        if line.startswith("epoch 0.42"):
            break
    os.kill(numbers[victim], signal.SIGKILL)
    began = time.monotonic()
    status, _, _ = ended(process)
    assert status != 0
    assert time.monotonic() - began < 10
    for number in numbers.values():
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.h5")["optimizer"]["steps"] >= 1


@pytest.mark.slow
def test_the_benchmark_times_steps_of_two_processes_and_their_sums(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", partial(subprocess.run, env=environment()))
    (tmp_path / "run.yaml").write_text(SMALL.replace("padding: 1", "stride: 4"))
    configs = {"KFC-pre": str(tmp_path / "run.yaml")}
    report = processes.benchmark_processes(2, rounds=1, configs=configs)
    (row,) = report["steps"]
    assert 0 < row["sums"] < row["processes"] and row["threads"] > 0
    assert 0 < row["sums_cpu"] < row["processes_cpu"]
    assert [size for size, _ in report["sums"]] == list(processes.SIZES)
    assert all(seconds > 0 for _, seconds in report["sums"])
    text = processes.format_report(report)
    assert "| KFC-pre |" in text and "2 processes of 1 thread, ms" in text


# One process that believes in several


def alone(code="", **variables):
    """`kfcnet train` without mpiexec, where variables say otherwise."""
    program = f"import sys; {code}\nfrom kfcnet import cli; sys.exit(cli.main(['train']))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=PATIENCE,
    )
    return result.returncode, result.stderr


def test_an_mpiexec_of_another_mpi_is_named_by_the_first_process_alone():
    status, text = alone(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
    assert status == 2
    assert text.startswith("error: mpiexec is of another MPI than mpi4py's, which is MPICH")
    status, text = alone(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1")
    assert (status, text) == (2, "")


def test_without_mpi4py_or_without_an_mpi_the_way_out_is_said(tmp_path):
    status, text = alone("sys.modules['mpi4py'] = None", PMI_SIZE="2", PMI_RANK="0")
    assert status == 2 and "mpi4py, which cannot be imported" in text and ".[mpi]" in text
    missing = str(tmp_path / "libmpi.so")
    status, text = alone(PMI_SIZE="2", PMI_RANK="0", MPI4PY_LIBMPI=missing)
    assert status == 2 and text.count("\n") == 1 and ".[mpi]" in text, text


def test_a_process_that_no_mpiexec_started_imports_no_mpi4py():
    code = (
        "import sys; from kfcnet import cli; cli.main(['configs']); print('mpi4py' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE,
    )
    assert result.stdout.splitlines()[-1] == "False", result
