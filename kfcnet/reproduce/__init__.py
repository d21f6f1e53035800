"""The paper's figures and numbers from one command: plan, train what is missing, draw.

The state of a reproduction is read from the folders of its runs: after a stop at any moment it goes
on where it was, and a complete one draws its figures again.
"""

import functools
import sys
from pathlib import Path

from kfcnet.config import ConfigError
from kfcnet.figures import curves
from kfcnet.ops import get_ops, which_device
from kfcnet.reproduce import assumptions, claims, costs, figures, report, scaling, starts, work
from kfcnet.reproduce.places import say
from kfcnet.reproduce.plans import make_plan
from kfcnet.reproduce.progress import progress_of
from kfcnet.reproduce.rows import Evidence
from kfcnet.runs.files import make_folder
from kfcnet.runs.folder import RunFolderError, alone_in
from kfcnet.runs.index import RunIndex
from kfcnet.runs.labels import data_set
from kfcnet.training.sweep import write_tables

FIGURES = (
    "fig1",
    "fig2",
    "assumptions",
    "batchnorm",
    "minibatch",
    "methods",
    "structures",
    "sensitivity",
    "starts",
    "decay",
    "batchnorm_decay",
    "free",
    "invariance",
    "choices",
    "autocovariance",
    "autoencoder",
    "scaling",
    "all",
)
KINDS = ("png", "svg")
DECIDED = ("seed", "epochs", "device", "data", "data.name", "data.path")
"""Settings that the plan decides: they cannot be overridden."""


def reproduce(
    figure,
    out,
    device="auto",
    *,
    quick=False,
    seeds=None,
    places=None,
    overrides=(),
    only_draw=False,
    at_a_time=1,
):
    """Train the runs that `figure`, one of FIGURES, needs and `out` lacks; draw all that are there.

    out: folder of the runs; device: "cpu", "cuda", or "auto": a GPU if there is one, but with
    only_draw the device of the records; seeds: number of seeds of every curve, in place of the
    planned one; places: {data set: where it is stored}; overrides: `key=value` for every run;
    only_draw: train nothing; at_a_time: how many runs, each in a process of its own.

    Writes `figures/`, `sweeps/`, `numbers.csv`, `headline.md`, `README.md` and `report.html`.
    Returns {run: reason} of what failed. Raises ConfigError or RecordError for a record that cannot
    be read, RunFolderError for a folder that holds runs on another device or that another process
    trains in, WriteError for a full disk, TrainingInterrupted after a signal.
    """
    out, places = Path(out), places or {}
    index, failures = RunIndex(out, to_go_on=not only_draw), {}
    plan = _plan(index, device, only_draw, quick, seeds, overrides)
    if figure not in (*plan.figures, "all"):
        raise ConfigError(f"{figure}: there is no such figure of the embedded digits (--quick)")
    make_folder(out)
    measures_updates = figure == "scaling" or (figure == "all" and plan.device == "cpu")
    if not only_draw:
        if measures_updates and (reason := scaling.obstacle(plan)):
            say(f"the updates of {figure} will not be measured: {reason}")  # before hours of runs
        with alone_in(out):
            failures |= work.train_missing(plan, figure, index, places, at_a_time)
            if figure == "all" or plan.figures[figure].kind == "assumptions":
                make_folder(out / "assumptions")
                failures |= assumptions.measure_missing(plan, progress_of(plan, index), out, places)
            failures |= costs.measure_missing(plan, progress_of(plan, index), out, places)
            if measures_updates:
                failures |= scaling.measure_missing(plan, progress_of(plan, index), out, places)
        index = RunIndex(out, to_go_on=False)  # what is drawn depends on no checkpoint
    draw(plan, index, out, failures)
    return failures


def _plan(index, device, only_draw, *options):
    """The Plan for a device, which is that of the runs in the folder, if there are any.

    A page shows the runs of one device only.
    """
    is_open = device == "auto"
    if is_open:
        ops = get_ops()
        device = ops.name
        print(which_device(ops), file=sys.stderr)
    plan = make_plan(device, *options)
    # A wrong setting is found here, before anything is trained.
    names = {plan.configure(curve).data.name for curve in plan.curves.values()}
    there = set().union(*(index.devices[name] for name in names))
    if device in there or not there:
        return plan
    other = min(there)
    if is_open and only_draw:
        return make_plan(other, *options)
    raise RunFolderError(
        f"{index.root} holds runs on {other}: name another folder with --out, or --device {other}"
    )


def draw(plan, index, out, failures):
    """Write all figures, tables and the page, from the records alone."""
    progress = progress_of(plan, index)
    for name, state in progress.items():
        for what, results in ((name, state.tuning), (f"{name}_clip", state.clip_tuning)):
            if results:
                folder = make_folder(out / "sweeps" / what)
                write_tables(folder, list(results[0].point.settings), state.curve.stages, results)
    evidence = evidence_in(plan, progress, out)
    plan, runs, measured_costs = evidence.plan, evidence.runs, evidence.costs
    records = [
        (measurement, evidence.records[measurement.curve])
        for measurement in plan.measurements
        if measurement.curve in evidence.records
    ]
    make_folder(out / "figures")
    drawn, tables = {}, {}
    words = {each.name: each.words for each in plan.curves.values() if each.words}
    for name, figure_plan in plan.figures.items():
        if figure_plan.kind == "assumptions":
            drawn[name] = _draw_assumptions(records, runs, out)
            tables |= {name: assumptions.page(records)} if records else {}
            continue
        draw_one = None
        if figure_plan.kind == "tuning":
            tunings = [
                (progress[curve].tuning, progress[curve].curve.stages)
                for curve in plan.shows(name)
                if curve in progress and progress[curve].tuning
            ]
            if tunings:
                draw_one = functools.partial(figures.draw_sensitivity, tunings)
        elif figure_plan.kind == "starts":
            if found := starts.measure(plan, progress, name):
                draw_one = functools.partial(starts.draw, found)
                tables[name] = starts.page(found, starts.missing(plan, progress, name))
        elif figure_plan.kind == "scaling":
            if shared := scaling.found(plan, progress, out):
                draw_one = functools.partial(scaling.draw, shared)
                tables[name] = scaling.page(shared)
        elif any(curve in runs for curve in plan.own(name)):
            figure_plan, note = _without_times(figure_plan, runs.keys() - measured_costs)
            tables |= {name: note} if note else {}
            draw_one = functools.partial(figures.draw_figure, figure_plan, runs, words)
        if draw_one:
            _save(draw_one, out, name)
        drawn[name] = [f"{name}.png"] if draw_one else []
    rows = claims.rows(evidence)
    report.write_numbers(rows, out / "numbers.csv")
    report.write_headline(claims.headline(evidence), out / "headline.md")
    report.write_readme(evidence, progress, rows, drawn, tables, failures, out / "README.md")


def evidence_in(plan, progress, out):
    """The Evidence of the records in the folder `out`."""
    runs = {name: state.runs() for name, state in progress.items() if state.finals}
    measured = costs.current(costs.read(out), costs.configured(plan, progress, runs))
    for name in measured:
        runs[name] = [costs.with_cost(run, measured[name]) for run in runs[name]]
    plan = plan._replace(measurements=named(plan.measurements, runs))
    found = {each.curve: assumptions.read(plan, progress, out, each) for each in plan.measurements}
    return Evidence(
        plan,
        runs,
        {curve: record for curve, record in found.items() if record},
        measured,
        frozenset(name for name in runs if not progress[name].is_complete),
        {name: state.final_stage for name, state in progress.items() if state.final_stage},
        {name: progress[name].edge for name in runs if progress[name].edge},
    )


def _without_times(figure_plan, untimed):
    """(the FigurePlan over epochs where it has curves whose epochs were not timed, a note or "").

    Runs share a machine: their own seconds tell how busy it was.
    """
    panels = tuple(
        panel._replace(x="epochs")
        if panel.x == "seconds" and untimed.intersection(panel.curves)
        else panel
        for panel in figure_plan.panels
    )
    if panels == figure_plan.panels:
        return figure_plan, ""
    changed = zip(figure_plan.panels, panels, strict=True)
    letters = ", ".join(f"({now.letter})" for before, now in changed if now != before)
    note = (
        f"{letters} over epochs in place of time: the cost of an epoch of one of the curves is not "
        "measured yet."
    )
    return figure_plan._replace(panels=panels), note


def named(measurements, runs):
    """Measurements named after the data of their runs, which may be a part of the planned data set.

    runs: {curve: its final runs}.
    """
    return tuple(
        measurement._replace(data=data_set(runs[measurement.curve][0]))
        if measurement.curve in runs
        else measurement
        for measurement in measurements
    )


def _draw_assumptions(records, runs, out):
    """Draw all measurements together and the correlations of each; names of the pictures."""
    pictures = (
        {"assumptions": functools.partial(figures.draw_assumptions, records, runs)}
        if records
        else {}
    )
    for measurement, record in records:
        if not measurement.layer:
            pictures[measurement.picture] = functools.partial(
                figures.draw_heat_maps, measurement, record, runs[measurement.curve][0]
            )
    for name, draw_one in pictures.items():
        _save(draw_one, out, name)
    return [f"{name}.png" for name in pictures]


def _save(draw_one, out, name):
    curves.save_figure(draw_one, *(out / "figures" / f"{name}.{kind}" for kind in KINDS))
