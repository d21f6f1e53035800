"""A grid of runs, trained in stages: every point a little, the best ones further.

Everything is told by the folders of the runs, so a sweep that was stopped goes on where it was.
"""

import concurrent.futures
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kfcnet.config import ConfigError, load_config, read_config, yaml_text
from kfcnet.figures import curves
from kfcnet.runs.files import markdown_table, read_json, write_csv, write_text
from kfcnet.runs.folder import portable_config
from kfcnet.runs.metrics import read_metrics
from kfcnet.runs.read import read_run
from kfcnet.runs.schedule import EvaluationSchedule
from kfcnet.training.trainer import TrainingFailed, train

RESULTS = ("iteration", "epoch", "seconds", "train_error", "train_loss", "test_error", "test_loss")


class Stage(NamedTuple):
    """Train the best `keep` runs of the stage before (None: all) up to `epochs`."""

    epochs: float
    keep: int | None


class Point(NamedTuple):
    """One point of the grid: its settings {key: value} and the folder of its run."""

    settings: dict
    folder: Path


class Result(NamedTuple):
    """How a run stood at the end of a stage; `row` is None where it diverged before."""

    stage: int
    point: Point
    row: dict | None


def parse_grid(texts):
    """{key: [value, ...]} from texts `key=value,value,...`, the values in YAML.

    Raises ValueError for a text of another form.
    """
    grid = {}
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            grid[key] = yaml_text.parse(f"[{values}]")
        except ValueError as error:
            raise ValueError(f"--grid {text}: {error}") from None
        if not (key and equals and grid[key]):
            raise ValueError(f"--grid {text}: expected key.key=value,value,...")
    return grid


def parse_stages(texts):
    """Stages from texts `EPOCHS:KEEP`, KEEP a number or "all". Raises ValueError."""
    stages = []
    for text in texts:
        match = re.fullmatch(r"([0-9.]+):(all|[1-9][0-9]*)", text)
        if not match:
            raise ValueError(f"--stage {text}: expected EPOCHS:KEEP, such as 8:3 or 2:all")
        stages.append(Stage(float(match[1]), None if match[2] == "all" else int(match[2])))
    if any(later.epochs <= earlier.epochs for earlier, later in itertools.pairwise(stages)):
        raise ValueError("--stage: every stage must have more epochs than the one before")
    return stages


def sweep(config, grid, stages, out, overrides=(), workers=1):
    """Train a grid of variations of `config` in stages and leave the tables in the folder `out`.

    config: a name or path as `load_config` takes it, with its `overrides`; grid: {key: values};
    stages: a list of Stage, or empty for one stage of the configured epochs; workers: runs at a
    time. Runs are ranked by training error at the end of a stage; a run that diverged comes last
    and goes no further. Returns the Results of all stages, best first within each.

    Raises what `train` raises, except that a run whose training fails is a result like others.
    """
    out = Path(out)
    points = grid_points(grid, out)
    stages = stages or [Stage(load_config(config, overrides).epochs, None)]
    results, remaining = [], points
    for number, stage in enumerate(stages, start=1):
        remaining = remaining[: stage.keep]
        tasks = [
            (_configure(config, overrides, point, stage.epochs), point.folder)
            for point in remaining
        ]
        print(
            f"stage {number} of {len(stages)}: {len(tasks)} runs to {stage.epochs:g} epochs",
            file=sys.stderr,
        )
        _train_all(tasks, workers)
        ranked = rank(
            [
                Result(number, point, result_row(*task))
                for point, task in zip(remaining, tasks, strict=True)
            ]
        )
        results += ranked
        remaining = [result.point for result in ranked if result.row]
        write_tables(out, list(grid), stages, results)
    return results


def grid_points(grid, out):
    """Every combination of the grid's values, each with a folder named after them."""
    last = [key.rpartition(".")[2] for key in grid]
    names = [
        short if last.count(short) == 1 else key for key, short in zip(grid, last, strict=True)
    ]
    points = []
    for values in itertools.product(*grid.values()):
        text = ",".join(f"{name}={show(value)}" for name, value in zip(names, values, strict=True))
        folder = Path(out) / re.sub(r"[^A-Za-z0-9.,_=+-]+", "_", text)
        points.append(Point(dict(zip(grid, values, strict=True)), folder))
    if len({point.folder for point in points}) < len(points):
        raise ConfigError("--grid: a value is given twice")
    return points


def rank(results):
    """Lowest training error first, the loss decides between equals; diverged runs last."""
    return sorted(
        results,
        key=lambda result: (
            (result.row["train_error"], result.row["train_loss"])
            if result.row
            else (np.inf, np.inf)
        ),
    )


def result_row(config, folder):
    """The row of a run's metrics at the end of `config`'s epochs; None if it has none."""
    path = Path(folder) / "metrics.csv"
    if not path.exists():
        return None
    metrics = read_metrics(path)
    examples = read_json(path.with_name("run.json"))["data"]["train_examples"]
    found = np.flatnonzero(metrics["iteration"] == EvaluationSchedule(config, examples).steps)
    if not len(found):
        return None
    return {name: column[found[0]].item() for name, column in metrics.items()}


def write_tables(out, keys, stages, results):
    """`sweep.csv`, `sweep.md` and `sweep.png` of the results so far.

    Seconds are in the first alone: the runs of a sweep may share the machine.
    """
    header = ["stage", "epochs", "rank", *keys, "state", *RESULTS]
    rows = [
        [
            result.stage,
            stages[result.stage - 1].epochs,
            place,
            *map(show, values),
            "finished" if result.row else "diverged",
            *(result.row[name] if result.row else "" for name in RESULTS),
        ]
        for result, place, values in _placed(results)
    ]
    write_csv(out / "sweep.csv", [header, *rows])
    write_text(out / "sweep.md", markdown(keys, stages, results))
    drawn = [
        (
            stages[result.stage - 1].epochs,
            {
                key: value if isinstance(value, (int, float)) else show(value)
                for key, value in result.point.settings.items()
            },
            result.row and result.row["train_error"],
        )
        for result in results
    ]
    run = read_run(results[0].point.folder)
    curves.save_figure(lambda: curves.draw_sweep(drawn, run), out / "sweep.png")


def markdown(keys, stages, results):
    """The results as a table in Markdown, errors in percent."""
    header = [
        "epochs",
        "rank",
        *keys,
        "training error",
        "training loss",
        "test error",
        "test loss",
        "updates",
    ]
    lines = [header, ["---:"] * len(header)]
    for result, place, values in _placed(results):
        row = result.row
        measured = (
            [
                f"{row['train_error']:.2%}",
                f"{row['train_loss']:.4f}",
                f"{row['test_error']:.2%}",
                f"{row['test_loss']:.4f}",
                str(row["iteration"]),
            ]
            if row
            else ["diverged"] + 4 * [""]
        )
        lines.append(
            [f"{stages[result.stage - 1].epochs:g}", str(place), *map(show, values), *measured]
        )
    return markdown_table(lines)


def show(value):
    """A setting as YAML text on one line."""
    return value if isinstance(value, str) else json.dumps(value)


def _placed(results):
    """(result, its rank within its stage, its settings' values) of every result."""
    for _, group in itertools.groupby(results, key=lambda result: result.stage):
        for place, result in enumerate(group, start=1):
            yield result, place, result.point.settings.values()


def _configure(config, overrides, point, epochs):
    settings = [f"{key}={json.dumps(value)}" for key, value in point.settings.items()]
    return load_config(config, [*overrides, *settings, f"epochs={epochs}"])


def _train_all(tasks, workers):
    if workers == 1:
        for task in tasks:
            _train_one(*task)
        return
    # Workers have their own sessions, so that a Ctrl-C reaches this process alone, which then
    # asks each of them once.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, os.setsid) as pool:
        previous = {
            number: signal.signal(number, _stop_workers)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            for future in [pool.submit(_train_one, *task) for task in tasks]:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            for number, handler in previous.items():
                signal.signal(number, handler)


def _stop_workers(*_):
    for worker in multiprocessing.active_children():
        worker.terminate()


def _train_one(config, folder):
    """Take a run to the end of its stage, unless it is there or has failed on the way."""
    if _is_done(config, folder):
        return
    print(folder.name, file=sys.stderr)
    try:
        train(config, folder, resume=True)
    except TrainingFailed as error:
        print(f"{folder.name}: {error}", file=sys.stderr)


def _is_done(config, folder):
    """Whether the run of this very configuration has been so far before, or has diverged."""
    path = Path(folder) / "config.yaml"
    if not (path.exists() and path.with_name("run.json").exists()):
        return False
    before = read_config(path, [f"epochs={config.epochs}"])
    if portable_config(before) != portable_config(config):
        return False
    failed = read_json(path.with_name("run.json"))["outcome"]["state"] == "failed"
    return failed or result_row(config, folder) is not None
