"""Figures of the loss and the error of runs, like the paper's Figures 1 and 2.

Each curve has a colour and, for black-and-white prints, a marker; training is dashed, test solid.
Runs that differ in their seed alone are one curve: their median, in a band from lowest to highest.
The same records give the same bytes: a figure depends on the records, on matplotlib's own defaults
and on its own font, and on nothing else.
"""

import io
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from kfcnet.figures.layout import add_legend, add_legend_beside, add_title
from kfcnet.figures.paper import NETWORK_ERROR
from kfcnet.runs.files import make_folder, write_bytes
from kfcnet.runs.identity import NOT_IDENTIFYING, group_by_seed
from kfcnet.runs.labels import (
    common_titles,
    devices_apart,
    distinct_labels,
    is_part,
    keys_in_words,
    method,
    numbered,
    published_data_set,
    title_of_all,
)
from kfcnet.runs.read import read_run, with_rows

X_AXES = {
    "seconds": "training time",
    "updates": "updates",
    "epochs": "epochs",
    "examples": "training examples",
}
LABELS = {"loss": "loss (nats per example)", "error": "error (%)"}
COLUMN_OF = {
    "seconds": "seconds",
    "updates": "iteration",
    "epochs": "epoch",
    "examples": "examples",
}

# Okabe and Ito's palette, grey in place of a yellow that is too pale for lines: people with the
# common kinds of colour blindness can tell it apart.
BLACK = "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", BLACK, "#888888")
MARKERS = "osD^vPX*"

STYLE = {
    "figure.figsize": (7.2, 3.4),
    "figure.dpi": 200,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "svg.hashsalt": "kfcnet",
}
DATELESS = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def plot_runs(folders, out, x="seconds"):
    """Draw the runs in `folders` over `x` to the file `out` (.png, .svg or .pdf).

    x: "seconds", "updates", "epochs" or "examples". A run without rows is left out, with a notice.
    Raises ValueError for another `x` or format, RecordError for a run that cannot be read, where
    none has rows, or a file that cannot be written.
    """
    runs = with_rows([read_run(folder) for folder in folders], folders)
    make_folder(Path(out).parent)
    save_figure(lambda: draw_runs(runs, x), out)


_one_style = threading.Lock()  # a style is that of the process: contexts must not overlap


def save_figure(draw, *outs):
    """Write the Figure that `draw()` returns to all files `outs`, in the project's style."""
    kinds = [_kind(out) for out in outs]
    with _one_style, style.context(["default", STYLE]):
        figure = draw()
        FigureCanvasAgg(figure)
        _lay_out(figure)
        for out, kind in zip(outs, kinds, strict=True):
            memory = io.BytesIO()
            figure.savefig(memory, format=kind, metadata=DATELESS[kind])
            write_bytes(out, memory.getbuffer())


def _kind(out):
    """The format of a figure in the file `out`, a key of DATELESS."""
    kind = Path(out).suffix.lstrip(".").lower()
    if kind not in DATELESS:
        raise ValueError(
            f"{out}: a figure is written as one of {', '.join('.' + name for name in DATELESS)}"
        )
    return kind


def _lay_out(figure):
    """Fix the layout, with rounded positions.

    The last digits of the layout's solver vary; SVG files would contain them, in names of clips.
    """
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    for part in figure.subfigs:
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(9))
    for axes in figure.axes:
        points = axes.get_position(original=True).get_points()
        axes.set_position(Bbox(points.round(9)))


class Panel(NamedTuple):
    """One pair of axes: `quantity` ("loss" or "error") of `runs` over `x`, a key of X_AXES.

    is_logarithmic: of the horizontal axis, for curves of very different lengths. words: of each
    run what sets it apart, or "": then the settings do in which it differs from the others.
    """

    runs: list
    quantity: str
    x: str = "seconds"
    title: str = ""
    is_logarithmic: bool = False
    words: tuple = ()


def draw_runs(runs, x="seconds"):
    """A Figure: the loss on the left, the error on the right, both on logarithmic axes."""
    figure = draw_panels([Panel(runs, "loss", x), Panel(runs, "error", x)])
    titles = common_titles(runs)
    if x != "seconds":  # over seconds a label says whose they are
        titles += devices_apart(runs)
    add_title(figure, ", ".join(titles))
    return figure


def draw_panels(panels):
    """A Figure of Panels, two in a row, with one legend: a label looks the same in all of them."""
    for panel in panels:
        if panel.x not in X_AXES:
            raise ValueError(f"x axis: {panel.x!r} is not one of {', '.join(X_AXES)}")
    rows, columns = -(-len(panels) // 2), min(len(panels), 2)
    figure = Figure(figsize=(7.2 if columns == 2 else 4.5, 0.8 + 2.6 * rows))
    grid, looks = figure.subplots(rows, columns, squeeze=False).flat, {}
    seeds = [_draw_panel(axes, panel, looks) for axes, panel in zip(grid, panels, strict=False)]
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    of_labels = {label: {own[label] for own in seeds if label in own} for label in looks}
    of_panels = [set(own.values()) for own in seeds]
    if set(map(len, of_panels)) == {1} and max(map(len, of_labels.values())) > 1:
        for axes, (number,) in zip(figure.axes, of_panels, strict=True):
            axes.set_title(f"{axes.get_title()}, {in_seeds(number)}", parse_math=False)
        of_labels = dict.fromkeys(looks, {1})  # the titles have said it
    _add_legend(figure, of_labels)
    return figure


def _draw_panel(axes, panel, looks):
    """Draw a Panel; {label: its number of seeds}.

    looks: {label: its look} of the panels before, to which this one's are added.
    """
    is_timed = panel.x == "seconds"
    groups = group_by_seed(panel.runs, is_timed)
    words = {id(run): text for run, text in zip(panel.runs, panel.words, strict=False) if text}
    labels = numbered(_labels([group[0] for group in groups], words, is_timed))
    scale, unit = _scale(panel.runs, panel.x)
    for group, label in zip(groups, labels, strict=True):
        look = looks.setdefault(label, look_of(len(looks)))
        _draw_curves(axes, group, COLUMN_OF[panel.x], scale, panel.quantity, **look)
    axes.set(xlabel=X_AXES[panel.x] + unit, ylabel=LABELS[panel.quantity])
    axes.set_title(panel.title, parse_math=False)
    if panel.is_logarithmic:
        axes.set_xscale("log", nonpositive="mask")  # without the row before the first update
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, None)
    _set_log_axis(axes, 100 if panel.quantity == "error" else 1)
    if panel.quantity == "error":
        _draw_published_error(axes, panel.runs)
    return {label: len(group) for group, label in zip(groups, labels, strict=True)}


def _labels(runs, words, is_timed):
    """A label for each run: its words, {id: text}, or what tells it from others without any."""
    plain = [run for run in runs if id(run) not in words]
    labels = distinct_labels(plain, NOT_IDENTIFYING, is_timed) if plain else []
    of_plain = iter(labels)
    return [
        f"{method(run)}, {words[id(run)]}" if id(run) in words else next(of_plain) for run in runs
    ]


def draw_sweep(results, runs):
    """A Figure of a sweep: the training error over the grid's first key, a line for each stage.

    results: a tuple (epochs, {key: value}, training error or None for a diverged run) for each run
    and stage. Values of the grid's other keys have lines of their own. runs: the Runs; the title
    says what they have in common.
    """
    lines, words = {}, keys_in_words(list(results[0][1]))
    for epochs, settings, error in results:
        (key, value), *others = settings.items()
        name = ", ".join([in_epochs(epochs), *(f"{words[k]} {v}" for k, v in others)])
        lines.setdefault((epochs, name), []).append((value, error))
    figure = Figure(figsize=(4.5, 3))
    axes = figure.subplots()
    draw_grid(axes, {name: line for (_, name), line in sorted(lines.items())})
    axes.set_xlabel(words[key], parse_math=False)
    add_legend_beside(figure, axes.get_legend_handles_labels()[0])
    add_title(figure, title_of_all(runs))
    return figure


def in_epochs(number):
    """ "1 epoch", "2.5 epochs"."""
    return f"{number:g} epoch{'s' * (number != 1)}"


def in_seeds(number):
    """ "1 seed", "5 seeds"."""
    return f"{number} seed{'s' * (number != 1)}"


def draw_grid(axes, lines):
    """Draw training errors, on a logarithmic axis, over values of a setting at equal distances.

    lines: {label: [(value, training error or None for a diverged run), ...]}.
    """
    values = sorted({value for line in lines.values() for value, _ in line}, key=_order)
    errors = [error for line in lines.values() for _, error in line]
    highest = max((error for error in errors if error is not None), default=0)
    top = 1.3 * highest if highest > 1 else 1  # an autoencoder's error may be above 100%
    for number, (name, line) in enumerate(lines.items()):
        look = look_of(number)
        measured = sorted((values.index(x), error) for x, error in line if error is not None)
        diverged = [values.index(x) for x, error in line if error is None]
        axes.plot(*np.array(measured or np.empty((0, 2))).T, label=name, **look)
        if diverged:
            axes.plot(
                diverged, np.full(len(diverged), top), "x", color=look["color"], clip_on=False
            )
    if None in errors:
        axes.plot([], np.ones(0), "xk", label="diverged")
    axes.set(ylabel="training error (%)")
    axes.set_xticks(range(len(values)), [str(value) for value in values], parse_math=False)
    _set_log_axis(axes, 100, top)


def _order(value):
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def _draw_curves(axes, runs, column, scale, quantity, color, marker):
    """Training dashed with open markers, test solid with full ones; about eight markers a line.

    Behind the end of the shortest run, the others are thin lines of their own.
    """
    iterations = _common_iterations(runs)
    positions = np.median(_at(runs, column, iterations), axis=0) / scale
    every = max(1, len(positions) // 8)
    for part, line, face in (("train", "--", "white"), ("test", "-", color)):
        values = _at(runs, f"{part}_{quantity}", iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a row of diverged runs is all NaN
            low, middle, high = (
                pick(values, axis=0) for pick in (np.nanmin, np.nanmedian, np.nanmax)
            )
        if len(runs) > 1:
            axes.fill_between(positions, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(
            positions,
            middle,
            line,
            color=color,
            marker=marker,
            markevery=every,
            markerfacecolor=face,
            label="_nolegend_",
        )
        for run in runs:
            rest = run.metrics["iteration"] >= iterations[-1]
            if rest.sum() > 1:
                axes.plot(
                    run.metrics[column][rest] / scale,
                    run.metrics[f"{part}_{quantity}"][rest],
                    line,
                    color=color,
                    linewidth=0.6,
                    label="_nolegend_",
                )


def _common_iterations(runs):
    """The iterations, up to the end of the shortest run, at which a run has a row."""
    iterations = np.unique(np.concatenate([run.metrics["iteration"] for run in runs]))
    return iterations[iterations <= min(run.metrics["iteration"][-1] for run in runs)]


def _at(runs, column, iterations):
    """A column's values (runs, iterations), interpolated linearly where a run has no row."""
    return np.array(
        [np.interp(iterations, run.metrics["iteration"], run.metrics[column]) for run in runs]
    )


def _set_log_axis(axes, factor, top=None):
    """Make the vertical axis logarithmic, with as many labels in a decade as fit.

    Values of zero (no errors) are drawn at the lower edge. Labels show `factor` times the value.
    top: where the axis ends, by default just above the data.
    """
    low, high = axes.dataLim.minposy, axes.dataLim.ymax
    if not (np.isfinite(low) and high > 0):
        low, high = 0.1, 1
    bottom = low / 1.3
    for line in axes.lines:
        line.set_ydata(np.where(line.get_ydata() == 0, bottom, line.get_ydata()))
    axes.set_yscale("log")
    axes.set_ylim(bottom, top or high * 1.3)
    high = top or high
    labelled = range(1, 10) if high < 4 * low else (1, 2, 5) if high < 500 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=labelled))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_published_error(axes, runs):
    """Draw a line at the published error, if all runs are on one data set that has one."""
    data_sets = {published_data_set(run) for run in runs}
    published = NETWORK_ERROR.get(min(data_sets)) if len(data_sets) == 1 else None
    if published is not None:
        whole = f" on all of {min(data_sets)}" if any(map(is_part, runs)) else ""
        axes.axhline(
            published,
            color="black",
            linestyle=":",
            linewidth=1,
            label=f"published test error{whole}, {100 * published:g}%",
        )
        axes.set_ylim(bottom=min(published / 1.3, axes.get_ylim()[0]))


def _add_legend(figure, seeds):
    """Add a legend below the panels: the curves' looks, and what dashed and solid lines mean."""
    is_told = any(max(numbers) > 1 for numbers in seeds.values())  # else no band tells of seeds
    labels = [
        label + (_seeds_in_words(numbers) if is_told else "") for label, numbers in seeds.items()
    ]
    curves = [Line2D([], [], label=label, **look_of(number)) for number, label in enumerate(labels)]
    parts = [
        Line2D([], [], color="black", linestyle=line, marker="o", markerfacecolor=face, label=part)
        for part, line, face in (("training", "--", "white"), ("test", "-", "black"))
    ]
    published = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            published.setdefault(label, handle)
    longest = max(map(len, labels))
    columns = 1 if longest > 60 else 2 if longest > 30 else 4
    columns = max(1, round(columns * figure.get_figwidth() / 7.2))  # as many as fit
    add_legend(figure, [*curves, *parts, *published.values()], columns, handlelength=3)


def _seeds_in_words(numbers):
    low, high = min(numbers), max(numbers)
    return f", {in_seeds(high)}" if low == high else f", {low} to {high} seeds"


def _scale(runs, x):
    """(what the x values are divided by, " (unit)"): times of hours are not shown in seconds."""
    if x != "seconds":
        return 1, ""
    longest = max(run.metrics["seconds"].max(initial=0) for run in runs)
    return next(
        (scale, f" ({unit})")
        for limit, scale, unit in ((600, 1, "s"), (4 * 3600, 60, "min"), (np.inf, 3600, "h"))
        if longest <= limit
    )


def look_of(number, colours=COLOURS):
    """Colour and marker of a curve; a second round of the colours has other markers."""
    again, at = divmod(number, len(colours))
    return {"color": colours[at], "marker": MARKERS[(at + again) % len(MARKERS)]}
