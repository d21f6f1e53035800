"""Runs side by side: their curves against time and against updates, and when each got how far."""

from functools import partial
from pathlib import Path

from kfcnet.figures import curves
from kfcnet.figures.paper import MILESTONES
from kfcnet.runs.files import markdown_table, write_csv, write_text
from kfcnet.runs.labels import PARTS, titles_and_labels
from kfcnet.runs.metrics import first_crossing
from kfcnet.runs.read import read_run

BY = ("updates", "seconds")
"""What milestones are measured in; seconds say something only of runs that were alone."""


def compare(folders, out, milestones=MILESTONES, by=BY):
    """Leave `milestones.csv`, `milestones.md` and the curves of the runs in the folder `out`.

    folders: run folders, the first of which the others are compared with; by: one of BY or both.
    Raises RecordError for a run that cannot be read.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs = [read_run(folder) for folder in folders]
    for x in by:
        curves.save_figure(partial(curves.draw_runs, runs, x), out / f"curves_by_{x}.png")
    _, labels = titles_and_labels(runs, free=("epochs",))
    rows = milestone_rows(runs, labels, milestones, by)
    write_csv(out / "milestones.csv", [rows[0], *(row.values() for row in rows)])
    write_text(out / "milestones.md", markdown(rows))
    return rows


def milestone_rows(runs, labels, milestones=MILESTONES, by=BY):
    """One dict a run and milestone: where it was first reached, and how many times as far the
    first run's is; empty where a run never got there.
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
    """The rows as a table in Markdown; a milestone never reached says so."""
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
