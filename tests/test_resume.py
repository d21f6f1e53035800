"""A run that was killed, interrupted or finished goes on as if it had never stopped."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cuda_on_cpu
import numpy as np
import pytest
from PIL import Image
from runs import SGD, SMALL, assert_same_run, small
from thread_ranks import on_ranks

from kfcnet import data
from kfcnet.config import load_config
from kfcnet.figures import curves
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda import CudaOps
from kfcnet.ops.errors import DeviceError
from kfcnet.runs import files
from kfcnet.runs.checkpoint import (
    FORMAT,
    READABLE,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from kfcnet.runs.files import read_json
from kfcnet.runs.folder import FILES, RunFolder, RunFolderError
from kfcnet.runs.metrics import LATER_COLUMNS, read_metrics
from kfcnet.training import clock, trainer
from kfcnet.training.errors import TrainingInterrupted
from kfcnet.training.train import train
from kfcnet.training.trainer import Trainer

TEXTS = {"kfc_pre": SMALL, "sgd": SGD}
ALWAYS = "checkpoint_minutes=1e-9"  # a checkpoint after every step
KILLED = Path(__file__).parent / "checkpoints"
SCRIPT = Path(__file__).parents[1] / "scripts" / "train.py"


pytestmark = pytest.mark.usefixtures("no_figures")


class Killed(BaseException):
    """Ends a run as a kill would: nothing catches it."""


@pytest.fixture(scope="module", params=TEXTS)
def text(request):
    return TEXTS[request.param]


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "plot_runs", lambda _, out: out.write_text("a figure"))
        train(small(ALWAYS, text=text), out)
    return out


def kill_in(monkeypatch, owner, name, call, before=True):
    """Let the `call`-th call of owner.name (counted from 1) end the process, so to speak."""
    original, calls = getattr(owner, name), []

    def killing(*args, **kwargs):
        calls.append(None)
        if len(calls) == call and before:
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killing)


KILLS = {
    "while the folder is begun": (files, "write_text", 1, True),
    "at the first evaluation": (trainer, "evaluate", 1, True),
    "before the first checkpoint": (Trainer, "_step", 1, False),
    "in the first checkpoint's write": (files.os, "replace", 4, True),
    "between checkpoint and next step": (Trainer, "_step", 3, True),
    "after a step, before its checkpoint": (Trainer, "_step", 3, False),
    "after a row, before its checkpoint": (RunFolder, "append", 2, False),
    "before a row": (RunFolder, "append", 2, True),
    "in a later checkpoint's write": (files.os, "replace", 10, True),
    "after a later checkpoint's write": (files.os, "replace", 10, False),
    "before the last evaluation": (trainer, "evaluate", 7, True),
    "before the figure": (curves, "plot_runs", 1, True),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_goes_on_bit_for_bit(kill, text, uninterrupted, tmp_path):
    config = small(ALWAYS, text=text)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, *KILLS[kill])
        train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)
    assert (tmp_path / "run" / "curves.png").exists()
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_of_a_replaced_run_nothing_stays_and_its_checkpoint_goes_first(tmp_path):
    for name in FILES:
        (tmp_path / name).touch()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, Path, "unlink", 2)
        with RunFolder(tmp_path, overwrite=True) as folder:
            folder.start(small(), {})
    assert {path.name for path in tmp_path.iterdir()} == set(FILES) - {"checkpoint.h5"}
    with RunFolder(tmp_path, overwrite=True) as folder:
        folder.start(small(), {})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"config.yaml", "run.json", "metrics.csv"}


def test_a_run_that_was_killed_at_once_is_told_from_one_that_has_lost_its_checkpoint(tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, trainer, "evaluate", 1)
        train(small(), tmp_path / "run")
    with pytest.raises(CheckpointError, match="it trains and will write it soon, or was killed"):
        load_checkpoint(tmp_path / "run" / "checkpoint.h5")


def test_every_time_that_a_run_goes_on_is_recorded_with_its_program(tmp_path):
    def program(name):
        return {"command": [name], "commit": name, "device": {"device": name}, "versions": {}}

    begun = {**program("first"), "seed": 3, "outcome": {"state": "running"}}
    with RunFolder(tmp_path / "run") as folder:
        folder.start(small(), begun)
        for iteration, name in ((5, "second"), (7, "third")):
            folder.finish("interrupted", iteration)
            folder.go_on(small(), {**begun, **program(name), "seed": 4}, iteration)
        assert folder.record() == {
            **begun,
            "resumed": [
                {"iteration": 5, **program("second")},
                {"iteration": 7, **program("third")},
            ],
        }


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_kill_during_a_write_has_left_is_removed(resume, tmp_path):
    run = tmp_path / "run"
    if resume:
        train(small("epochs=0.4"), run)
    run.mkdir(exist_ok=True)
    (run / "checkpoint.h5.0a1b2c3d.tmp").write_bytes(b"a part")
    others = ["notes.tmp"] if resume else []  # it would be no folder to begin a run in
    for name in others:
        (run / name).touch()
    train(small(), run, resume=resume)
    assert [path.name for path in run.glob("*.tmp")] == others


def test_a_run_whose_device_fails_goes_on_from_its_last_checkpoint(text, uninterrupted, tmp_path):
    config, whole = small(ALWAYS, text=text), CpuOps.to_numpy

    def failing(ops, array):
        if calls == 3:  # nothing can be read any more, as after an error of CUDA
            raise DeviceError("a GPU: illegal access")
        return whole(ops, array)

    def step(self, original=Trainer._step):
        nonlocal calls
        calls += 1
        return original(self)

    calls = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuOps, "to_numpy", failing)
        patch.setattr(Trainer, "_step", step)
        with pytest.raises(DeviceError, match="illegal access"):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_run_killed_again_and_again_goes_on_bit_for_bit(text, uninterrupted, tmp_path):
    for _ in range(4):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_in(patch, Trainer, "_step", 3)
            train(small(ALWAYS, text=text), tmp_path / "run", resume=True)
    train(small(ALWAYS, text=text), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_steps_since_the_last_checkpoint_are_repeated_with_their_rows(
    text, uninterrupted, tmp_path
):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_is_time_to_save", lambda self: self.optimizer.steps == 3)
        kill_in(patch, Trainer, "_step", 9)
        train(small(ALWAYS, text=text), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.h5")["optimizer"]["steps"] == 3
    assert read_metrics(tmp_path / "run" / "metrics.csv")["iteration"].tolist() == [0, 5]
    train(small(ALWAYS, text=text), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_rows_do_not_tell_how_often_the_device_was_read(tmp_path, monkeypatch):
    """Checkpoints are written at moments of the clock, and each makes a reading."""
    config = small(text=SMALL)
    train(config, tmp_path / "often")
    monkeypatch.setitem(clock.STEPS_BETWEEN_READS, "cpu", 50)
    train(config, tmp_path / "seldom")
    assert_same_run(tmp_path / "seldom", tmp_path / "often")


def test_a_run_goes_on_whose_rows_lack_columns_that_came_later(tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, Trainer, "_step", 8)
        train(small(ALWAYS), tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoint.h5")
    assert state["optimizer"]["steps"] == 7 and state["row"].pop("nu") > 0
    save_checkpoint(tmp_path / "run" / "checkpoint.h5", state)
    metrics = tmp_path / "run" / "metrics.csv"
    header, *rows = [line.split(",") for line in metrics.read_text().splitlines()]
    kept = [at for at, name in enumerate(header) if name not in LATER_COLUMNS]
    older = [[row[at] for at in kept] for row in (header, *rows)]
    metrics.write_text("".join(",".join(row) + "\n" for row in older))
    train(small(ALWAYS), tmp_path / "run", resume=True)
    read = read_metrics(metrics)
    assert read["iteration"].tolist() == [0, 5, 10, 12]
    # The mean of nu since update 5 lacks the updates before the checkpoint, so that it is none.
    assert np.isnan(read["nu"]).tolist() == [True, True, True, False]
    assert np.isnan(read["raw_test_error"]).tolist() == [True, True, False, False]


def test_a_row_cut_short_by_the_kill_is_dropped(text, uninterrupted, tmp_path):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, Trainer, "_step", 7)
        train(small(ALWAYS, text=text), run)
    with open(run / "metrics.csv", "a") as file:
        file.write("10,0.83")
    train(small(ALWAYS, text=text), run, resume=True)
    assert_same_run(run, uninterrupted)


def test_seconds_go_on_where_they_were(tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, Trainer, "_step", 8)
        train(small(ALWAYS), tmp_path / "run")
    before = read_metrics(tmp_path / "run" / "metrics.csv")
    train(small(ALWAYS), tmp_path / "run", resume=True)
    after = read_metrics(tmp_path / "run" / "metrics.csv")
    assert (after["seconds"][: len(before["seconds"])] == before["seconds"]).all()
    for name in ("seconds", "seconds_gradient", "seconds_statistics", "seconds_clip"):
        assert (np.diff(after[name]) > 0).all()


def test_a_missing_folder_is_started(tmp_path, text, uninterrupted):
    train(small(ALWAYS, text=text), tmp_path / "new" / "run", resume=True)
    assert_same_run(tmp_path / "new" / "run", uninterrupted)


def test_a_finished_run_is_only_drawn_again(uninterrupted, text, tmp_path, monkeypatch):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    (run / "curves.png").unlink()
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("data are not needed"))
    train(small(ALWAYS, text=text), run, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_more_epochs_go_on_as_if_they_had_been_asked_for_at_once(text, tmp_path):
    settings = ["evaluation.every=6"]
    train(small(*settings, text=text), tmp_path / "grown")
    train(small(*settings, "epochs=2", text=text), tmp_path / "grown", resume=True)
    train(small(*settings, "epochs=2", text=text), tmp_path / "long")
    assert_same_run(tmp_path / "grown", tmp_path / "long")
    assert "epochs: 2.0" in (tmp_path / "grown" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "override, key",
    [
        ("optimizer.learning_rate=0.011", "optimizer.learning_rate is 0.011 now and was 0.01 in"),
        ("seed=1", "seed is 1 now and was 0 in"),
        ("network.0.filters=4", "network.0.filters is 4 now and was 3 in"),
        ("network=[{layer: dense, units: 10}]", "network.0.layer is dense now and was conv in"),
        ("evaluation.every=4", "evaluation.every is 4.0 now and was 5.0 in"),
        (
            "optimizer.weight_decay={conv1: 0.1}",
            "optimizer.weight_decay is {'conv1': 0.1} now and was 0.001 in",
        ),
    ],
)
def test_a_changed_setting_is_refused_by_name(override, key, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, Trainer, "_step", 3)
        train(small(ALWAYS), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunFolderError, match=key):
        train(small(ALWAYS, override), tmp_path / "run", resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_that_goes_on_may_be_saved_less_often(uninterrupted, text, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, Trainer, "_step", 3)
        train(small(ALWAYS, text=text), tmp_path / "run")
    train(small("checkpoint_minutes=9", text=text), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)
    assert "checkpoint_minutes: 9.0" in (tmp_path / "run" / "config.yaml").read_text()


def test_other_data_are_refused(tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, Trainer, "_step", 3)
        train(small(ALWAYS), tmp_path / "run")
    dataset = data.load(small().data)
    dataset.provenance["sha256"] = "0" * 64
    monkeypatch.setattr(data, "load", lambda *_, **__: dataset)
    with pytest.raises(RunFolderError, match="checksum of the data is 000"):
        train(small(ALWAYS), tmp_path / "run", resume=True)


def test_a_finished_run_is_not_gone_on_with_on_other_arrays(uninterrupted, text, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    dataset = data.load(small().data)
    other = dataclasses.replace(dataset, provenance={**dataset.provenance, "sha256": "0" * 64})
    with pytest.raises(RunFolderError, match="checksum of the data is 000"):
        train(small(ALWAYS, text=text), run, resume=True, dataset=other)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    train(small(ALWAYS, text=text), run, resume=True, dataset=dataset)


def test_a_damaged_checkpoint_is_an_error_and_nothing_is_touched(uninterrupted, text, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    content = bytearray((run / "checkpoint.h5").read_bytes())
    content[-50] ^= 8
    (run / "checkpoint.h5").write_bytes(content)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(CheckpointError, match="checkpoint.h5 is damaged"):
        train(small(ALWAYS, text=text), run, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(
    number, status, text, uninterrupted, tmp_path
):
    step = Trainer._step

    def signalled(self):
        if self.optimizer.steps == 7:
            os.kill(os.getpid(), number)
        step(self)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", signalled)
        with pytest.raises(TrainingInterrupted, match="after update 8.*--resume") as caught:
            train(small("checkpoint_minutes=1000", text=text), tmp_path / "run")
    assert caught.value.exit_status == status
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    outcome = read_json(tmp_path / "run" / "run.json")["outcome"]
    assert outcome == {"state": "interrupted", "iteration": 8}
    train(small("checkpoint_minutes=1000", text=text), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_second_signal_acts_at_once():
    signals, acted = clock.Signals(), []
    handler = signal.signal(signal.SIGINT, lambda number, _: acted.append(number))
    try:
        with signals:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert signals.caught == signal.SIGTERM and acted == [signal.SIGINT]


def test_a_signal_during_an_evaluation_leaves_it_to_the_resumed_run(text, uninterrupted, tmp_path):
    evaluate = trainer.evaluate

    def signalled(network, *args):
        if (
            len(list(tmp_path.glob("run/metrics.csv")))
            and read_metrics(tmp_path / "run" / "metrics.csv")["iteration"].max(initial=-1) == 5
        ):
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(network, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingInterrupted):
        patch.setattr(trainer, "evaluate", signalled)
        train(small("checkpoint_minutes=1000", text=text), tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.csv")["iteration"].tolist() == [0, 5]
    train(small("checkpoint_minutes=1000", text=text), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_run_stopped_within_an_evaluation_and_killed_after_it_counts_no_step_twice(
    text, uninterrupted, tmp_path
):
    """The checkpoint is then one from before its row, and the row is there."""
    config = small("checkpoint_minutes=1e9", text=text)
    out, original, calls = tmp_path / "run", trainer.evaluate, []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 6:  # the second row's, of the latest parameters
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingInterrupted):
        patch.setattr(trainer, "evaluate", interrupted)
        train(config, out)
    saved = load_checkpoint(out / "checkpoint.h5")
    assert saved["row"]["steps"] > 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, RunFolder, "append", 1, False)
        train(config, out, resume=True)
    train(config, out, resume=True)
    assert_same_run(out, uninterrupted)


def test_a_signal_while_the_last_checkpoint_is_written_stops_what_comes_after_the_run(
    text, uninterrupted, tmp_path
):
    """A sweep or a reproduction would go on with its next run."""
    config, out, save, sent = small(text=text), tmp_path / "run", Trainer._save, []

    def signalled(run):
        if run.optimizer.steps == run.schedule.steps and not sent:
            sent.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        save(run)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingInterrupted):
        patch.setattr(Trainer, "_save", signalled)
        train(config, out)
    assert read_json(out / "run.json")["outcome"] == {"state": "finished", "iteration": 12}
    train(config, out, resume=True)
    assert_same_run(out, uninterrupted)


def test_a_run_killed_after_its_last_checkpoint_is_finished_once_it_is_resumed(tmp_path):
    config, out = small(), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_stop_if_asked", _killed_at_the_end(Trainer._stop_if_asked))
        train(config, out)
    assert read_json(out / "run.json")["outcome"] == {"state": "running"}
    train(config, out, resume=True)
    assert read_json(out / "run.json")["outcome"] == {"state": "finished", "iteration": 12}


def _killed_at_the_end(stop_if_asked):
    def killed(run):
        if run.saved_steps == run.schedule.steps:
            raise KeyboardInterrupt
        stop_if_asked(run)

    return killed


def test_a_signal_before_the_first_update_leaves_a_run_to_be_started(tmp_path):
    evaluate = trainer.evaluate

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "evaluate", signalled)
        with pytest.raises(TrainingInterrupted, match="before the first update"):
            train(small(), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.h5").exists()
    train(small(), tmp_path / "run", resume=True)
    assert read_metrics(tmp_path / "run" / "metrics.csv")["iteration"].tolist() == [0, 5, 10, 12]


def test_a_run_on_the_cuda_kernels_follows_the_cpu_and_goes_on_bit_for_bit(tmp_path, monkeypatch):
    if cuda_on_cpu.missing():
        pytest.skip(cuda_on_cpu.missing())
    whole = data.load(small().data)
    few = dataclasses.replace(
        whole,
        train_images=whole.train_images[:40],
        train_labels=whole.train_labels[:40],
        test_images=whole.test_images[:10],
        test_labels=whole.test_labels[:10],
    )
    monkeypatch.setattr(data, "load", lambda *_, **__: few)
    config = small("optimizer.batch_size=12", "epochs=2", text=SGD)  # 7 updates
    train(config, tmp_path / "cpu")
    monkeypatch.setattr(trainer, "build_ops", lambda _, ranks: CudaOps(cuda_on_cpu.CpuRuntime()))
    train(config, tmp_path / "cuda")
    losses = [
        read_metrics(tmp_path / device / "metrics.csv")["test_loss"] for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_is_time_to_save", lambda self: self.optimizer.steps == 3)
        kill_in(patch, Trainer, "_step", 6)
        train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "cuda")
    monkeypatch.setattr(trainer, "build_ops", lambda _, ranks: CpuOps())
    with pytest.raises(RunFolderError, match="device is cpu now and was cuda_on_cpu"):
        train(small("optimizer.batch_size=12", "epochs=3", text=SGD), tmp_path / "run", resume=True)


def start_process(tmp_path, out):
    (tmp_path / "config.yaml").write_text(SMALL)
    return subprocess.Popen(
        [
            sys.executable,
            str(SCRIPT),
            "--config",
            str(tmp_path / "config.yaml"),
            "--out",
            str(out),
            "--set",
            ALWAYS,
            "epochs=12",
            "--resume",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(out, count):
    for _ in range(600):
        if (out / "metrics.csv").exists() and (out / "metrics.csv").read_text().count("\n") > count:
            return
        time.sleep(0.05)
    pytest.fail("the run does not get on")


@pytest.mark.slow
def test_a_process_that_is_really_killed_goes_on_bit_for_bit(tmp_path):
    for rows in (1, 6, 15):
        process = start_process(tmp_path, tmp_path / "run")
        wait_for_rows(tmp_path / "run", rows)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    train(small(ALWAYS, "epochs=12"), tmp_path / "run", resume=True)
    train(small(ALWAYS, "epochs=12"), tmp_path / "long")
    assert_same_run(tmp_path / "run", tmp_path / "long")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_is_interrupted_exits_with_the_signals_status(number, status, tmp_path):
    process = start_process(tmp_path, tmp_path / "run")
    wait_for_rows(tmp_path / "run", 2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert "--resume" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_the_records_of_a_run_without_its_checkpoint_are_not_started_anew(state, tmp_path):
    run = tmp_path / "run"
    train(small(), run)
    (run / "checkpoint.h5").unlink()
    record = json.loads((run / "run.json").read_text())
    record["outcome"]["state"] = state
    (run / "run.json").write_text(json.dumps(record))
    kept = (run / "metrics.csv").read_text()
    with pytest.raises(RunFolderError, match=f"was {state} after update 12, and no checkpoint"):
        train(small(), run, resume=True)
    assert (run / "metrics.csv").read_text() == kept
    train(small(), run, overwrite=True)
    assert (run / "checkpoint.h5").exists()


# Checkpoints of other versions

COMMON = """
config
clock.phases.clip clock.phases.gradient clock.phases.inverses clock.phases.preconditioning
clock.phases.statistics clock.seconds
data.examples data.mean data.pixels
optimizer.average optimizer.examples optimizer.steps optimizer.theta optimizer.velocity
origin.device origin.checksum_of_the_data origin.use_of_tensor_cores origin.use_of_the_C_extension
row.clipped row.nu row.steps
"""
FACTORS = "optimizer.factors_at blocks.Omega blocks.Gamma "
DAMPING = " optimizer.learning_rate optimizer.damping optimizer.factor_damping"
EIGENBASIS = "blocks.input_basis blocks.derivative_basis blocks.inverse_values "
CONTENTS = {
    3: {
        "{name: sgd, learning_rate: 0.01}": "",
        "{name: adam, learning_rate: 0.01}": "optimizer.squares",
        "{name: kfc_pre, learning_rate: 0.01, inverse_delay: 1, inverse_period: 1,"
        " statistics_period: 1}": FACTORS
        + "blocks.Omega_inv blocks.Gamma_inv begun.adoption begun.Omega begun.Gamma",
        "{name: kfc_pre, learning_rate: 0.01, structure: ekfac}": FACTORS
        + EIGENBASIS
        + "blocks.moments blocks.passes",
        "{name: kfac}": FACTORS + "blocks.Omega_inv blocks.Gamma_inv" + DAMPING,
        "{name: hessian_free}": FACTORS + EIGENBASIS + DAMPING,
    }
}
"""{format of checkpoints: {optimizer: its entries beside COMMON}}; those of one layer."""


def entries(state, place=()):
    """The dotted names of all entries of a checkpoint, of its layers only conv1."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from entries(value, (*place, name))
        elif "dense1" not in place:
            kept = [part for part in (*place, name) if part not in ("conv1", "factors")]
            if "blocks" in kept or "begun" in kept:
                kept.remove("optimizer")
            yield ".".join(kept).replace(" ", "_")


@pytest.mark.parametrize("optimizer", CONTENTS[FORMAT])
def test_contents_of_a_checkpoint_change_with_the_number_of_its_format_alone(optimizer, tmp_path):
    """Where this fails, let the format's number go up and note the new contents under it."""
    changes = f"optimizer={optimizer[:-1]}, batch_size: 120}}"
    train(small(changes, "epochs=0.1"), tmp_path / "run")
    saved = set(entries(load_checkpoint(tmp_path / "run" / "checkpoint.h5")))
    assert saved == set(COMMON.split()) | set(CONTENTS[FORMAT][optimizer].split())


@pytest.mark.filterwarnings("ignore::kfcnet.training.errors.TrainingWarning")
def test_contents_are_more_where_several_processes_share_or_where_classes_have_names(tmp_path):
    """The same holds of these, which most checkpoints lack."""
    for number in range(24):
        folder = tmp_path / "own" / f"class {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number}.png")
    data = f"data={{name: folder, path: {tmp_path / 'own'}, input_scale: 16}}"
    config = small(data, "network.4={layer: dense}", "optimizer.batch_size=8", text=SGD)
    on_ranks(2, lambda ranks: train(config, tmp_path / "run", ranks=ranks))
    train(small(text=SGD), tmp_path / "usual")
    states = [load_checkpoint(tmp_path / name / "checkpoint.h5") for name in ("run", "usual")]
    found, usual = (set(entries(state)) for state in states)
    assert found - usual == {3: {"data.classes", "processes"}}[FORMAT] and not usual - found


def kinds(state, place=""):
    """{dotted name: (type, dtype and shape of an array)} of all entries of a checkpoint."""
    found = {}
    for name, value in state.items():
        if isinstance(value, dict):
            found |= kinds(value, f"{place}{name}.")
        else:
            array = isinstance(value, np.ndarray)
            found[place + name] = type(value), *((value.dtype, value.shape) if array else ())
    return found


def test_entries_of_a_checkpoint_change_their_kinds_with_the_number_of_its_format_alone(tmp_path):
    """They are held against the committed one, which several processes shared."""
    earlier, run = KILLED / f"format_{FORMAT}", tmp_path / "run"
    train(load_config(earlier / "config.yaml"), run)
    before, now = (kinds(load_checkpoint(path / "checkpoint.h5")) for path in (earlier, run))
    assert {name for name in before.keys() ^ now.keys() if "begun" not in name} == {"processes"}
    for name in before.keys() & now.keys():
        assert now[name] == before[name], name


@pytest.mark.parametrize("form", READABLE)
def test_a_run_that_an_earlier_version_was_killed_in_goes_on(form, tmp_path):
    """tests/checkpoints/ has one of each format, killed after 6 of 12 updates, an inverse begun."""
    earlier, run, whole = KILLED / f"format_{form}", tmp_path / "run", tmp_path / "whole"
    head = (earlier / "checkpoint.h5").read_bytes()[:30]
    assert head.startswith(f"kfcnet checkpoint {form}\n".encode())
    config = load_config(earlier / "config.yaml")
    shutil.copytree(earlier, run)
    train(config, run, resume=True)
    assert read_json(run / "run.json")["resumed"][0]["iteration"] == 6
    train(config, whole)
    states = [load_checkpoint(path / "checkpoint.h5")["optimizer"] for path in (run, whole)]
    for name in ("theta", "average", "velocity"):
        assert np.isfinite(states[0][name]).all()
        np.testing.assert_allclose(states[0][name], states[1][name], rtol=1e-3, atol=1e-5)
    rows = [read_metrics(path / "metrics.csv") for path in (run, whole)]
    np.testing.assert_array_equal(rows[0]["iteration"], [0, 5, 10, 12])
    np.testing.assert_allclose(rows[0]["test_loss"], rows[1]["test_loss"], rtol=1e-4)


def stopped(folder, change):
    """A run that was killed, whose checkpoint `change` has made one of another version."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, Trainer, "_step", 8)
        train(small(ALWAYS), folder)
    state = load_checkpoint(folder / "checkpoint.h5")
    change(state)
    save_checkpoint(folder / "checkpoint.h5", state)


@pytest.mark.parametrize(
    "place, name", [((), "row"), ((), "data"), (("optimizer",), "velocity"), (("row",), "steps")]
)
def test_a_checkpoint_that_lacks_an_entry_is_refused_and_nothing_is_touched(place, name, tmp_path):
    def change(state):
        for part in place:
            state = state[part]
        del state[name]

    run = tmp_path / "run"
    stopped(run, change)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(CheckpointError, match=rf"lacks {'.'.join((*place, name))}: it is of anoth"):
        train(small(ALWAYS), run, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_condition_of_a_later_version_is_not_taken_as_met(tmp_path):
    stopped(tmp_path / "run", lambda state: state["origin"].update({"phase of the moon": "full"}))
    with pytest.raises(RunFolderError, match="phase of the moon is unknown now and was full"):
        train(small(ALWAYS), tmp_path / "run", resume=True)


def test_a_checkpoint_from_before_inversions_could_be_under_way_goes_on(tmp_path):
    stopped(tmp_path / "run", lambda state: state["optimizer"].pop("begun"))
    train(small(ALWAYS), tmp_path / "run", resume=True)
    train(small(ALWAYS), tmp_path / "straight")
    assert_same_run(tmp_path / "run", tmp_path / "straight")
