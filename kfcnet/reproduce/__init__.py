"""The paper's figures and numbers, from one command: plan, train what is missing, draw.

Everything is told by the folders of the runs: a reproduction that was stopped at any moment goes
on where it was, and one that is complete draws its figures again.
"""

import functools
import sys
from pathlib import Path

from kfcnet.figures import curves
from kfcnet.ops import get_ops, which_device
from kfcnet.reproduce import assumptions, claims, figures, report, work
from kfcnet.reproduce.plan import make_plan
from kfcnet.reproduce.progress import progress_of
from kfcnet.runs.files import WriteError
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
    "all",
)
KINDS = ("png", "svg")
DECIDED = ("seed", "epochs", "device", "data", "data.name", "data.path")
"""Settings that are the plan's, so that there is no use in overriding them."""


def reproduce(
    figure, out, device="auto", quick=False, seeds=None, places=None, overrides=(), only_draw=False
):
    """Bring the records below the folder `out` up to `figure`, one of FIGURES, and draw them.

    device: "cpu" or "cuda", or "auto": the GPU if there is one, and to draw alone the device of the
    records where they are all of one; seeds: in place of the planned numbers; places: {data set:
    where it lies}; overrides: `key=value` for every run; only_draw: train nothing. Leaves
    `figures/`, `numbers.csv` and `README.md` of all that is there, and returns {run: why} of what
    failed.

    Raises ConfigError or RecordError for a record that cannot be read, RunFolderError for a folder
    of another device's runs or one that another process trains in, WriteError for a disk that is
    full, TrainingInterrupted after a signal.
    """
    out, places = Path(out), places or {}
    index, failures = RunIndex(out), {}
    plan = _plan(index, device, only_draw, quick, seeds, overrides)
    _make_folder(out)
    if not only_draw:
        with alone_in(out):
            failures |= work.train_missing(plan, figure, index, places)
            if figure == "all" or plan.figures[figure].kind == "networks":
                _make_folder(out / "assumptions")
                failures |= assumptions.measure_networks(
                    plan, progress_of(plan, index), out, places
                )
    draw(plan, index, out, failures)
    return failures


def _plan(index, device, only_draw, *options):
    """The Plan for a device that the records in a folder leave room for.

    A page shows the runs of one device: that of another would have none of them.
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
    """All figures, tables and the page, from the records alone."""
    steps = progress_of(plan, index)
    for name, step in steps.items():
        if step.tuning:
            folder = _make_folder(out / "sweeps" / name)
            write_tables(
                folder, list(step.tuning[0].point.settings), step.curve.stages, step.tuning
            )
    runs = {name: step.runs() for name, step in steps.items() if step.finals}
    plan = plan._replace(networks=named(plan.networks, runs))
    records = [(network, assumptions.read(plan, steps, out, network)) for network in plan.networks]
    records = [(network, record) for network, record in records if record]
    _make_folder(out / "figures")
    drawn = {}
    for name, figure_plan in plan.figures.items():
        if figure_plan.kind == "networks":
            drawn[name] = _draw_assumptions(records, runs, out)
            continue
        draw_one = None
        if figure_plan.kind == "tuning":
            tunings = [
                (steps[curve].tuning, steps[curve].curve.stages)
                for curve in plan.shows(name)
                if curve in steps and steps[curve].tuning
            ]
            if tunings:
                draw_one = functools.partial(figures.draw_sensitivity, tunings)
        elif any(curve in runs for curve in plan.own(name)):
            draw_one = functools.partial(figures.draw_figure, figure_plan, runs)
        if draw_one:
            _save(draw_one, out, name)
        drawn[name] = [f"{name}.png"] if draw_one else []
    networks = {network.curve: record for network, record in records}
    evidence = claims.Evidence(plan, runs, networks)
    rows = claims.rows(evidence)
    report.write_numbers(rows, out / "numbers.csv")
    report.write_readme(evidence, steps, rows, drawn, failures, out / "README.md")


def named(networks, runs):
    """NetworkPlans called after the data that they were trained on, which may be a part of what
    was planned. runs: {curve: its final runs}.
    """
    return tuple(
        network._replace(data=data_set(runs[network.curve][0]))
        if network.curve in runs
        else network
        for network in networks
    )


def _draw_assumptions(records, runs, out):
    """Names of the pictures: of all networks together, and the correlations of each."""
    pictures = (
        {"assumptions": functools.partial(figures.draw_assumptions, records, runs)}
        if records
        else {}
    )
    for network, record in records:
        if not network.layer:
            pictures[f"assumptions_{network.curve}"] = functools.partial(
                figures.draw_heat_maps, network, record, runs[network.curve][0]
            )
    for name, draw_one in pictures.items():
        _save(draw_one, out, name)
    return [f"{name}.png" for name in pictures]


def _save(draw_one, out, name):
    for kind in KINDS:
        curves.save_figure(draw_one, out / "figures" / f"{name}.{kind}")


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"cannot make the folder {path}: {error.strerror}; make room or name "
            "another place with --out"
        ) from error
    return path
