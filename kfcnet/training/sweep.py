"""A sweep: a grid of runs, trained in stages, and its tables."""

import functools
import itertools
import json
import re
import sys
from pathlib import Path

from kfcnet import data
from kfcnet.config import ConfigError, load_config, yaml_text
from kfcnet.figures import curves
from kfcnet.runs.files import WriteError, make_folder, markdown_table, write_csv, write_text
from kfcnet.runs.identity import NOT_IDENTIFYING
from kfcnet.runs.index import RunIndex
from kfcnet.runs.read import read_run
from kfcnet.training.build import is_open, resolved
from kfcnet.training.errors import TrainingFailed, TrainingInterrupted
from kfcnet.training.train import train
from kfcnet.training.tuning import Point, Stage, Tuning, find_task
from kfcnet.training.workers import WorkerDied, reason_of, workers


class SweepError(RuntimeError):
    """No run of a sweep can be trained, all for one reason: the text says what to do."""

    exit_status = 2


RESULTS = ("iteration", "epoch", "seconds", "train_error", "train_loss", "test_error", "test_loss")


def parse_grid(texts):
    """{key: [value, ...]} from texts `key=value,value,...`, the values in YAML.

    Raises ValueError for a text of another form.
    """
    grid = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if key in grid:
            raise ValueError(f"--grid {text}: {key} has values already; give all of them in one")
        try:
            grid[key] = yaml_text.parse(f"[{values}]")
        except ValueError as error:
            raise ValueError(f"--grid {text}: {error}") from None
        if not (key and equals and grid[key]):
            raise ValueError(f"--grid {text}: expected key.key=value,value,...")
        if key == "epochs":
            raise ValueError(f"--grid {text}: --stage says how many epochs runs are trained")
        if key in NOT_IDENTIFYING and key != "seed":
            raise ValueError(
                f"--grid {text}: runs that differ in {key} alone are one run to a sweep; train "
                "each with an --out of its own"
            )
    return grid


def parse_stages(texts):
    """Stages from texts `EPOCHS:KEEP`, KEEP a number or "all", which the first one has.

    Raises ValueError.
    """
    stages = []
    for text in texts:
        match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+):(all|[1-9][0-9]*)", text)
        if not match:
            raise ValueError(f"--stage {text}: expected EPOCHS:KEEP, such as 8:3 or 2:all")
        stages.append(Stage(float(match[1]), None if match[2] == "all" else int(match[2])))
    if stages and stages[0].keep:
        raise ValueError(
            f"--stage {texts[0]}: the first stage is EPOCHS:all; which runs are the best is known "
            "after it"
        )
    if any(later.epochs <= earlier.epochs for earlier, later in itertools.pairwise(stages)):
        raise ValueError("--stage: every stage must have more epochs than the one before")
    return stages


def sweep(config, grid, stages, out, overrides=(), at_a_time=1):
    """Train a grid of variations of `config` in stages; write the tables to the folder `out`.

    config: a name or path as for `load_config`, with its `overrides`; grid: {key: values}; stages:
    Stages, or empty for one stage of the configured epochs; at_a_time: how many runs. A run that is
    in `out`, in whatever folder, is used and gone on with; it is evaluated as it was begun. Returns
    the Results of all stages, best first within each.

    A run that diverges or fails is a result, and the others go on. Raises SweepError where all of a
    stage fail for one reason, ConfigError, DataError and RecordError for what cannot be read,
    WriteError for a full disk, TrainingInterrupted after a signal.
    """
    out = Path(out)
    stages = stages or [Stage(load_config(config, overrides).epochs, None)]
    tuning, index = Tuning(grid_points(grid, out), stages), RunIndex(out)
    load = functools.cache(data.load)  # once for all points
    while tuning.stage:
        epochs = tuning.stage.epochs
        configs = [_configure(config, overrides, point, epochs) for point in tuning.points]
        # A run records what its data decide, and is found by it.
        configs = [resolved(each, load(each.data)) if is_open(each) else each for each in configs]
        runs = f"{len(configs)} run{'s' * (len(configs) != 1)}"
        print(
            f"stage {tuning.number} of {len(stages)}: {runs} to epoch {epochs:g}", file=sys.stderr
        )
        if tuning.number == 1:
            _check_images(index, configs, load)
        tasks = _find_tasks(index, tuning.points, configs)
        failures = _train_all([task for task in tasks if not task.is_over], at_a_time)
        if len(failures) == len(tasks) and len(set(failures.values())) == 1:
            raise SweepError(next(iter(failures.values())))
        for task in tasks:
            index.add(task.folder)
        tuning.complete(_find_tasks(index, tuning.points, configs), failures)
        write_tables(out, list(grid), stages, tuning.results)
    return tuning.results


def _check_images(index, configs, load):
    """Raise SweepError where runs in the index were trained on other images than are here now."""
    for images in {config.data for config in configs}:
        if not index.has_runs_on(images):
            continue
        try:
            checksum = load(images).provenance["sha256"]
        except data.DataError:
            continue  # training says so, of each run
        if reason := index.why_not_with(images, checksum):
            raise SweepError(reason)


def grid_points(grid, out):
    """A Point for every combination of the grid's values, its folder named after them."""
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


def write_tables(out, keys, stages, results):
    """Write `sweep.csv`, `sweep.md` and `sweep.png` of the Results so far.

    Only the first has seconds: the runs of a sweep may share the machine.
    """
    header = ["stage", "epochs", "rank", *keys, "state", *RESULTS, "failure"]
    rows = [
        [
            result.stage,
            stages[result.stage - 1].epochs,
            place,
            *map(show, values),
            _state(result),
            *(result.row[name] if result.row else "" for name in RESULTS),
            result.failure,
        ]
        for result, place, values in _placed(results)
    ]
    make_folder(out)  # where every run failed before it had a folder
    write_csv(out / "sweep.csv", [header, *rows])
    write_text(out / "sweep.md", markdown(keys, stages, results))
    trained = [result for result in results if not result.failure]
    drawn = [
        (
            stages[result.stage - 1].epochs,
            {
                key: value if isinstance(value, (int, float)) else show(value)
                for key, value in result.point.settings.items()
            },
            result.row and result.row["train_error"],
        )
        for result in trained
    ]
    if drawn:
        folders = dict.fromkeys(result.point.folder for result in trained)
        runs = [read_run(folder) for folder in folders]
        curves.save_figure(lambda: curves.draw_sweep(drawn, runs), out / "sweep.png")


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
            else [_state(result) + f": {result.failure}".rstrip(": "), *4 * [""]]
        )
        lines.append(
            [f"{stages[result.stage - 1].epochs:g}", str(place), *map(show, values), *measured]
        )
    return markdown_table(lines)


def _state(result):
    return "finished" if result.row else "failed" if result.failure else "diverged"


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


def _find_tasks(index, points, configs):
    return [
        find_task(index, config, point.folder, point.folder.name)
        for point, config in zip(points, configs, strict=True)
    ]


def _train_all(tasks, count):
    """{folder: reason} of the runs that could not be trained; the others go on."""
    failures = {}
    with workers(count) as pool:
        futures = {task.folder: pool.submit(_train_one, task) for task in tasks}
        for folder, future in futures.items():
            try:
                reason = future.result()
            except WorkerDied as error:
                reason = str(error)
            if reason:
                print(f"{folder.name} failed: {reason}", file=sys.stderr)
                failures[folder] = " ".join(reason.split())
    return failures


def _train_one(task):
    """Take a run to the end of its stage; one that diverges says so. The reason why it failed."""
    print(task.folder.name, file=sys.stderr)
    try:
        # Standard output is the table's.
        train(task.training_config(), task.folder, resume=True, rows=sys.stderr)
    except TrainingFailed as error:
        print(f"{task.folder.name}: {error}", file=sys.stderr)
    except (TrainingInterrupted, WriteError):
        raise
    except Exception as error:
        return reason_of(error)
    return None
