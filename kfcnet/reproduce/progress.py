"""How far each curve of a plan has come, read from the folders of its runs."""

import math
from typing import NamedTuple

from kfcnet.runs.read import read_run
from kfcnet.training.tuning import Point, Tuning, find_task

RATE = "optimizer.learning_rate"


class CurveProgress(NamedTuple):
    """How far a curve's tuning and final runs have come.

    tuning: Results of the complete stages, best first within each; settings: {key: value} of the
    best run, None before the tuning is complete or if every run diverged; finals: {seed: RunStatus}
    of the final runs; pending: Tasks that can be done now; epochs_left: an estimate of the epochs
    that are still to be trained.
    """

    curve: object
    tuning: list
    settings: dict | None
    finals: dict
    pending: list
    epochs_left: float

    def runs(self):
        """The final Runs, read from their records, in the order of their seeds."""
        return [read_run(status.folder) for status in self.finals.values()]

    @property
    def rate(self):
        """The learning rate that was chosen; None without one."""
        return (self.settings or {}).get(RATE)


def progress_of(plan, index):
    """{name: CurveProgress} of the curves of a Plan."""
    done = {}
    for curve in sorted(plan.curves.values(), key=lambda curve: bool(curve.rate_of)):
        done[curve.name] = _progress(plan, curve, index, done.get(curve.rate_of))
    return {name: done[name] for name in plan.curves}


def _progress(plan, curve, index, tuned):
    """tuned: the CurveProgress of the curve whose learning rate this one takes; or None."""
    if tuned:
        results, settings, pending = [], tuned.settings, []
    else:
        results, settings, pending = _tune(plan, curve, index)
    epochs_left = _epochs_of_tuning_left(curve, results, pending) if not tuned else 0
    epochs, finals = plan.final_epochs(curve), {}
    if settings is None:
        tuning_ends = curve.stages[-1].epochs if curve.rates and not tuned else 0
        is_lost = not pending and not tuned  # every run diverged
        epochs_left += 0 if is_lost else max(0, curve.seeds * epochs - tuning_ends)
        return CurveProgress(curve, results, None, {}, pending, epochs_left)
    for seed in range(curve.seeds):
        task = _task(plan, curve, index, settings, seed, epochs, "final run")
        if not task.is_over:
            pending.append(task)
            epochs_left += task.epochs_to_go
        if task.status and task.status.iteration > 0:
            finals[seed] = task.status
    return CurveProgress(curve, results, settings, finals, pending, epochs_left)


def _tune(plan, curve, index):
    """(Results of the complete stages, settings of the best run or None, Tasks of the next).

    The rates of a curve that `grows` get a neighbour as long as the best one is the lowest or the
    highest of them.
    """
    if not curve.rates:
        return [], {}, []
    rates = list(curve.rates)
    while True:
        results, settings, pending = _tune_among(plan, curve, index, rates)
        if not curve.grows or pending or settings is None:
            return results, settings, pending
        if settings[RATE] == max(rates):
            rates.append(next_rate(settings[RATE], up=True))
        elif settings[RATE] == min(rates):
            rates.append(next_rate(settings[RATE], up=False))
        else:
            return results, settings, pending


def next_rate(rate, up):
    """The neighbour of a rate among ..., 0.03, 0.1, 0.3, 1, 3, ..."""
    exponent = math.floor(math.log10(rate) + 1e-9)
    is_one = rate < 2 * 10**exponent
    if up:
        return float(f"{3 if is_one else 1}e{exponent if is_one else exponent + 1}")
    return float(f"{3 if is_one else 1}e{exponent - 1 if is_one else exponent}")


def _tune_among(plan, curve, index, rates):
    tuning = Tuning([Point({RATE: rate}, None) for rate in rates], curve.stages)
    while tuning.stage:
        purpose = f"tuning {tuning.number} of {len(curve.stages)}"
        tasks = [
            _task(plan, curve, index, point.settings, 0, tuning.stage.epochs, purpose)
            for point in tuning.points
        ]
        if pending := [task for task in tasks if not task.is_over]:
            return tuning.results, None, pending
        tuning.complete(tasks)
    best = next(iter(tuning.points), None)
    return tuning.results, best and best.settings, []


def _task(plan, curve, index, settings, seed, epochs, purpose):
    config = plan.configure(curve, settings, seed, epochs)
    return find_task(index, config, index.new_folder(config, curve.name), curve.name, purpose)


def _epochs_of_tuning_left(curve, results, pending):
    """Epochs left in the current stage and in those after it."""
    if not pending:
        return 0
    under_way = results[-1].stage + 1 if results else 1
    left = sum(task.epochs_to_go for task in pending)
    for before, stage in zip(curve.stages[under_way - 1 :], curve.stages[under_way:], strict=False):
        left += min(stage.keep or len(curve.rates), len(curve.rates)) * (
            stage.epochs - before.epochs
        )
    return left
