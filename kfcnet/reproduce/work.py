"""Training the runs that are missing."""

import concurrent.futures
import contextlib
import sys
import time

from kfcnet import data
from kfcnet.optimizers.base import NUMBERS_FAIL
from kfcnet.reproduce.costs import quick_cost
from kfcnet.reproduce.places import placed, say
from kfcnet.reproduce.progress import FINAL, progress_of
from kfcnet.runs.files import WriteError
from kfcnet.runs.index import images_of
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.errors import TrainingFailed, TrainingInterrupted
from kfcnet.training.train import train
from kfcnet.training.workers import WorkerDied, reason_of, workers


def train_missing(plan, figure, index, places, at_a_time=1):
    """Train the runs that `figure` needs and that a RunIndex lacks; {run: reason} of what failed.

    places: {name of a data set: where it is stored}; at_a_time: how many runs. After a run that
    fails the others go on; a run that diverges is a result. A curve fails without a run if its data
    are missing, or are not the images that the runs in the index were trained on.

    Raises WriteError for a full disk, TrainingInterrupted after a signal.
    """
    plan, failures, unusable = plan.part(figure), {}, UnusableData(places, index)
    for curve in plan.curves.values():
        config = plan.configure(curve).data
        # Data named by the user are checked even if no run needs them any more.
        if config.name in places and (reason := unusable.reason(config)):
            failures[curve.name] = reason
    forecast, running = Forecast(at_a_time), {}  # running: {Future: (its Task, when it began)}
    now = progress_of(plan, index)
    forecast.estimate(plan, now, places, unusable)
    say(forecast.plan(now))
    with workers(at_a_time) as pool:
        while True:
            now = progress_of(plan, index)
            begun = {task.folder for task, _ in running.values()}
            pending = [
                task
                for state in now.values()
                for task in state.pending
                if index.relative(task.folder) not in failures
                and task.name not in failures
                and task.folder not in begun
            ]
            if pending and len(running) < at_a_time:
                # The first seeds of all curves come before any second seed: a reproduction that is
                # stopped early still has all of its curves.
                task = min(pending, key=lambda task: task.config.seed)
                if reason := unusable.reason(task.config.data):
                    failures[task.name] = reason
                    continue
                say(f"{_describe(task)} ({forecast.left(now)})")
                began = time.monotonic()
                running[pool.submit(_try, task, places)] = task, began
            elif not running:
                return failures
            if len(running) == at_a_time or not pending:
                done, _ = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    task, began = running.pop(future)
                    reason = _reason(future)
                    if not reason:  # else it did not take as many epochs
                        forecast.add(task, time.monotonic() - began)
                    index.add(task.folder)
                    status = index.status(task.config)
                    if not (status and status.is_over(task.config)):
                        failures[index.relative(task.folder)] = reason or "it ended before its end"


def _reason(future):
    """Why a run that was tried failed, or None."""
    try:
        return future.result()
    except WorkerDied as error:
        say(str(error))
        return str(error)


def _describe(task):
    """A Task in words, for a message."""
    begin = task.config.epochs - task.epochs_to_go
    rate = getattr(task.config.optimizer, "learning_rate", None)
    parts = [task.name, *([f"learning rate {rate:g}"] if rate else [])]
    parts += [f"seed {task.config.seed}", task.purpose]
    return ", ".join([*parts, f"epochs {begin:.3g} to {task.config.epochs:g}"])


def _try(task, places):
    """Train; the reason if that fails, or None."""
    try:
        _train(task, places)
        return None
    except (TrainingInterrupted, WriteError):
        raise
    except TrainingFailed as error:
        say(f"diverged: {error.reason}")
        return str(error)
    except Exception as error:
        reason = reason_of(error)
    say(f"{reason}\n{task.name} failed; going on with the others")
    return reason


class UnusableData:
    """Data sets that are missing or are not those of the runs in an index; each is checked once."""

    def __init__(self, places, index):
        self.places, self.index, self.reasons = places, index, {}

    def reason(self, config):
        """The reason why the data of a DataConfig cannot be used, or None; said once."""
        images = images_of(config)
        if images not in self.reasons:
            try:
                dataset = data.load(placed(config, self.places))
                reason = self.index.why_not_with(config, dataset.provenance["sha256"])
            except data.DataError as error:
                reason = str(error)
            if reason:
                say(f"{reason}\nGoing on without {config.name}.")
            self.reasons[images] = reason
        return self.reasons[images]


def _train(task, places):
    """Train a run to its end, and draw a final one: a tuning has one figure of all its runs."""
    config = task.training_config()
    config = config.model_copy(update={"data": placed(config.data, places)})
    try:
        train(config, task.folder, resume=True, rows=sys.stderr, figures=task.purpose == FINAL)
    except TrainingInterrupted as stop:
        raise TrainingInterrupted(
            stop.number,
            f"stopped in {task.folder}, where the run is saved: the same command goes on",
        ) from None


class Forecast:
    """Seconds per epoch of each curve, where `at_a_time` runs are trained at the same time:
    measured here or, before that, read from the records.

    left_out: names of the curves whose data are missing, which nothing is said of.
    """

    def __init__(self, at_a_time=1):
        self.measured, self.left_out, self.at_a_time = {}, set(), at_a_time

    def add(self, task, seconds):
        if task.epochs_to_go > 0:
            self.measured[task.name] = seconds / task.epochs_to_go

    def estimate(self, plan, now, places, unusable):
        """Take a few updates of each curve that has no record yet and something to train."""
        for name, state in self._to_train(now).items():
            config = plan.configure(state.curve, state.settings)
            if unusable.reason(config.data):
                self.left_out.add(name)
            elif not self._cost(name, state):
                with contextlib.suppress(*NUMBERS_FAIL):
                    # Alone on the machine: runs at the same time share it.
                    self.measured[name] = self.at_a_time * quick_cost(config, places)

    def _to_train(self, now):
        return {
            name: state
            for name, state in now.items()
            if state.epochs_left > 0 and name not in self.left_out
        }

    def _cost(self, name, state):
        """Seconds per epoch of a curve, None where they are not known."""
        return self.measured.get(name) or _recorded_cost(state)

    def plan(self, now):
        """What is to be trained, curve by curve, and how long all of it takes: a text."""
        lines = []
        for name, state in self._to_train(now).items():
            seconds = state.epochs_left * (self._cost(name, state) or 0)
            about = f", about {duration(seconds / self.at_a_time)}" if seconds else ""
            lines.append(f"  {name}: {state.epochs_left:.3g} epochs{about}")
        return "\n".join(["to train:", *lines, self.left(now)]) if lines else "nothing to train"

    def left(self, now):
        """What is left to train, in words. now: {name: CurveProgress}."""
        states = self._to_train(now)
        costs = {name: self._cost(name, state) for name, state in states.items()}
        seconds = sum(state.epochs_left * (costs[name] or 0) for name, state in states.items())
        unknown = sum(cost is None for cost in costs.values())
        text = f"left: {sum(state.epochs_left for state in states.values()):.3g} epochs"
        text += f" of {_curves(len(states))}"
        text += f", about {duration(seconds / self.at_a_time)}" if seconds else ""
        return text + (f" and {_curves(unknown)} of unknown speed" if unknown else "")


def _curves(number):
    return f"{number} curve{'s' * (number != 1)}"


def _recorded_cost(state):
    """Seconds per epoch, without evaluations, of one of a curve's runs; None without runs."""
    statuses = [*state.finals.values(), *(task.status for task in state.pending)]
    folders = [status.folder for status in statuses if status and status.iteration > 0]
    folders += [result.point.folder for result in state.tuning if result.row]
    if not folders:
        return None
    metrics = read_metrics(folders[0] / "metrics.csv", cut_short=True)
    return metrics["seconds"][-1] / metrics["epoch"][-1]


def duration(seconds):
    """ "40 s", "25 min", "2 h 10 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
