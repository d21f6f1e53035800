"""The figure of a run's `diagnostics.csv`: each layer's curvature and activity during training."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kfcnet.figures import curves
from kfcnet.figures.layout import add_legend, add_title
from kfcnet.runs.files import RecordError
from kfcnet.runs.labels import common_titles, method
from kfcnet.runs.metrics import COUNTS, read_metrics
from kfcnet.runs.read import read_run


def plot_diagnostics(folder, out):
    """Draw the diagnostics of the run in `folder` to the file `out` (.png, .svg or .pdf).

    Raises RecordError where they cannot be read or have no row, ValueError for another format.
    """
    path = Path(folder) / "diagnostics.csv"
    table = read_metrics(path, columns=COUNTS)
    if not len(table["iteration"]):
        raise RecordError(f"there is nothing to draw yet in {path}: it has no row")
    run = read_run(folder)
    curves.save_figure(lambda: draw_diagnostics(table, run), out)


def draw_diagnostics(table, run):
    """A Figure over updates, a colour and a marker for each layer: six panels about the curvature
    for an optimizer with Kronecker factors, two about activity for a network with ReLUs.
    """
    looks, has_activity = _looks(table), bool(_layers(table, "active"))
    if _layers(table, "pi"):
        figure = Figure(figsize=(13.2, 5.6) if has_activity else (10, 5.6))
        panels = figure.subplots(2, 3 + has_activity)
        _draw_curvature(panels[:, :3], table, looks, run.config["optimizer"].get("clip"))
    else:
        figure = Figure(figsize=(7.2, 3.2))
        panels = figure.subplots(1, 2, squeeze=False)
    if has_activity:
        _draw_activity(panels[:, -1] if len(panels) == 2 else panels[0], table, looks)
    for panel in panels.flat:
        panel.set_xlim(left=0)
    for panel in panels[-1]:
        panel.set_xlabel("updates")
    add_title(figure, ", ".join([method(run), *common_titles([run], without=("batch",))]))
    lines = {
        line.get_label(): line  # also of a layer whose name begins with "_"
        for panel in (panels[-1, 0], *(panels[-1, -1:] if has_activity else ()))
        for line in panel.lines
    }
    add_legend(figure, list(lines.values()), columns=min(len(lines), 6))
    return figure


def _layers(table, column):
    """The layers that have a column, in the table's order."""
    ending = f"_{column}"
    return [name.removesuffix(ending) for name in table if name.endswith(ending)]


def _looks(table):
    """{layer: the look of its lines}; black stands for all layers together."""
    every = max(1, len(table["iteration"]) // 8)
    names = dict.fromkeys([*_layers(table, "pi"), *_layers(table, "active")])
    colours = [colour for colour in curves.COLOURS if colour != curves.BLACK]
    return {
        name: curves.look_of(number, colours) | {"markevery": every}
        for number, name in enumerate(names)
    }


def _draw_curvature(panels, table, looks, clip):
    layers = {name: looks[name] for name in _layers(table, "pi")}
    _draw_ranges(panels[0, 0], table, layers, "Omega")
    _draw_ranges(panels[0, 1], table, layers, "Gamma")
    _draw_lines(panels[0, 2], table, layers, "pi", "$\\pi$")
    _draw_lines(panels[1, 0], table, layers, "nu", "$\\nu$ of the step before clip and momentum")
    _draw_together(panels[1, 0], table, "nu", clip)
    _draw_lines(panels[1, 1], table, layers, "cosine", "cosine, gradient and natural gradient")
    _draw_together(panels[1, 1], table, "cosine")
    _draw_reductions(panels[1, 2], table)
    for panel in (*panels[0], panels[1, 0]):
        panel.set_yscale("log")


def _draw_activity(panels, table, looks):
    layers = {name: looks[name] for name in _layers(table, "active")}
    _draw_lines(panels[0], table, layers, "active", "share of active pixels")
    panels[0].set_ylim(0, 1)
    _draw_lines(panels[1], table, layers, "dead", "maps active on less than 1% of them")
    most = max(table[f"{name}_dead"].max(initial=0) for name in layers)
    panels[1].set_ylim(0, 1.05 * max(most, 10))


def _draw_ranges(panel, table, layers, factor):
    """A band from the smallest to the largest eigenvalue of each layer's damped factor."""
    x = table["iteration"]
    for layer, look in layers.items():
        low, high = (_positive(table[f"{layer}_{factor}_{end}"]) for end in ("min", "max"))
        panel.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
        panel.plot(x, high, **look)
        panel.plot(x, low, "--", markerfacecolor="white", **look)
    panel.set_title(f"damped $\\{factor}$: largest eigenvalue, smallest (dashed)")


def _draw_lines(panel, table, layers, name, title):
    for layer, look in layers.items():
        values = table[f"{layer}_{name}"]
        panel.plot(
            table["iteration"], _positive(values) if name == "nu" else values, label=layer, **look
        )
    panel.set_title(title)


def _draw_together(panel, table, name, cap=None):
    """All layers together, in black, and the value at which steps are clipped."""
    values = table[name]
    panel.plot(
        table["iteration"],
        _positive(values) if name == "nu" else values,
        color="black",
        label="all layers",
    )
    if cap is not None:
        panel.axhline(cap, color="black", linestyle=":", label=f"clip, {cap:g}")


def _draw_reductions(panel, table):
    """The reduction that the quadratic model predicted for each update, and the actual one."""
    predicted, actual = table["predicted_reduction"], table["actual_reduction"]
    panel.plot(table["iteration"], predicted, color="black", label="predicted")
    panel.plot(
        table["iteration"], actual, "o", markersize=3, color=curves.COLOURS[1], label="actual"
    )
    panel.axhline(0, color="black", linewidth=0.5)
    panel.set_yscale("symlog", linthresh=_smallest_scale(predicted, actual))
    if not (np.append(predicted, actual) < 0).any():
        panel.set_ylim(bottom=0)
    panel.set_title("reduction of h on the mini-batch (nats)")
    panel.legend(loc="best")


def _smallest_scale(*curves):
    """The value below which a symmetric logarithmic axis is linear: 1/100 of its largest value.

    It is rounded down to a power of ten, where the axis has a tick: a tick below it would overlap
    that of zero.
    """
    values = np.abs(np.concatenate(curves))
    largest = max(values[np.isfinite(values)].max(initial=0), 1e-10)
    return 10.0 ** np.floor(np.log10(largest / 100))


def _positive(values):
    """The values, with NaN (a gap) for those that a logarithmic axis cannot show."""
    return np.where(values > 0, values, np.nan)
