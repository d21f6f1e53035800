"""A row of the table of claims: what was measured, over pairs of seeds, and how it is judged."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from kfcnet.reproduce import verdicts
from kfcnet.reproduce.values import Value, has_failed, lowest_test_error, middle, ratio, reached
from kfcnet.reproduce.verdicts import OPEN, Interval
from kfcnet.runs.labels import data_set, method
from kfcnet.runs.metrics import PHASES

NO_PAIRS = "no seed in common"


class Row(NamedTuple):
    """A row of the table. `paper` and `here` are Values or texts, `ratio` a Value or "".

    interval: an Interval of `here`, or ""; verdict: one of VERDICTS, "" for a row that only reports
    a number; reason: a measurement that explains it.
    """

    claim: str
    paper: Value | str
    here: Value | str
    ratio: Value | str = ""
    interval: Interval | str = ""
    note: str = ""
    verdict: str = ""
    reason: str = ""


class Evidence(NamedTuple):
    """The Plan and all that was measured.

    runs: {curve: its final runs}; records: {curve: its record of the assumptions}; costs: {curve:
    what its epochs cost}, timed for all alike, None where the runs' own seconds are taken;
    unfinished: names of the curves of which a planned run is missing or under way; tuned: {curve:
    Results of the last stage of its tuning, best first}, of tunings that are complete; edges:
    {curve: "lowest" or "highest"} where the tuned value is that of those that were tried.
    """

    plan: object
    runs: dict
    records: dict
    costs: dict | None = None
    unfinished: frozenset = frozenset()
    tuned: Mapping = MappingProxyType({})
    edges: Mapping = MappingProxyType({})

    def absence(self, *names, unit=None):
        """Why some of these curves have no runs, or no minutes (a unit); "" if all of them have."""
        for name in names:
            if name in self.plan.left_out:
                return f"not run: {self.plan.left_out[name]}"
            if not self.runs.get(name):
                return "not run"
            if unit == "minutes" and self.costs is not None and name not in self.costs:
                return "not run: the cost of an epoch is not measured yet"
        return ""

    def final(self, verdict, *names):
        """A verdict on where curves end, or OPEN as long as one of them is not at its end."""
        return OPEN if verdict and self.unfinished.intersection(names) else verdict

    def at_edges(self, *names):
        """Which of these curves may have a better tuned value than was tried, in words."""
        return "".join(
            f"; the tuned value of {name} is the {self.edges[name]} that was trained as far"
            if self.edges[name] == "lowest"
            else f"; the tuned value of {name} is the highest that was tried"
            for name in names
            if name in self.edges
        )

    def name(self, curve, default):
        """Method and mini-batch of a curve as run here; `default` without runs."""
        return method(self.runs[curve][0]) if self.runs.get(curve) else default

    @property
    def data(self):
        """The data set that most claims are about."""
        runs = [
            run
            for name, group in self.runs.items()
            for run in group
            if name.startswith(self.plan.main)
        ]
        return data_set(runs[0]) if runs else self.plan.title


def is_waiting(row):
    """Whether nothing was run for a Row."""
    return str(row.here).startswith("not run")


def median_row(evidence, claim, paper, curve, measure, unit=None):
    """A Row: the median over a curve's runs of measure(run), a Value."""
    if absent := evidence.absence(curve, unit=unit):
        return Row(claim, paper, absent)
    values = _sorted(measure(run) for run in evidence.runs[curve])
    here = middle(values)
    return Row(claim, paper, here, ratio(here, paper), note=spread(values))


def spread(values):
    """The range of sorted Values or texts, in words; "" for a single one."""
    if len(values) < 2:
        return ""
    least, most = str(values[0]), str(values[-1])
    return f"{len(values)} seeds, " + (f"all {least}" if least == most else f"{least} to {most}")


def row_with_interval(evidence, claim, paper, curve, measure, judge):
    """A Row: the median over a curve's runs of measure(run), with its interval."""
    if absent := evidence.absence(curve):
        return Row(claim, paper, absent)
    row = _judged(claim, paper, np.array([measure(run) for run in evidence.runs[curve]]), judge)
    return row._replace(verdict=evidence.final(row.verdict, curve))


def compared_runs(evidence, claim, paper, curve, other, measure, judge, say, unit=None):
    """A Row: the ratio of measure(run) of two curves, over pairs of seeds; say(number) in words."""
    if absent := evidence.absence(curve, other, unit=unit):
        return Row(claim, paper, absent)
    pairs = [tuple(map(measure, pair)) for pair in _pairs(evidence, curve, other)]
    if not pairs:
        return Row(claim, paper, NO_PAIRS)
    over, under = np.median(pairs, axis=0)
    row = _judged(claim, paper, np.array([pair[0] / pair[1] for pair in pairs]), judge)
    return row._replace(
        verdict=row.verdict if unit else evidence.final(row.verdict, curve, other),
        reason=f"{say(over)} and {say(under)}",
    )


def _judged(claim, paper, ratios, judge):
    """A Row of ratios (n,), one a seed; infinite over runs that diverged."""
    if np.isnan(ratios).any():
        return Row(claim, paper, "no ratio")
    return Row(
        claim,
        paper,
        Value(float(np.median(ratios))),
        interval=verdicts.interval(verdicts.exact_bounds(ratios)),
        note=spread([_between(float(each), float(each)) for each in sorted(ratios)]),
        verdict=judge(ratios),
    )


def _between(low, high):
    """A ratio of which its bounds are known, in words."""
    if math.isinf(low) or not high:
        return "infinite" if high else "0"
    return f"< {Value(high)}" if not low else str(Value(low, is_bound=high > low))


def reached_row(evidence, claim, paper, curve, column, threshold, unit):
    """A Row: when a curve's runs first were at or below a threshold, the median over them."""

    def measure(run):
        return reached(run, column, threshold, unit)

    return median_row(evidence, claim, paper, curve, measure, unit)


def speed_up(evidence, claim, paper, slow, fast, column, threshold, unit):
    """A Row: how many times as long the curve `slow` took as the curve `fast`.

    This is the median over the seeds that both have, with its interval.
    """
    if absent := evidence.absence(slow, fast, unit=unit):
        return Row(claim, paper, absent)
    pairs = [
        tuple(reached(run, column, threshold, unit) for run in pair)
        for pair in _pairs(evidence, slow, fast)
    ]
    if not pairs:
        return Row(claim, paper, NO_PAIRS)
    reason = _cost(evidence, slow, fast, column, threshold, unit)
    if not all(under.number for _, under in pairs):
        return Row(claim, paper, f"{fast} began there")
    bounds = verdicts.ratio_bounds(pairs)
    verdict = verdicts.of_speed_up(bounds, getattr(paper, "number", None))
    least, most = map(float, np.median(bounds, axis=0))
    if least == 0 or math.isinf(least):
        over = middle([over for over, _ in pairs])
        here = f"{fast} did not get there" if over.is_known else "neither got there"
        here = f"{slow} diverged" if least else here
        return Row(claim, paper, here, verdict=verdict, reason=reason)
    here = Value(least, is_bound=most > least)
    note = spread([_between(*pair) for pair in sorted(bounds.tolist())])
    interval = verdicts.interval(bounds)
    return Row(claim, paper, here, ratio(here, paper), interval, note, verdict, reason)


def at_shared_test_error(evidence, data, what, paper, slow, fast, unit):
    """The Row of a speed-up to the lowest whole per cent of test error to which all runs of both
    curves came, once these are at their ends. The runs themselves decide it: there is no verdict.
    """
    absent = evidence.absence(slow, fast, unit=unit)
    if not absent and evidence.unfinished.intersection((slow, fast)):
        absent = "not run to its end"
    if absent:
        return Row(f"{data}, test error: {what}", paper, absent)
    highest = max(lowest_test_error(run) for name in (fast, slow) for run in evidence.runs[name])
    threshold = math.ceil(round(100 * highest, 6)) / 100
    claim = f"{data}, {threshold:.0%} test error: {what}"
    row = speed_up(evidence, claim, paper, slow, fast, "test_error", threshold, unit)
    return row._replace(verdict="")


def fit_at_lowest(run):
    """The training error at the lowest test error, in words."""
    at = np.nanargmin(run.metrics["test_error"])
    return (
        f"the training error was {run.metrics['train_error'][at]:.2%} then, after "
        f"{run.metrics['epoch'][at]:.3g} of {run.metrics['epoch'][-1]:.3g} epochs"
    )


def _pairs(evidence, *curves):
    """Tuples of runs with the same seed and the same images, one of each curve."""
    runs = [
        {(run.config["seed"], run.record["data"].get("sha256", "")): run for run in group}
        for group in map(evidence.runs.get, curves)
    ]
    shared = sorted(set.intersection(*map(set, runs)))
    return [tuple(group[key] for group in runs) for key in shared]


def _sorted(values):
    """Values in increasing order, bounds last."""
    return sorted(values, key=lambda value: (value.is_bound, value.number))


def _cost(evidence, slow, fast, column, threshold, unit):
    """The epochs that both curves needed, and where those ended that were stopped before.

    If minutes are compared, also the cost of an epoch of the curve `fast`, by phase. Where updates
    are compared, runs may have shared the machine: their times mean nothing.
    """
    needed = {
        name: middle([reached(run, column, threshold, "epochs") for run in evidence.runs[name]])
        for name in (fast, slow)
    }
    ends = "".join(
        f"; {name} ended at {_last(evidence.runs[name], column):.2%}"
        for name in (fast, slow)
        if not needed[name].is_known
    )
    ends += evidence.at_edges(fast, slow) + _touched(evidence, (fast, slow), column, threshold)
    if unit != "minutes":
        return f"epochs needed: {fast} {needed[fast]}, {slow} {needed[slow]}{ends}"
    pairs = _pairs(evidence, fast, slow)
    cost = np.median([epoch_seconds(run) / epoch_seconds(other) for run, other in pairs])
    metrics = pairs[0][0].metrics
    shares = {phase: metrics[f"seconds_{phase}"][-1] / metrics["seconds"][-1] for phase in PHASES}
    parts = ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items() if share >= 0.005)
    return (
        f"an epoch of {fast} takes {cost:.2g} times as long as one of {slow} ({parts}); epochs "
        f"needed: {fast} {needed[fast]}, {slow} {needed[slow]}{ends}"
    )


def _touched(evidence, names, column, threshold):
    """Which runs of these curves reached a threshold and were mostly above it from then on, in
    words: they have touched it.
    """
    said = ""
    for name in names:
        for run in evidence.runs[name]:
            reached_it = run.metrics[column] <= threshold
            since = reached_it[reached_it.argmax() :] if reached_it.any() else reached_it[:0]
            if 2 * since.sum() < len(since):
                said += (
                    f"; {name} of seed {run.config['seed']} was there at {since.sum()} of its last "
                    f"{len(since)} evaluations"
                )
    return said


def _last(runs, column):
    return float(np.median([run.metrics[column][-1] for run in runs]))


def epoch_seconds(run):
    """Seconds of an epoch, NaN of a run without one."""
    epochs = run.metrics["epoch"][-1]
    return run.metrics["seconds"][-1] / epochs if epochs else np.nan


def compared_at_the_end(evidence, claim, paper, curve, other, judge, column="train_error", data=""):
    """A Row: the ratio of two curves' training errors at the last epoch that both have reached.

    The error of a run that diverged is infinite. judge: from the ratios (n,) of pairs of seeds to a
    verdict; column: of the metrics that is compared; data: the data set, by default the main one.
    """
    claim = f"{data or evidence.data}: {claim}"
    if absent := evidence.absence(curve, other):
        return Row(claim, paper, absent)
    pairs = _pairs(evidence, curve, other)
    epoch = _last_common_epoch(pairs)
    if epoch is None:
        return Row(claim, paper, "all diverged" if pairs else NO_PAIRS)
    errors = _at_epoch(pairs, epoch, column)
    updates = np.median(_at_epoch(pairs, epoch, "iteration"), axis=0)
    form = ".2%" if column == "train_error" else ".3g"
    note = f"after {epoch:.3g} epochs: {_medians(errors, form)}"
    if not errors[:, 1].all() or np.isinf(errors).all(axis=1).any():
        return Row(claim, paper, "no ratio", note=note)
    efforts = [
        f"{Value(float(each))} updates of {name}"
        for name, each in zip((curve, other), updates, strict=True)
        if np.isfinite(each)
    ]
    row = _judged(claim, paper, errors[:, 0] / errors[:, 1], judge)
    # What was not averaged tells how far the noise of mini-batches keeps a method from a minimum.
    latest = (
        f" (latest parameters {_medians(_at_epoch(pairs, epoch, 'raw_train_error'), form)})"
        if column == "train_error"
        else ""
    )
    return row._replace(
        note=note,
        verdict=evidence.final(row.verdict, curve, other),
        reason=f"{note}{latest}, with {' and '.join(efforts)}{evidence.at_edges(curve, other)}",
    )


def ratios_by_epoch(evidence, curve, other, column):
    """[(epoch, ratios (n,) of pairs of seeds)] of a column of two curves' metrics, at the epochs of
    the first one's evaluations that all runs have reached; without those where one is zero.
    """
    pairs = _pairs(evidence, curve, other)
    if not pairs or any(has_failed(run) for pair in pairs for run in pair):
        return []
    end, found = _last_common_epoch(pairs), []
    for epoch in (each for each in pairs[0][0].metrics["epoch"] if each <= end):
        errors = _at_epoch(pairs, epoch, column)
        if errors[:, 1].all():
            found.append((float(epoch), errors[:, 0] / errors[:, 1]))
    return found


def _last_common_epoch(pairs):
    """The last epoch that all runs of pairs have reached but those that diverged; None without."""
    ends = [run.metrics["epoch"][-1] for pair in pairs for run in pair if not has_failed(run)]
    return min(ends, default=None)


def _at_epoch(pairs, epoch, column):
    """A column of the metrics of pairs of runs at an epoch (pairs, 2); infinite of a run that
    diverged.
    """
    return np.array(
        [
            [
                np.interp(epoch, run.metrics["epoch"], run.metrics[column])
                if not has_failed(run)
                else np.inf
                for run in pair
            ]
            for pair in pairs
        ]
    )


def _medians(values, form):
    """Medians over the pairs of values (pairs, 2) of two curves, in words."""
    return " and ".join(
        "diverged" if np.isinf(each) else f"{each:{form}}" for each in np.median(values, axis=0)
    )
