"""The claims of section 5.2 on the errors that the two methods come to."""

import math

import numpy as np

from kfcnet.figures.paper import LOWEST_TEST_ERROR, MINUTES_OF_A_TEST_ERROR, TEST_ERROR_AFTER
from kfcnet.reproduce import verdicts
from kfcnet.reproduce.plan import RATE
from kfcnet.reproduce.rows import (
    Row,
    compared_at_the_end,
    compared_runs,
    fit_at_lowest,
    median_row,
    row_with_interval,
)
from kfcnet.reproduce.values import Value, lowest_test_error, typical
from kfcnet.reproduce.verdicts import ABOUT_ONE

PLANNED = {
    "kfc": "KFC-pre, M = 512",
    "sgd": "SGD, M = 128",
    "kfc_small": "KFC-pre, M = 128",
    "sgd_large": "SGD, M = 4096",
}
"""What the main curves are called before they are run."""

TOLERANCE = 1.1
"""A test error is reproduced below this many times the published one."""


def error_rows(evidence):
    """Lowest test errors, and the effect of KFC-pre's mini-batch size (footnote 3)."""
    main, result = evidence.plan.main, []
    for name in ("kfc", "sgd", "kfc_small"):
        curve = f"{main}_{name}"
        row = median_row(
            evidence,
            f"{evidence.data}: lowest test error (%), {_name(evidence, name)}",
            Value(100 * LOWEST_TEST_ERROR[name]),
            curve,
            lambda run: Value(100 * lowest_test_error(run)),
        )
        if row.ratio != "":
            holds = row.ratio.number <= TOLERANCE  # a lowest error can only fall
            verdict = verdicts.of_comparison(holds)
            row = row._replace(
                verdict=verdict if holds else evidence.final(verdict, curve),
                reason=fit_at_lowest(typical(evidence.runs[curve], lowest_test_error)),
            )
        result.append(row)
    small, large = (_name(evidence, name) for name in ("kfc_small", "kfc"))
    far = compared_at_the_end(
        evidence,
        f"training error, {small} over {large}",
        f"far worse: above {ABOUT_ONE[1]}",
        f"{main}_kfc_small",
        f"{main}_kfc",
        verdicts.of_far_above,
    )
    if far.reason:
        far = far._replace(reason=far.reason + _at_best_on_test(evidence, "kfc_small"))
    lowest = LOWEST_TEST_ERROR["kfc_small"] / LOWEST_TEST_ERROR["kfc"]
    gain = compared_runs(
        evidence,
        f"{evidence.data}: lowest test error, {small} over {large}",
        Value(lowest),
        f"{main}_kfc_small",
        f"{main}_kfc",
        lowest_test_error,
        lambda ratios: verdicts.of_reduction(ratios, lowest),
        "{:.1%}".format,
    )
    return [*result, gain, far]


def early_error_rows(evidence):
    """Test errors of KFC-pre after five minutes on CIFAR-10 (footnote 3), if it is the main data
    set. The paper's minutes are those of another machine, so that there is no verdict.
    """
    main, minutes = evidence.plan.main, MINUTES_OF_A_TEST_ERROR
    if main != "cifar":
        return []
    rows = [
        median_row(
            evidence,
            f"{evidence.data}: test error (%) after {minutes} minutes, {_name(evidence, name)}",
            Value(100 * TEST_ERROR_AFTER[name]),
            f"{main}_{name}",
            lambda run: Value(100 * _test_error_after(run, 60 * minutes)),
            "minutes",
        )
        for name in ("kfc", "kfc_small")
    ]
    return [
        Row(row.claim, row.paper, "ended before") if _is_missing(row.here) else row for row in rows
    ]


def _is_missing(here):
    return isinstance(here, Value) and math.isnan(here.number)


def _test_error_after(run, seconds):
    """The test error between the evaluations before and after; NaN where the run ended before."""
    times, errors = run.metrics["seconds"], run.metrics["test_error"]
    return float(np.interp(seconds, times, errors, right=np.nan))


def rate_rows(evidence):
    """SGD's learning rates "which performed the best on training error also performed the best on
    test error", KFC-pre had "a more significant tradeoff" (section 5.2, footnote 3).

    The latter is said of the size of a mini-batch above all: what the rates tell has no verdict.
    """
    kfc = [_best_rates(evidence, name, "a tradeoff") for name in ("kfc", "kfc_small")]
    return [
        *(_best_rates(evidence, name, "the same") for name in ("sgd", "sgd_large")),
        *(row._replace(verdict="") for row in kfc),
    ]


def _best_rates(evidence, name, paper):
    """A Row: the learning rates with the lowest training and with the lowest test error, of those
    in the last stage of a main curve's tuning.
    """
    claim = (
        f"{evidence.data}: learning rates of the lowest training and of the lowest test error, "
        f"{_name(evidence, name)}"
    )
    rates = _tuned(evidence, name)
    if len(rates) < 2:
        return Row(claim, paper, "not run")
    best, (chosen, *_) = _best_on_test(rates), rates
    epochs = f"{rates[chosen]['epoch']:.3g} epochs"
    errors = "; ".join(
        f"{rate:g}: {row['train_error']:.2%} and {row['test_error']:.2%}"
        for rate, row in rates.items()
    )
    return Row(
        claim,
        paper,
        f"{chosen:g} and {best:g}",
        note=f"after {epochs}: {errors}",
        verdict=verdicts.of_comparison(best == chosen),
        reason=f"training and test error after {epochs} at {errors}",
    )


def _tuned(evidence, name):
    """{learning rate: its row} of the last stage of a main curve's tuning, the chosen one first."""
    results = evidence.tuned.get(f"{evidence.plan.main}_{name}", [])
    return {result.point.settings[RATE]: result.row for result in results if result.row}


def _best_on_test(rates):
    return min(rates, key=lambda rate: rates[rate]["test_error"])


def _at_best_on_test(evidence, name):
    """The errors at the rate of the lowest test error, in words; "" where that was chosen."""
    rates = _tuned(evidence, name)
    if not rates or (best := _best_on_test(rates)) == next(iter(rates)):
        return ""
    row = rates[best]
    return (
        f"; rates are chosen by training error: at {best:g}, the better one on test images, they "
        f"are {row['train_error']:.2%} on training and {row['test_error']:.2%} on test images "
        f"after {row['epoch']:.3g} epochs"
    )


def objective_rows(evidence):
    """What the methods minimise, of which the paper gives no number: its errors and losses are
    those of the likelihood alone.
    """
    return [
        median_row(
            evidence,
            f"{evidence.data}: lowest objective h, the training loss plus the penalty of the "
            f"weight decay (nats), {_name(evidence, name)}",
            "not given",
            f"{evidence.plan.main}_{name}",
            lambda run: Value(float(np.nanmin(run.metrics["train_objective"]))),
        )
        for name in ("kfc", "sgd")
    ]


def overfitting_rows(evidence):
    """Both methods came to the published test error "before they started overfitting" (section
    5.2): how far the test loss has risen again. A run may end before that begins, so that there is
    no verdict.
    """
    return [
        row_with_interval(
            evidence,
            f"{evidence.data}: test loss at the end over its lowest, {_name(evidence, name)}",
            "overfits at last",
            f"{evidence.plan.main}_{name}",
            lambda run: float(run.metrics["test_loss"][-1] / np.nanmin(run.metrics["test_loss"])),
            lambda ratios: "",
        )
        for name in ("kfc", "sgd")
    ]


def averaging_rows(evidence):
    """Parameter averaging "helped both SGD and KFC-pre substantially" (section 5.2)."""
    return [
        row_with_interval(
            evidence,
            f"{evidence.data}: training error of the latest parameters over that of the averaged "
            f"ones, {_name(evidence, name)}",
            "helped: above 1",
            f"{evidence.plan.main}_{name}",
            _gain_of_averaging,
            lambda ratios: verdicts.of_side(ratios, is_above=True),
        )
        for name in ("kfc", "sgd")
    ]


def _gain_of_averaging(run):
    """The ratio of the errors, the mean over the second half of a run."""
    half = len(run.metrics["epoch"]) // 2
    latest, averaged = (run.metrics[name][half:] for name in ("raw_train_error", "train_error"))
    return float(latest.mean() / averaged.mean()) if averaged.any() else np.nan


def _name(evidence, name):
    """Method and mini-batch of a main curve, one of PLANNED."""
    return evidence.name(f"{evidence.plan.main}_{name}", PLANNED[name])
