"""A comparison of runs: their curves over time and updates, and when they reached which error."""

from functools import partial

import numpy as np

from kfcnet.figures import curves
from kfcnet.figures.html import write_page
from kfcnet.figures.paper import MILESTONES
from kfcnet.runs.files import make_folder, markdown_table, write_csv, write_text
from kfcnet.runs.identity import NOT_IDENTIFYING, group_by_seed
from kfcnet.runs.labels import (
    DATA_SETS,
    PARTS,
    common_titles,
    distinct_labels,
    numbered,
    published_data_set,
    with_folders,
)
from kfcnet.runs.metrics import first_crossing
from kfcnet.runs.read import read_run, with_rows

BY = ("updates", "seconds")
"""Units of milestones; seconds are meaningful only for runs that had the machine to themselves."""

OPTIONAL = {*(f"curves_by_{x}.png" for x in BY), "milestones.csv", "milestones.md", "medians.md"}
"""Files that a comparison may have or not."""

ROUND = (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)
"""Errors at which runs are compared where the paper has none."""


def compare(folders, out, milestones=None, by=BY):
    """Write a comparison of runs to the folder `out`: curves, tables, and `report.html` with both.

    `runs.md` says where each run ended, `milestones.csv` and `.md` when it reached which error,
    `medians.md` the medians where runs differ in their seed alone. folders: run folders, the first
    of which the others are compared with; milestones: pairs of a column and its value, by default
    those of `milestones_of`; by: one of BY or both. A run without rows has reached nothing and is
    in no figure. Files of an earlier comparison do not stay in `out`. Returns the rows of the
    milestones. Raises RecordError for a run that cannot be read, and where none has rows.
    """
    out = make_folder(out)
    runs = [read_run(folder) for folder in folders]
    drawn = with_rows(runs, folders)
    pictures = {x: f"curves_by_{x}.png" for x in by}
    for x, name in pictures.items():
        curves.save_figure(partial(curves.draw_runs, drawn, x), out / name)
    labels = distinct_labels(runs, ignored=("epochs",), timed="seconds" in by)
    labels = numbered(with_folders(labels, folders))
    milestones = milestones_of(drawn) if milestones is None else milestones
    rows = milestone_rows(runs, labels, milestones, by)
    tables = {"runs.md": ends(runs, labels, by)}
    if rows:
        write_csv(out / "milestones.csv", [rows[0], *(row.values() for row in rows)])
        tables["milestones.md"] = markdown(rows)
    groups = group_by_seed(runs, timed="seconds" in by)
    if rows and len(groups) < len(runs):
        tables["medians.md"] = medians(groups, milestones, by)
    for name, table in tables.items():
        write_text(out / name, table)
    write_page(_page(runs, tables, pictures), out / "report.html")
    written = {*pictures.values(), *tables, *(["milestones.csv"] if rows else [])}
    for name in OPTIONAL - written:
        (out / name).unlink(missing_ok=True)
    return rows


def milestones_of(runs):
    """The errors at which runs are compared, as pairs of a column and its value.

    On CIFAR-10 those of the paper; elsewhere, of test and of training error, the lowest round one
    that all runs have reached, and the lowest that any has.
    """
    if {published_data_set(run) for run in runs} == {DATA_SETS["cifar10"]}:
        return MILESTONES
    found = []
    for column in ("test_error", "train_error"):
        best = [np.nanmin(run.metrics[column]) for run in runs]
        reached = [
            [error for error in ROUND if lowest <= error] for lowest in (max(best), min(best))
        ]
        found += [(column, error) for error in dict.fromkeys(row[-1] for row in reached if row)]
    return tuple(found)


def ends(runs, labels, by=BY):
    """Where each run ended, in Markdown: its effort, its last errors, its lowest test error."""
    header = ["run", "epochs", *by, "training loss", "training error", "test error", "lowest", "at"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for run, label in zip(runs, labels, strict=True):
        if not len(run.metrics["iteration"]):
            lines.append([label, "no row yet", *[""] * (len(header) - 2)])
            continue
        last = {name: values[-1] for name, values in run.metrics.items()}
        at = np.nanargmin(run.metrics["test_error"])
        effort = {"updates": f"{last['iteration']}", "seconds": _number(last["seconds"])}
        lines.append(
            [
                label,
                f"{last['epoch']:.1f}",
                *(effort[name] for name in by),
                f"{last['train_loss']:.4f}",
                f"{last['train_error']:.2%}",
                f"{last['test_error']:.2%}",
                f"{run.metrics['test_error'][at]:.2%}",
                f"epoch {run.metrics['epoch'][at]:.1f}",
            ]
        )
    return markdown_table(lines)


def _page(runs, tables, pictures):
    titles = common_titles(runs)
    titles_of = {
        "runs.md": "Where the runs ended",
        "milestones.md": "When they first reached which error",
        "medians.md": "Medians over seeds",
    }
    parts = [f"# {', '.join(titles) or 'Runs'}"]
    parts += [f"## {titles_of[name]}\n\n{table}" for name, table in tables.items()]
    parts += [
        f"## Curves over {x}\n\n![Losses and errors over {x}]({name})"
        for x, name in pictures.items()
    ]
    return "\n\n".join(parts) + "\n"


def milestone_rows(runs, labels, milestones=MILESTONES, by=BY):
    """A dict for each milestone and run: where the run first reached it, and the ratio to the first
    run; empty texts if it never did.
    """
    rows = []
    for column, threshold in milestones:
        base = first_crossing(runs[0].metrics, column, threshold)
        for run, label in zip(runs, labels, strict=True):
            here = first_crossing(run.metrics, column, threshold)
            row = {"milestone": f"{100 * threshold:g}% {PARTS[column]}", "run": label}
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
        places = [_number(row[name]) for name in by]
        ratios = [row[f"{name}_ratio"] for name in by]
        ratios = [_ratio_as_text(ratio) if ratio != "" else "" for ratio in ratios]
        lines.append([row["milestone"], row["run"], f"{row['epoch']:.1f}", *places, *ratios])
    return markdown_table(lines)


def _number(value):
    """A number of updates or seconds as text: whole from 100 on, else of two digits at least."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}"  # 99.7 would be "1e+02"


def _ratio_as_text(value):
    """A ratio as text: of two decimal places, or of two digits where it is small."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def medians(groups, milestones=MILESTONES, by=BY):
    """When each group first reached the milestones, the median over its seeds, in Markdown.

    groups: lists of runs that differ in their seed alone. Ratios are to the first group: the median
    of the ratios of two runs with the same seed, which may have shared a slow or a fast machine.
    Where a median is over a run that never got there, it says so or has no ratio.
    """
    first = [group[0] for group in groups]
    labels = distinct_labels(first, NOT_IDENTIFYING, timed="seconds" in by)
    header = ["milestone"]
    for number, (group, label) in enumerate(zip(groups, numbered(labels), strict=True)):
        label += f", {len(group)} run{'s' * (len(group) > 1)}"
        header += [f"{label}: {name}" for name in by]
        header += [f"{name}, ratio" for name in by if number]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for column, threshold in milestones:
        line = [f"{100 * threshold:g}% {PARTS[column]}"]
        base, *others = [_crossings(group, column, threshold, by) for group in groups]
        line += _medians(base.values(), _number, "not reached")
        for here in others:
            line += _medians(here.values(), _number, "not reached")
            ratios = [_ratio(here[seed], base[seed]) for seed in here if seed in base]
            line += _medians(ratios or [np.full(len(by), np.nan)], _ratio_as_text, "")
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


def _medians(values, as_text, otherwise):
    """The medians of arrays (len(by),) as texts; `otherwise` in place of one that is not finite."""
    middle = np.median(list(values), axis=0)
    return [as_text(value) if np.isfinite(value) else otherwise for value in middle]
