"""The figures of a reproduction, drawn from records alone."""

import itertools

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from kfcnet.figures import curves
from kfcnet.figures.layout import add_legend, add_title
from kfcnet.reproduce.assumptions import ACTIVATIONS, DERIVATIVES, by_distance
from kfcnet.reproduce.plan import RATE
from kfcnet.runs.identity import NOT_IDENTIFYING
from kfcnet.runs.labels import (
    STRUCTURES,
    clock,
    data_set,
    device,
    distinct_labels,
    layer_sizes,
    method,
    network_and_device,
)
from kfcnet.runs.read import read_run

BARS = {
    "kfc": "KFC",
    "without iad": "KFC without IAD",
    "without sh": "KFC without SH",
    "without sud": "KFC without SUD",
    "iad": "IAD alone",
    "ekfac": "KFC's eigenvectors (EKFAC)",
    "diagonal": STRUCTURES["diagonal"],
    **{name: f"KFC, {STRUCTURES[name]}" for name in ("white_derivatives", "sua", "autocovariance")},
}
LINES = {"max": "-", "average": "--", "published": ":"}
POINTS = {DERIVATIVES: ("o", curves.COLOURS[0]), ACTIVATIONS: ("s", curves.COLOURS[1])}
HEATS = {DERIVATIVES: "derivative_maps", ACTIVATIONS: "activation_maps"}


def draw_figure(figure_plan, runs, words):
    """A Figure of a FigurePlan. runs: {curve: [Run, ...]}, with one of its curves at least.

    words: {curve: what sets it apart}.
    """
    panels = []
    for panel in figure_plan.panels:
        shown = [
            (run.until(panel.until), words.get(name, ""))
            for name in panel.curves
            for run in runs.get(name, [])
        ]
        if shown:
            there, phrases = zip(*shown, strict=True)
            title = (
                f"({panel.letter}) {data_set(there[0])}\n{layer_sizes(there[0].config['network'])}"
            )
            panels.append(
                curves.Panel(
                    list(there), panel.quantity, panel.x, title, panel.is_logarithmic, phrases
                )
            )
    figure = curves.draw_panels(panels)
    devices = dict.fromkeys(
        clock(run) if panel.x == "seconds" else device(run)
        for panel in panels
        for run in panel.runs
    )
    add_title(figure, ", ".join(devices))
    return figure


def draw_sensitivity(tunings):
    """A Figure: training errors over the learning rates that were tried, a panel for each stage.

    tunings: pairs, one for each curve: the Results of its complete stages, and its Stages.
    """
    count = max(results[-1].stage for results, _ in tunings)
    figure = Figure(figsize=(7.2 if count > 1 else 4.5, 3.4))
    runs = [read_run(results[0].point.folder) for results, _ in tunings]
    labels = distinct_labels(runs, (*NOT_IDENTIFYING, RATE), timed=False)
    for number, axes in enumerate(figure.subplots(1, count, squeeze=False)[0], start=1):
        lines, ends = {}, []
        for (results, stages), label in zip(tunings, labels, strict=True):
            lines[label] = [
                (result.point.settings[RATE], result.row and result.row["train_error"])
                for result in results
                if result.stage == number
            ]
            ends += [stages[number - 1].epochs] if lines[label] else []
        curves.draw_grid(axes, lines)
        axes.set(
            xlabel="learning rate",
            title=f"({'abcdefgh'[number - 1]}) after "
            + " or ".join(dict.fromkeys(curves.in_epochs(end) for end in ends)),
        )
        axes.tick_params("x", labelrotation=45)
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    add_legend(figure, list(handles.values()), columns=4)
    what = [data_set(runs[0]), layer_sizes(runs[0].config["network"])]
    tried = {result.point.folder for results, _ in tunings for result in results}
    what += dict.fromkeys(device(read_run(folder)) for folder in sorted(tried))
    add_title(figure, ", ".join(what))
    return figure


def _data_network_and_device(run):
    """Data set, network and device of a run."""
    return f"{data_set(run)}, {network_and_device(run)}"


def draw_assumptions(records, runs):
    """A Figure: correlations over distance, a row for each data set, and distances of structures.

    records: pairs of a Measurement and its record; runs: {curve: its final runs}.
    """
    groups = {
        name: list(pairs)
        for name, pairs in itertools.groupby(records, key=lambda pair: pair[0].group)
    }
    correlated = [pairs for pairs in groups.values() if "distances" not in pairs[0][1]]
    bars = [pairs for pairs in groups.values() if "distances" in pairs[0][1]]
    figure = Figure(figsize=(7.2, 0.4 + 2.4 * len(correlated) + 2.8 * len(bars)))
    rows = figure.subfigures(
        len(groups), 1, squeeze=False, height_ratios=[2.4] * len(correlated) + [2.8] * len(bars)
    )[:, 0]
    for row, pairs in zip(rows, [*correlated, *bars], strict=True):
        run = runs[pairs[0][0].curve][0]
        add_title(row, f"{_data_network_and_device(run)}; trained with {method(run)}")
        if "distances" in pairs[0][1]:
            _draw_distances(row, pairs)
        else:
            _draw_decay(row, pairs)
    if correlated:
        handles = {
            label: handle
            for row in rows[: len(correlated)]
            for axes in row.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        rows[len(correlated) - 1].legend(
            handles.values(),
            handles.keys(),
            handlelength=3,
            loc="outside lower center",
            ncols=len(handles) // 2,
        )
    return figure


def _draw_decay(row, pairs):
    """Mean |correlation| over distance, one pair of axes for each layer."""
    names = list(pairs[0][1]["correlations"])
    for axes, name in zip(
        row.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True
    ):
        for measurement, record in pairs:
            line = LINES[measurement.pooling]
            for what, (marker, colour) in POINTS.items():
                values = by_distance(record["correlations"][name][what])
                axes.plot(
                    values,
                    line,
                    marker=marker,
                    color=colour,
                    label=f"{what}, {measurement.pooling_in_words}",
                    markerfacecolor=colour if line == "-" else "white",
                )
        axes.set(title=name, xlabel="distance (pixels)", ylim=(0, 1.03), xticks=range(len(values)))
    row.axes[0].set_ylabel("mean |correlation|")


def _draw_distances(row, pairs):
    """Bars of |F' - F| / |F|, smallest first; F' is a structure's block, F the exact one."""
    axes = row.subplots()
    known = {}  # older records have fewer
    for _, record in pairs:
        known = record["distances"] | known
    names = sorted((name for name in BARS if name in known), key=known.get)
    height = 0.8 / len(pairs)
    for number, (measurement, record) in enumerate(pairs):
        values = [record["distances"].get(name, np.nan) for name in names]
        hatched = measurement.pooling == "average"
        axes.barh(
            np.arange(len(names)) + number * height,
            values,
            height,
            color="white" if hatched else curves.COLOURS[0],
            hatch="////" if hatched else None,
            edgecolor=curves.COLOURS[0],
            label=measurement.pooling_in_words,
        )
    axes.set_yticks(np.arange(len(names)) + 0.8 / 2 - height / 2, [BARS[name] for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(
        title=pairs[0][0].layer,
        xlabel="distance from the exact Fisher block, relative (Frobenius norm)",
    )
    row.legend(loc="outside lower center", ncols=2)


def draw_heat_maps(measurement, record, run):
    """A Figure of |correlations| in the trained network of a Run, a row for each layer.

    The left half shows derivatives, the right half activations: spatial correlations in three maps,
    and correlations between all maps. White is 0, black is 1.
    """
    layers = record["correlations"]
    figure = Figure(figsize=(7.2, 0.6 + 1.1 * len(layers)))
    *halves, beside = figure.subfigures(1, 3, width_ratios=(1, 1, 0.22))
    for half, what in zip(halves, HEATS, strict=True):
        cells = half.subplots(len(layers), 4, squeeze=False)
        for row, (name, values) in zip(cells, layers.items(), strict=True):
            for axes, picture in zip(
                row, [*_three(values[what]), _off_diagonal(values[HEATS[what]])], strict=True
            ):
                _draw_heat(axes, picture)
            row[0].set_ylabel(name)
            radius = values[what].shape[1] // 2
            row[1].set_xlabel(f"three maps, up to {radius} pixels apart", fontsize=7)
            row[3].set_xlabel("between maps", fontsize=7)
        half.suptitle(what, fontsize=8)
    bar = beside.subplots()
    bar.grid(visible=False)
    bar.set_box_aspect(25)
    beside.colorbar(ScalarMappable(Normalize(0, 1), "Greys"), cax=bar, label="|correlation|")
    add_title(
        figure,
        f"{_data_network_and_device(run)}; {measurement.pooling_in_words}, "
        f"{record['images']} images",
    )
    return figure


def _draw_heat(axes, picture):
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    if picture is None:
        axes.spines[:].set_visible(False)
        return
    axes.spines[:].set_visible(True)
    axes.imshow(np.abs(picture), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")


def _three(spatial):
    """Three of the maps that are not constant, evenly chosen; None in place of missing ones."""
    alive = [array for array in spatial if np.isfinite(array).any()]
    chosen = [alive[len(alive) * part // 3] for part in range(3)] if len(alive) >= 3 else alive
    return chosen + [None] * (3 - len(chosen))


def _off_diagonal(kap):
    """Correlations between maps; None for a single map."""
    return kap if len(kap) > 1 else None
