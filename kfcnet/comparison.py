"""Runs side by side: their curves against time and against updates, and when each got how far."""

import csv
import io
from functools import partial
from pathlib import Path

from kfcnet import plots
from kfcnet.labels import PARTS, titles_and_labels
from kfcnet.records import first_crossing, markdown_table, write_text

MILESTONES = (("test_error", 0.19), ("train_error", 0.10), ("train_error", 0.06))
"""The errors at which the paper compares its methods (sections 5.2 and 5.3)."""


def compare(folders, out, milestones=MILESTONES):
    """Leave `milestones.csv`, `milestones.md` and the curves of the runs in the folder `out`.

    folders: run folders, the first of which the others are compared with. Raises RecordError for a
    run that cannot be read.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs = [plots.read_run(folder) for folder in folders]
    for x in ("seconds", "updates"):
        plots.save_figure(partial(plots.draw_runs, runs, x), out / f"curves_by_{x}.png")
    _, labels = titles_and_labels(runs)
    rows = milestone_rows(runs, labels, milestones)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "milestones.csv", text.getvalue())
    write_text(out / "milestones.md", markdown(rows))
    return rows


def milestone_rows(runs, labels, milestones=MILESTONES):
    """One dict a run and milestone: where it was first reached, and how many times as far the
    first run's is; empty where a run never got there.
    """
    rows = []
    for column, threshold in milestones:
        base = first_crossing(runs[0].metrics, column, threshold)
        for run, label in zip(runs, labels, strict=True):
            here = first_crossing(run.metrics, column, threshold)
            row = {"milestone": f"{threshold:.0%} {PARTS[column]}", "run": label}
            for name in ("epoch", "updates", "seconds"):
                row[name] = getattr(here, name) if here else ""
            for name in ("updates", "seconds"):
                both = here and base and getattr(base, name)
                row[f"{name}_ratio"] = getattr(here, name) / getattr(base, name) if both else ""
            rows.append(row)
    return rows


def markdown(rows):
    """The rows as a table in Markdown; a milestone never reached says so."""
    header = ["milestone", "run", "epochs", "updates", "seconds", "updates, ratio",
              "seconds, ratio"]
    lines = [header, ["---", "---", *["---:"] * 5]]
    for row in rows:
        if row["updates"] == "":
            lines.append([row["milestone"], row["run"], "not reached", "", "", "", ""])
            continue
        ratios = [f"{row[f'{name}_ratio']:.2f}" if row[f"{name}_ratio"] != "" else ""
                  for name in ("updates", "seconds")]
        lines.append([row["milestone"], row["run"], f"{row['epoch']:.1f}", str(row["updates"]),
                      f"{row['seconds']:.0f}", *ratios])
    return markdown_table(lines)
