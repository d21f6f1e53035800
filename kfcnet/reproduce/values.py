"""Arithmetic on numbers of which some are infinite or only known to lie above a bound."""

import math
from typing import NamedTuple

import numpy as np

from kfcnet.runs.metrics import first_crossing

UNITS = {
    "minutes": ("seconds", "seconds", 60),
    "updates": ("iteration", "updates", 1),
    "epochs": ("epoch", "epoch", 1),
}  # {unit: (column of the metrics, field of a Crossing, size)}


class Value(NamedTuple):
    """A number, or a lower bound; what a diverged run never reaches is infinite."""

    number: float
    is_bound: bool = False

    @property
    def is_known(self):
        """Whether it is a finite number, and not only bounded."""
        return not self.is_bound and math.isfinite(self.number)

    def __str__(self):
        if math.isinf(self.number):
            return "never"
        # Not up to 1000: with three digits 999.6 is 1e+03.
        text = f"{self.number:.3g}" if abs(self.number) < 100 else f"{self.number:.0f}"
        return f"> {text}" if self.is_bound else text


def has_failed(run):
    """Whether a run diverged."""
    return run.record.get("outcome", {}).get("state") == "failed"


def ratio(here, paper):
    """here / paper as a Value; "" for texts, for never, and if the paper gives a bound."""
    if not (isinstance(here, Value) and isinstance(paper, Value)) or paper.is_bound:
        return ""
    if math.isinf(here.number):
        return ""
    return Value(here.number / paper.number, here.is_bound)


def middle(values):
    """The median of Values; a bound if it depends on numbers that are only bounded."""
    least = float(np.median([value.number for value in values]))
    most = float(np.median([math.inf if value.is_bound else value.number for value in values]))
    return Value(least, is_bound=most > least)


def reached(run, column, threshold, unit):
    """When a column of a run's metrics first was at or below a threshold, as a Value.

    unit: "minutes", "updates" or "epochs". If it was not, the run's end is a lower bound; a run
    that diverged never gets there.
    """
    name, field, size = UNITS[unit]
    crossing = first_crossing(run.metrics, column, threshold)
    if crossing is None and has_failed(run):
        return Value(math.inf)
    if crossing is None:
        return Value(float(run.metrics[name][-1]) / size, is_bound=True)
    return Value(getattr(crossing, field) / size)


def lowest_test_error(run):
    """Of all evaluations, a fraction."""
    return float(np.nanmin(run.metrics["test_error"]))


def typical(runs, measure):
    """The run in the middle by measure(run); of an even number the lower one."""
    return sorted(runs, key=measure)[(len(runs) - 1) // 2]
