"""The progress bar: what time is left, and that nothing is said before it means something."""

import re

import numpy as np
import pytest
from checks import assert_close
from runs import SGD, small

from kfcnet.runs.metrics import read_metrics
from kfcnet.runs.schedule import EvaluationSchedule
from kfcnet.training.progress_bar import UPDATES_OF_AN_ESTIMATE, ProgressBar
from kfcnet.training.train import train
from kfcnet.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def shown(monkeypatch):
    """[(updates, time left, seconds an update)] that the bars have shown, all updates of them."""
    shown, update = [], ProgressBar.update

    def seen(bar, steps):
        update(bar, steps)
        values = bar.format_dict
        shown.append((bar.n, values["left"], 1 / values["rate"]))

    monkeypatch.setattr(ProgressBar, "update", seen)
    return shown


@pytest.fixture
def slow(takes):
    """An update takes a second, an evaluation 200, the first estimate of the factors 5,000."""
    takes(Trainer, "_step", 1.0)
    takes(Trainer, "_evaluate", 200.0)
    takes(Trainer, "_prepare", 5000.0)
    takes(Trainer, "_warm_up", 3000.0)


def test_the_time_left_is_that_of_the_updates_and_evaluations_to_come(tmp_path, shown, slow):
    train(small("epochs=3"), tmp_path / "run")
    assert [seconds for _, _, seconds in shown] == pytest.approx([1.0] * 36)
    left = {n: left for n, left, _ in shown}
    assert {left[n] for n in range(1, UPDATES_OF_AN_ESTIMATE)} == {"?"}
    # After 13 updates 23 are to come, and evaluations after 15, 20, 25, 30, 35 and 36.
    assert left[10] == "20:26" and left[13] == "20:23" and left[36] == "00:00"


def test_a_run_that_goes_on_gives_no_estimate_before_its_first_evaluation(tmp_path, shown, slow):
    out = tmp_path / "run"
    train(small("epochs=1", "evaluation.every=24"), out)
    shown.clear()
    train(small("epochs=3", "evaluation.every=24"), out, resume=True)
    assert [seconds for _, _, seconds in shown] == pytest.approx([1.0] * 24)
    left = {n: left for n, left, _ in shown}
    assert {left[n] for n in range(13, 25)} == {"?"} and left[25] == "03:31"


def test_the_bar_shows_means_over_the_examples_of_the_latest_mini_batches(tmp_path, monkeypatch):
    """With steps of no length they are those of the first row, which is of all images."""
    said = []
    monkeypatch.setattr(ProgressBar, "set_postfix_str", lambda _, text, **__: said.append(text))
    rate = "optimizer.learning_rate=1e-30"
    config = small(rate, "evaluation.train_examples=1437", "evaluation.every=6", text=SGD)
    train(config, tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    number = re.compile(r"epoch (.*); mini-batches: loss (.*), error (.*)%")
    epochs, losses, errors = zip(
        *(map(float, number.match(text).groups()) for text in said), strict=True
    )
    assert epochs[-1] == round(metrics["epoch"][-1], 2)
    assert_close(np.mean(losses), metrics["train_loss"][0], 0.03)
    assert_close(np.mean(errors) / 100, metrics["train_error"][0], 0.03)


@pytest.mark.parametrize("evaluation", [
    "{every: 1, unit: updates}", "{every: 5, unit: updates}", "{every: 0.2, unit: epochs}",
    "{every: 0.07, unit: epochs}", "{every: 5e-324, unit: epochs}",
    "{every: 1.7e308, unit: epochs}",
])  # fmt: skip
def test_the_evaluations_left_are_those_that_are_due(evaluation):
    schedule = EvaluationSchedule(small(f"evaluation={evaluation}"), 1437)
    for step in range(schedule.steps + 1):
        due = [schedule.due(later) for later in range(step + 1, schedule.steps + 1)]
        assert schedule.left(step) == sum(due)
