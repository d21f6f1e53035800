"""Sweeps: the grid, the stages, the ranking, and going on after a stop."""

import concurrent.futures
import contextlib
import csv
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from runs import assert_same_run, small

from kfcnet.config import ConfigError
from kfcnet.data import DataError
from kfcnet.figures import curves
from kfcnet.runs.files import WriteError
from kfcnet.runs.metrics import read_metrics
from kfcnet.training import sweep as sweeps
from kfcnet.training import tuning
from kfcnet.training.errors import TrainingFailed, TrainingInterrupted
from kfcnet.training.notices import notices_on_stderr
from kfcnet.training.sweep import SweepError, parse_grid, parse_stages, sweep
from kfcnet.training.train import train
from kfcnet.training.trainer import Trainer
from kfcnet.training.tuning import Point, Stage, Task, Tuning
from kfcnet.training.workers import WorkerDied, workers

SCRIPT = Path(__file__).parents[1] / "scripts" / "sweep.py"
CONFIG = """
data: {name: digits, input_scale: 16}
network: [{layer: dense, units: 10}]
optimizer: {name: sgd, learning_rate: 0.05, batch_size: 120, averaging_timescale: 500}
evaluation: {every: 0.5}
epochs: 1
device: cpu
ops: {native: "off"}
"""
GRID = {"optimizer.learning_rate": [0.003, 1e40, 0.3, 0.03]}
STAGES = [Stage(0.5, None), Stage(1, 2), Stage(2, 1)]


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


def table(out):
    with open(out / "sweep.csv") as file:
        return list(csv.DictReader(file))


def watch_training(monkeypatch):
    """The names of the runs that are trained from now on."""
    names = []

    def watched(config, folder, **options):
        names.append(folder.name)
        train(config, folder, **options)

    monkeypatch.setattr(sweeps, "train", watched)
    return names


def test_a_grid_is_read_as_yaml():
    assert parse_grid(["optimizer.learning_rate=0.3,1e-3", "network.0.std=he,0.1"]) == {
        "optimizer.learning_rate": [0.3, 0.001],
        "network.0.std": ["he", 0.1],
    }
    assert parse_grid(["optimizer.weight_decay=0,{conv1: 0.004, fc10: 1}"]) == {
        "optimizer.weight_decay": [0, {"conv1": 0.004, "fc10": 1}]
    }


@pytest.mark.parametrize("text", ["seed", "=1", "seed=", "seed=[1"])
def test_a_grid_of_another_form_is_an_error_naming_it(text):
    with pytest.raises(ValueError, match="--grid seed|--grid =1"):
        parse_grid([text])


def test_values_of_a_setting_that_is_given_twice_do_not_replace_each_other():
    with pytest.raises(ValueError, match="--grid seed=2: seed has values already"):
        parse_grid(["seed=1", "optimizer.momentum=0.9", "seed=2"])


def test_stages_have_epochs_and_a_number_of_runs_to_keep():
    assert parse_stages(["2:all", "8:3", "30.5:1"]) == [
        Stage(2.0, None),
        Stage(8.0, 3),
        Stage(30.5, 1),
    ]


@pytest.mark.parametrize(
    "texts", [["2"], ["2:0"], ["2:some"], ["8:all", "2:3"], ["2:all", "2:3"], ["x:1"], [".:1"]]
)
def test_stages_of_another_form_are_errors(texts):
    with pytest.raises(ValueError, match="--stage"):
        parse_stages(texts)


def test_the_first_stage_does_not_choose_before_anything_was_trained():
    with pytest.raises(ValueError, match="--stage 2:3: the first stage is EPOCHS:all"):
        parse_stages(["2:3", "8:1"])


def test_points_are_all_combinations_in_folders_of_their_own(tmp_path):
    grid = {"optimizer.learning_rate": [0.1, 0.2], "seed": [0, 1]}
    points = sweeps.grid_points(grid, tmp_path)
    assert [point.folder.name for point in points] == [
        "learning_rate=0.1,seed=0",
        "learning_rate=0.1,seed=1",
        "learning_rate=0.2,seed=0",
        "learning_rate=0.2,seed=1",
    ]
    assert points[1].settings == {"optimizer.learning_rate": 0.1, "seed": 1}
    names = [
        point.folder.name
        for point in sweeps.grid_points({"network.0.std": [1], "network.1.std": ["he"]}, tmp_path)
    ]
    assert names == ["network.0.std=1,network.1.std=he"]
    (point,) = sweeps.grid_points({"optimizer.max_norm": [{"conv1": 0.1, "a/b": 2}]}, tmp_path)
    assert point.folder == tmp_path / "max_norm=_conv1_0.1,_a_b_2_"
    with pytest.raises(ConfigError, match="given twice"):
        sweeps.grid_points({"seed": [1, 1]}, tmp_path)


def test_runs_rank_by_training_error_then_loss_and_diverged_ones_come_last():
    rows = [
        None,
        {"iteration": 6, "epoch": 0.5, "train_error": 0.2, "train_loss": 3.0},
        {"iteration": 6, "epoch": 0.5, "train_error": 0.1, "train_loss": 9.0},
        {"iteration": 6, "epoch": 0.5, "train_error": 0.2, "train_loss": 2.0},
    ]
    stages = Tuning([Point({"seed": seed}, None) for seed in range(4)], STAGES[:2])
    status = SimpleNamespace(
        rows=lambda row: row and {name: np.array([value]) for name, value in row.items()}
    )
    stages.complete([Task("", row, status, Path(str(seed))) for seed, row in enumerate(rows)])
    assert [result.row for result in stages.results] == [rows[2], rows[3], rows[1], rows[0]]
    assert [result.point for result in stages.results][0] == Point({"seed": 2}, Path("2"))
    assert [point.settings["seed"] for point in stages.points] == [2, 3]  # the second stage keeps 2
    stages.complete([Task("", row, status, Path()) for row in (rows[0], rows[1])])
    assert stages.stage is None and stages.points == [Point({"seed": 3}, None)]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_the_best_runs_go_on_and_the_table_keeps_all(config, tmp_path, monkeypatch):
    trained, drawn, draw = watch_training(monkeypatch), [], curves.draw_sweep
    monkeypatch.setattr(
        curves, "draw_sweep", lambda results, runs: drawn.append(results) or draw(results, runs)
    )
    results = sweep(config, GRID, STAGES, tmp_path / "out")
    assert trained == [
        "learning_rate=0.003",
        "learning_rate=1e+40",
        "learning_rate=0.3",
        "learning_rate=0.03",
        *["learning_rate=0.3", "learning_rate=0.03"],
        "learning_rate=0.3",
    ]
    rows = table(tmp_path / "out")
    rates = [row["optimizer.learning_rate"] for row in rows]
    assert rates == ["0.3", "0.03", "0.003", "1e+40", "0.3", "0.03", "0.3"]
    assert [row["state"] for row in rows] == 3 * ["finished"] + ["diverged"] + 3 * ["finished"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "1", "2", "1"]
    assert [row["iteration"] for row in rows] == ["6", "6", "6", "", "12", "12", "24"]
    assert [float(row["epochs"]) for row in rows] == [0.5] * 4 + [1] * 2 + [2]
    errors = [float(row["train_error"]) for row in rows if row["train_error"]]
    assert errors[:3] == sorted(errors[:3])
    metrics = read_metrics(tmp_path / "out" / "learning_rate=0.3" / "metrics.csv")
    assert errors[-1] == metrics["train_error"][-1] == results[-1].row["train_error"]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == {
        "sweep.csv",
        "sweep.md",
        "sweep.png",
    }
    assert [error for _, _, error in drawn[-1]] == [*errors[:3], None, *errors[3:]]
    text = (tmp_path / "out" / "sweep.md").read_text().splitlines()
    assert len(text) == 2 + 7 and "| diverged |" in text[5]
    cells = [
        format(float(rows[0][f"{part}_{what}"]), form)
        for part in ("train", "test")
        for what, form in (("error", ".2%"), ("loss", ".4f"))
    ]
    assert text[2] == f"| 0.5 | 1 | 0.3 | {' | '.join(cells)} | 6 |"
    assert len({line.count("|") for line in text}) == 1 and "seconds" not in text[0]


def test_settings_that_are_mappings_are_swept_too(config, tmp_path):
    grid = parse_grid(["optimizer.weight_decay=0,{dense1: 0.5}"])
    sweep(config, grid, [Stage(0.5, None)], tmp_path / "out")
    assert sorted(row["optimizer.weight_decay"] for row in table(tmp_path / "out")) == [
        "0",
        '{"dense1": 0.5}',
    ]


def test_a_run_that_goes_on_is_the_run_trained_at_once(config, tmp_path):
    sweep(config, {"optimizer.learning_rate": [0.3]}, STAGES, tmp_path / "out")
    train(small("optimizer.learning_rate=0.3", "epochs=2", text=CONFIG), tmp_path / "direct")
    assert_same_run(tmp_path / "out" / "learning_rate=0.3", tmp_path / "direct")


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_a_finished_sweep_trains_nothing_again(config, tmp_path, monkeypatch):
    sweep(config, GRID, STAGES, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("sweep.*")}
    for checkpoint in (tmp_path / "out").glob("*/checkpoint.h5"):
        checkpoint.unlink()  # they stay behind where only the records are kept
    trained = watch_training(monkeypatch)
    gone = DataError("the images are gone")  # which would only be needed to train
    monkeypatch.setattr(sweeps.data, "load", lambda *_: (_ for _ in ()).throw(gone))
    sweep(config, GRID, STAGES, tmp_path / "out")
    assert trained == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("sweep.*")} == before


def test_a_stopped_sweep_goes_on_where_it_was(config, tmp_path, monkeypatch):
    grid = {"optimizer.learning_rate": [0.03, 0.3]}
    step, steps = Trainer._step, []

    def interrupted(self):
        steps.append(self.optimizer.steps)
        if len(steps) == 15:  # in the first run's second stage
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(TrainingInterrupted):
        sweep(config, grid, STAGES[:2], tmp_path / "out")
    sweep(config, grid, STAGES[:2], tmp_path / "out")
    assert len(steps) == 2 * 12  # no step was taken twice
    sweep(config, grid, STAGES[:2], tmp_path / "straight")
    for name in ("learning_rate=0.03", "learning_rate=0.3"):
        assert_same_run(tmp_path / "out" / name, tmp_path / "straight" / name)


def test_without_stages_every_run_goes_to_the_configured_end(config, tmp_path):
    results = sweep(config, {"seed": [3]}, [], tmp_path / "out", ["epochs=0.75", "seed=9"])
    assert [(result.stage, result.row["iteration"]) for result in results] == [(1, 9)]
    assert "seed: 3\n" in (tmp_path / "out" / "seed=3" / "config.yaml").read_text()


def test_another_configuration_is_never_mixed_in(config, tmp_path):
    sweep(config, {"seed": [3]}, [], tmp_path / "out")
    with pytest.raises(SweepError, match="optimizer.momentum is 0.8 now and was 0.9"):
        sweep(config, {"seed": [3]}, [], tmp_path / "out", ["optimizer.momentum=0.8"])


def test_a_run_that_another_folder_has_is_used_and_gone_on_with_as_it_was_begun(
    config, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    begun = small("optimizer.learning_rate=0.3", "evaluation.every=0.25", text=CONFIG)
    train(begun.model_copy(update={"epochs": 0.5}), out / "runs" / "by_hand")
    config.write_text(CONFIG.replace("device: cpu", "device: auto"))
    monkeypatch.setattr(tuning, "get_ops", lambda: SimpleNamespace(name="cpu"))
    trained = watch_training(monkeypatch)
    results = sweep(config, {"optimizer.learning_rate": [0.3]}, [Stage(0.5, None)], out)
    assert trained == [] and results[0].point.folder == out / "runs" / "by_hand"
    sweep(config, {"optimizer.learning_rate": [0.3]}, [Stage(1, None)], out)
    assert trained == ["by_hand"]
    assert len(read_metrics(out / "runs" / "by_hand" / "metrics.csv")["epoch"]) == 1 + 4


def test_runs_are_ranked_at_an_epoch_that_all_have(config, tmp_path):
    config.write_text(CONFIG.replace("{every: 0.5}", "{every: 1}"))
    rates = [0.1, 0.03]
    settings = {"optimizer.learning_rate": rates}
    sweep(config, {"optimizer.learning_rate": rates[:1]}, [Stage(2, None)], tmp_path / "reused")
    sweep(config, settings, [Stage(1.5, None)], tmp_path / "reused")
    rows = table(tmp_path / "reused")
    assert [row["iteration"] for row in rows] == ["12", "12"]  # not 18 of one, 12 of the other
    sweep(config, settings, [Stage(1, None)], tmp_path / "anew")
    columns = "optimizer.learning_rate", "train_error", "iteration"
    assert [[row[name] for name in columns] for row in rows] == [
        [row[name] for name in columns] for row in table(tmp_path / "anew")
    ]


def test_a_run_without_a_row_before_the_end_is_ranked_by_its_start():
    begun, trained = (
        {"iteration": np.array(at), "epoch": np.array(at) / 12, "train_error": np.array(errors)}
        for at, errors in (([0], [0.9]), ([0, 12, 18], [0.9, 0.4, 0.3]))
    )
    rows = tuning._rows_at_one_epoch([begun, None, trained])
    assert [row and row["train_error"] for row in rows] == [0.9, None, 0.3]


def test_rows_less_than_an_update_apart_are_of_one_epoch():
    """The larger mini-batch takes a 16th of an epoch, the smaller one a third of that."""
    large, small, behind = (
        {"iteration": np.array(at), "epoch": np.array(at) / updates}
        for at, updates in (([0, 8, 32], 16), ([0, 23, 94], 48), ([0, 24, 93], 48))
    )
    assert [row["iteration"] for row in tuning._rows_at_one_epoch([large, small])] == [32, 94]
    assert [row["iteration"] for row in tuning._rows_at_one_epoch([large, behind])] == [8, 24]


def test_mini_batches_of_several_sizes_are_ranked_at_the_same_epoch(config, tmp_path):
    sweep(config, {"optimizer.batch_size": [120, 500]}, [Stage(0.5, None)], tmp_path / "out")
    assert {row["iteration"] for row in table(tmp_path / "out")} == {"6", "2"}


def test_a_run_that_was_stopped_behind_its_stage_has_not_diverged(config, tmp_path, monkeypatch):
    grid, step = {"optimizer.learning_rate": [0.1]}, Trainer._step

    def interrupted(self):
        if self.optimizer.steps == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(TrainingInterrupted):
        sweep(config, grid, [Stage(2, None)], tmp_path / "out", ["evaluation.every=2"])
    with pytest.raises(SweepError, match="is at epoch 1.17 already, behind epochs=1:"):
        sweep(config, grid, [Stage(1, None)], tmp_path / "out", ["evaluation.every=2"])


def test_a_sweep_whose_runs_all_diverge_says_so(config, tmp_path, monkeypatch):
    def fail(self):
        raise TrainingFailed("after update 0 the loss is not finite")

    monkeypatch.setattr(Trainer, "_loop", fail)
    sweep(config, {"seed": [3, 4]}, STAGES, tmp_path / "out")
    assert [row["state"] for row in table(tmp_path / "out")] == ["diverged", "diverged"]


def refusing(monkeypatch, **errors):
    """Let the training of some runs, given by their seeds, raise."""

    def refuse_or_train(config, folder, **options):
        if error := errors.get(f"seed{config.seed}"):
            raise error
        train(config, folder, **options)

    monkeypatch.setattr(sweeps, "train", refuse_or_train)


def test_a_point_that_fails_is_a_row_with_its_reason_and_the_others_go_on(
    config, tmp_path, monkeypatch, capsys
):
    refusing(
        monkeypatch,
        seed1=MemoryError("2 TiB"),
        seed2=ConfigError("network.0:\nimpossible"),
        seed3=ZeroDivisionError("of ours"),
    )
    results = sweep(config, {"seed": [1, 2, 3, 4]}, STAGES[:2], tmp_path / "out")
    assert [result.point.settings["seed"] for result in results if result.row] == [4, 4]
    failures = {
        row["seed"]: row["failure"] for row in table(tmp_path / "out") if row["state"] == "failed"
    }
    assert failures == {
        "1": "out of memory (2 TiB)",
        "2": "network.0: impossible",
        "3": "ZeroDivisionError: of ours",
    }
    assert "failed: out of memory (2 TiB)" in (tmp_path / "out" / "sweep.md").read_text()
    assert (tmp_path / "out" / "sweep.png").exists()
    told = capsys.readouterr().err
    assert "seed=2 failed: network.0:\nimpossible" in told
    assert told.count("Traceback") == 1 and "\nZeroDivisionError: of ours" in told
    monkeypatch.setattr(sweeps, "train", train)  # the failures were of the machine
    sweep(config, {"seed": [1, 2, 3, 4]}, STAGES[:1], tmp_path / "out")
    assert {row["state"] for row in table(tmp_path / "out")} == {"finished"}


def test_a_sweep_whose_points_all_fail_for_one_reason_is_an_error(config, tmp_path, monkeypatch):
    refusing(monkeypatch, seed1=DataError("no data"), seed2=DataError("no data"))
    with pytest.raises(SweepError, match="^no data$"):
        sweep(config, {"seed": [1, 2]}, STAGES, tmp_path / "out")


def test_a_sweep_whose_points_fail_for_several_reasons_has_a_table_of_them(
    config, tmp_path, monkeypatch
):
    refusing(monkeypatch, seed1=MemoryError(), seed2=DataError("no data"))
    sweep(config, {"seed": [1, 2]}, STAGES, tmp_path / "out")
    reasons = [row["failure"] for row in table(tmp_path / "out")]
    assert reasons == ["out of memory", "no data"]


def test_a_full_disk_ends_a_sweep(config, tmp_path, monkeypatch):
    refusing(monkeypatch, seed1=WriteError("no room"))
    with pytest.raises(WriteError, match="no room"):
        sweep(config, {"seed": [1, 2]}, STAGES, tmp_path / "out")


def test_a_finished_run_without_its_checkpoint_names_a_way_out_that_a_sweep_has(config, tmp_path):
    out = tmp_path / "out"
    sweep(config, {"seed": [1, 2]}, [Stage(0.5, None)], out)
    (out / "seed=1" / "checkpoint.h5").unlink()
    sweep(config, {"seed": [1, 2]}, [Stage(1, None)], out)
    (failed,) = [row for row in table(out) if row["state"] == "failed"]
    assert failed["seed"] == "1" and "move that folder away" in failed["failure"]
    assert "--overwrite" not in failed["failure"]


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_own_call_alone():
    with workers(2) as pool:
        futures = [pool.submit(*call) for call in ((os._exit, 9), (abs, -3), (abs, -4), (abs, -5))]
        with pytest.raises(WorkerDied, match="was killed, perhaps because memory was short"):
            futures[0].result()
        assert [future.result() for future in futures[1:]] == [3, 4, 5]


def test_a_killed_worker_is_a_failed_point(config, tmp_path, monkeypatch):
    class Killed:
        def submit(self, function, task):
            future = concurrent.futures.Future()
            if task.config.seed == 1:
                future.set_exception(WorkerDied("its process was killed"))
            else:
                future.set_result(function(task))
            return future

    monkeypatch.setattr(sweeps, "workers", lambda count: contextlib.nullcontext(Killed()))
    sweep(config, {"seed": [1, 2]}, STAGES[:1], tmp_path / "out", at_a_time=2)
    assert {row["seed"]: row["failure"] for row in table(tmp_path / "out")} == {
        "1": "its process was killed",
        "2": "",
    }


def test_an_unknown_key_is_an_error_before_anything_is_trained(config, tmp_path):
    with pytest.raises(ConfigError, match="optimizer.learningrate"):
        sweep(config, {"optimizer.learningrate": [3]}, STAGES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_script_prints_the_table(config, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            "--config",
            str(config),
            "--grid",
            "seed=1,2",
            "--stage",
            "0.5:all",
            "--out",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (tmp_path / "out" / "sweep.md").read_text()
    assert done.stdout.count("\n") == 4


@pytest.mark.slow
def test_several_workers_give_the_same_runs(config, tmp_path):
    for count in (1, 2):
        sweep(config, {"seed": [1, 2]}, STAGES[:1], tmp_path / f"out{count}", at_a_time=count)
    for name in ("seed=1", "seed=2"):
        assert_same_run(tmp_path / "out2" / name, tmp_path / "out1" / name)


@pytest.mark.slow
def test_interrupted_workers_save_their_runs(config, tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "--config",
        str(config),
        "--grid",
        "seed=1,2",
        "--stage",
        "1000:all",
        "--workers",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folders = [tmp_path / "out" / f"seed={seed}" for seed in (1, 2)]
    for _ in range(600):
        if all(
            (folder / "metrics.csv").exists()
            and (folder / "metrics.csv").read_text().count("\n") > 3
            for folder in folders
        ):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (130, 143), stderr
    assert "Traceback" not in stderr
    assert all((folder / "checkpoint.h5").exists() for folder in folders)
    shutil.rmtree(tmp_path / "out")


def test_what_a_worker_warns_of_is_shown_as_a_command_shows_it(capfd):
    """Its process is a new one, in which Python would add the line of our code."""
    with notices_on_stderr(), workers(2) as pool:
        pool.submit(warnings.warn, "the images are few").result()
        pool.submit(logging.getLogger("kfcnet.data").info, "read from a cache").result()
    assert set(capfd.readouterr().err.splitlines()) == {
        "warning: the images are few",
        "read from a cache",
    }


def test_a_worker_is_as_quiet_as_the_program_that_started_it(capfd):
    with workers(2) as pool:
        pool.submit(logging.getLogger("kfcnet.data").info, "read from a cache").result()
    assert not capfd.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_signal_stops_the_workers_and_no_other_process_of_the_program():
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        with workers(2) as pool:
            calls = [pool.submit(time.sleep, 60) for _ in range(2)]
            while len(multiprocessing.active_children()) < 3:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            for call in calls:
                with pytest.raises(TrainingInterrupted, match="stopped by SIGTERM"):
                    call.result()
        assert multiprocessing.active_children() == [other]
    finally:
        other.kill()
        other.join()


def test_workers_are_started_from_any_thread():
    """Only the main thread can set handlers of signals."""
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        assert other.submit(_worker_takes, 5).result() == abs(-5)


def _worker_takes(number):
    with workers(2) as pool:
        return pool.submit(abs, -number).result()
