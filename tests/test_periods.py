"""Periods picked by their cost: what is timed, which pair it gives, and that a run keeps it."""

import dataclasses
import logging

import numpy as np
import pytest
from runs import SGD, SMALL, assert_same_run, small

from kfcnet import data
from kfcnet.cli import main
from kfcnet.config import ConfigError, load_config
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import SGD as Sgd
from kfcnet.optimizers import KfcPre
from kfcnet.runs.folder import RunFolderError
from kfcnet.training import periods
from kfcnet.training.errors import TrainingFailed
from kfcnet.training.periods import Costs, candidates, choose, measure, pick, settle
from kfcnet.training.train import train

# Of SGD's epoch an update is 1.5, statistics at every update are 0.5, inverses 1.
COSTS = Costs(batch_size=512, update=6.0, statistics=2.0, inverses=4.0, sgd_batch_size=128, sgd=1.0)


@pytest.mark.parametrize(
    "limit, pair",
    [(3.1, (1, 1)), (3.0, (1, 2)), (2.25, (1, 5)), (2.0, (5, 5)), (1.59, (20, 20)), (1.5, None)],
)
def test_the_freshest_curvature_below_the_limit_is_chosen(limit, pair):
    assert choose(COSTS, limit, candidates()) == pair


def test_candidates_invert_after_an_update_of_the_factors_and_begin_with_the_freshest():
    pairs = candidates()
    assert pairs[:5] == [(1, 1), (1, 2), (2, 2), (1, 5), (5, 5)] and pairs[-1] == (50, 50)
    assert all(T_f % T_s == 0 for T_s, T_f in pairs)
    assert [T_f for _, T_f in pairs] == sorted(T_f for _, T_f in pairs)


@pytest.mark.parametrize("delay, inverse_periods", [(6, {10, 20, 50}), (70, {70})])
def test_candidates_leave_room_for_the_inverses_delay(delay, inverse_periods):
    assert {T_f for _, T_f in candidates(delay)} == inverse_periods
    for pair in candidates(delay):
        periods.with_periods(small(), *pair, f"optimizer.inverse_delay={delay}")


@pytest.fixture
def slow(takes, monkeypatch):
    """Every part takes as long as COSTS says."""
    monkeypatch.setattr(periods, "TURNS", 1)
    takes(KfcPre, "decide", COSTS.update)
    takes(KfcPre, "_sample_factors", COSTS.statistics)
    takes(KfcPre, "_update_inverses", COSTS.inverses)
    takes(Sgd, "decide", COSTS.sgd)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optimizer.statistics_period=1", "optimizer.inverse_period=1", "diagnostics.every=1"],
        [
            "optimizer.inverse_delay=4",
            "optimizer.weight_decay={conv1: 0.1}",
            "optimizer.max_norm=2",
        ],
        ["data.input_scale=auto", "network.dense1.units=null"],
    ],
)
def test_the_parts_of_an_update_are_timed_apart(slow, overrides):
    config = small(*overrides)
    costs, _ = measure(config, data.load(config.data), sgd_batch_size=60)
    assert costs == COSTS._replace(batch_size=120, sgd_batch_size=60)


def test_a_part_takes_the_median_of_its_turns(slow, monkeypatch):
    """Another program may hold up a turn."""
    slowness, turn = [*12 * [100], *4 * [1], *4 * [7], *4 * [2], 1], periods._turn
    monkeypatch.setattr(periods, "TURNS", 3)
    monkeypatch.setattr(periods, "_turn", lambda *kind: slowness.pop(0) * turn(*kind))
    costs, _ = measure(small(), data.load(small().data), sgd_batch_size=60)
    assert costs == (120, 2 * COSTS.update, 2 * COSTS.statistics, 2 * COSTS.inverses, 60, 2.0)


def test_a_limit_of_the_weights_norms_is_timed_with_both_methods(slow, takes):
    takes(CpuOps, "max_norm", 0.25)  # of each of two layers
    costs, _ = measure(small("optimizer.max_norm=2"), data.load(small().data), sgd_batch_size=60)
    assert (costs.update, costs.sgd) == (COSTS.update + 0.5, COSTS.sgd + 0.5)


def test_every_timed_update_is_of_a_kind_that_came_twice_before(monkeypatch):
    """A GPU records an update when its kind comes for the second time."""
    kinds, earlier = [], []
    make, turn = CpuOps.captured, periods._turn

    def captured(ops, function, *owners):
        run = make(ops, function, *owners)
        if function.__name__ != "update":
            return run
        return lambda *kind: (kinds.append(kind), run(*kind))[1]

    def count(training, settings):
        before = list(kinds)
        seconds = turn(training, settings)
        earlier.append(min(before.count(kind) for kind in kinds[len(before) :]))
        return seconds

    monkeypatch.setattr(CpuOps, "captured", captured)
    monkeypatch.setattr(periods, "_turn", count)
    monkeypatch.setattr(periods, "TURNS", 1)
    measure(small(), data.load(small().data), sgd_batch_size=60)
    timed = earlier[-5:-1]  # the last one is for the phases
    assert min(timed) >= 2 > min(earlier[:-5])


def test_what_is_timed_is_the_step_of_a_run_which_draws_its_mini_batch_on_the_device(monkeypatch):
    """The host reads nothing of it before the turn's last update: on a GPU it would wait."""
    reads, read = [], KfcPre.read_sums
    monkeypatch.setattr(KfcPre, "read_sums", lambda kfc: (reads.append(kfc.steps), read(kfc))[1])
    monkeypatch.setattr(KfcPre, "step", None)
    monkeypatch.setattr(periods, "TURNS", 1)
    measure(small(), data.load(small().data), sgd_batch_size=60)
    assert reads == [periods.UPDATES * turn for turn in range(1, 14)]  # 3 * (3 + 1) and the phases


def test_phases_share_the_update(slow, takes):
    takes(KfcPre, "_natural_gradient", 2.0)
    takes(KfcPre, "_clip_scale", 1.0)
    costs, shares = measure(small(), data.load(small().data), sgd_batch_size=128)
    assert costs.update == 9 and shares["preconditioning"] == 2 * shares["clip"] > 0
    assert sum(shares.values()) == pytest.approx(1)
    assert {"statistics", "inverses"}.isdisjoint(shares)


def test_a_factor_that_cannot_be_inverted_meanwhile_ends_it_with_a_reason(monkeypatch):
    def fail(self):
        raise np.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(KfcPre, "_update_inverses", fail)
    with pytest.raises(TrainingFailed, match="not positive definite.*optimizer.damping"):
        measure(small(), data.load(small().data), sgd_batch_size=128)


def test_updates_that_diverge_while_they_are_timed_end_the_command_with_one_line(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(SMALL)
    wild = ["optimizer.learning_rate=1e30", "optimizer.clip=null"]
    timed = ["--pick-periods", "--print-config"]
    assert main(["train", "--config", str(tmp_path / "run.yaml"), *timed, "--set", *wild]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: while updates were timed they diverged: the loss of update ")
    assert line.endswith("A smaller optimizer.learning_rate or a larger optimizer.damping may help")


def test_the_sgds_batch_is_refused_by_its_own_option():
    few = data.load(small().data)
    few = dataclasses.replace(
        few, train_images=few.train_images[:125], train_labels=few.train_labels[:125]
    )
    message = "--sgd-batch-size: 128 is above the 125 training examples of digits: take a smaller"
    with pytest.raises(ConfigError, match=message):
        measure(small(), few, sgd_batch_size=128)


@pytest.fixture
def measured(monkeypatch):
    """Costs as if measured: a list to change."""
    found = [COSTS]
    monkeypatch.setattr(periods, "measure", lambda *_: (found[-1], {"clip": 0.25}))
    return found


def test_what_was_picked_and_from_what_is_said(measured, caplog):
    with caplog.at_level(logging.INFO):
        config = pick(small())
    assert (config.optimizer.statistics_period, config.optimizer.inverse_period) == (5, 5)
    lines = [line.split() for line in caplog.text.splitlines()]
    assert ["5", "5", "1.80", "picked"] in lines and ["1", "1", "3.00"] in lines
    assert ["clip", "1500.0"] in lines
    said = caplog.text.split("--set ")[1].split()
    assert small(*said) == config == periods.with_periods(small(), 5, 5)


def test_a_multiple_that_no_periods_reach_is_an_error_that_says_what_they_reach(measured):
    with pytest.raises(ConfigError, match=r"costs 1.53 times SGD's even.* less than 1.5 times"):
        pick(small(), limit=1.5)


def test_an_optimizer_without_periods_to_pick_is_refused():
    with pytest.raises(ConfigError, match="optimizer.name: sgd has no periods"):
        pick(small(text=SGD))


def test_a_run_that_goes_on_keeps_its_periods_whatever_the_clock_says(
    measured, tmp_path, no_figures
):

    def run(name, epochs, resume):
        config = small(f"epochs={epochs}", "evaluation.every=3")
        config = settle(config, tmp_path / name, resume, False, 2.25, 128)
        train(config, tmp_path / name, resume=resume)

    run("in one go", 1, False)
    run("in two", 0.5, False)
    recorded = load_config(tmp_path / "in two" / "config.yaml").optimizer
    assert (recorded.statistics_period, recorded.inverse_period) == (1, 5)
    measured.append(COSTS._replace(statistics=0.0, inverses=0.0))
    run("in two", 1, True)
    assert_same_run(tmp_path / "in two", tmp_path / "in one go")
    run("another", 1, True)  # there is nothing to go on with
    recorded = load_config(tmp_path / "another" / "config.yaml").optimizer
    assert (recorded.statistics_period, recorded.inverse_period) == (1, 1)


def test_nothing_is_timed_for_a_folder_that_may_not_be_used(monkeypatch, tmp_path):
    monkeypatch.setattr(periods, "measure", lambda *_: 1 / 0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not a run"):
        settle(small(), tmp_path, False, False, 2.0, 128)
