"""The paper from one command: the plan, what is skipped and resumed, and what fails."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from reproductions import do, rate, small_plan, write_run
from runs import assert_same_run

from kfcnet import cli, data, reproduce
from kfcnet.config import ConfigError, load_config
from kfcnet.figures.curves import Panel, draw_panels
from kfcnet.figures.paper import LEARNING_RATES
from kfcnet.reproduce import costs, verdicts, work
from kfcnet.reproduce.families import COMPARED
from kfcnet.reproduce.plan import Curve, PanelPlan
from kfcnet.reproduce.plans import make_plan
from kfcnet.reproduce.progress import next_value, progress_of
from kfcnet.runs.files import WriteError, read_json, write_json
from kfcnet.runs.folder import RunFolderError, alone_in
from kfcnet.runs.identity import group_by_seed, run_key
from kfcnet.runs.index import RunIndex
from kfcnet.runs.labels import clock, device
from kfcnet.training.errors import TrainingFailed, TrainingInterrupted
from kfcnet.training.train import train
from kfcnet.training.trainer import Trainer
from kfcnet.training.tuning import Stage

ROOT = Path(__file__).parents[1]
PLANS = {
    name: make_plan(*options)
    for name, options in (("cuda", ("cuda",)), ("cpu", ("cpu",)), ("quick", ("cpu", True)))
}


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def plan(tmp_path):
    return small_plan(tmp_path)


def watch_training(monkeypatch, before=lambda config, folder: None):
    """(curve, learning rate, seed, epochs) of the runs that are trained from now on."""
    seen = []

    def watched(config, folder, **options):
        seen.append(
            (folder.name.split("_0")[0], config.optimizer.learning_rate, config.seed, config.epochs)
        )
        before(config, folder)
        train(config, folder, **options)

    monkeypatch.setattr(work, "train", watched)
    return seen


# The plan


@pytest.mark.parametrize("name", PLANS)
def test_every_planned_run_has_a_valid_configuration(name):
    plan = PLANS[name]
    for curve in plan.curves.values():
        for seed, value in ((0, None), (1, 0.01)):
            settings = rate(value) if value and curve.rates else {}
            config = plan.configure(curve, settings, seed, 2)
            assert (config.seed, config.epochs, config.device) == (seed, 2, plan.device)
        assert not curve.rate_of or curve.rate_of in plan.curves
    for figure in plan.figures:
        assert all(name in plan.curves or name in plan.left_out for name in plan.shows(figure))
        assert set(plan.needs(figure)) <= set(plan.needs("all"))
    assert set(plan.needs("all")) == set(plan.curves)
    missing = (
        {
            "decay",
            "batchnorm_decay",
            "free",
            "invariance",
            "choices",
            "autocovariance",
            "autoencoder",
        }
        if name == "quick"
        else set()
    )
    assert set(reproduce.FIGURES) - missing == {*plan.figures, "all"}
    # No curve is another one in disguise, but for the starts: one of them is the chosen one.
    starts = plan.shows("starts")
    for names in (starts, plan.curves.keys() - starts):
        curves = [plan.curves[name] for name in names if not plan.curves[name].rate_of]
        keys = [
            run_key(plan.configure(curve, rate(0.01) if curve.rates else {})) for curve in curves
        ]
        assert len(set(keys)) == len(keys) > 0


def test_learning_rates_are_the_papers_set():
    assert LEARNING_RATES == (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
    plan = PLANS["cuda"]
    for name in ("cifar_kfc", "cifar_sgd", "svhn_kfc", "cifar_kfc_large", "cifar_sgd_bn"):
        assert plan.curves[name].rates == LEARNING_RATES
    assert set(LEARNING_RATES) < set(plan.curves["cifar_adam"].rates)
    batches = {name: plan.configure(plan.curves[name]).optimizer.batch_size for name in plan.curves}
    assert [
        batches[f"cifar_{name}"] for name in ("kfc", "sgd", "kfc_large", "sgd_large", "kfc_small")
    ] == [512, 128, 4096, 4096, 128]


def test_what_a_cpu_leaves_out_is_said():
    whole, cpu = PLANS["cuda"], PLANS["cpu"]
    for name, curve in whole.curves.items():
        if name in cpu.left_out:
            assert name not in cpu.curves and cpu.left_out[name]
        else:
            is_shorter = cpu.curves[name]._replace(shortened="") != curve
            assert bool(cpu.curves[name].shortened) == is_shorter, name
    assert all(curve.shortened for curve in PLANS["quick"].curves.values())
    assert cpu.curves["cifar_sgd_bn"].shortened == (
        "20 of 40 epochs, 5 of 7 learning rates to begin with: to be done in hours"
    )
    free = "2 of 3 seeds, 1 of 3 epochs: an update takes dozens of products with F"
    assert cpu.curves["cifar_free_kfc"].shortened == free
    assert "12 of 20 epochs, `data.extra=false`" in cpu.curves["svhn_sgd_avg"].shortened


def test_what_the_paper_compares_has_seeds_enough_for_a_verdict():
    """With fewer pairs of seeds a row of a ratio stays open for ever."""
    # Of these the paper says nothing, or what one run shows.
    others = ("kfc_start", "sgd_start", "kfc_decay", "sgd_decay", "kfc_bn_decay", "sgd_bn_decay",
              "kfc_inside", "kfc_across", "sgd_inside", "sgd_across", "sgd_max", "sgd_avg", "free",
              "tikhonov", *COMPARED)  # fmt: skip
    few = {name for name, curve in PLANS["cpu"].curves.items() if curve.seeds < verdicts.PAIRS}
    unexpected = [name for name in few if not name.partition("_")[2].startswith(others)]
    assert sorted(unexpected) == ["tiny_avg", "tiny_max"]


@pytest.mark.parametrize(
    "seeds, kfc, normalised, quick",
    [
        (1, "1 of 5 seeds", "1 of 3 seeds, 5 of 7 learning rates", "1 of 2 seeds, few rates"),
        (2, "2 of 5 seeds", "2 of 3 seeds, 5 of 7 learning rates", "few rates"),
        (5, "", "5 of 7 learning rates", "few rates"),
    ],
)
def test_what_is_said_of_seeds_is_true_of_those_that_were_asked_for(seeds, kfc, normalised, quick):
    curves = make_plan("cpu", seeds=seeds).curves
    assert curves["cifar_kfc"].shortened == kfc
    assert curves["cifar_kfc_bn"].shortened.startswith(normalised)
    assert make_plan("cpu", True, seeds).curves["digits_kfc"].shortened.startswith(quick)


@pytest.mark.parametrize("name", PLANS)
def test_starts_are_looked_into_at_the_same_images_and_clip_the_steps_that_momentum_adds_up(name):
    plan = PLANS[name]

    def start(method, kind="none"):
        return plan.configure(plan.curves[f"{plan.main}_{method}_start_{kind}"])

    both = start("kfc"), start("sgd")
    assert len({each.diagnostics.every * each.optimizer.batch_size for each in both}) == 1
    # At a constant direction the steps add up to 1 / (1 - mu) of the last one, nu to its square.
    momentum = start("kfc").optimizer.momentum
    counted = start("kfc").optimizer.clip * (1 - momentum) ** 2
    for kind in ("clip", "clip_fifth"):
        assert start("kfc", kind).optimizer.clip == pytest.approx(counted)


def test_pooling_is_exchanged_everywhere_and_nothing_else_is():
    for name, plan in PLANS.items():
        assert any(curve.name.endswith("_avg") for curve in plan.curves.values()), name
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


@pytest.mark.parametrize("name", PLANS)
def test_methods_are_compared_on_one_network_and_one_objective(name):
    plan = PLANS[name]
    for figure in ("fig1", "fig2", "minibatch", "methods", "structures", "sensitivity"):
        for panel in plan.figures[figure].panels:
            configs = [
                plan.configure(plan.curves[curve]) for curve in panel.curves if curve in plan.curves
            ]
            for config in configs[1:]:
                assert (config.data, config.network, config.optimizer.weight_decay) == (
                    configs[0].data,
                    configs[0].network,
                    configs[0].optimizer.weight_decay,
                )
            # K-FAC finds its own step sizes.
            schedules = [getattr(config.optimizer, "schedule", None) for config in configs]
            assert len({schedule for schedule in schedules if schedule}) <= 1, figure


@pytest.mark.parametrize("name", ["cifar_kfc", "cifar_sgd", "digits_kfc", "digits_sgd"])
def test_batch_norm_configs_differ_by_the_normalisation_and_its_convolutions_start(name):
    plain, normalised = load_config(name), load_config(f"{name}_bn")
    kinds = [layer.layer for layer in normalised.network]
    assert all(
        kinds[index + 1] == "batch_norm" for index, kind in enumerate(kinds) if kind == "conv"
    )
    assert [layer for layer in normalised.network if layer.layer != "batch_norm"] == [
        layer.model_copy(update={"std": "he"}) if layer.layer == "conv" else layer
        for layer in plain.network
    ]
    assert normalised.optimizer.model_copy(update={"learning_rate": 1.0}) == (
        plain.optimizer.model_copy(update={"learning_rate": 1.0})
    )


# Tuning and final runs, told by folders


def test_tuning_takes_the_best_runs_further_and_the_winner_to_the_end(plan, tmp_path):
    index = RunIndex(tmp_path / "out")
    step = progress_of(plan, index)["digits_kfc"]
    assert [task.config.optimizer.learning_rate for task in step.pending] == [0.003, 0.3, 0.03]
    assert {task.config.epochs for task in step.pending} == {0.5}
    assert step.epochs_left == pytest.approx(3 * 0.5 + 2 * 0.5 + 0.5 + 1.5)
    assert step.final_stage == []
    finals = {0.003: [0.9, 0.8], 0.3: [0.9, 0.5, 0.4], 0.03: [0.9, 0.6, 0.3, 0.25]}
    for value, errors in finals.items():
        write_run(index, plan, "digits_kfc", rate(value), errors)
    step = progress_of(plan, index)["digits_kfc"]
    assert [
        (result.stage, result.point.settings["optimizer.learning_rate"]) for result in step.tuning
    ] == [(1, 0.3), (1, 0.03), (1, 0.003), (2, 0.03), (2, 0.3)]
    assert step.final_stage == step.tuning[3:]
    assert step.chosen == 0.03 and step.finals[0].iteration == 18
    (second,) = step.pending  # the first seed's final run is the winner, gone on with
    assert (second.config.seed, second.config.epochs) == (1, 1.5)
    assert step.epochs_left == pytest.approx(1.5)


def test_rates_grow_until_the_best_one_is_inside(plan, tmp_path):
    curve = plan.curves["digits_kfc"]._replace(grows=True, rates=(0.1, 0.03), seeds=1)
    plan = plan._replace(curves={"digits_kfc": curve})
    index = RunIndex(tmp_path)
    errors = {0.03: 0.5, 0.1: 0.4, 0.3: 0.3, 1.0: 0.2, 3.0: 0.6}
    tried = []
    while (pending := progress_of(plan, index)["digits_kfc"].pending)[0].purpose != "final run":
        for value in [task.config.optimizer.learning_rate for task in pending]:
            tried.append(value)
            write_run(index, plan, "digits_kfc", rate(value), [errors[value]] * 3)
    assert sorted(tried) == sorted(errors)
    assert progress_of(plan, index)["digits_kfc"].settings == rate(1.0)


def test_what_is_below_the_best_rate_is_taken_to_the_end_of_a_tuning(plan, tmp_path):
    """0.03 is dropped after the first stage and best in the end; 0.01 was not tried at first."""
    curve = plan.curves["digits_kfc"]
    curve = curve._replace(grows=True, rates=(0.3, 0.1, 0.03), seeds=1, epochs=1.5)
    plan = plan._replace(curves={"digits_kfc": curve})
    index = RunIndex(tmp_path)
    last = {0.3: 0.5, 0.1: 0.4, 0.03: 0.2, 0.01: 0.6}
    for value, first in ((0.3, 0.5), (0.1, 0.6), (0.03, 0.7)):
        write_run(index, plan, "digits_kfc", rate(value), [0.9, first])
    for value in (0.3, 0.1):
        state = progress_of(plan, index)["digits_kfc"]
        assert value in [task.config.optimizer.learning_rate for task in state.pending]
        shutil.rmtree(state.pending[0].folder)
        index = RunIndex(tmp_path)
        write_run(index, plan, "digits_kfc", rate(value), [0.9, last[value], last[value]])
    for value, best in ((0.03, 0.1), (0.01, 0.03)):
        state = progress_of(plan, index)["digits_kfc"]
        (task,) = state.pending
        assert (task.config.optimizer.learning_rate, state.chosen) == (value, best)
        assert task.purpose == "tuning 2 of 2" and state.edge == "lowest" and state.under_way == {0}
        shutil.rmtree(task.folder, ignore_errors=True)
        index = RunIndex(tmp_path)
        write_run(index, plan, "digits_kfc", rate(value), [0.9, 0.9, last[value]])
    state = progress_of(plan, index)["digits_kfc"]
    assert (state.chosen, state.edge) == (0.03, "")
    assert [task.purpose for task in state.pending] == ["final run"]


def test_of_a_method_that_finds_its_rate_the_damping_is_tuned(plan, tmp_path):
    curve = plan.curves["digits_kfc"]._replace(
        rates=(), dampings=(0.03, 0.1), grows=True, seeds=2, epochs=1.5
    )
    kfac = Path(curve.config).with_name("kfac.yaml")
    kfac.write_text(Path(curve.config).read_text().replace("sgd, learning_rate: 0.05", "kfac"))
    plan = plan._replace(curves={"digits_kfc": curve._replace(config=str(kfac))})
    index = RunIndex(tmp_path)
    errors = {0.03: 0.5, 0.1: 0.4, 0.3: 0.2, 1.0: 0.3}
    tried = []
    while (pending := progress_of(plan, index)["digits_kfc"].pending)[0].purpose != "final run":
        for optimizer in [task.config.optimizer for task in pending]:
            assert optimizer.min_damping == optimizer.damping
            tried.append(value := optimizer.damping)
            settings = {"optimizer.damping": value, "optimizer.min_damping": value}
            write_run(index, plan, "digits_kfc", settings, [errors[value]] * 3)
    assert sorted(tried) == sorted(errors)
    state = progress_of(plan, index)["digits_kfc"]
    assert state.chosen == 0.3
    assert [(task.config.seed, task.config.optimizer.damping) for task in state.pending] == [
        (0, 0.3),
        (1, 0.3),
    ]
    (line,) = re.findall(r".*sweep\.md.*", reproduce.report._tuning(plan, {"digits_kfc": state}))
    assert "| 0.03, 0.1, 0.3, 1 |" in line and line.endswith("| 0.3 | 20.00% |")


def test_the_runs_of_figure_2_are_as_long_as_the_referee_was_told():
    text = (Path(__file__).parents[1] / "docs/referee.md").read_text(encoding="utf-8")
    told = "at least eight times as long as KFC-pre's on CIFAR-10, four times on SVHN"
    assert told in " ".join(text.split())
    for where, prefix, times in (("cpu", "cifar", 8), ("cuda", "cifar", 8), ("cuda", "svhn", 4)):
        plan = PLANS[where]
        kfc, sgd = (
            plan.final_epochs(plan.curves[f"{prefix}_{name}_large"]) for name in ("kfc", "sgd")
        )
        assert sgd >= times * kfc


def test_a_rate_whose_final_run_was_lost_is_tuned_but_not_chosen(plan, tmp_path):
    curve = plan.curves["digits_kfc"]._replace(lost=(0.03,), seeds=1, epochs=1.5)
    plan = plan._replace(curves={"digits_kfc": curve})
    index = RunIndex(tmp_path)
    for value, errors in {0.003: [0.9, 0.8], 0.3: [0.9, 0.5, 0.4], 0.03: [0.9, 0.6, 0.3]}.items():
        write_run(index, plan, "digits_kfc", rate(value), errors)
    state = progress_of(plan, index)["digits_kfc"]
    assert state.chosen == 0.3
    assert [result.point.settings for result in state.tuning][-2:] == [rate(0.03), rate(0.3)]
    (task,) = state.pending
    assert (task.config.optimizer.learning_rate, task.purpose) == (0.3, "final run")
    (line,) = re.findall(r".*sweep\.md.*", reproduce.report._tuning(plan, {"digits_kfc": state}))
    assert line.endswith("| 0.3 (edge) | 40.00% |")


@pytest.mark.parametrize("clipped", [0.49, 0.51])
def test_the_clip_is_tuned_where_it_decides_the_step(clipped, plan, tmp_path):
    """After the first two epochs; before them every step is clipped. An update is a sixth of one.

    The runs have ten rows, half an epoch apart.
    """
    curve = plan.curves["digits_kfc"]._replace(
        rates=(0.1, 0.03), clips=(0.1, 0.3), seeds=1, stages=(Stage(4.5, None),), epochs=4.5
    )
    kfc = Path(curve.config).with_name("kfc.yaml")
    kfc.write_text(
        Path(curve.config)
        .read_text()
        .replace("name: sgd", "name: kfc_pre, statistics_period: 1, inverse_period: 1")
    )
    plan = plan._replace(curves={"digits_kfc": curve._replace(config=str(kfc))})
    index = RunIndex(tmp_path)
    shares = dict.fromkeys(range(10), 1.0) | dict.fromkeys(range(5, 10), clipped)
    for value, error in ((0.1, 0.5), (0.03, 0.4)):
        write_run(index, plan, "digits_kfc", rate(value), [error] * 10, clipped=shares)
    state = progress_of(plan, index)["digits_kfc"]
    if clipped < 0.5:
        assert (state.settings, state.pending, state.clip) == (rate(0.03), [], None)
        return
    (task,) = state.pending  # the configured clip has its run already
    assert state.settings is None and task.purpose == "tuning of the clip 1 of 1"
    assert (task.config.optimizer.learning_rate, task.config.optimizer.clip) == (0.03, 0.1)
    settings = {**rate(0.03), "optimizer.clip": 0.1}
    write_run(index, plan, "digits_kfc", settings, [0.2] * 10, clipped=shares)
    state = progress_of(plan, index)["digits_kfc"]
    assert (state.settings, state.clip, state.pending) == (settings, 0.1, [])
    assert [result.point.settings for result in state.clip_tuning][0] == settings


@pytest.mark.parametrize(
    "rates", [(1e-4, 3e-4), (0.001, 0.003), (0.03, 0.1), (0.3, 1.0), (3.0, 10.0)]
)
def test_the_neighbours_of_a_rate(rates):
    low, high = rates
    assert next_value(low, up=True) == high and next_value(high, up=False) == low


def test_a_setting_that_the_data_decide_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="data.input_scale=auto .* give numbers"):
        reproduce.reproduce("fig1", tmp_path, quick=True, overrides=["data.input_scale=auto"])


def test_a_figure_that_the_quick_plan_lacks_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="decay: there is no such figure of the embedded digits"):
        reproduce.reproduce("decay", tmp_path, "cpu", quick=True)


def test_a_diverged_run_comes_last_and_none_is_taken_further_if_all_diverge(plan, tmp_path):
    index = RunIndex(tmp_path / "out")
    for value, state in ((0.003, "finished"), (0.3, "failed"), (0.03, "failed")):
        write_run(
            index,
            plan,
            "digits_kfc",
            rate(value),
            [0.9, 0.8, 0.7] if state == "finished" else [0.9],
            state=state,
        )
        write_run(index, plan, "digits_sgd", rate(value), [0.9], state="failed")
    steps = progress_of(plan, index)
    assert [bool(result.row) for result in steps["digits_kfc"].tuning] == [True, False, False, True]
    assert steps["digits_kfc"].chosen == 0.003
    lost = steps["digits_sgd"]
    assert (lost.settings, lost.pending, lost.epochs_left) == (None, [], 0)
    assert steps["tiny_max"].pending == [] and steps["tiny_max"].settings is None


def test_a_seed_whose_record_is_older_than_a_setting_belongs_to_the_others(plan, tmp_path):
    index = RunIndex(tmp_path / "out")
    for value in (0.003, 0.3, 0.03):
        write_run(index, plan, "digits_sgd", rate(value), [0.9, 0.8 - value, 0.7 - value, 0.2])
    second = write_run(index, plan, "digits_sgd", rate(0.3), [0.9, 0.5, 0.4, 0.2], seed=1)
    text = (second / "config.yaml").read_text()
    older = text.replace(", nesterov: false", "").replace("  nesterov: false\n", "")
    assert older != text
    (second / "config.yaml").write_text(older)
    runs = progress_of(plan, RunIndex(index.root))["digits_sgd"].runs()
    assert [len(group) for group in group_by_seed(runs)] == [2]


def test_a_curve_may_take_the_learning_rate_of_another(plan, tmp_path):
    index = RunIndex(tmp_path / "out")
    assert progress_of(plan, index)["tiny_max"].pending == []
    for value in (0.003, 0.3, 0.03):
        write_run(index, plan, "digits_sgd", rate(value), [0.9, 0.8 - value, 0.7 - value, 0.2])
    (task,) = progress_of(plan, index)["tiny_max"].pending
    assert (task.config.optimizer.learning_rate, task.config.epochs) == (0.3, 1)


# Doing it


def test_sensitivity_is_tuning_and_no_final_run(plan, tmp_path):
    out = tmp_path / "out"
    assert do(plan, out, "sensitivity") == {}
    steps = progress_of(plan.part("sensitivity"), RunIndex(out))
    assert {name: (len(step.tuning), len(step.finals)) for name, step in steps.items()} == {
        "digits_kfc": (5, 0),
        "digits_sgd": (5, 0),
    }
    assert [step.epochs_left for step in steps.values()] == [0, 0]
    assert [len(step.pending) for step in progress_of(plan, RunIndex(out)).values()] == [2, 2, 1]


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


@pytest.mark.slow
def test_several_workers_train_the_same_runs(plan, tmp_path):
    names = ("one", "two")
    for count, name in enumerate(names, start=1):
        failures = work.train_missing(plan, "fig1", RunIndex(tmp_path / name), {}, count)
        assert failures == {}
    one, two = (sorted((tmp_path / name / "runs").iterdir()) for name in names)
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 8
    for straight, beside in zip(one, two, strict=True):
        assert_same_run(beside, straight)


def killed(task, places):
    """In place of training: the process ends as one that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_killed_worker_fails_its_own_run_and_the_others_go_on(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "_try", killed)
    failures = work.train_missing(plan, "fig1", RunIndex(tmp_path), {}, 2)
    assert len(failures) == 6 and all("process was killed" in why for why in failures.values())


def test_what_is_running_and_what_is_left_is_shown(plan, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(work, "quick_cost", lambda *_: 0.01)
    do(plan, tmp_path / "out")
    lines = [line for line in capsys.readouterr().err.splitlines() if "learning rate" in line]
    assert "digits_kfc, learning rate 0.003, seed 0, tuning 1 of 2, epochs 0 to 0.5" in lines[0]
    assert "left: 9 epochs of 2 curves, about 0 s" in lines[0]
    assert re.search(r"final run, epochs 1 to 1.5 \(left: 6.5 epochs of 2 curves, about", lines[5])
    assert "left: 1.5 epochs of 1 curve, about" in lines[-1]


def test_final_runs_alone_are_drawn_each_by_itself(plan, tmp_path):
    do(plan, tmp_path / "out", "fig1")
    progress = progress_of(plan.part("fig1"), RunIndex(tmp_path / "out"))
    finals = {status.folder for state in progress.values() for status in state.finals.values()}
    assert finals and finals < set((tmp_path / "out/runs").iterdir())
    assert {path.parent for path in (tmp_path / "out/runs").glob("*/curves.png")} == finals


def test_the_plan_has_the_time_of_a_curve_whose_learning_rate_is_still_to_be_found(
    plan, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(work, "_try", lambda *_: "not tried")
    do(plan, tmp_path / "out", "assumptions")
    begin = capsys.readouterr().err
    assert re.search(r"^  tiny_max: 1 epochs, about \d+ s$", begin, re.MULTILINE)
    assert "unknown speed" not in begin


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_runs_that_share_the_machine_are_no_sooner_done_by_the_plan(
    plan, tmp_path, monkeypatch, at_a_time
):
    """A curve without records is timed alone on the machine."""
    monkeypatch.setattr(work, "quick_cost", lambda *_: 20.0)
    index, plan = RunIndex(tmp_path), plan.part("fig1")
    forecast, now = work.Forecast(at_a_time), progress_of(plan, index)
    forecast.estimate(plan, now, {}, work.UnusableData({}, index))
    assert "left: 9 epochs of 2 curves, about 3 min" in forecast.plan(now)


@pytest.mark.parametrize("error", [FloatingPointError, np.linalg.LinAlgError])
def test_a_curve_whose_numbers_fail_while_it_is_timed_has_no_forecast(
    plan, tmp_path, monkeypatch, error
):
    """K-FAC raises the former where its model is not finite; that is no reason to train nothing."""

    def fail(*_):
        raise error("not finite")

    monkeypatch.setattr(work, "quick_cost", fail)
    index, plan = RunIndex(tmp_path), plan.part("fig1")
    forecast, now = work.Forecast(), progress_of(plan, index)
    forecast.estimate(plan, now, {}, work.UnusableData({}, index))
    assert "left: 9 epochs of 2 curves and 2 curves of unknown speed" in forecast.plan(now)


def test_the_time_that_is_left_is_told_from_the_records_and_then_from_what_was_trained(
    plan, tmp_path
):
    """Half an epoch of three rates is done, in a minute each; the next one takes 100 seconds."""
    plan = plan._replace(curves={"digits_kfc": plan.curves["digits_kfc"]})
    index = RunIndex(tmp_path)
    for value, error in ((0.003, 0.7), (0.3, 0.5), (0.03, 0.6)):
        folder = write_run(index, plan, "digits_kfc", rate(value), [0.9, error], pace=60.0)
        (folder / "checkpoint.h5").touch()
    forecast, now = work.Forecast(), progress_of(plan, index)
    assert forecast.left(now) == "left: 3 epochs of 1 curve, about 6 min"
    task = now["digits_kfc"].pending[0]
    assert (task.config.epochs, task.epochs_to_go) == (1, 0.5)
    forecast.add(task, 100.0)
    assert forecast.left(now) == "left: 3 epochs of 1 curve, about 10 min"


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
    assert name.startswith("runs/digits_sgd_0.3") and reason == "out of memory (no room)"
    assert len(trained) == 7 + 3  # one curve whole, of the other the whole first stage
    text = capsys.readouterr().err
    assert "out of memory (no room)" in text and "going on with the others" in text


def test_a_foreseen_failure_is_told_in_words_alone(plan, tmp_path, monkeypatch, capsys):
    def fail(config, folder):
        raise RunFolderError("in use by another process")

    watch_training(monkeypatch, fail)
    assert set(do(plan, tmp_path / "out").values()) == {"in use by another process"}
    text = capsys.readouterr().err
    assert "in use by another process\ndigits_kfc failed; going on" in text
    assert "Traceback" not in text


def test_diverging_is_a_result_and_no_failure(plan, tmp_path, monkeypatch):
    loop = Trainer._loop

    def diverge(self):
        if self.config.optimizer.learning_rate == 0.3:
            raise TrainingFailed("after update 3 the loss is not finite")
        loop(self)

    monkeypatch.setattr(Trainer, "_loop", diverge)
    assert do(plan, tmp_path / "out") == {}
    step = progress_of(plan, RunIndex(tmp_path / "out"))["digits_kfc"]
    assert step.tuning[2].row is None and step.chosen == 0.03 and len(step.finals) == 2


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
    plan = plan._replace(
        curves={**plan.curves, "svhn_kfc": curve},
        figures={"fig1": figure._replace(panels=(*figure.panels, panel))},
    )
    failures = do(plan, tmp_path / "out", places={"svhn": tmp_path / "nowhere"})
    assert list(failures) == ["svhn_kfc"] and "nowhere" in failures["svhn_kfc"]
    text = capsys.readouterr().err
    assert text.count("Going on without svhn") == 1
    assert "\n  svhn_kfc: " not in text and "epochs of 2 curves, about" in text
    assert len(progress_of(plan, RunIndex(tmp_path / "out"))["digits_sgd"].finals) == 2


@pytest.mark.parametrize(("is_done", "scale"), [(False, 1), (True, 1), (False, 2)])
def test_runs_on_other_data_of_the_same_name_are_not_gone_on_with(is_done, scale, plan, tmp_path):
    out = tmp_path / "out"
    synthetic = ("data.name=synthetic", "data.examples=240", "data.input_scale=1")
    curve = plan.curves["digits_sgd"]._replace(overrides=synthetic, rates=(0.003,), seeds=1)
    plan = plan._replace(curves={**plan.curves, "digits_sgd": curve})
    places = {"synthetic": None}
    assert do(plan, out, places=places) == {}
    (record,) = out.glob("runs/digits_sgd*/run.json")
    record.write_text(
        re.sub('"sha256": "[0-9a-f]{12}', '"sha256": "0123456789ab', record.read_text())
    )
    before = record.with_name("metrics.csv").read_bytes()
    divided = (*synthetic, f"data.input_scale={scale}")
    curve = curve._replace(overrides=divided, seeds=1 if is_done else 2)
    failures = do(plan._replace(curves={**plan.curves, "digits_sgd": curve}), out, places=places)
    assert list(failures) == ["digits_sgd"]
    assert re.search(
        rf"{record.parent} .* synthetic .*SHA-256 0123456789ab, here (?!0123)\w{{12}}",
        failures["digits_sgd"],
    )
    assert record.with_name("metrics.csv").read_bytes() == before
    assert len(list(out.glob("runs/digits_sgd*"))) == 1


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


# The command


def test_the_command_reports_failures_and_status_1(tmp_path, monkeypatch, capsys):
    seen, failures = [], {"a": "burnt", "b": "burnt", "c": "lost"}
    monkeypatch.setattr(
        reproduce, "reproduce", lambda *args, **kw: seen.append((*args, *kw.values())) or failures
    )
    argv = [
        "fig2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        "--seeds",
        "2",
        "--data",
        "cifar10=x",
        "svhn=y=z",
        "--set",
        "ops.shards=1",
        "--workers",
        "3",
    ]
    assert cli.reproduce(argv) == 1
    assert seen == [
        (
            "fig2",
            tmp_path,
            "cpu",
            False,
            2,
            {"cifar10": Path("x"), "svhn": Path("y=z")},
            ["ops.shards=1"],
            False,
            3,
        )
    ]
    out = tmp_path
    assert capsys.readouterr().err.splitlines() == [
        "failed: a, b: burnt",
        "failed: c: lost",
        str(out / "README.md"),
        str(out / "report.html"),
    ]


@pytest.mark.parametrize(
    "argv",
    [
        ["fig3"],
        ["fig1", "--seeds", "0"],
        ["fig1", "--workers", "0"],
        ["fig1", "--data", "here"],
        ["fig1", "--data", "mnist=here"],
    ],
)
def test_misuse_ends_with_status_2(argv):
    with pytest.raises(SystemExit) as stopped:
        cli.reproduce(argv)
    assert stopped.value.code == 2


@pytest.mark.parametrize("key", ["seed", "epochs", "device", "data.name", "data.path"])
def test_a_setting_that_the_plan_decides_is_refused(key, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.reproduce(["fig1", "--draw", "--out", str(tmp_path), "--set", f"{key}=1"])
    assert stopped.value.code == 2 and f"--set {key}: the plan decides" in capsys.readouterr().err


def test_a_wrong_setting_is_an_error_before_anything_is_trained(tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        cli.reproduce(
            [
                "fig1",
                "--quick",
                "--device",
                "cpu",
                "--out",
                str(out),
                "--set",
                "optimizer.learningrate=1",
            ]
        )
        == 2
    )
    assert "optimizer.learningrate" in capsys.readouterr().err and not out.exists()


@pytest.fixture
def runs_on_a_cpu(tmp_path):
    """A folder with a run on a CPU that the quick plan has in its first figure."""
    plan = PLANS["quick"]
    write_run(RunIndex(tmp_path), plan, "digits_kfac", {}, [0.9] + 13 * [0.5])
    return tmp_path


def command(out, *more):
    return cli.reproduce(["methods", "--quick", "--out", str(out), *more])


def test_drawing_alone_takes_the_device_of_the_records(runs_on_a_cpu, monkeypatch):
    monkeypatch.setattr(reproduce, "get_ops", lambda: SimpleNamespace(name="cuda"))
    monkeypatch.setattr(reproduce, "which_device", lambda ops: ops.name)
    assert command(runs_on_a_cpu, "--draw") == 0
    assert "digits_kfac | K-FAC" in (runs_on_a_cpu / "README.md").read_text()


@pytest.mark.parametrize("options", [["--device", "cuda", "--draw"], ["--device", "cuda"], []])
def test_a_folder_of_another_devices_runs_is_refused(options, runs_on_a_cpu, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "get_ops", lambda: SimpleNamespace(name="cuda"))
    monkeypatch.setattr(reproduce, "which_device", lambda ops: ops.name)
    assert command(runs_on_a_cpu, *options) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {runs_on_a_cpu} holds runs on cpu: name another folder with --out, or --device cpu"
    )
    assert not (runs_on_a_cpu / "README.md").exists()


def test_runs_of_several_processors_are_seeds_of_one_curve(plan, tmp_path):
    """Over updates; over time only where their seconds are of one clock."""
    index = RunIndex(tmp_path / "out")
    curve = plan.curves["digits_kfc"]._replace(rates=(), epochs=1.0, seeds=3)
    plan = plan._replace(curves={"digits_kfc": curve}, measurements=())
    for seed, error in enumerate((0.5, 0.4, 0.3)):
        folder = write_run(index, plan, "digits_kfc", {}, [0.9, error, error], seed)
        there = {"device": "cpu", "processor": "slow" if seed == 1 else "fast", "native": True}
        write_json(folder / "run.json", {**read_json(folder / "run.json"), "device": there})
    state = progress_of(plan, RunIndex(tmp_path / "out"))["digits_kfc"]
    assert list(state.finals) == [0, 1, 2] and state.pending == []
    runs = state.runs()
    assert [len(group) for group in group_by_seed(runs, timed=False)] == [3]
    assert [len(group) for group in group_by_seed(runs)] == [2, 1]
    over = {
        x: [text.get_text() for text in draw_panels([Panel(runs, "error", x)]).legends[0].texts]
        for x in ("updates", "seconds")
    }
    assert not any("CPU" in label for label in over["updates"])
    assert any("CPU (fast)" in label for label in over["seconds"])
    assert any("CPU (slow)" in label for label in over["seconds"])
    cost = {"seconds": [2.0], "phases": {}, "device": {"device": "cpu", "processor": "third"}}
    priced = [costs.with_cost(run, cost) for run in runs]
    assert [len(group) for group in group_by_seed(priced)] == [3]
    assert {clock(run) for run in priced} == {"CPU (third)"}
    assert [device(run) for run in priced] == ["CPU (fast)", "CPU (slow)", "CPU (fast)"]


def test_runs_on_other_data_do_not_decide_the_device(runs_on_a_cpu):
    (config,) = runs_on_a_cpu.rglob("config.yaml")
    config.write_text(config.read_text().replace("name: digits", "name: synthetic"))
    assert cli.reproduce(["fig1", "--device", "cuda", "--draw", "--out", str(runs_on_a_cpu)]) == 0


def test_a_second_process_does_not_train_in_the_same_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "train", None)
    with alone_in(tmp_path):
        assert command(tmp_path, "--device", "cpu") == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path} is in use by another process")
        assert command(tmp_path, "--device", "cpu", "--draw") == 0


def test_drawing_alone_trains_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "train", None)
    assert (
        cli.reproduce(["all", "--quick", "--device", "cpu", "--out", str(tmp_path), "--draw"]) == 0
    )
    rows = list(csv.DictReader((tmp_path / "numbers.csv").open(newline="")))
    assert {row["here"] for row in rows} == {"not run"}
    assert len((tmp_path / "headline.md").read_text().splitlines()) == 2


@pytest.mark.slow
def test_the_quick_run_killed_and_started_again_makes_everything_in_five_minutes(tmp_path):
    command = [
        sys.executable,
        ROOT / "scripts/reproduce.py",
        "all",
        "--quick",
        "--device",
        "cpu",
        "--out",
        tmp_path,
    ]
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
        "fig1.svg",
        "fig2.svg",
        "batchnorm.svg",
        "minibatch.svg",
        "methods.svg",
        "structures.svg",
        "sensitivity.svg",
        "starts.svg",
        "scaling.svg",
        "assumptions.svg",
        "assumptions_digits_sgd.svg",
        "assumptions_digits_sgd_avg.svg",
    }
    with open(tmp_path / "numbers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not [row for row in rows if "not run" in row["here"]]
    text = (tmp_path / "README.md").read_text()
    assert "Missing" not in text and "What failed" not in text
