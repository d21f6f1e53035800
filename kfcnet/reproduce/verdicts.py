"""When a claim counts as reproduced: the intervals and the rules of docs/rules.md."""

import math
from typing import NamedTuple

import numpy as np

from kfcnet.reproduce.values import Value

REPRODUCED, DIRECTION, FAILED, OPEN = "reproduced", "in direction only", "not reproduced", "open"
VERDICTS = (REPRODUCED, DIRECTION, FAILED, OPEN)

SHARE = 0.8
"""A speed-up, or a reduction, is reproduced from this share of the published one on."""

PAIRS = 3
"""With fewer pairs of seeds a ratio is open."""

ABOUT_ONE = 0.5, 2
"""Two methods are about the same if the interval of their ratio lies between these."""

SAMPLES, COVERAGE = 10_000, 95


class Interval(NamedTuple):
    """Where the median of a ratio lies."""

    low: float
    high: float

    def __str__(self):
        if math.isinf(self.low):
            return "infinite"
        low = Value(float(self.low))
        return f"above {low}" if math.isinf(self.high) else f"{low} to {Value(float(self.high))}"


def ratio_bounds(pairs):
    """(n, 2): the least and the greatest that each ratio over / under can be.

    pairs: of Values, (over, under), of which one that was not reached is a lower bound, and one
    that never can be is infinite. Where neither is known to be finite the ratio can be anything.
    """
    return np.array([_bounds(over, under) for over, under in pairs])


def _bounds(over, under):
    if math.isinf(under.number):
        return 0.0, 0.0 if over.is_known else math.inf
    return (
        0.0 if under.is_bound else over.number / under.number,
        math.inf if over.is_bound else over.number / under.number,
    )


def bootstrap(bounds):
    """The Interval of the median of ratios, from samples of the pairs with replacement.

    bounds (n, 2): of each ratio. The ends are those of the least and of the greatest ratios.
    """
    picks = np.random.default_rng(0).integers(0, len(bounds), (SAMPLES, len(bounds)))
    tail = (100 - COVERAGE) / 2
    low, high = (np.median(bounds[picks, side], axis=1) for side in (0, 1))
    return Interval(
        float(np.percentile(low, tail, method="lower")),
        float(np.percentile(high, 100 - tail, method="higher")),
    )


def interval(bounds):
    """The Interval of `bootstrap`, or "" where there are too few pairs for one."""
    return bootstrap(bounds) if len(bounds) >= PAIRS else ""


def exact_bounds(ratios):
    """(n, 2): the bounds of ratios (n,) that are known, for `bootstrap`."""
    return np.stack([ratios, ratios], axis=1)


def of_speed_up(bounds, published):
    """The verdict on a speed-up that is `published`, None where the paper says only "above 1".

    bounds (n, 2): of the ratios of pairs of seeds.
    """
    if len(bounds) < PAIRS:
        return OPEN
    is_certain, may_be = (bootstrap(bounds[:, [side, side]]).low > 1 for side in (0, 1))
    if not is_certain:
        return OPEN if may_be else FAILED
    if published is None:
        return REPRODUCED
    least, most = np.median(bounds, axis=0)
    if least >= SHARE * published:
        return REPRODUCED
    return DIRECTION if most < SHARE * published else OPEN


def of_side(ratios, is_above, border=1):
    """The verdict on ratios (n,) that the paper says are above a border, or are not."""
    if len(ratios) < PAIRS:
        return OPEN
    low, high = bootstrap(exact_bounds(ratios))
    if low > border or high <= border:
        return REPRODUCED if (low > border) == is_above else FAILED
    return OPEN


def of_far_above(ratios):
    """The verdict on ratios (n,) that the paper says are far above 1: so far that two methods are
    not about the same any more.
    """
    return of_side(ratios, is_above=True, border=ABOUT_ONE[1])


def of_reduction(ratios, published):
    """The verdict on ratios (n,) of which the paper has one below 1: `published`."""
    if len(ratios) < PAIRS:
        return OPEN
    low, high = bootstrap(exact_bounds(ratios))
    if high >= 1:
        return FAILED if low >= 1 else OPEN
    return REPRODUCED if 1 - np.median(ratios) >= SHARE * (1 - published) else DIRECTION


def of_equality(ratios):
    """The verdict on ratios (n,) that the paper says are about one."""
    if len(ratios) < PAIRS:
        return OPEN
    low, high = bootstrap(exact_bounds(ratios))
    if ABOUT_ONE[0] <= low and high <= ABOUT_ONE[1]:
        return REPRODUCED
    return FAILED if high < ABOUT_ONE[0] or low > ABOUT_ONE[1] else OPEN


def of_comparison(holds):
    """The verdict on what is measured once: True, False or None, not measured."""
    return "" if holds is None else REPRODUCED if holds else FAILED
