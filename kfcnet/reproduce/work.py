"""Doing what is pending: run after run, each told of before it begins."""

import sys
import time
import traceback

from kfcnet import data
from kfcnet.config import ConfigError
from kfcnet.ops.errors import DeviceError
from kfcnet.reproduce.progress import progress_of
from kfcnet.runs.checkpoint import CheckpointError
from kfcnet.runs.files import RecordError, WriteError
from kfcnet.runs.folder import RunFolderError
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.trainer import TrainingFailed, TrainingInterrupted, train

FORESEEN = (CheckpointError, ConfigError, data.DataError, DeviceError, RecordError, RunFolderError)
"""Errors whose texts say what to do."""


def train_missing(plan, figure, index, places):
    """Train what `figure` needs and what is not there; returns {run: why} of what failed.

    places: {name of a data set: where it lies}. A run that fails is reported and the others go on;
    a run whose numbers diverge is a result like others. Curves whose data are absent, or are other
    images than those that the runs so far were trained on, fail without a run.

    Raises WriteError for a disk that is full, TrainingInterrupted after a signal.
    """
    plan, failures, costs, unusable = plan.part(figure), {}, Costs(), UnusableData(places, index)
    for curve in plan.curves.values():
        config = plan.configure(curve).data
        # Data that were named are looked at even where no run is left to train on them.
        if config.name in places and (reason := unusable.reason(config)):
            failures[curve.name] = reason
    while True:
        now = progress_of(plan, index)
        pending = [
            task
            for step in now.values()
            for task in step.pending
            if index.relative(task.folder) not in failures and task.name not in failures
        ]
        if not pending:
            return failures
        # The first seed of every curve comes before any second one: a plan that is cut short
        # still has all of its curves.
        task = min(pending, key=lambda task: task.config.seed)
        if reason := unusable.reason(task.config.data):
            failures[task.name] = reason
            continue
        say(f"{_describe(task)} ({costs.left(now)})")
        started = time.monotonic()
        reason = _try(task, places)
        costs.add(task, time.monotonic() - started)
        index.add(task.folder)
        status = index.status(task.config)
        if not (status and status.is_over(task.config)):
            failures[index.relative(task.folder)] = reason or "it ended before its end"


def _describe(task):
    """What a Task trains, from where to where, in words."""
    begin = task.config.epochs - task.epochs_to_go
    rate = getattr(task.config.optimizer, "learning_rate", None)
    parts = [task.name, *([f"learning rate {rate:g}"] if rate else [])]
    parts += [f"seed {task.config.seed}", task.purpose]
    return ", ".join([*parts, f"epochs {begin:.3g} to {task.config.epochs:g}"])


def _try(task, places):
    """Train; why that failed, or None."""
    try:
        _train(task, places)
        return None
    except (TrainingInterrupted, WriteError):
        raise
    except TrainingFailed as error:
        say(f"diverged: {error.reason}")
        return str(error)
    except FORESEEN as error:
        reason = str(error)
        say(reason)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    say(f"{task.name} failed; going on with the others")
    return reason


class UnusableData:
    """Which data sets cannot be had or are not those of the runs so far, each looked for once."""

    def __init__(self, places, index):
        self.places, self.index, self.reasons = places, index, {}

    def reason(self, config):
        """Why the data of a DataConfig cannot be used; None where they can."""
        if config not in self.reasons:
            try:
                dataset = data.load(placed(config, self.places))
                reason = self.index.why_not_with(config, dataset.provenance["sha256"])
            except data.DataError as error:
                reason = str(error)
            if reason:
                say(f"{reason}\nGoing on without {config.name}.")
            self.reasons[config] = reason
        return self.reasons[config]


def _train(task, places):
    """Take a run to its end, evaluated as it was begun."""
    config = task.training_config()
    config = config.model_copy(update={"data": placed(config.data, places)})
    try:
        train(config, task.folder, resume=True)
    except TrainingInterrupted as stop:
        raise TrainingInterrupted(
            stop.number,
            f"stopped in {task.folder}, where the run is saved: the same command goes on",
        ) from None


def placed(config, places):
    """A DataConfig that knows where its data lie."""
    return config.model_copy(update={"path": places.get(config.name)})


class Costs:
    """Seconds that an epoch takes, by curve: on the clock here, else by the records."""

    def __init__(self):
        self.measured = {}

    def add(self, task, seconds):
        if task.epochs_to_go > 0:
            self.measured[task.name] = seconds / task.epochs_to_go

    def left(self, now):
        """How much is left of {name: Progress}, in words."""
        epochs = sum(step.epochs_left for step in now.values())
        seconds, unknown = 0.0, 0
        for name, step in now.items():
            cost = self.measured.get(name) or _recorded_cost(step)
            seconds += step.epochs_left * (cost or 0)
            unknown += step.epochs_left > 0 and not cost
        curves = sum(step.epochs_left > 0 for step in now.values())
        text = f"left: {epochs:.3g} epochs of {_curves(curves)}"
        text += f", about {duration(seconds)}" if seconds else ""
        return text + (f" and {_curves(unknown)} of unknown speed" if unknown else "")


def _curves(number):
    return f"{number} curve{'s' * (number != 1)}"


def _recorded_cost(step):
    """Seconds an epoch, evaluations left out, of one of a curve's runs; None without any."""
    statuses = [*step.finals.values(), *(task.status for task in step.pending)]
    folders = [status.folder for status in statuses if status and status.iteration > 0]
    folders += [result.point.folder for result in step.tuning if result.row]
    if not folders:
        return None
    metrics = read_metrics(folders[0] / "metrics.csv")
    return metrics["seconds"][-1] / metrics["epoch"][-1]


def duration(seconds):
    """ "40 s", "25 min", "2 h 10 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def say(text):
    """Tell whoever watches."""
    print(text, file=sys.stderr, flush=True)
