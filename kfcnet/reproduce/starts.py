"""How training begins: the starts that were compared, and how many maps each of them kills."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kfcnet.figures import curves
from kfcnet.figures.layout import add_title
from kfcnet.reproduce.values import has_failed
from kfcnet.runs.files import markdown_table
from kfcnet.runs.labels import data_set, method, network_and_device
from kfcnet.runs.metrics import COUNTS, read_metrics
from kfcnet.runs.read import Run, read_run

MOST_DEAD = 2
"""A start that kills more maps than this, at any seed, is not chosen."""


class Begun(NamedTuple):
    """A run up to the end of a start's comparison: its tables of metrics and of diagnostics."""

    run: Run
    metrics: dict
    diagnostics: dict

    def dead(self):
        """{layer: dead maps at each row of the diagnostics}."""
        ending = "_dead"
        return {
            name.removesuffix(ending): values
            for name, values in self.diagnostics.items()
            if name.endswith(ending)
        }


def measure(plan, progress, figure="starts"):
    """{curve: (its start in words, [Begun, one for each seed])} of the starts that were run."""
    found = {}
    for name in plan.shows(figure):
        state = progress.get(name)
        if state is None or not state.finals:
            continue
        begun = [
            _read(status.folder, plan.final_epochs(state.curve)) for status in state.finals.values()
        ]
        found[name] = state.curve.words, [each for each in begun if each]
    return {name: pair for name, pair in found.items() if pair[1]}


def missing(plan, progress, figure="starts"):
    """Which starts are not compared at all seeds yet, in words: without that none is chosen."""
    there = [
        name
        for name, state in progress.items()
        if state.is_complete and all(map(_is_diagnosed, state.finals.values()))
    ]
    return [name for name in plan.shows(figure) if name not in there]


def _is_diagnosed(status):
    """Whether dead maps were counted in the run of a RunStatus, as far as it got."""
    return status.failed or (status.folder / "diagnostics.csv").exists()


def _read(folder, epochs):
    """The Begun of a run's first epochs; None without diagnostics."""
    path = folder / "diagnostics.csv"
    if not path.exists():
        return None
    run, diagnostics = read_run(folder), read_metrics(path, columns=COUNTS)
    if not len(diagnostics["examples"]):
        return None
    # An update straddles the end of the last epoch.
    whole = run.metrics["examples"] < epochs * run.record["data"]["train_examples"]
    last = run.metrics["examples"][min(whole.sum(), len(whole) - 1)]
    return Begun(
        run,
        {name: values[run.metrics["examples"] <= last] for name, values in run.metrics.items()},
        {name: values[diagnostics["examples"] <= last] for name, values in diagnostics.items()},
    )


def draw(found):
    """A Figure, a column for each method: training error and dead maps over epochs, by start.

    found: what `measure` returned. Each seed is a line of its own.
    """
    methods = {}
    for words, begun in found.values():
        methods.setdefault(method(begun[0].run), []).append((words, begun))
    figure = Figure(figsize=(3.6 * len(methods) + 2.4, 5.6))
    panels = figure.subplots(2, len(methods), squeeze=False, sharey="row")
    looks = {words: _look(number) for number, words in enumerate(dict(found.values()))}
    most = 10  # dead maps that the axis shows at least
    for column, (title, starts) in enumerate(methods.items()):
        for words, begun in starts:
            for number, each in enumerate(begun):
                look = looks[words] | dict(label="_" if number else words)
                errors = 100 * each.metrics["raw_train_error"]
                panels[0, column].plot(each.metrics["epoch"], errors, **look)
                epochs = each.diagnostics["examples"] / each.run.record["data"]["train_examples"]
                dead = sum(each.dead().values())
                panels[1, column].plot(epochs, dead, **look)
                most = max(most, dead.max(initial=0))
        panels[0, column].set(title=title, yscale="log")
        panels[0, column].yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        panels[0, column].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[0, column].yaxis.set_minor_formatter(NullFormatter())
        panels[1, column].set(xlabel="epochs")
    for axes in panels[1]:
        axes.set(xlim=panels[0, 0].get_xlim(), ylim=(-0.03 * most, 1.05 * most))
    panels[0, 0].set_ylabel("training error of the latest parameters (%)")
    panels[1, 0].set_ylabel("dead maps in all layers")
    handles = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside right center")
    run = next(iter(found.values()))[1][0].run
    add_title(figure, f"{data_set(run)}, {network_and_device(run)}")
    return figure


def _look(number):
    """The look of a start's lines; a second round of colours is dotted, with open markers."""
    again, at = divmod(number, len(curves.COLOURS))
    return dict(
        color=curves.COLOURS[at],
        marker=curves.MARKERS[at],
        linestyle=":" if again else "-",
        markerfacecolor="white" if again else curves.COLOURS[at],
    )


def chosen(found):
    """The start in words that docs/rules.md chooses, None where every one kills too many maps.

    The one with which the first method, KFC-pre, has the lowest training error, among those with
    at most MOST_DEAD dead maps at any seed.
    """
    first = method(next(iter(found.values()))[1][0].run)
    errors = {
        words: np.median([each.metrics["train_error"][-1] for each in begun])
        for words, begun in found.values()
        if method(begun[0].run) == first
        and not any(has_failed(each.run) for each in begun)
        and max(sum(each.dead().values())[-1] for each in begun) <= MOST_DEAD
    }
    return min(errors, key=errors.get, default=None)


def page(found, missing=()):
    """What stands below the figure, in Markdown. missing: what `missing` returned."""
    choice = f"the choice is: {chosen(found) or 'none of these'}"
    if missing:
        choice = f"nothing is chosen yet, for want of runs of {', '.join(missing)}"
    counted = sorted(
        each.diagnostics["examples"][-1] / each.run.record["data"]["train_examples"]
        for _, begun in found.values()
        for each in begun
    )
    at = " to ".join(dict.fromkeys(f"{each:.2g}" for each in (counted[0], counted[-1])))
    return (
        "No source tells how the authors of the paper began. *Warm-up* is a linear rise of the "
        "learning rate from a hundredth of it. The clip bounds nu = v^T F v + lambda |v|^2 by C, "
        "for a step v before momentum and a weight decay lambda; a clip that counts momentum "
        "bounds it by C (1 - mu)^2, because momentum mu lets 1/(1 - mu) steps add up. *h* is the "
        "objective in nats, the mean training loss plus the penalty of the weight decay. "
        "*Clipped* is the share of updates that were clipped; *largest mean nu* is the largest of "
        "the means over the updates between two evaluations, before the clip. A map is dead that "
        "is active on less than 1% of the pixels of 1,000 training images; maps were last "
        f"counted at epoch {at}. Errors and h are of the averaged parameters where the column "
        "does not say otherwise; a cell has every seed's number. By the rules (`docs/rules.md`) "
        f"{choice}.\n\n" + table(found)
    )


def table(found):
    """The starts at the end of their comparison, in Markdown; a cell has every seed's number."""
    header = [
        "method",
        "start",
        "epochs",
        "training error",
        "of the latest parameters",
        "h",
        "test error",
        "clipped",
        "largest mean nu",
        "dead maps",
    ]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for words, begun in found.values():
        ends = [{name: values[-1] for name, values in each.metrics.items()} for each in begun]
        lines.append(
            [
                method(begun[0].run),
                words,
                f"{ends[0]['epoch']:.1f}",
                *(
                    ", ".join(format(end[name], form) for end in ends)
                    for name, form in (
                        ("train_error", ".1%"),
                        ("raw_train_error", ".1%"),
                        ("train_objective", ".3f"),
                        ("test_error", ".1%"),
                    )
                ),
                ", ".join(f"{_clipped(each.metrics):.0%}" for each in begun),
                ", ".join(filter(None, (_largest(each.metrics["nu"]) for each in begun))),
                "; ".join(
                    f"{layer} {', '.join(f'{each.dead()[layer][-1]:.0f}' for each in begun)}"
                    for layer in begun[0].dead()
                ),
            ]
        )
    return markdown_table(lines)


def _clipped(metrics):
    """The share of clipped updates."""
    updates = np.diff(metrics["iteration"])
    return (metrics["clipped"][1:] * updates).sum() / max(updates.sum(), 1)


def _largest(values):
    values = values[np.isfinite(values)]
    return f"{values.max():.3g}" if len(values) else ""
