"""The training loop: what is measured and when, what failing leaves, who may use a folder."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from runs import SGD as SGD_TEXT
from runs import assert_same_run, small

import kfcnet
from kfcnet import data
from kfcnet.batches import BatchSequence
from kfcnet.config import ConfigError, load_config
from kfcnet.data import DataError
from kfcnet.figures import curves
from kfcnet.optimizers import SGD, KfcPre
from kfcnet.optimizers.kfac import KFAC
from kfcnet.runs import files, folder, locks
from kfcnet.runs.checkpoint import load_checkpoint
from kfcnet.runs.files import WriteError, read_json
from kfcnet.runs.folder import RunFolder, RunFolderError
from kfcnet.runs.metrics import COLUMNS, PHASES, read_metrics
from kfcnet.runs.schedule import EvaluationSchedule
from kfcnet.training import advice, clock, trainer
from kfcnet.training.build import captured_step
from kfcnet.training.errors import TrainingFailed, TrainingWarning
from kfcnet.training.evaluation import evaluate
from kfcnet.training.train import train
from kfcnet.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, its figure included."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    with out.with_name("lines.txt").open("w") as lines:
        train(small("epochs=3", "evaluation.train_examples=500"), out, rows=lines)
    return out


@pytest.fixture
def dataset():
    return data.load(small().data)


def in_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is measured


def test_a_process_without_streams_trains_and_shows_nothing(tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    train(small("device=auto"), tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.csv")["iteration"][-1] == 12


class Full(io.StringIO):
    """A stream to a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


class WithoutMethods:
    """What a program may put in place of a stream."""


@pytest.mark.parametrize("make", [Full, closed, WithoutMethods])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_cannot_be_written_to_does_not_end_a_run(make, name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, name, make())
    train(small("device=auto"), tmp_path / "run")
    assert read_json(tmp_path / "run" / "run.json")["outcome"]["state"] == "finished"


def test_a_run_ends_where_nobody_reads_it_any_more(tmp_path, monkeypatch):
    def unread(*_):
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=unread, flush=unread))
    with pytest.raises(BrokenPipeError):
        train(small(), tmp_path / "run")


def test_without_standard_error_its_notices_do_not_go_to_standard_output(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "stderr", None)
    train(small("device=auto"), tmp_path / "run")
    assert all(line.startswith("epoch ") for line in capsys.readouterr().out.splitlines())


def test_a_run_leaves_its_five_files_and_no_other(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "checkpoint.h5",
        "curves.png",
        "run.json",
    }


def test_a_row_is_written_at_the_start_the_end_and_every_so_many_updates(finished):
    metrics = read_metrics(finished / "metrics.csv")
    assert metrics["iteration"].tolist() == [0, 5, 10, 15, 20, 25, 30, 35, 36]
    assert list(metrics) == list(COLUMNS)
    np.testing.assert_array_equal(metrics["examples"], 120 * metrics["iteration"])
    np.testing.assert_allclose(metrics["epoch"], metrics["examples"] / 1437)
    assert np.isnan(metrics["nu"][0])  # there is no update yet
    metrics["nu"] = metrics["nu"][1:]
    assert all(np.isfinite(column).all() for column in metrics.values())


def test_the_first_row_is_measured_before_any_update(finished, dataset):
    metrics = read_metrics(finished / "metrics.csv")
    untrained = Trainer(small(), RunFolder("unused"), dataset)
    loss, error = evaluate(untrained.network, untrained.loss, untrained.test_set)
    assert (metrics["test_loss"][0], metrics["test_error"][0]) == (loss, error)
    for name in ("seconds", "update_norm", "clipped"):
        assert metrics[name][0] == 0


def test_training_lowers_loss_and_error(finished):
    metrics = read_metrics(finished / "metrics.csv")
    assert metrics["train_loss"][-1] < 0.5 * metrics["train_loss"][0]
    assert metrics["test_error"][-1] < 0.3 < 0.8 < metrics["test_error"][0]


def test_rows_are_measured_with_the_averaged_parameters_and_raw_errors_with_the_latest(
    finished, dataset
):
    metrics = read_metrics(finished / "metrics.csv")
    state = load_checkpoint(finished / "checkpoint.h5")["optimizer"]
    other = Trainer(small("evaluation.train_examples=500"), RunFolder("unused"), dataset)
    measured = {}
    for name in ("average", "theta"):
        with other.network.using(other.ops.asarray(state[name])):
            measured[name] = [
                evaluate(other.network, other.loss, part, indices)
                for part, indices in ((other.train_set, other.measured), (other.test_set, None))
            ]
    (train_loss, train_error), (test_loss, test_error) = measured["average"]
    last = {name: values[-1] for name, values in metrics.items()}
    assert (last["train_loss"], last["train_error"]) == (train_loss, train_error)
    assert (last["test_loss"], last["test_error"]) == (test_loss, test_error)
    raw = [error for _, error in measured["theta"]]
    assert [last["raw_train_error"], last["raw_test_error"]] == raw
    assert abs(measured["theta"][1][0] - test_loss) > 1e-3 and raw != [train_error, test_error]


def test_the_line_of_a_row_shows_what_was_measured_with_the_averaged_parameters(finished):
    metrics = read_metrics(finished / "metrics.csv")
    *_, line = lines = finished.with_name("lines.txt").read_text().splitlines()
    last = {name: values[-1] for name, values in metrics.items()}
    assert len(lines) == len(metrics["iteration"])
    assert line == (
        f"epoch 3.01, update 36, {last['seconds']:.1f} s; averaged parameters: "
        f"training loss {last['train_loss']:.4f}, error {last['train_error']:.2%}; "
        f"test loss {last['test_loss']:.4f}, error {last['test_error']:.2%}"
    )


def test_the_objective_is_the_loss_and_the_penalty_of_the_weights(finished):
    metrics = read_metrics(finished / "metrics.csv")
    average = load_checkpoint(finished / "checkpoint.h5")["optimizer"]["average"]
    conv, dense = average[: 3 * 10].reshape(3, 10), average[3 * 10 :].reshape(10, -1)
    squares = (conv[:, 1:].astype(float) ** 2).sum() + (dense[:, 1:].astype(float) ** 2).sum()
    expected = metrics["train_loss"][-1] + 0.001 / 2 * squares
    assert abs(metrics["train_objective"][-1] / expected - 1) < 1e-6 and squares > 0.1


def test_raw_errors_of_a_network_with_batch_statistics_are_measured_with_its_own(tmp_path, dataset):
    train(small(text=SGD_TEXT), tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.h5")["optimizer"]
    other = Trainer(small(text=SGD_TEXT), RunFolder("unused"), dataset)
    other.network.theta[...] = state["theta"]
    other.network.measure_statistics(other.train_set.batch(other.shuffled[:1024]).inputs)
    raw = read_metrics(tmp_path / "metrics.csv")["raw_test_error"][-1]
    assert raw == evaluate(other.network, other.loss, other.test_set)[1]


def test_the_training_loss_is_that_of_a_fixed_part_on_the_cpu(dataset):
    parts = [
        Trainer(
            small(f"seed={seed}", "evaluation.train_examples=500"), RunFolder("unused"), dataset
        ).measured
        for seed in (0, 1)
    ]
    assert len(set(parts[0].tolist())) == 500
    assert 0.3 < (parts[0] < 1437 / 2).mean() < 0.7  # all over data that may be sorted
    assert parts[0].tolist() == parts[1].tolist()
    whole = Trainer(small(), RunFolder("unused"), dataset)
    assert whole.measured.tolist() == list(range(1437))


def test_evaluation_in_parts_is_the_mean_over_all(dataset, monkeypatch):
    one = Trainer(small("dtype=float64"), RunFolder("unused"), dataset)
    losses = []
    for size in (256, 359, 7):
        monkeypatch.setattr("kfcnet.batches.EVALUATED", size)
        losses.append(evaluate(one.network, one.loss, one.test_set))
    np.testing.assert_allclose(losses[1:], losses[:-1], rtol=1e-12)


def test_evaluation_of_some_examples_is_the_mean_over_these(dataset):
    one, some = Trainer(small("dtype=float64"), RunFolder("unused"), dataset), np.array([9, 2, 700])
    batch = one.train_set.batch(some)
    p = one.loss.predictive(one.network.forward(batch.inputs))
    expected = -np.log(p[np.arange(3), batch.targets]).mean(), (p.argmax(1) != batch.targets).mean()
    got = evaluate(one.network, one.loss, one.train_set, some)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_clipped_is_the_share_of_clipped_steps_since_the_row_before(tmp_path, monkeypatch):
    advance, scales = KfcPre.advance, []

    def watched(self, *arguments):
        result = advance(self, *arguments)
        scales.append(float(result.clip_scale[0]))
        return result

    monkeypatch.setattr(KfcPre, "advance", watched)
    train(small("evaluation.every=6"), tmp_path / "run")
    clipped = np.array(scales[1:]) < 1  # the first step is the warm-up's
    assert 0 < clipped.sum() < 12
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    assert metrics["clipped"].tolist() == [0, clipped[:6].mean(), clipped[6:].mean()]


def test_nu_is_the_mean_over_the_steps_since_the_row_before(tmp_path, monkeypatch):
    clip_scale, nus = KfcPre._clip_scale, []

    def watched(self, predictive):
        scale, nu = clip_scale(self, predictive)
        nus.append(float(nu[0]))
        return scale, nu

    monkeypatch.setattr(KfcPre, "_clip_scale", watched)
    train(small("evaluation.every=6", "dtype=float64"), tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    expected = [np.nan, *np.reshape(nus[1:], (2, 6)).mean(axis=1)]  # the first is the warm-up's
    np.testing.assert_allclose(metrics["nu"], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        "{name: kfc_pre, learning_rate: 0.01, clip: 0.0003}",
        "{name: kfac}",
        "{name: hessian_free}",
        "{name: sgd, learning_rate: 0.01}",
        "{name: sgd, learning_rate: 0.01, nesterov: true}",
        "{name: adagrad, learning_rate: 0.01}",
        "{name: rmsprop, learning_rate: 0.01}",
        "{name: adam, learning_rate: 0.01}",
    ],
)
def test_the_norm_of_the_latest_move_is_recorded_or_nothing(tmp_path, monkeypatch, optimizer):
    thetas, step = [], Trainer._step

    def watched(self):
        thetas.append(self.network.theta.copy())
        step(self)
        thetas.append(self.network.theta.copy())

    monkeypatch.setattr(Trainer, "_step", watched)
    train(
        small(f"optimizer={optimizer}", "optimizer.batch_size=120", "dtype=float64"),
        tmp_path / "run",
    )
    move = np.linalg.norm(thetas[-1] - thetas[-2])
    recorded = read_metrics(tmp_path / "run" / "metrics.csv")["update_norm"][-1]
    assert move > 0
    if any(word in optimizer for word in ("nesterov", "adagrad", "rmsprop", "adam")):
        assert np.isnan(recorded)
    else:
        np.testing.assert_allclose(recorded, move, rtol=1e-9)


def test_the_learning_rate_is_recorded(finished):
    metrics = read_metrics(finished / "metrics.csv")
    assert (metrics["learning_rate"] == 0.01).all()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(small(f"seed={seed}", "dtype=float32"), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "a", tmp_path / "c")


# Time


def test_seconds_are_those_of_the_steps_and_of_nothing_else(tmp_path, takes):
    takes(KfcPre, "advance", 1)
    for owner, name in (
        (trainer, "evaluate"),
        (folder, "save_checkpoint"),
        (Trainer, "_warm_up"),
        (trainer, "build_for"),
        (RunFolder, "append"),
    ):
        takes(owner, name, 1000)
    train(small("checkpoint_minutes=1e-9"), tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    assert metrics["seconds"].tolist() == metrics["iteration"].tolist() == [0, 5, 10, 12]


def test_the_step_before_the_clock_does_all_that_a_later_step_does(tmp_path, monkeypatch):
    done, warm_up = [], Trainer._warm_up

    def noted(trainer):
        with monkeypatch.context() as within:
            for name in ("_update_statistics", "_invert"):
                real = getattr(KfcPre, name)
                act = lambda *given, name=name, real=real: (done.append(name), real(*given))  # noqa: E731
                within.setattr(KfcPre, name, act)
            warm_up(trainer)

    monkeypatch.setattr(Trainer, "_warm_up", noted)
    train(small("optimizer.statistics_period=3", "optimizer.inverse_period=4"), tmp_path / "run")
    assert done == ["_update_statistics", "_invert"]


def test_the_preparation_of_the_factors_counts_as_statistics(tmp_path, takes):
    takes(KfcPre, "_sample_factors", 10)
    takes(KfcPre, "_update_inverses", 1)
    train(small("evaluation.every=1"), tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    assert metrics["seconds_statistics"][:5].tolist() == [0, 30, 40, 40, 50]  # 300 examples first
    assert metrics["seconds_inverses"][:5].tolist() == [0, 1, 1, 1, 2]
    assert metrics["seconds"][:5].tolist() == [0, 31, 41, 41, 52]


def test_phases_are_parts_of_the_seconds(finished):
    metrics = read_metrics(finished / "metrics.csv")
    phases = sum(metrics[f"seconds_{phase}"] for phase in PHASES)
    assert (phases <= metrics["seconds"]).all() and phases[-1] > 0.5 * metrics["seconds"][-1]
    assert all(metrics[f"seconds_{phase}"][-1] > 0 for phase in PHASES)


# Evaluation schedule and readings


@pytest.mark.parametrize(
    "overrides, steps, due",
    [
        (["epochs=1", "evaluation={every: 5, unit: updates}"], 12, [0, 5, 10, 12]),
        (["epochs=1", "evaluation={every: 0.5, unit: epochs}"], 12, [0, 6, 12]),
        (["epochs=2", "evaluation={every: 0.75, unit: epochs}"], 24, [0, 9, 18, 24]),
        (["epochs=0.3", "evaluation={every: 1, unit: epochs}"], 4, [0, 4]),
        (["epochs=0.5", "evaluation={every: 0.01, unit: epochs}"], 6, list(range(7))),
    ],
)
def test_the_schedule_in_updates(overrides, steps, due):
    schedule = EvaluationSchedule(small(*overrides), 1437)
    assert schedule.steps == steps
    assert [step for step in range(steps + 1) if schedule.due(step)] == due


@pytest.mark.parametrize("every", [1.1, 0.07, 0.55])
def test_periods_that_are_whole_updates_are_not_one_late(every):
    config = small(
        "epochs=4", "optimizer.batch_size=50", f"evaluation={{every: {every}, unit: epochs}}"
    )
    schedule = EvaluationSchedule(config, 5000)  # 100 updates an epoch
    whole = round(100 * every)
    due = [step for step in range(400) if schedule.due(step)]
    assert due == list(range(0, 400, whole))
    assert schedule.left(0) == len(due)


def test_a_whole_number_of_epochs_needs_no_update_more():
    config = small("epochs=3", "optimizer.batch_size=479")
    assert EvaluationSchedule(config, 1437).steps == 9


def test_reading_rarely_changes_nothing(tmp_path, monkeypatch):
    train(small(), tmp_path / "always")
    monkeypatch.setitem(clock.STEPS_BETWEEN_READS, "cpu", 7)
    train(small(), tmp_path / "rarely")
    assert_same_run(tmp_path / "rarely", tmp_path / "always")


# Failing


def poison(monkeypatch, step, layer):
    """From update `step` on a weight of a layer is not a number."""
    original = SGD.advance

    def poisoned(self, *arguments):
        result = original(self, *arguments)
        if self.steps == step:
            self.network.weighted[layer].weight[0, 1] = np.nan
        return result

    monkeypatch.setattr(SGD, "advance", poisoned)


@pytest.mark.parametrize("reads, updates", [(1, 7), (4, 7), (50, 12)])
@pytest.mark.parametrize("layer, name", [(0, "conv1"), (1, "dense1")])
def test_a_loss_that_is_not_finite_ends_the_run_naming_step_layer_and_checkpoint(
    layer, name, reads, updates, tmp_path, monkeypatch
):
    monkeypatch.setitem(clock.STEPS_BETWEEN_READS, "cpu", reads)
    poison(monkeypatch, 6, layer)
    config = small("checkpoint_minutes=1000", "evaluation.every=1000", text=SGD_TEXT)
    monkeypatch.setattr(Trainer, "_is_time_to_save", lambda self: self.optimizer.steps == 3)
    with pytest.raises(
        TrainingFailed,
        match=(
            f"after update 6 the loss is not finite.*first in layer {name}; the last good "
            "checkpoint is .*checkpoint.h5, of update 3.*learning_rate"
        ),
    ) as caught:
        train(config, tmp_path / "run")
    assert caught.value.exit_status == 1
    assert load_checkpoint(tmp_path / "run" / "checkpoint.h5")["optimizer"]["steps"] == 3
    outcome = read_json(tmp_path / "run" / "run.json")["outcome"]
    assert outcome["state"] == "failed" and name in outcome["reason"]
    assert outcome["iteration"] == updates
    assert str(tmp_path) not in (tmp_path / "run" / "run.json").read_text()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_the_layer_is_that_of_the_mini_batch_whose_loss_is_not_finite(tmp_path, dataset):
    images = dataset.train_images.astype(np.float32)
    images[BatchSequence(len(images), 120, 0).indices(6)[0], 2, 3] = np.inf
    config = small(
        "optimizer={name: sgd, learning_rate: 0.01, batch_size: 120}",
        "evaluation={every: 1000, unit: updates, train_examples: 10}",
    )
    with pytest.raises(TrainingFailed, match="after update 6 the loss .* first in layer conv1"):
        train(config, tmp_path, dataset=dataclasses.replace(dataset, train_images=images))


def test_a_run_that_goes_on_and_fails_names_the_checkpoint_that_it_went_on_from(
    tmp_path, monkeypatch
):
    settings = "checkpoint_minutes=1000", "evaluation.every=1000"
    train(small("epochs=0.5", *settings, text=SGD_TEXT), tmp_path)
    poison(monkeypatch, 8, 0)
    with pytest.raises(TrainingFailed, match="after update 8 .*checkpoint.h5, of update 6[.]"):
        train(small(*settings, text=SGD_TEXT), tmp_path, resume=True)


def test_failing_before_the_first_checkpoint_says_that_there_is_none(tmp_path, monkeypatch):
    poison(monkeypatch, 2, 0)
    with pytest.raises(TrainingFailed, match="after update 2.*there is no checkpoint yet"):
        train(small(text=SGD_TEXT), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.h5").exists()


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    poison(monkeypatch, 5, 1)
    monkeypatch.setattr(Trainer, "_is_time_to_save", lambda self: self.optimizer.steps in (4, 5))
    config = small("evaluation.every=1000", text=SGD_TEXT)
    with pytest.raises(TrainingFailed, match="after update 5 the parameters.*dense1"):
        train(config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.h5")["optimizer"]["steps"] == 4


@pytest.mark.parametrize("is_evaluated", [False, True])
def test_an_average_that_is_not_finite_is_neither_saved_nor_evaluated(
    is_evaluated, tmp_path, monkeypatch
):
    original = SGD.advance

    def spoiled(self, *arguments):
        result = original(self, *arguments)
        if self.steps == 5:
            self.average[-1] = np.nan  # a bias of dense1; the latest parameters stay as they are
        return result

    monkeypatch.setattr(SGD, "advance", spoiled)
    saved_at = (4,) if is_evaluated else (4, 5)
    monkeypatch.setattr(Trainer, "_is_time_to_save", lambda self: self.optimizer.steps in saved_at)
    config = small(f"evaluation.every={5 if is_evaluated else 1000}", text=SGD_TEXT)
    what = "the loss of the averaged parameters is" if is_evaluated else "the parameters are"
    where = "; non-finite numbers appear first in layer dense1" if is_evaluated else ""
    with pytest.raises(TrainingFailed, match=f"after update 5 {what} not finite{where}; the last"):
        train(config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.h5")["optimizer"]["steps"] == 4
    assert 5 not in read_metrics(tmp_path / "run" / "metrics.csv")["iteration"]


@pytest.mark.parametrize("method", ["prepare", "advance"])
def test_a_factor_that_cannot_be_inverted_ends_the_run_with_a_way_out(
    method, tmp_path, monkeypatch
):
    def fail(*_):
        raise np.linalg.LinAlgError("dense1: Gamma is not positive definite")

    monkeypatch.setattr(KfcPre, method, fail)
    with pytest.raises(TrainingFailed, match=r"update 0 .*\(dense1: Gamma .*optimizer.damping may"):
        train(small(), tmp_path / "run")


def test_a_model_of_kfac_that_is_not_finite_ends_the_run_and_no_factor_is_blamed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(KFAC, "_model", lambda self, *_: (np.full((2, 2), np.nan), np.zeros(2)))
    config = small("optimizer={name: kfac, batch_size: 120, initial_examples: 120}")
    with pytest.raises(TrainingFailed, match="^after update 0 the quadratic model of the step is"):
        train(config, tmp_path / "run")


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_a_learning_rate_far_too_large_is_reported_as_such(tmp_path):
    config = small("optimizer={name: sgd, learning_rate: 1e30, batch_size: 120}")
    with pytest.raises(TrainingFailed, match="non-finite numbers"):
        train(config, tmp_path / "run")


def test_drawing_counts_as_gradient_where_it_is_no_part_of_a_graph():
    within = []

    class FindsItsRate:
        step_counter = 7

        @contextlib.contextmanager
        def phase(self, name):
            within.append(name)
            yield
            within.remove(name)

        def step(self, batch):
            return batch, list(within)

    step = captured_step(FindsItsRate(), lambda counter: (counter, list(within)), 3)
    assert step() == ((7, ["gradient"]), [])


def test_a_run_that_ends_above_its_first_loss_says_so(tmp_path):
    with pytest.warns(TrainingWarning, match="loss is .* at the start. A smaller .*learning_rate"):
        train(small("optimizer.learning_rate=30", "optimizer.clip=null"), tmp_path / "run")


@pytest.mark.parametrize("loss, chance", [("cross_entropy", 0.4), ("squared_error", 0.495)])
def test_the_error_of_chance_is_that_on_the_measured_examples(loss, chance):
    labels = np.array([2, 2, 2, 2, 0, 0, 0, 1, 2])  # measured: three of five are of class 0
    images = np.zeros((9, 1, 1, 1), np.uint8)
    dataset = SimpleNamespace(train_labels=labels, train_images=images, mean=images[0])
    config = SimpleNamespace(loss=loss, data=SimpleNamespace(input_scale=1.0))
    measured = np.array([4, 5, 6, 7, 8])
    found = advice.error_of_chance(config, {"train_error": [0.5, 0.2]}, dataset, measured)
    assert found == pytest.approx(chance)


def test_an_autoencoder_is_compared_with_always_the_mean_image():
    images = np.array([10, 30], np.uint8).reshape(2, 1, 1, 1)  # 10 from their mean
    dataset = SimpleNamespace(train_images=images, mean=np.full((1, 1, 1), 20.0))
    config = SimpleNamespace(loss="squared_error", data=SimpleNamespace(input_scale=20.0))
    found = advice.error_of_chance(config, {"train_error": [3.0, 0.5]}, dataset, None)
    assert found == pytest.approx(0.99 * 0.25)


def test_chance_is_that_on_the_measured_examples(tmp_path, monkeypatch):
    judged = []

    def chance(config, metrics, dataset, measured):
        judged.append(len(measured))
        return 1e-9

    monkeypatch.setattr(advice, "error_of_chance", chance)
    with pytest.warns(TrainingWarning, match="at the end"):
        averaged = "optimizer.averaging_timescale=100"
        train(small("evaluation.train_examples=50", averaged), tmp_path / "run")
    assert judged == [50]


def test_a_checkpoint_is_due_so_many_minutes_after_the_latest_one(tmp_path, monkeypatch):
    """By a clock that goes on by 40 seconds an update: at every second one, of twelve."""
    saved, save = [], RunFolder.save
    made, begin = [], Trainer.__init__

    def noting(folder, checkpoint):
        saved.append(checkpoint["optimizer"]["steps"])
        save(folder, checkpoint)

    def beginning(self, *arguments, **settings):
        made.append(self)
        begin(self, *arguments, **settings)

    def seconds():
        return 40.0 * getattr(getattr(made[0], "optimizer", None), "steps", 0)

    monkeypatch.setattr(RunFolder, "save", noting)
    monkeypatch.setattr(Trainer, "__init__", beginning)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=seconds))
    train(small("checkpoint_minutes=1", text=SGD_TEXT), tmp_path / "run")
    assert saved == [2, 4, 6, 8, 10, 12]


def test_a_run_that_ends_at_chance_says_so(tmp_path, monkeypatch):
    losses = iter(np.linspace(2.4, 2.3, 100))
    monkeypatch.setattr(trainer, "evaluate", lambda *_: (next(losses), 0.9))
    said = (
        "error is 90.00% at the end, no better than always naming the most frequent class. More "
        "epochs or another optimizer.learning_rate or another optimizer.damping may help"
    )
    with pytest.warns(TrainingWarning, match=said):
        train(small(), tmp_path / "run")


def test_an_average_of_mostly_initial_parameters_says_so(tmp_path):
    said = (
        r"error is 8\d\.\d\d% at the end, that of the latest parameters [123]\d\.\d\d%: 75% of "
        "their average are initial ones. More epochs or a smaller optimizer.averaging_timescale may"
    )
    settings = "optimizer.learning_rate=0.1", "optimizer.averaging_timescale=5000"
    with pytest.warns(TrainingWarning, match=said):
        train(small(*settings), tmp_path / "run")


def test_a_run_that_learns_has_nothing_to_say(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(small("optimizer.learning_rate=0.1", "epochs=2"), tmp_path / "run")


def test_a_batch_above_the_training_set_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="optimizer.batch_size: 1,438 is above the 1,437 train"):
        train(small("optimizer.batch_size=1438"), tmp_path / "run")


def test_a_full_disk_at_a_checkpoint_is_an_error_naming_the_file(tmp_path, monkeypatch):
    fsync, room = os.fsync, iter([True] * 12 + [False])

    def full(descriptor):
        if not next(room):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(WriteError, match=r"cannot write .*: No space left on device.*--resume"):
        train(small("checkpoint_minutes=1e-9"), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(curves, "plot_runs", lambda _, out: out.write_text("a figure"))
    assert load_checkpoint(tmp_path / "run" / "checkpoint.h5")["optimizer"]["steps"] > 0
    train(small("checkpoint_minutes=1e-9"), tmp_path / "run", resume=True)
    train(small("checkpoint_minutes=1e-9"), tmp_path / "other")
    assert_same_run(tmp_path / "run", tmp_path / "other")


# The folder


def test_an_existing_run_is_refused_and_stays_as_it_is(finished):
    before = in_folder(finished)
    with pytest.raises(RunFolderError, match="holds a run already.*--resume.*--overwrite"):
        train(small("seed=1"), finished)
    assert in_folder(finished) == before


def test_overwriting_replaces_every_file(finished, tmp_path):
    run = tmp_path / "run"
    train(small(), run)
    train(small("seed=1", text=SGD_TEXT), run, overwrite=True)
    train(small("seed=1", text=SGD_TEXT), tmp_path / "fresh")
    assert_same_run(run, tmp_path / "fresh")
    assert (run / "config.yaml").read_bytes() == (tmp_path / "fresh/config.yaml").read_bytes()


@pytest.mark.parametrize(
    "override, error",
    [
        ("network=[{layer: dense, units: 9}]", "10 classes"),
        ("network=[{layer: conv, filters: 2, kernel: 40}, {layer: dense, units: 10}]", "network.0"),
    ],
)
def test_an_impossible_network_never_costs_the_run_that_is_there(override, error, tmp_path):
    train(small(), tmp_path / "run")
    before = in_folder(tmp_path / "run")
    with pytest.raises(ConfigError, match=error):
        train(small(override), tmp_path / "run", overwrite=True)
    assert in_folder(tmp_path / "run") == before
    with pytest.raises(ConfigError):
        train(small(override), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError):
        train(small(override), tmp_path / "empty")
    assert (tmp_path / "empty").exists()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_of_other_files_is_never_used(options, tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(RunFolderError, match="holds files that are not a run's"):
        train(small(), tmp_path, **options)
    assert in_folder(tmp_path) == {"thesis.tex": b"ten years of work"}


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="run is a file"):
        train(small(), tmp_path / "run")
    with pytest.raises(RunFolderError, match="cannot make the folder .*below: Not a .*--out"):
        train(small(), tmp_path / "run" / "below")


def test_an_empty_folder_stays_if_it_was_there_and_goes_if_it_was_made(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with RunFolder(tmp_path / name):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_was_refused_is_not_kept_from_others(tmp_path):
    (tmp_path / "run.json").touch()
    refused = RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match="holds a run already"):
        refused.__enter__()
    with RunFolder(tmp_path, resume=True):
        pass


def test_who_waits_for_a_folder_in_use_asks_for_its_lock_again_until_it_is_free(
    tmp_path, monkeypatch, caplog
):
    fcntl, asked = pytest.importorskip("fcntl"), []

    def in_use(_, operation):
        asked.append(operation)
        if operation & fcntl.LOCK_NB:
            raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", in_use)
    caplog.set_level("INFO", "kfcnet")
    with locks.locked(tmp_path, wait=True) as is_locked:
        assert is_locked
    assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert f"waiting for another process that uses {tmp_path}" in caplog.text


def test_two_processes_cannot_use_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    with RunFolder(tmp_path / "run"), pytest.raises(RunFolderError, match="in use by another"):
        train(small(), tmp_path / "run", resume=True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_told_once_and_trained_on(
    number, tmp_path, monkeypatch, caplog
):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    locks._say_unlocked.cache_clear()
    for name in ("run", "another"):
        train(small("epochs=0.4"), tmp_path / name)
        assert (tmp_path / name / "checkpoint.h5").exists()
    assert caplog.text.count(f"has no locks ({os.strerror(number)})") == 1


@pytest.mark.parametrize("kind", [stat.S_ISDIR, stat.S_ISREG])
def test_a_file_system_that_cannot_flush_is_told_once_and_trained_on(
    kind, tmp_path, monkeypatch, caplog
):
    fsync = os.fsync

    def refuse(descriptor):
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", refuse)
    files._say_unsynced.cache_clear()
    train(small("epochs=0.4"), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.h5").exists()
    assert caplog.text.count("cannot flush") == 1


# The records


def test_the_config_of_a_run_is_complete_and_gives_the_same_run(tmp_path):
    train(small("epochs=0.4"), tmp_path / "first")
    train(load_config(tmp_path / "first" / "config.yaml"), tmp_path / "second")
    assert_same_run(tmp_path / "second", tmp_path / "first")


def test_run_json_says_where_the_numbers_come_from(finished, dataset, monkeypatch):
    record = read_json(finished / "run.json")
    assert record["seed"] == 0 and record["data"] == dataset.provenance
    assert record["device"]["device"] == "cpu" and record["device"]["shards"] == 2
    assert record["versions"]["numpy"] == np.__version__
    assert record["train_measured_on"].startswith("500 of 1,437 training images")
    assert record["phases_measured"] == "by the clock of the host"
    assert record["outcome"] == {"state": "finished", "iteration": 36}
    assert record["command"] and "commit" in record


def test_no_record_holds_an_absolute_path(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr("sys.argv", ["/abs/train.py", "--out", str(tmp_path / "run")])
    monkeypatch.setattr(data, "load", lambda *_, **__: dataset)
    train(small(f"data.path={tmp_path}"), tmp_path / "run")
    for name in ("config.yaml", "run.json", "metrics.csv"):
        assert str(tmp_path.parent) not in (tmp_path / "run" / name).read_text()
    assert json.loads((tmp_path / "run/run.json").read_text())["command"] == [
        "train.py",
        "--out",
        "run",
    ]


# Reading a run back


def test_a_trained_network_predicts_as_it_was_measured(finished, dataset):
    run = kfcnet.load_run(finished)
    wrong = (run.predict(dataset.test_images) != dataset.test_labels).mean()
    assert wrong == read_metrics(finished / "metrics.csv")["test_error"][-1]
    probabilities = run.probabilities(dataset.test_images[:7])
    assert probabilities.shape == (7, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_batch_statistics_come_back_with_the_network(tmp_path, dataset):
    train(small(text=SGD_TEXT), tmp_path / "run")
    run, metrics = kfcnet.load_run(tmp_path / "run"), read_metrics(tmp_path / "run/metrics.csv")
    measured = run.evaluate(dataset.test_images, dataset.test_labels)
    assert measured == (metrics["test_loss"][-1], metrics["test_error"][-1])


def test_other_data_than_those_of_the_run_are_an_error_with_both_checksums(finished, dataset):
    run = kfcnet.load_run(finished)
    run.check_data(dataset)
    dataset.provenance["sha256"] = "0" * 64
    with pytest.raises(DataError, match="here 000000000000.*--data"):
        run.check_data(dataset)


def test_images_of_another_shape_or_kind_are_errors_naming_both(finished, dataset):
    run = kfcnet.load_run(finished)
    with pytest.raises(ValueError, match=r"\(3, 9, 9, 1\).*\(M, 8, 8, 1\)"):
        run.predict(np.zeros((3, 9, 9, 1), np.uint8))
    for refuse in (run.predict, lambda images: run.evaluate(images, dataset.test_labels)):
        with pytest.raises(ValueError, match="float64 given.*uint8"):
            refuse(dataset.test_images / 16)


@pytest.mark.parametrize("wrong", [-1, 10, 2.5, np.nan])
def test_labels_that_are_no_classes_are_errors_naming_the_first(finished, dataset, wrong):
    run, labels = kfcnet.load_run(finished), dataset.test_labels.astype(float)
    assert run.evaluate(dataset.test_images, labels) == run.evaluate(
        dataset.test_images, dataset.test_labels
    )
    labels[7:] = wrong
    with pytest.raises(ValueError, match=f"the label of image 7 is {float(wrong)}, not one of 0"):
        run.evaluate(dataset.test_images, labels)
    with pytest.raises(ValueError, match=r"labels of shape \(3,\) given for 360 images"):
        run.evaluate(dataset.test_images, labels[:3])


def test_no_images_get_no_predictions(finished):
    run, images = kfcnet.load_run(finished), np.zeros((0, 8, 8, 1), np.uint8)
    assert run.predict(images).shape == (0,) and run.probabilities(images).shape == (0, 10)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, kfcnet; assert not {'numpy', 'matplotlib', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    assert kfcnet.train is train and "load_run" in dir(kfcnet)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        kfcnet.fitt  # noqa: B018
