"""The paper from one command: the plan, what is skipped and resumed, what fails, and the page."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runs import assert_same_run

from kfcnet import cli, data, reproduce, trainer
from kfcnet.checkpoint import CheckpointError
from kfcnet.config import ConfigError, load_config
from kfcnet.plots import read_run
from kfcnet.records import (
    COLUMNS,
    PHASES,
    RecordError,
    WriteError,
    append_metrics,
    read_json,
    write_json,
)
from kfcnet.reproduce import assumptions, claims, figures, report, work
from kfcnet.reproduce.claims import Evidence, Row, Value
from kfcnet.reproduce.ledger import Ledger, run_key
from kfcnet.reproduce.plan import (
    RATES,
    Curve,
    Errors,
    FigurePlan,
    NetworkPlan,
    PanelPlan,
    Plan,
    make_plan,
)
from kfcnet.reproduce.progress import progress_of
from kfcnet.sweep import Stage
from kfcnet.trainer import Trainer, TrainingFailed, TrainingInterrupted, train

ROOT = Path(__file__).parents[1]
CONFIG = """
data: {name: digits, input_scale: 16}
network: [{layer: conv, filters: 2, kernel: 3}, {layer: relu}, {layer: dense, units: 10}]
optimizer: {name: sgd, learning_rate: 0.05, batch_size: 120, averaging_timescale: 500}
evaluation: {every: 0.5}
epochs: 1
ops: {native: "off"}
"""
PLANS = {name: make_plan(*options) for name, options in
         (("cuda", ("cuda",)), ("cpu", ("cpu",)), ("quick", ("cpu", True)))}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """The figures of single runs have tests of their own, and take longer than these runs."""
    monkeypatch.setattr(trainer.plots, "plot_runs", lambda _, out: out.write_text("a figure"))


@pytest.fixture
def plan(tmp_path):
    """Two curves of twelve updates an epoch, one that takes the other's learning rate, no more."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = str(tmp_path / "config.yaml")
    tuned = dict(rates=(0.003, 0.3, 0.03), stages=(Stage(0.5, None), Stage(1, 2)), epochs=1.5)
    curves = [Curve("digits_kfc", config, **tuned, seeds=2),
              Curve("digits_sgd", config, ("optimizer.momentum=0.5",), **tuned, seeds=2),
              Curve("tiny_max", config, ("data.input_scale=8",), rate_of="digits_sgd", seeds=1)]
    panels = (PanelPlan("a", "loss", ("digits_kfc", "digits_sgd")),)
    return Plan({curve.name: curve for curve in curves},
                {"fig1": FigurePlan("Curves", "seconds", panels),
                 "assumptions": FigurePlan("Assumptions")},
                (NetworkPlan("tiny_max", "digits", "max", 50, 2),), "digits", "UCI digits",
                Errors(0.5, 0.5, 0.5), "cpu")


def do(plan, out, figure="fig1", places=()):
    """Work at a figure, as `reproduce` does; the failures."""
    return work.train_missing(plan, figure, Ledger(out), dict(places))


def watch_training(monkeypatch, before=lambda config, folder: None):
    """(curve, learning rate, seed, epochs) of the runs that are trained from now on."""
    seen = []

    def watched(config, folder, **options):
        seen.append((folder.name.split("_0")[0], config.optimizer.learning_rate, config.seed,
                     config.epochs))
        before(config, folder)
        train(config, folder, **options)

    monkeypatch.setattr(work, "train", watched)
    return seen


def write_run(ledger, plan, name, settings, errors, seed=0, pace=60.0, epochs=1.0, state="finished",
              **changes):
    """A run of a curve that nobody trained, a row every half epoch with one of `errors`."""
    curve = plan.curves[name]
    config = plan.configure(curve, settings, seed, epochs)
    config = config.model_copy(update=changes)
    folder = ledger.home(config, name)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(trainer.portable_config(config))
    write_json(folder / "run.json", {
        "device": {"device": "cpu"}, "outcome": {"state": state}, "commit": "0123456789ab-dirty",
        "data": {"train_examples": 1440, "test_examples": 357, "sha256": 64 * "f",
                 "files": [{"name": "digits.bin", "published": False}]}})
    (folder / "metrics.csv").write_text(",".join(COLUMNS) + "\n")
    for row, error in enumerate(errors):
        append_metrics(folder / "metrics.csv", dict.fromkeys(COLUMNS, 0.01) | {
            "iteration": 6 * row, "examples": 720 * row, "epoch": row / 2, "seconds": pace * row,
            **{f"seconds_{phase}": 0.0 for phase in PHASES},
            "seconds_gradient": pace * row / 2, "train_error": error, "test_error": error + 0.1,
            "train_loss": error, "test_loss": error})
    ledger.add(folder)
    return folder


def rate(value):
    return (("optimizer.learning_rate", value),)


# The plan


@pytest.mark.parametrize("name", PLANS)
def test_every_planned_run_has_a_valid_configuration(name):
    plan = PLANS[name]
    for curve in plan.curves.values():
        for seed, value in ((0, None), (1, 0.01)):
            settings = rate(value) if value and curve.rates else ()
            config = plan.configure(curve, settings, seed, 2)
            assert (config.seed, config.epochs, config.device) == (seed, 2, plan.device)
        assert not curve.rate_of or curve.rate_of in plan.curves
    for figure in plan.figures:
        assert all(name in plan.curves or name in plan.left_out for name in plan.shows(figure))
        assert set(plan.needs(figure)) <= set(plan.needs("all"))
    assert set(plan.needs("all")) == set(plan.curves)
    keys = [run_key(plan.configure(curve, rate(0.01) if curve.rates else ()))
            for curve in plan.curves.values() if not curve.rate_of]
    assert len(set(keys)) == len(keys)  # no curve is another one in disguise


def test_learning_rates_are_the_papers_set():
    assert RATES == (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
    plan = PLANS["cuda"]
    for name in ("cifar_kfc", "cifar_sgd", "svhn_kfc", "cifar_kfc_large", "cifar_sgd_bn"):
        assert plan.curves[name].rates == RATES
    assert set(RATES) < set(plan.curves["cifar_adam"].rates)
    batches = {name: plan.configure(plan.curves[name]).optimizer.batch_size for name in plan.curves}
    assert [batches[f"cifar_{name}"] for name in ("kfc", "sgd", "kfc_large", "sgd_large",
                                                  "kfc_small")] == [512, 128, 4096, 4096, 128]


def test_what_a_cpu_leaves_out_is_said():
    whole, cpu = PLANS["cuda"], PLANS["cpu"]
    for name, curve in whole.curves.items():
        if name in cpu.left_out:
            assert name not in cpu.curves and cpu.left_out[name]
        else:
            is_shorter = cpu.curves[name]._replace(shortened="") != curve
            assert bool(cpu.curves[name].shortened) == is_shorter, name
    assert all(curve.shortened for curve in PLANS["quick"].curves.values())


def test_pooling_is_exchanged_everywhere_and_nothing_else_is():
    for name, plan in PLANS.items():
        for curve in plan.curves.values():
            kinds = {"avg": ("max_pool", "avg_pool"), "max": ("avg_pool", "max_pool")}
            if curve.name[-3:] in kinds:
                before, after = kinds[curve.name[-3:]]
                layers = plan.configure(curve).network
                originals = load_config(curve.config).network
                assert not [layer for layer in layers if layer.layer == before], name
                for layer, original in zip(layers, originals, strict=True):
                    assert layer == original or (layer.layer, original.layer) == (after, before)
                    assert getattr(layer, "size", 0) == getattr(original, "size", 0)


@pytest.mark.parametrize("name", ["cifar_kfc", "cifar_sgd", "digits_kfc", "digits_sgd"])
def test_batch_norm_configs_differ_by_the_normalisation_alone(name):
    plain, normalised = load_config(name), load_config(f"{name}_bn")
    kinds = [layer.layer for layer in normalised.network]
    assert all(kinds[index + 1] == "batch_norm" for index, kind in enumerate(kinds)
               if kind == "conv")
    assert tuple(layer for layer in normalised.network if layer.layer != "batch_norm") == (
        plain.network)
    assert normalised.optimizer.model_copy(update={"learning_rate": 1.0}) == (
        plain.optimizer.model_copy(update={"learning_rate": 1.0}))


# Which run lies where


def test_a_run_is_known_by_what_decides_its_course(plan):
    curve = plan.curves["digits_sgd"]
    key = run_key(plan.configure(curve))
    free = plan._replace(overrides=("evaluation.every=3", "checkpoint_minutes=1"))
    assert run_key(free.configure(curve, epochs=9)) == key
    for other in (rate(0.1), (("data.input_scale", 3.0),), (("ops.shards", 1),)):
        assert run_key(plan.configure(curve, other)) != key
    assert run_key(plan.configure(curve, seed=1)) != key
    assert run_key(plan._replace(device="cuda").configure(curve)) != key


def test_runs_that_others_left_are_taken_in(plan, tmp_path):
    out = tmp_path / "out"
    config = plan.configure(plan.curves["digits_sgd"], rate(0.3), 0, 1.5)
    other = config.model_copy(update={"device": "auto", "checkpoint_minutes": 7.0})
    train(other, out / "by" / "hand")
    standing = Ledger(out).standing(config)
    assert standing.folder == out / "by" / "hand" and standing.is_over(config)
    assert Ledger(out).standing(plan.configure(plan.curves["digits_kfc"], rate(0.3), 0, 1)) is None
    assert do(plan, out) == {}
    assert not list(out.glob(f"runs/*{run_key(config)}"))


def test_of_several_runs_the_shortest_that_is_long_enough_is_used(plan, tmp_path):
    ledger, curve = Ledger(tmp_path / "out"), plan.curves["digits_sgd"]
    short = write_run(ledger, plan, "digits_sgd", rate(0.3), [0.9, 0.5, 0.4])
    short.rename(tmp_path / "out" / "swept")
    long = write_run(ledger, plan, "digits_sgd", rate(0.3), [0.9, 0.6, 0.3, 0.2])
    ledger = Ledger(tmp_path / "out")
    for epochs, folder in ((0.5, tmp_path / "out" / "swept"), (1.5, long)):
        standing = ledger.standing(plan.configure(curve, rate(0.3), 0, epochs))
        assert standing.folder == folder
    assert ledger.standing(plan.configure(curve, rate(0.3), 0, 9)) is None  # no checkpoint
    (tmp_path / "out" / "swept" / "checkpoint.h5").write_text("")
    standing = ledger.standing(plan.configure(curve, rate(0.3), 0, 9))
    assert standing.folder == tmp_path / "out" / "swept"


def test_an_unfinished_record_without_a_checkpoint_is_left_alone(plan, tmp_path):
    out = tmp_path / "out"
    config = plan.configure(plan.curves["digits_sgd"], rate(0.3), 0, 1.5)
    train(config.model_copy(update={"epochs": 0.5}), out / "committed")
    (out / "committed" / "checkpoint.h5").unlink()
    before = (out / "committed" / "metrics.csv").read_bytes()
    assert Ledger(out).standing(config) is None
    do(plan, out)
    assert Ledger(out).standing(config).folder == Ledger(out).home(config, "digits_sgd")
    assert (out / "committed" / "metrics.csv").read_bytes() == before


def test_a_run_begun_with_other_evaluations_goes_on_with_them(plan, tmp_path):
    out = tmp_path / "out"
    config = plan.configure(plan.curves["digits_kfc"], rate(0.3), 0, 0.25)
    train(config.model_copy(update={
        "evaluation": config.evaluation.model_copy(update={"every": 0.25})}), out / "fine")
    do(plan, out)
    assert len((out / "fine" / "metrics.csv").read_text().splitlines()) == 1 + 7
    assert Ledger(out).standing(config).folder == out / "fine"


@pytest.mark.parametrize("name, content, error", [
    ("config.yaml", "data: [", ConfigError), ("config.yaml", "data: {}", ConfigError),
    ("run.json", "{", RecordError), ("run.json", "[]", RecordError),
    ("run.json", '{"device": {"device": "cpu"}}', RecordError),
    ("metrics.csv", "iteration\n", RecordError)])
def test_an_unreadable_record_is_an_error_naming_the_file(name, content, error, plan, tmp_path):
    out = tmp_path / "out"
    folder = write_run(Ledger(out), plan, "digits_sgd", rate(0.3), [0.9, 0.5])
    (folder / name).write_text(content)
    with pytest.raises(error, match=re.escape(str(folder / name))):
        progress_of(plan, Ledger(out))


# Tuning and final runs, told by folders


def test_tuning_takes_the_best_runs_further_and_the_winner_to_the_end(plan, tmp_path):
    ledger = Ledger(tmp_path / "out")
    step = progress_of(plan, ledger)["digits_kfc"]
    assert [task.config.optimizer.learning_rate for task in step.pending] == [0.003, 0.3, 0.03]
    assert {task.config.epochs for task in step.pending} == {0.5}
    assert step.epochs_left == pytest.approx(3 * 0.5 + 2 * 0.5 + 0.5 + 1.5)
    finals = {0.003: [0.9, 0.8], 0.3: [0.9, 0.5, 0.4], 0.03: [0.9, 0.6, 0.3, 0.25]}
    for value, errors in finals.items():
        write_run(ledger, plan, "digits_kfc", rate(value), errors)
    step = progress_of(plan, ledger)["digits_kfc"]
    assert [(result.stage, result.point.settings["optimizer.learning_rate"])
            for result in step.tuning] == [(1, 0.3), (1, 0.03), (1, 0.003), (2, 0.03), (2, 0.3)]
    assert step.rate == 0.03 and step.finals[0].iteration == 18
    (second,) = step.pending  # the first seed's final run is the winner, gone on with
    assert (second.config.seed, second.config.epochs) == (1, 1.5)
    assert step.epochs_left == pytest.approx(1.5)


def test_a_diverged_run_comes_last_and_none_is_taken_further_if_all_diverge(plan, tmp_path):
    ledger = Ledger(tmp_path / "out")
    for value, state in ((0.003, "finished"), (0.3, "failed"), (0.03, "failed")):
        write_run(ledger, plan, "digits_kfc", rate(value),
                  [0.9, 0.8, 0.7] if state == "finished" else [0.9], state=state)
        write_run(ledger, plan, "digits_sgd", rate(value), [0.9], state="failed")
    steps = progress_of(plan, ledger)
    assert [bool(result.row) for result in steps["digits_kfc"].tuning] == [True, False, False, True]
    assert steps["digits_kfc"].rate == 0.003
    lost = steps["digits_sgd"]
    assert (lost.settings, lost.pending, lost.epochs_left) == (None, [], 0)
    assert steps["tiny_max"].pending == [] and steps["tiny_max"].settings is None


def test_a_curve_may_take_the_learning_rate_of_another(plan, tmp_path):
    ledger = Ledger(tmp_path / "out")
    assert progress_of(plan, ledger)["tiny_max"].pending == []
    for value in (0.003, 0.3, 0.03):
        write_run(ledger, plan, "digits_sgd", rate(value), [0.9, 0.8 - value, 0.7 - value, 0.2])
    (task,) = progress_of(plan, ledger)["tiny_max"].pending
    assert (task.config.optimizer.learning_rate, task.config.epochs) == (0.3, 1)


# Doing it


def test_first_seeds_come_before_second_ones_and_nothing_is_done_twice(plan, tmp_path, monkeypatch):
    trained = watch_training(monkeypatch)
    assert do(plan, tmp_path / "out", "all") == {}
    seeds = [seed for _, _, seed, _ in trained]
    assert seeds == sorted(seeds) and seeds.count(1) == 2
    assert [epochs for *_, epochs in trained[:6]] == [0.5, 0.5, 0.5, 1, 1, 1.5]
    assert len(trained) == len(set(trained)) == 2 * (3 + 2 + 1 + 1) + 1
    trained.clear()
    for checkpoint in (tmp_path / "out").rglob("checkpoint.h5"):
        checkpoint.unlink()  # they stay behind where only the records are kept
    monkeypatch.setattr(data, "load", None)  # nor is any data set looked for
    assert do(plan, tmp_path / "out", "all") == {} and trained == []


def test_what_is_running_and_what_is_left_is_shown(plan, tmp_path, capsys):
    do(plan, tmp_path / "out")
    lines = [line for line in capsys.readouterr().err.splitlines() if "learning rate" in line]
    assert "digits_kfc, learning rate 0.003, seed 0, tuning 1 of 2, epochs 0 to 0.5" in lines[0]
    assert "left: 9 epochs of 2 curves and 2 curves of unknown speed" in lines[0]
    assert re.search(r"final run, epochs 1 to 1.5 \(left: 6.5 epochs of 2 curves, about", lines[5])
    assert "left: 1.5 epochs of 1 curve, about" in lines[-1]


@pytest.mark.parametrize("seconds, text", [(7.4, "7 s"), (1500, "25 min"), (7800, "2 h 10 min")])
def test_durations_are_told_in_readable_units(seconds, text):
    assert work.duration(seconds) == text


def test_a_run_that_fails_is_reported_and_the_others_go_on(plan, tmp_path, monkeypatch, capsys):
    def fail(config, folder):
        if config.optimizer.learning_rate == 0.3 and config.optimizer.momentum == 0.5:
            raise MemoryError("no room")

    trained = watch_training(monkeypatch, fail)
    failures = do(plan, tmp_path / "out")
    ((name, reason),) = failures.items()
    assert name.startswith("digits_sgd_0.3") and reason == "MemoryError: no room"
    assert len(trained) == 7 + 3  # one curve whole, of the other the whole first stage
    assert "going on with the others" in capsys.readouterr().err


def test_diverging_is_a_result_and_no_failure(plan, tmp_path, monkeypatch):
    loop = Trainer._loop

    def diverge(self):
        if self.config.optimizer.learning_rate == 0.3:
            raise TrainingFailed("after update 3 the loss is not finite")
        loop(self)

    monkeypatch.setattr(Trainer, "_loop", diverge)
    assert do(plan, tmp_path / "out") == {}
    step = progress_of(plan, Ledger(tmp_path / "out"))["digits_kfc"]
    assert step.tuning[2].row is None and step.rate == 0.03 and len(step.finals) == 2


def test_a_run_that_ends_before_its_end_is_not_tried_for_ever(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "train", lambda *args, **kwargs: None)
    failures = do(plan, tmp_path / "out")
    assert len(failures) == 6 and set(failures.values()) == {"it ended before its end"}


def test_a_full_disk_ends_it_all_naming_the_file(plan, tmp_path, monkeypatch):
    def full(*_):
        raise WriteError("cannot write metrics.csv: No space left on device")

    trained = watch_training(monkeypatch, full)
    with pytest.raises(WriteError, match="metrics.csv"):
        do(plan, tmp_path / "out")
    assert len(trained) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file"):
        reproduce.reproduce("fig1", tmp_path / "file" / "out", "cpu", quick=True)


def test_absent_data_are_reported_once_for_each_curve(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KFCNET_DATA", raising=False)
    curve = Curve("svhn_kfc", "svhn_kfc")
    panel = PanelPlan("c", "loss", ("svhn_kfc",))
    figure = plan.figures["fig1"]
    plan = plan._replace(curves={**plan.curves, "svhn_kfc": curve},
                         figures={"fig1": figure._replace(panels=(*figure.panels, panel))})
    failures = do(plan, tmp_path / "out", places={"svhn": tmp_path / "nowhere"})
    assert list(failures) == ["svhn_kfc"] and "nowhere" in failures["svhn_kfc"]
    assert capsys.readouterr().err.count("Going on without svhn") == 1
    assert len(progress_of(plan, Ledger(tmp_path / "out"))["digits_sgd"].finals) == 2


def test_stopped_and_started_again_it_takes_no_step_twice(plan, tmp_path, monkeypatch):
    step, steps = Trainer._step, []

    def interrupted(self):
        steps.append(self.optimizer.steps)
        if len(steps) == 22:  # in the third run of the first stage
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(TrainingInterrupted, match="runs.*the same command goes on") as stop:
        do(plan, tmp_path / "out")
    assert stop.value.exit_status == 143
    assert do(plan, tmp_path / "out") == {}
    interruptions, count = 1, len(steps)
    assert do(plan, tmp_path / "straight") == {}
    assert count == len(steps) - count and interruptions == 1
    for folder in (tmp_path / "straight" / "runs").iterdir():
        assert_same_run(tmp_path / "out" / "runs" / folder.name, folder)


# What it amounts to


def test_ratios_and_medians_know_what_was_not_reached():
    assert str(Value(3.14159)) == "3.14" and str(Value(7.5, True)) == "> 7.5"
    assert str(Value(6000.0)) == "6000"
    assert claims.middle([Value(3.0), Value(1.0), Value(9.0, True)]) == Value(3.0)
    assert claims.middle([Value(3.0), Value(8.0, True), Value(9.0, True)]) == Value(8.0, True)
    assert claims.ratio(Value(6.0, True), Value(3.0)) == Value(2.0, True)
    assert claims.ratio(Value(6.0), Value(250.0, True)) == "" == claims.ratio("not run", Value(1))


@pytest.fixture
def evidence(plan, tmp_path):
    """KFC-pre, four times as fast as SGD to 50% training error; other curves were not run."""
    ledger = Ledger(tmp_path / "out")
    for seed in range(2):
        write_run(ledger, plan, "digits_kfc", rate(0.3), [0.9, 0.5 - seed / 10, 0.2], seed, 60)
        write_run(ledger, plan, "digits_sgd", rate(0.3), [0.9, 0.7, 0.4], seed, 120)
    runs = {name: [read_run(folder) for folder in sorted(ledger.root.glob(f"runs/{name}_*"))]
            for name in ("digits_kfc", "digits_sgd")}
    return Evidence(plan, runs, {})


def find(rows, *words):
    (row,) = [row for row in rows if all(word in row.claim for word in words)]
    return row


def test_the_table_is_computed_from_the_records(evidence):
    rows = claims.rows(evidence)
    data_set = "UCI digits 8x8, 50% training error"
    assert find(rows, data_set, "minutes, KFC-pre")[1:4] == (Value(4), Value(1), Value(0.25))
    assert find(rows, data_set, "minutes, SGD").here == Value(4)
    speed_up = find(rows, data_set, "time of SGD over that of KFC-pre")
    assert (speed_up.here, speed_up.paper, speed_up.holds) == (Value(4), Value(7.5), True)
    assert find(rows, "50% test error: minutes, SGD").note == "2 seeds, 4 to 4"
    lowest = [(str(row.here), row.note) for row in rows if "lowest test error" in row.claim]
    assert lowest == [("30", "2 seeds, 30 to 30"), ("50", "2 seeds, 50 to 50"), ("not run", "")]
    assert find(rows, "Adagrad").here == "not run" == find(rows, "of activations").here
    assert find(rows, "AlexNet", "size of Omega")[1:4] == (Value(1201), Value(1201), Value(1))
    assert [row.here for row in rows if "AlexNet" in row.claim] == list(
        map(Value, (128, 1201, 1201, 128)))


def test_a_claim_that_fails_is_given_its_measured_reason(evidence):
    turned = evidence._replace(runs={"digits_kfc": evidence.runs["digits_sgd"],
                                     "digits_sgd": evidence.runs["digits_kfc"]})
    row = find(claims.rows(turned), "50% training error: time of SGD over that of KFC-pre")
    assert row.here == Value(0.25) and row.holds is False
    assert row.reason == ("an epoch of digits_kfc takes 2 times as long as one of digits_sgd "
                          "(gradient 50%), and it needed 1 of them, digits_sgd 0.5")


def test_a_threshold_that_was_not_reached_is_a_bound(evidence):
    row = find(claims.rows(evidence._replace(plan=evidence.plan._replace(
        errors=Errors(0.5, 0.3, 0.5)))), "30% training error: time of SGD over that of KFC-pre")
    assert row.here == Value(2.0, True) and row.holds is True and str(row.ratio) == "> 0.267"


def test_numbers_and_page_are_the_same_bytes_twice(evidence, tmp_path):
    rows = claims.rows(evidence)
    for name in ("first.csv", "second.csv"):
        report.write_numbers(rows, tmp_path / name)
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()
    with open(tmp_path / "first.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["claim", "paper", "here", "ratio", "note"]
    assert len(table) == len(rows) and {row["here"] for row in table} >= {"not run", "1201"}


def test_the_page_says_what_was_chosen_shortened_and_failed_and_where_from(plan, tmp_path):
    out = tmp_path / "out"
    ledger = Ledger(out)
    for value in (0.003, 0.3, 0.03):
        write_run(ledger, plan, "digits_kfc", rate(value), [0.9, 0.8 - value, 0.7 - value, 0.2])
    curve = plan.curves["digits_kfc"]._replace(shortened="too slow for words")
    plan = plan._replace(curves={**plan.curves, "digits_kfc": curve})
    reproduce.draw(plan, ledger, out, {"some_run": "OSError: on fire"})
    text = (out / "README.md").read_text()
    for words in ("![Curves](figures/fig1.png)", "Missing: digits_sgd (not run).",
                  "[digits_kfc](sweeps/digits_kfc/sweep.md) | 0.003, 0.03, 0.3 | all to epoch 0.5, "
                  "the best 2 to epoch 1 | 0.3 | 40.00% |", "- digits_kfc: too slow for words.",
                  "- digits_kfc: 1 of 2 seeds so far.", "- some_run: OSError: on fire",
                  "0123456789 with changes", "ffffffffffff", "files whose checksums are not"):
        assert words in text, words
    assert (out / "sweeps/digits_kfc/sweep.csv").exists()
    assert {path.name for path in (out / "figures").iterdir()} == {"fig1.png", "fig1.svg"}
    assert str(tmp_path) not in text
    for line in text.splitlines():
        if line.startswith("| ") and "---" not in line:
            assert line.count("|") in (6, 10), line  # no cell holds a bar


def test_every_figure_is_the_same_bytes_twice(plan, tmp_path):
    out = tmp_path / "out"
    do(plan, out, "all")
    files = []
    for _ in range(2):
        measure(plan, out)
        reproduce.draw(plan, Ledger(out), out, {})
        files.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*")
                      if path.suffix in (".png", ".svg", ".md", ".csv")})
    assert files[0] == files[1]
    names = {f"{name}.{kind}" for name in ("fig1", "assumptions", "assumptions_tiny_max")
             for kind in ("png", "svg")}
    assert {path.name for path in (out / "figures").iterdir()} == names


# The assumptions


def measure(plan, out):
    """Measure the networks of a plan, as `reproduce` does; the failures."""
    (out / "assumptions").mkdir(exist_ok=True)
    return assumptions.measure_networks(plan, progress_of(plan, Ledger(out)), out, {})


@pytest.fixture
def measured(plan, tmp_path):
    """(plan, folder) with a trained network, measured together with the distances of its layer."""
    network = plan.networks[0]._replace(layer="conv1")
    plan = plan._replace(networks=(network,))
    do(plan, tmp_path / "out", "assumptions")
    assert measure(plan, tmp_path / "out") == {}
    return plan, tmp_path / "out"


def test_a_trained_network_is_measured_once_and_recorded(measured, monkeypatch):
    plan, out = measured
    steps = progress_of(plan, Ledger(out))
    record = assumptions.read(plan, steps, out, plan.networks[0])
    (values,) = record["correlations"].values()
    assert values["derivatives"].shape == (2, 5, 5) and values["activations"].shape == (1, 5, 5)
    assert np.abs(values["activation_maps"]).max() == 1
    assert record["images"] == 50 and 0 < record["distances"]["kfc"] < 2
    assert set(record["distances"]) == set(figures.STRUCTURES)
    monkeypatch.setattr(assumptions, "measure", None)
    assert measure(plan, out) == {}
    longer = plan._replace(curves={**plan.curves, "tiny_max":
                                   plan.curves["tiny_max"]._replace(epochs=1.5)})
    monkeypatch.undo()
    do(longer, out, "assumptions")
    assert assumptions.read(longer, progress_of(longer, Ledger(out)), out, plan.networks[0]) is None


def test_a_damaged_record_of_assumptions_is_an_error_naming_it(measured):
    plan, out = measured
    path = out / "assumptions" / "tiny_max.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="tiny_max.h5 is damaged"):
        reproduce.draw(plan, Ledger(out), out, {})


def test_a_measurement_that_fails_is_reported(measured, monkeypatch):
    plan, out = measured
    (out / "assumptions" / "tiny_max.h5").unlink()
    monkeypatch.setattr(assumptions, "correlations", lambda *_: 1 / 0)
    assert measure(plan, out) == {"correlations of tiny_max": "ZeroDivisionError: division by zero"}


def test_summaries_of_correlations():
    spatial = np.full((2, 5, 5), np.nan)
    spatial[0] = 0.1
    spatial[0, 2] = [0.3, -0.5, 1, -0.5, 0.3]
    spatial[0, :, 2] = [0.2, 0.6, 1, 0.6, 0.2]
    np.testing.assert_allclose(assumptions.by_distance(spatial), [1, 0.55, 0.25])
    assert np.isnan(assumptions.by_distance(spatial[1:])).all()


def test_claims_about_assumptions_compare_derivatives_with_activations(plan):
    def record(derivatives, activations):
        def spatial(value):
            return np.where(np.arange(9).reshape(1, 3, 3) == 4, 1.0, value)

        maps = np.eye(2)
        return {"correlations": {"conv1": {
            "derivatives": spatial(derivatives), "derivative_maps": maps,
            "activations": spatial(activations), "activation_maps": maps}}}

    networks = tuple(NetworkPlan(f"n_{pooling}", "digits", pooling, 9, 1)
                     for pooling in ("max", "average"))
    evidence = Evidence(plan._replace(networks=networks), {},
                        {"n_max": record(0.1, 0.6), "n_average": record(0.15, 0.6)})
    weak, strong, stronger = claims.assumption_rows(evidence)
    assert "max pooling" in weak.claim and "activations" in strong.claim
    assert [row.here for row in (weak, strong, stronger)] == [
        Value(pytest.approx(value)) for value in (0.1, 0.6, 0.15)]
    assert [row.holds for row in (weak, strong, stronger)] == [True, True, False]
    missing = claims.assumption_rows(evidence._replace(networks={}))
    assert [row.here for row in missing] == 3 * ["not run"]


# The command


def test_the_command_reports_failures_and_status_1(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(reproduce, "reproduce", lambda *args: seen.append(args) or {"a": "burnt"})
    argv = ["fig2", "--device", "cpu", "--out", str(tmp_path), "--seeds", "2", "--data",
            "cifar10=x", "svhn=y=z", "--set", "ops.shards=1"]
    assert cli.reproduce(argv) == 1
    assert seen == [("fig2", tmp_path, "cpu", False, 2,
                     {"cifar10": Path("x"), "svhn": Path("y=z")}, ["ops.shards=1"], False)]
    assert capsys.readouterr().err.startswith("failed: a: burnt\n")


@pytest.mark.parametrize("argv", [["fig3"], ["fig1", "--seeds", "0"], ["fig1", "--data", "here"],
                                  ["fig1", "--data", "mnist=here"]])
def test_misuse_gets_the_usage(argv):
    with pytest.raises(SystemExit) as stopped:
        cli.reproduce(argv)
    assert stopped.value.code == 2


def test_a_wrong_setting_is_an_error_before_anything_is_trained(tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.reproduce(["fig1", "--quick", "--device", "cpu", "--out", str(out),
                          "--set", "optimizer.learningrate=1"]) == 2
    assert "optimizer.learningrate" in capsys.readouterr().err and not out.exists()


def test_drawing_alone_trains_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "train", None)
    assert cli.reproduce(["all", "--quick", "--device", "cpu", "--out", str(tmp_path),
                          "--draw"]) == 0
    rows = list(csv.DictReader((tmp_path / "numbers.csv").open(newline="")))
    assert {row["here"] for row in rows} == {"128", "1201", "not run"}


@pytest.mark.slow
def test_the_quick_run_killed_and_started_again_makes_everything_in_five_minutes(tmp_path):
    command = [sys.executable, ROOT / "scripts/reproduce.py", "all", "--quick", "--device", "cpu",
               "--out", tmp_path]
    began = time.monotonic()
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stderr=log)
        while not list(tmp_path.glob("runs/digits_sgd_large*/metrics.csv")):
            assert process.poll() is None and time.monotonic() - began < 300
            time.sleep(0.1)
        process.kill()
        process.wait()
        subprocess.run(command, stderr=log, check=True)
        assert time.monotonic() - began < 300
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")}
        subprocess.run(command, stderr=log, check=True)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")}
    assert {path.name for path in tmp_path.glob("figures/*.svg")} == {
        "fig1.svg", "fig2.svg", "batchnorm.svg", "text.svg", "assumptions.svg",
        "assumptions_digits_sgd.svg", "assumptions_digits_sgd_avg.svg"}
    with open(tmp_path / "numbers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not [row for row in rows if "not run" in row["here"]]
    find([Row(row["claim"], "", "") for row in rows], "AlexNet", "size of Gamma")
    text = (tmp_path / "README.md").read_text()
    assert "Missing" not in text and "What failed" not in text
    assert read_json(next(tmp_path.glob("runs/digits_kfc_bn*/run.json")))["outcome"]["state"] == (
        "finished")
