"""A comparison of runs: their curves over time and updates, and when they reached which error."""

from functools import partial
from pathlib import Path

import numpy as np

from kfcnet.figures import curves
from kfcnet.figures.paper import MILESTONES
from kfcnet.runs.files import markdown_table, write_csv, write_text
from kfcnet.runs.identity import NOT_IDENTIFYING, group_by_seed
from kfcnet.runs.labels import PARTS, titles_and_labels
from kfcnet.runs.metrics import first_crossing
from kfcnet.runs.read import read_run

BY = ("updates", "seconds")
"""Units of milestones; seconds are meaningful only for runs that had the machine to themselves."""


def compare(folders, out, milestones=MILESTONES, by=BY):
    """Write `milestones.csv`, `milestones.md` and the curves of runs to the folder `out`.

    Where runs differ in their seed alone, `medians.md` is there too.
    folders: run folders, the first of which the others are compared with; by: one of BY or both.
    Raises RecordError for a run that cannot be read.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs = [read_run(folder) for folder in folders]
    for x in by:
        curves.save_figure(partial(curves.draw_runs, runs, x), out / f"curves_by_{x}.png")
    _, labels = titles_and_labels(runs, ignored=("epochs",))
    rows = milestone_rows(runs, labels, milestones, by)
    write_csv(out / "milestones.csv", [rows[0], *(row.values() for row in rows)])
    write_text(out / "milestones.md", markdown(rows))
    groups = group_by_seed(runs)
    if len(groups) < len(runs):
        write_text(out / "medians.md", medians(groups, milestones, by))
    return rows


def milestone_rows(runs, labels, milestones=MILESTONES, by=BY):
    """A dict for each milestone and run: where the run first reached it, and the ratio to the first
    run; empty texts if it never did.
    """
    rows = []
    for column, threshold in milestones:
        base = first_crossing(runs[0].metrics, column, threshold)
        for run, label in zip(runs, labels, strict=True):
            here = first_crossing(run.metrics, column, threshold)
            row = {"milestone": f"{threshold:.0%} {PARTS[column]}", "run": label}
            for name in ("epoch", *by):
                row[name] = getattr(here, name) if here else ""
            for name in by:
                both = here and base and getattr(base, name)
                row[f"{name}_ratio"] = getattr(here, name) / getattr(base, name) if both else ""
            rows.append(row)
    return rows


def markdown(rows):
    """The rows as a table in Markdown."""
    by = [name for name in BY if name in rows[0]]
    header = ["milestone", "run", "epochs", *by, *(f"{name}, ratio" for name in by)]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for row in rows:
        if row["epoch"] == "":
            lines.append([row["milestone"], row["run"], "not reached", *[""] * (len(header) - 3)])
            continue
        places = [f"{row[name]:.0f}" for name in by]
        ratios = [
            f"{row[f'{name}_ratio']:.2f}" if row[f"{name}_ratio"] != "" else "" for name in by
        ]
        lines.append([row["milestone"], row["run"], f"{row['epoch']:.1f}", *places, *ratios])
    return markdown_table(lines)


def medians(groups, milestones=MILESTONES, by=BY):
    """When each group first reached the milestones, the median over its seeds, in Markdown.

    groups: lists of runs that differ in their seed alone. Ratios are to the first group: the median
    of the ratios of two runs with the same seed, which may have shared a slow or a fast machine.
    Where a median is over a run that never got there, it says so or has no ratio.
    """
    _, labels = titles_and_labels([group[0] for group in groups], NOT_IDENTIFYING)
    header = ["milestone"]
    for number, (group, label) in enumerate(zip(groups, labels, strict=True)):
        label += f", {len(group)} run{'s' * (len(group) > 1)}"
        header += [f"{label}: {name}" for name in by]
        header += [f"{name}, ratio" for name in by if number]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for column, threshold in milestones:
        line = [f"{threshold:.0%} {PARTS[column]}"]
        base, *others = [_crossings(group, column, threshold, by) for group in groups]
        line += _medians(base.values(), ".0f", "not reached")
        for here in others:
            line += _medians(here.values(), ".0f", "not reached")
            ratios = [_ratio(here[seed], base[seed]) for seed in here if seed in base]
            line += _medians(ratios or [np.full(len(by), np.nan)], ".2f", "")
        lines.append(line)
    return markdown_table(lines)


def _crossings(group, column, threshold, by):
    """{seed: where its run first reached the threshold (len(by),)}; infinite where it never did."""
    found = {run.config["seed"]: first_crossing(run.metrics, column, threshold) for run in group}
    return {
        seed: np.array([getattr(here, name) if here else np.inf for name in by], float)
        for seed, here in found.items()
    }


def _ratio(here, base):
    """here / base, both (len(by),); NaN where `base` was never reached, or at once."""
    return here / np.where(np.isfinite(base) & (base > 0), base, np.nan)


def _medians(values, form, otherwise):
    """The medians of arrays (len(by),) as texts; `otherwise` in place of one that is not finite."""
    middle = np.median(list(values), axis=0)
    return [format(value, form) if np.isfinite(value) else otherwise for value in middle]
