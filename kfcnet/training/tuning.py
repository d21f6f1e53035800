"""Tuning in stages: all points of a grid are trained a little, the best ones further.

The state of a tuning is read from the runs' folders alone, so that one that was stopped goes on
where it was.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kfcnet.config import read_config
from kfcnet.config.schema import Config
from kfcnet.ops import get_ops
from kfcnet.runs.identity import resumed_config
from kfcnet.runs.index import RunStatus


class Stage(NamedTuple):
    """Train the best `keep` runs of the stage before (None: all) up to `epochs`."""

    epochs: float
    keep: int | None


class Point(NamedTuple):
    """One point of the grid: its settings {key: value} and the folder of its run."""

    settings: dict
    folder: Path | None


class Task(NamedTuple):
    """A run to begin or to go on with, up to the end of `config`; `status` is None without a run.

    name: what messages call it; purpose: what it is trained for, in words.
    """

    name: str
    config: Config
    status: RunStatus | None
    folder: Path
    purpose: str = ""

    @property
    def is_over(self):
        return self.status is not None and self.status.is_over(self.config)

    @property
    def epochs_to_go(self):
        return self.config.epochs - (self.status.epochs(self.config) if self.status else 0)

    def training_config(self):
        """The Config to train with: a run that goes on is evaluated as it was begun."""
        if self.status is None:
            return self.config
        return resumed_config(read_config(self.folder / "config.yaml"), self.config)

    def rows(self):
        """{column: values} of the metrics up to the end; None if the run has not got so far."""
        return self.status and self.status.rows(self.config)


def find_task(index, config, new_folder, name, purpose=""):
    """The Task for a Config: the run that a RunIndex has for it, or one to begin in `new_folder`.

    A Config that leaves the device open stands for the device that training would take.
    """
    device = get_ops().name if config.device == "auto" else config.device
    status = index.status(config.model_copy(update={"device": device}))
    return Task(name, config, status, status.folder if status else new_folder, purpose)


class Result(NamedTuple):
    """A run at the end of a stage; `row` of its metrics is None if it diverged or failed before.

    Where a run of the stage has gone on past its end, and was not evaluated there, the rows of all
    are those of the last evaluation that they have in common.

    failure: why, for a run that could not be trained.
    """

    stage: int
    point: Point
    row: dict | None
    failure: str = ""


class Tuning:
    """Points, and the stages that they are trained in.

    results: Results of the complete stages, best first within each. A run with a lower training
    error is better, the training loss decides between equal ones; diverged and failed runs come
    last.
    """

    def __init__(self, points, stages, joining=()):
        """joining: Points of the last stage besides those that get there."""
        self.stages, self.joining, self.results = stages, joining, []
        self.number = 1  # of the stage that comes next
        self._left = list(points)  # best first, after the first stage

    @property
    def stage(self):
        """The Stage that comes next; None after the last one."""
        return self.stages[self.number - 1] if self.number <= len(self.stages) else None

    @property
    def points(self):
        """The Points of the stage that comes next; after the last one those that have got there."""
        if not self.stage:
            return self._left
        points = self._left[: self.stage.keep]
        if self.number == len(self.stages):
            points += [point for point in self.joining if point not in points]
        return points

    def complete(self, tasks, failures=None):
        """Rank the runs of the stage, one Task for each of its points; the next stage follows.

        failures: {folder: why its run could not be trained}.
        """
        results = []
        rows = _rows_at_one_epoch([task.rows() for task in tasks])
        for point, task, row in zip(self.points, tasks, rows, strict=True):
            failure = "" if row else (failures or {}).get(task.folder, "")
            results.append(Result(self.number, Point(point.settings, task.folder), row, failure))
        ranked = sorted(zip(results, self.points, strict=True), key=lambda pair: _rank(pair[0].row))
        self.results += [result for result, _ in ranked]
        self._left = [point for result, point in ranked if result.row]
        self.number += 1


def _rows_at_one_epoch(tables):
    """A row {column: number} of each table of metrics: at the last epoch that all have, where that
    is not the start, else its last; None for None.
    """
    there = [table for table in tables if table]
    # Ends of a stage are whole updates, of mini-batches that may differ in size.
    ends = [(table["epoch"][-1], table["iteration"][-1]) for table in there]
    update = max((epoch / iteration for epoch, iteration in ends if iteration), default=0)
    common = [
        epoch
        for epoch in (there[0]["epoch"] if there else [])
        if epoch > 0 and all(np.abs(table["epoch"] - epoch).min() < update for table in there)
    ]
    return [table and _row(table, common[-1] if common else math.inf) for table in tables]


def _row(table, epoch):
    """The row of a table that is nearest to an epoch."""
    at = np.abs(np.minimum(epoch, table["epoch"][-1]) - table["epoch"]).argmin()
    return {name: column[at].item() for name, column in table.items()}


def _rank(row):
    return (row["train_error"], row["train_loss"]) if row else (math.inf, math.inf)
