"""How far each curve of a plan has come, told by its runs' folders and by nothing else."""

from pathlib import Path
from typing import NamedTuple

from kfcnet.config.schema import Config
from kfcnet.figures.curves import read_run
from kfcnet.runs.index import RunStatus
from kfcnet.training import sweep

RATE = "optimizer.learning_rate"


class Task(NamedTuple):
    """A run to begin or to go on with, up to the end of `config`."""

    curve: str
    config: Config
    status: RunStatus | None
    folder: Path
    stage: str  # what the run is for

    @property
    def epochs_to_go(self):
        return self.config.epochs - (self.status.epochs(self.config) if self.status else 0)

    def describe(self):
        begin = self.config.epochs - self.epochs_to_go
        rate = getattr(self.config.optimizer, "learning_rate", None)
        return ", ".join(
            [
                self.curve,
                *([f"learning rate {rate:g}"] if rate else []),
                f"seed {self.config.seed}",
                f"{self.stage}, epochs {begin:.3g} to {self.config.epochs:g}",
            ]
        )


class Progress(NamedTuple):
    """A curve's tuning and final runs so far.

    tuning: Results of the stages that are complete, best first within each; settings: of the best
    run, None before the tuning is complete or where every run diverged; finals: the RunStatuses of
    the final runs there are, by seed; pending: Tasks that may be done now; epochs_left: of all that
    is still to be done, as far as can be said.
    """

    curve: object
    tuning: list
    settings: tuple | None
    finals: dict
    pending: list
    epochs_left: float

    def runs(self):
        """The final runs as their records tell them, in the order of their seeds."""
        return [read_run(status.folder) for status in self.finals.values()]

    @property
    def rate(self):
        """The learning rate that was chosen; None where there is none (yet)."""
        return dict(self.settings or ()).get(RATE)


def progress_of(plan, index):
    """{name: Progress} of the curves of a Plan."""
    done = {}
    for curve in sorted(plan.curves.values(), key=lambda curve: bool(curve.rate_of)):
        done[curve.name] = _progress(plan, curve, index, done.get(curve.rate_of))
    return {name: done[name] for name in plan.curves}


def _progress(plan, curve, index, tuned):
    """tuned: the Progress of the curve whose learning rate this one takes; or None."""
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
        return Progress(curve, results, None, {}, pending, epochs_left)
    for seed in range(curve.seeds):
        task = _task(plan, curve, index, settings, seed, epochs, "final run")
        if not (task.status and task.status.is_over(task.config)):
            pending.append(task)
            epochs_left += task.epochs_to_go
        if task.status and task.status.iteration > 0:
            finals[seed] = task.status
    return Progress(curve, results, settings, finals, pending, epochs_left)


def _tune(plan, curve, index):
    """(Results of the complete stages, settings of the best run or None, Tasks of the next)."""
    candidates = [((RATE, rate),) for rate in curve.rates]
    if not candidates:
        return [], (), []
    results = []
    for number, stage in enumerate(curve.stages, start=1):
        what = f"tuning {number} of {len(curve.stages)}"
        tasks = [
            _task(plan, curve, index, settings, 0, stage.epochs, what)
            for settings in candidates[: stage.keep]
        ]
        pending = [task for task in tasks if not (task.status and task.status.is_over(task.config))]
        if pending:
            return results, None, pending
        ranked = sweep.rank(
            [
                sweep.Result(
                    number,
                    sweep.Point(dict(settings), task.status.folder),
                    task.status.row(task.config),
                )
                for settings, task in zip(candidates, tasks, strict=False)
            ]
        )
        results += ranked
        candidates = [tuple(result.point.settings.items()) for result in ranked if result.row]
    return results, candidates[0] if candidates else None, []


def _task(plan, curve, index, settings, seed, epochs, stage):
    config = plan.configure(curve, settings, seed, epochs)
    status = index.status(config)
    folder = status.folder if status else index.new_folder(config, curve.name)
    return Task(curve.name, config, status, folder, stage)


def _epochs_of_tuning_left(curve, results, pending):
    """Of the stage that is under way and of those after it."""
    if not pending:
        return 0
    under_way = results[-1].stage + 1 if results else 1
    left = sum(task.epochs_to_go for task in pending)
    for before, stage in zip(curve.stages[under_way - 1 :], curve.stages[under_way:], strict=False):
        left += min(stage.keep or len(curve.rates), len(curve.rates)) * (
            stage.epochs - before.epochs
        )
    return left
