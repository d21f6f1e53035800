"""Arithmetic on numbers some of which are only known to lie above a bound."""

import math
from typing import NamedTuple

import numpy as np

from kfcnet.runs.metrics import first_crossing

UNITS = {"minutes": ("seconds", 60), "updates": ("iteration", 1), "epochs": ("epoch", 1)}


class Value(NamedTuple):
    """A number; or a bound, where it is only known to lie above that number."""

    number: float
    is_bound: bool = False

    def __str__(self):
        text = f"{self.number:.3g}" if abs(self.number) < 1000 else f"{self.number:.0f}"
        return f"> {text}" if self.is_bound else text


def ratio(here, paper):
    """here / paper as a Value; "" where it has no meaning."""
    if not (isinstance(here, Value) and isinstance(paper, Value)) or paper.is_bound:
        return ""
    return Value(here.number / paper.number, here.is_bound)


def middle(values):
    """The median of Values; a bound where it depends on how far above their bounds some lie."""
    least = float(np.median([value.number for value in values]))
    most = float(np.median([math.inf if value.is_bound else value.number for value in values]))
    return Value(least, is_bound=most > least)


def reached(run, column, threshold, unit):
    """When a column of a run was first at or below a threshold; its end as a bound if it never was.

    unit: "minutes", "updates" or "epochs".
    """
    name, size = UNITS[unit]
    crossing = first_crossing(run.metrics, column, threshold)
    if crossing is None:
        return Value(float(run.metrics[name][-1]) / size, is_bound=True)
    return Value(
        {"seconds": crossing.seconds, "iteration": crossing.updates, "epoch": crossing.epoch}[name]
        / size
    )
