"""Records -> figures: the loss and the error of runs, as in the paper's Figures 1 and 2.

A run has a colour and a marker (so that it can be told apart in black and white); training is
dashed, test solid. The same records give the same bytes: nothing but matplotlib's own defaults,
its own font and the records enters a figure.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kfcnet import yaml_text
from kfcnet.records import RecordError, read_json, read_metrics, write_bytes

X_AXES = {"seconds": "training time", "updates": "updates", "epochs": "epochs",
          "examples": "training examples"}
COLUMN_OF = {"seconds": "seconds", "updates": "iteration", "epochs": "epoch",
             "examples": "examples"}

METHODS = {"kfc_pre": "KFC-pre", "sgd": "SGD", "kfac": "K-FAC", "adagrad": "Adagrad",
           "rmsprop": "RMSProp", "adam": "Adam"}
DATA_SETS = {"cifar10": "CIFAR-10", "svhn": "SVHN", "digits": "UCI digits 8x8",
             "synthetic": "synthetic images"}
ERRORS = {"train_error": "training error", "test_error": "test error"}
WHOLE = {"cifar10": {60000}, "svhn": {99289, 630420}}
"""Images of a data set's training and test parts together; SVHN without and with the extra part."""

PUBLISHED_ERROR = {"CIFAR-10": 0.18, "SVHN": 0.0278}
"""Test errors of the same networks as their authors published them (the paper's Figure 1)."""

# Okabe and Ito's palette, which the common kinds of colour blindness leave distinct.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"

STYLE = {
    "figure.figsize": (7.2, 3.4), "figure.dpi": 200, "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "legend.fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.3, "lines.markersize": 4,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "grid.linewidth": 0.5, "svg.hashsalt": "kfcnet",
}
DATELESS = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None},
            "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}


class Run(NamedTuple):
    """A run as its folder tells it: `metrics.csv`, `config.yaml` and `run.json`."""

    metrics: dict
    config: dict
    record: dict


def read_run(folder):
    """The Run in a folder. Raises RecordError naming the file that is missing or unreadable."""
    folder = Path(folder)
    if not (folder / "metrics.csv").exists():
        raise RecordError(f"{folder} holds no run (there is no metrics.csv in it); name the "
                          "folder that a run was written to with --out")
    try:
        config = yaml_text.parse((folder / "config.yaml").read_text())
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {folder / 'config.yaml'}: {error}") from error
    record = read_json(folder / "run.json")
    for content, keys, name in ((config, ("data", "network", "optimizer"), "config.yaml"),
                                (record, ("device",), "run.json")):
        if not isinstance(content, dict) or any(key not in content for key in keys):
            raise RecordError(f"{folder / name}: the record of a run has keys {', '.join(keys)}")
    return Run(read_metrics(folder / "metrics.csv"), config, record)


def plot_runs(folders, out, x="seconds"):
    """Draw the runs in `folders` over `x` into the file `out` (.png, .svg or .pdf).

    x: "seconds", "updates", "epochs" or "examples". Raises ValueError for another `x` or format,
    RecordError for a run that cannot be read or a file that cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    save_figure(lambda: draw_runs(runs, x), out)


def save_figure(draw, out):
    """Write the figure that `draw()` returns to `out`, in the project's style."""
    kind = Path(out).suffix.lstrip(".").lower()
    if kind not in DATELESS:
        raise ValueError(f"{out}: a figure is written as one of "
                         f"{', '.join('.' + name for name in DATELESS)}")
    memory = io.BytesIO()
    with style.context(["default", STYLE]):
        figure = draw()
        FigureCanvasAgg(figure)
        figure.savefig(memory, format=kind, metadata=DATELESS[kind])
    write_bytes(out, memory.getbuffer())


def draw_runs(runs, x="seconds"):
    """A Figure: the loss on the left, the error on the right, both on logarithmic axes."""
    if x not in X_AXES:
        raise ValueError(f"x axis: {x!r} is not one of {', '.join(X_AXES)}")
    figure = Figure()
    loss, error = figure.subplots(1, 2)
    scale, unit = _scale(runs, x)
    for run, colour, marker in zip(runs, _cycle(COLOURS), _cycle(MARKERS), strict=False):
        positions = run.metrics[COLUMN_OF[x]] / scale
        for axes, quantity in ((loss, "loss"), (error, "error")):
            _draw_curves(axes, positions, run.metrics, quantity, colour, marker)
    loss.set_ylabel("loss (nats per example)")
    _set_log_axis(loss, 1)
    error.set_ylabel("error (%)")
    _set_log_axis(error, 100)
    _draw_published_error(error, runs)
    for axes in (loss, error):
        axes.set_xlabel(X_AXES[x] + unit)
        axes.set_xlim(left=0)
    titles, labels = titles_and_labels(runs)
    figure.suptitle(", ".join(titles), fontsize=8)
    _add_legend(figure, labels)
    return figure


def draw_sweep(results, run):
    """A Figure of a sweep: the training error over the grid's first key, a line for each stage.

    results: (epochs, {key: value}, training error or None for a run that diverged), one for each
    run and stage; further keys of the grid give further lines. run: one of them, for the title.
    """
    lines = {}
    for epochs, settings, error in results:
        (key, value), *others = settings.items()
        unit = "epoch" if epochs == 1 else "epochs"
        name = ", ".join([f"{epochs:g} {unit}", *(f"{_short(k)} {v}" for k, v in others)])
        lines.setdefault((epochs, name), []).append((value, error))
    values = sorted({value for line in lines.values() for value, _ in line}, key=_order)
    figure = Figure(figsize=(4.5, 3))
    axes = figure.subplots()
    for ((_, name), line), colour, marker in zip(sorted(lines.items()), _cycle(COLOURS),
                                                 _cycle(MARKERS), strict=False):
        measured = sorted((values.index(x), error) for x, error in line if error is not None)
        diverged = [values.index(x) for x, error in line if error is None]
        axes.plot(*np.array(measured or np.empty((0, 2))).T, color=colour, marker=marker,
                  label=name)
        axes.plot(diverged, np.ones(len(diverged)), "x", color=colour, clip_on=False)
    if any(error is None for *_, error in results):
        axes.plot([], np.ones(0), "xk", label="diverged")
    axes.set(xlabel=_short(key), ylabel="training error (%)")
    axes.set_xticks(range(len(values)), [str(value) for value in values])
    _set_log_axis(axes, 100)
    axes.set_ylim(top=1)
    figure.legend(loc="outside right upper")
    figure.suptitle(", ".join([_method(run), _data_set(run), _device(run)]), fontsize=8)
    return figure


def _short(key):
    """The last part of a key, in words."""
    return key.rpartition(".")[2].replace("_", " ")


def _order(value):
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def _draw_curves(axes, positions, metrics, quantity, colour, marker):
    """Training dashed with hollow markers, test solid with full ones, some eight of each."""
    every = max(1, len(positions) // 8)
    for part, line, face in (("train", "--", "white"), ("test", "-", colour)):
        axes.plot(positions, metrics[f"{part}_{quantity}"], line, color=colour, marker=marker,
                  markevery=every, markerfacecolor=face, label="_nolegend_")


def _set_log_axis(axes, factor):
    """Make the vertical axis logarithmic, with as many labels in a decade as there is room for.

    A value of zero (no error at all) is moved to the lower edge. Labels are multiplied by `factor`.
    """
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (values.min(), values.max()) if len(values) else (0.1, 1)
    bottom = low / 1.3
    for line in axes.lines:
        line.set_ydata(np.where(line.get_ydata() == 0, bottom, line.get_ydata()))
    axes.set_yscale("log")
    axes.set_ylim(bottom, high * 1.3)
    labelled = range(1, 10) if high < 4 * low else (1, 2, 5) if high < 500 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=labelled))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_published_error(axes, runs):
    """A horizontal line, where all runs are on one data set whose published error is known."""
    data_sets = {_data_set(run) for run in runs}
    published = PUBLISHED_ERROR.get(data_sets.pop()) if len(data_sets) == 1 else None
    if published is not None:
        axes.axhline(published, color="black", linestyle=":", linewidth=1,
                     label=f"published test error, {100 * published:g}%")
        axes.set_ylim(bottom=min(published / 1.3, axes.get_ylim()[0]))


def _add_legend(figure, labels):
    """Below the panels: which run is which colour, and once for all what dashed and solid mean."""
    runs = [Line2D([], [], color=colour, marker=marker, label=label)
            for label, colour, marker in zip(labels, _cycle(COLOURS), _cycle(MARKERS),
                                             strict=False)]
    parts = [Line2D([], [], color="black", linestyle=line, marker="o", markerfacecolor=face,
                    label=part)
             for part, line, face in (("training", "--", "white"), ("test", "-", "black"))]
    published = figure.axes[1].get_legend_handles_labels()[0]
    longest = max(map(len, labels))
    figure.legend(handles=[*runs, *parts, *published], loc="outside lower center",
                  ncols=1 if longest > 60 else 2 if longest > 30 else 4, handlelength=3)


def titles_and_labels(runs):
    """(what all of the runs have in common, phrase by phrase; a name of its own for each run)."""
    facts = [_facts(run) for run in runs]
    common = [name for name in facts[0] if len({fact[name] for fact in facts}) == 1]
    titles = [facts[0][name] for name in common if facts[0][name]]
    labels = []
    for run, fact in zip(runs, facts, strict=True):
        own = [fact[name] for name in fact if name not in common and name != "batch"]
        labels.append(", ".join([_method(run), *own]))
    return titles, _distinct(runs, labels)


def _facts(run):
    """Data set, network, batch and device of a run, each as a phrase."""
    return {"data": _data_set(run), "network": _network(run.config["network"]),
            "batch": f"batch {run.config['optimizer']['batch_size']}", "device": _device(run)}


def _method(run):
    optimizer = run.config["optimizer"]
    return f"{METHODS.get(optimizer['name'], optimizer['name'])}, M = {optimizer['batch_size']}"


def _data_set(run):
    """The data set's name, with its size where it is a part of the published one."""
    name, record = run.config["data"]["name"], run.record.get("data", {})
    images = record.get("train_examples", 0) + record.get("test_examples", 0)
    title = DATA_SETS.get(name, name)
    whole = not images or images in WHOLE.get(name, {images})
    return title if whole else f"{title}, {images / 1000:.3g}k subset"


def _device(run):
    """"CPU (name of the processor)" or "CUDA (name of the GPU)", from `run.json`."""
    device = run.record["device"]
    name = device.get("processor") or device.get("name")
    return device["device"].upper() + (f" ({name})" if name else "")


def _network(layers):
    """"conv 32-32-64, dense 10", with "batch norm" where there is one."""
    parts = []
    for kind, size in (("conv", "filters"), ("dense", "units")):
        sizes = [str(layer[size]) for layer in layers if layer["layer"] == kind]
        parts += [f"{kind} {'-'.join(sizes)}"] if sizes else []
    if any(layer["layer"] == "batch_norm" for layer in layers):
        parts.append("batch norm")
    return ", ".join(parts)


def _distinct(runs, labels):
    """The labels, those that several runs share extended by the settings in which these differ."""
    settings = [_flat({**run.config, "network": str(run.config["network"])}) for run in runs]
    result = []
    for label, own in zip(labels, settings, strict=True):
        others = [flat for flat, name in zip(settings, labels, strict=True) if name == label]
        keys = [key for key in own if any(flat.get(key) != own[key] for flat in others)]
        extra = [f"{_short(key)} {own[key]}" for key in keys if key != "network"]
        result.append(", ".join([label, *extra]))
    return result


def _flat(config, prefix=""):
    """{"optimizer.learning_rate": 0.01, ...} of a nested dictionary."""
    flat = {}
    for key, value in config.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict)
                    else {prefix + key: value})
    return flat


def _scale(runs, x):
    """What to divide the x values by, and the unit to name: time is shown in readable units."""
    if x != "seconds":
        return 1, ""
    longest = max(run.metrics["seconds"].max(initial=0) for run in runs)
    return next((scale, f" ({unit})") for limit, scale, unit in
                ((600, 1, "s"), (4 * 3600, 60, "min"), (np.inf, 3600, "h")) if longest <= limit)


def _cycle(values):
    while True:
        yield from values
