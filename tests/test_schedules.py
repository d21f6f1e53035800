"""Learning-rate schedules: their values, and that optimizers follow them and resume on them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from checks import assert_close
from networks import EVERY_LAYER, batches, optimizer
from runs import SGD, small

from kfcnet.config.schema import ConstantConfig, CosineConfig, StepConfig
from kfcnet.optimizers.schedules import factor
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.train import train


def test_a_constant_schedule_leaves_the_learning_rate_alone():
    assert {factor(ConstantConfig(), examples) for examples in (0, 1, 10**9)} == {1.0}


def test_a_step_schedule_multiplies_at_each_drop():
    schedule = StepConfig(at=(100, 300), factor=0.5)
    assert [factor(schedule, e) for e in (0, 99, 100, 299, 300, 10**6)] == [
        1,
        1,
        0.5,
        0.5,
        0.25,
        0.25,
    ]


def test_a_warm_up_rises_on_a_line_from_its_start_to_one():
    schedule = ConstantConfig(warm_up=200, warm_up_start=0.2)
    values = [factor(schedule, e) for e in (0, 50, 100, 150, 200, 201)]
    assert_close(values, [0.2, 0.4, 0.6, 0.8, 1, 1])


def test_a_cosine_falls_from_the_warm_up_to_its_end_and_stays_there():
    schedule = CosineConfig(examples=500, warm_up=100, final=0.1)
    values = [factor(schedule, e) for e in (100, 200, 300, 400, 500, 900)]
    half = math.sqrt(0.5)
    falls = [1, (1 + half) / 2, 0.5, (1 - half) / 2, 0, 0]
    assert_close(values, [0.1 + 0.9 * fall for fall in falls])
    falling = [factor(schedule, e) for e in range(100, 501)]
    assert (np.diff(falling) < 0).all()


def test_a_warm_up_multiplies_the_decay_it_precedes():
    schedule = StepConfig(at=(50,), factor=0.1, warm_up=100, warm_up_start=0.5)
    assert_close(factor(schedule, 50), 0.1 * 0.75)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "kfc_pre", "adagrad", "rmsprop", "adam"])
def test_every_update_has_the_rate_of_the_examples_before_it(ops64, rng, name):
    """One step at a scheduled rate is the step of an optimizer whose constant rate is that one."""
    schedule = SimpleNamespace(name="step", at=[8], factor=0.3, warm_up=4, warm_up_start=0.5)
    changes = (
        dict(layers=EVERY_LAYER[1:], nesterov=True)
        if name == "nesterov"
        else dict(layers=EVERY_LAYER[1:])
    )
    method = "sgd" if name == "nesterov" else name
    scheduled = optimizer(ops64, method, schedule=schedule, **changes)
    first, *data = batches(ops64, rng, 4)
    scheduled.prepare([first])
    state, moves = scheduled.state(), []
    for batch, share in zip(data, (0.5, 0.3, 0.3), strict=True):
        assert_close(scheduled.learning_rate, 0.1 * share)
        plain = optimizer(ops64, method, learning_rate=0.1 * share, **changes)
        plain.load_state(state)
        plain.step(batch)
        scheduled.step(batch)
        assert_close(scheduled.network.theta, plain.network.theta, 1e-12)
        assert_close(scheduled.average, plain.average, 1e-12)
        moves.append(np.abs(scheduled.network.theta - state["theta"]).max())
        state = scheduled.state()
    assert min(moves) > 0


def test_the_rate_is_recorded_and_a_resumed_run_goes_on_with_it(tmp_path, no_figures):
    settings = (
        "optimizer.schedule={name: cosine, warm_up: 300, warm_up_start: 0.1, examples: 1500}",
        "evaluation.every=2",
        "optimizer.max_norm=1.0",
        "optimizer.nesterov=true",
    )
    train(small(*settings, text=SGD), tmp_path / "straight")
    train(small(*settings, "epochs=0.5", text=SGD), tmp_path / "stopped")
    train(small(*settings, text=SGD), tmp_path / "stopped", resume=True)
    rows = read_metrics(tmp_path / "straight" / "metrics.csv")
    schedule = CosineConfig(warm_up=300, warm_up_start=0.1, examples=1500)
    assert_close(rows["learning_rate"], [0.05 * factor(schedule, e) for e in rows["examples"]])
    whole, halves = (
        read_metrics(tmp_path / name / "metrics.csv") for name in ("straight", "stopped")
    )
    common = np.isin(halves["iteration"], whole["iteration"])
    assert_close(halves["test_loss"][common], whole["test_loss"], 0)
    assert_close(halves["learning_rate"][common], whole["learning_rate"], 0)
