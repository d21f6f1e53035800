"""The paper's claims and what was measured here: rows of a table with paper, here, ratio.

The paper's numbers are in `kfcnet.figures.paper`; all others are computed from the records. A claim
without runs says so.
"""

import math

import numpy as np

from kfcnet.figures.paper import (
    EPOCH_COST,
    FEWER_UPDATES,
    LOWEST_TEST_ERROR,
    MINUTES,
    MINUTES_OF_A_TEST_ERROR,
    NETWORK_ERROR,
    SVHN_MINUTES,
    TEST_ERROR_AFTER,
    UPDATES,
)
from kfcnet.reproduce import verdicts
from kfcnet.reproduce.assumptions import neighbours, neighbours_in
from kfcnet.reproduce.families import COMPARED
from kfcnet.reproduce.plan import RATE
from kfcnet.reproduce.rows import (
    Row,
    compared_at_the_end,
    compared_runs,
    epoch_seconds,
    is_waiting,
    median_row,
    reached_row,
    row_with_interval,
    speed_up,
    spread,
)
from kfcnet.reproduce.values import Value, has_failed
from kfcnet.reproduce.verdicts import OPEN
from kfcnet.runs.labels import METHODS, PARTS, STRUCTURES, data_set, is_part

PLANNED = {"kfc": "KFC-pre, M = 512", "sgd": "SGD, M = 128", "kfc_small": "KFC-pre, M = 128"}
"""What the main curves are called before they are run."""

TOLERANCE = 1.1
"""A test error is reproduced below this many times the published one."""

WEAK, STRONGER = 0.5, 2
"""Correlations of derivatives are weak below this share of the activations' correlations, and
stronger above this many times those with max pooling."""

SLACK = 1.02
"""A run is out of hand where its training loss rises above its start by more than this factor: the
start is chance."""

OUT_OF_HAND = f"that failed or had a training loss more than {SLACK - 1:.0%} above that of chance"


def rows(evidence):
    """All Rows of the table, in the order of the paper's sections."""
    return [
        *assumption_rows(evidence),
        *time_rows(evidence),
        *cost_rows(evidence),
        *svhn_rows(evidence),
        *error_rows(evidence),
        *early_error_rows(evidence),
        *rate_rows(evidence),
        *objective_rows(evidence),
        *averaging_rows(evidence),
        clip_row(evidence),
        *update_rows(evidence),
        *large_batch_rows(evidence),
        large_batch_test_row(evidence),
        *other_methods(evidence),
        *structure_rows(evidence),
        *autocovariance_rows(evidence),
        *autoencoder_rows(evidence),
        *invariance_rows(evidence),
        *choice_rows(evidence),
        *batch_norm_rows(evidence),
    ]


def headline(evidence):
    """The Rows of Figures 1 and 2 (times, their cost, the lowest errors, how many updates fewer),
    and that of K-FAC beside KFC-pre.
    """
    times = [*time_rows(evidence), *cost_rows(evidence), *error_rows(evidence)]
    *_, fewer = update_rows(evidence)
    kfac, _ = kfac_rows(evidence)
    rows = [*times, *large_batch_rows(evidence), fewer, kfac]
    return [row for row in rows if not is_waiting(row)]


def assumption_rows(evidence):
    """SUD holds well with max pooling; activations are strongly correlated (section 5.1)."""
    result, measured = [], {}
    for measurement in evidence.plan.measurements:
        record = evidence.records.get(measurement.curve)
        if measurement.layer:
            result += _distance_rows(measurement, record)
        else:
            measured[measurement] = neighbours(record) if record else {}
    return [
        row
        for measurement in measured
        for row in _correlation_rows(measurement, measured, evidence.records.get(measurement.curve))
    ] + result


def _correlation_rows(measurement, measured, record):
    """Rows of a Measurement with its record; that of its group with max pooling is compared with.

    measured: {Measurement: sizes of correlations between neighbours}.
    """
    here = measured[measurement]
    weak = next(
        (
            sizes.get("derivatives")
            for other, sizes in measured.items()
            if (other.group, other.pooling) == (measurement.group, "max")
        ),
        None,
    )
    words = {
        "max": "very weak",
        "average": "much stronger",
        "published": "weak, modest in the top layers",
    }[measurement.pooling]
    if measurement.pooling == "average":
        stronger = here["derivatives"] > STRONGER * weak if here and weak else None
        reason = f"with max pooling it is {Value(weak)}" if here and weak else ""
        return [_correlation(measurement, here, "derivatives", words, stronger, reason)]
    is_weak = here["derivatives"] < WEAK * here["activations"] if here else None
    reason = f"that of activations is {Value(here['activations'])}" if here else ""
    strong = [
        f"{layer} ({Value(sizes['derivatives'])} against {Value(sizes['activations'])})"
        for layer, sizes in (neighbours_in(record).items() if record else ())
        if not sizes["derivatives"] < WEAK * sizes["activations"]
    ]
    if is_weak and strong:
        reason += f"; on average alone, and not in {', '.join(strong)}"
    return [
        _correlation(measurement, here, "derivatives", words, is_weak, reason),
        # No verdict: it would be the same comparison again.
        _correlation(measurement, here, "activations", "very strong", None, ""),
    ]


def _correlation(measurement, here, what, paper, holds, reason):
    claim = f"{measurement.title}: mean absolute correlation of {what} at neighbouring locations"
    value = Value(here[what]) if here else "not run"
    return Row(claim, paper, value, verdict=verdicts.of_comparison(holds), reason=reason)


def _distance_rows(measurement, record):
    """Distances from the exact Fisher block, which the paper does not give."""
    names = {
        "kfc": "KFC",
        "without iad": "KFC without IAD",
        "without sh": "KFC without SH",
        "without sud": "KFC without SUD",
        "sua": "KFC with SUA",
        "diagonal": "the diagonal",
        "autocovariance": "KFC with plugged-in autocovariances",
    }
    return [
        Row(
            f"{measurement.title}, {measurement.layer}: relative distance of {name} from the exact "
            "Fisher block",
            "not measured",
            Value(record["distances"][label]) if record else "not run",
        )
        for label, name in names.items()
        if not record or label in record["distances"]  # older records have fewer
    ]


def time_rows(evidence):
    """Times to a test error and to a training error (section 5.2)."""
    plan, result = evidence.plan, []
    kfc, sgd = f"{plan.main}_kfc", f"{plan.main}_sgd"
    for column, threshold in (("test_error", plan.errors.test), ("train_error", plan.errors.train)):
        minutes = MINUTES[column]
        what = f"{evidence.data}, {threshold:.0%} {PARTS[column]}"
        result += [
            reached_row(
                evidence,
                f"{what}: minutes, {name}",
                Value(published),
                curve,
                column,
                threshold,
                "minutes",
            )
            for curve, name, published in (
                (kfc, "KFC-pre", minutes["kfc"]),
                (sgd, "SGD", minutes["sgd"]),
            )
        ]
        result.append(
            speed_up(
                evidence,
                f"{what}: time of SGD over that of KFC-pre",
                Value(minutes["sgd"] / minutes["kfc"]),
                sgd,
                kfc,
                column,
                threshold,
                "minutes",
            )
        )
    (*to_test, _), (*to_train, ratio) = result[:3], result[3:]
    return [*result[:-1], ratio._replace(reason=ratio.reason + _later(plan, to_test, to_train))]


def _later(plan, to_test, to_train):
    """How much later than the test error both methods come to the training error, in words; "" if
    one of the Rows of minutes has none. It tells whose times make a ratio unlike the paper's.
    """
    minutes = [row.here for row in (*to_test, *to_train)]
    if not all(isinstance(each, Value) and each.is_known and each.number for each in minutes):
        return ""
    here, paper = (
        " and ".join(
            str(Value(getattr(late, which).number / getattr(early, which).number))
            for early, late in zip(to_test, to_train, strict=True)
        )
        for which in ("here", "paper")
    )
    return (
        f"; to {plan.errors.train:.0%} training error KFC-pre and SGD take {here} times as long as "
        f"to {plan.errors.test:.0%} test error respectively, in the paper {paper} times"
    )


def cost_rows(evidence):
    """An epoch's cost, which the periods were chosen to keep below twice SGD's (appendix B.3)."""
    result = []
    for prefix in (evidence.plan.main, "svhn"):
        kfc, sgd = f"{prefix}_kfc", f"{prefix}_sgd"
        if kfc not in {**evidence.plan.curves, **evidence.plan.left_out}:
            continue
        title = evidence.plan.title if prefix == evidence.plan.main else "SVHN"
        data = data_set(evidence.runs[kfc][0]) if evidence.runs.get(kfc) else title
        row = compared_runs(
            evidence,
            f"{data}: time of an epoch of KFC-pre over one of SGD",
            f"below {EPOCH_COST}",
            kfc,
            sgd,
            epoch_seconds,
            lambda ratios: verdicts.of_comparison(float(np.median(ratios)) < EPOCH_COST),
            "{:.1f} s".format,
            unit="minutes",
        )
        if isinstance(row.here, Value):  # one measurement, whatever the seed
            row = row._replace(**_over_the_turns(evidence.costs or {}, kfc, sgd))
        result.append(row)
    return result


def _over_the_turns(costs, curve, other):
    """{"interval", "note"}: of the ratio of two curves' costs, over the turns of their measurement,
    in each of which both had the machine in the same state; empty where it was not measured.
    """
    if not {curve, other} <= costs.keys():
        return {"interval": "", "note": ""}
    ratios = np.divide(costs[curve]["seconds"], costs[other]["seconds"])
    least, most = (Value(float(end(ratios))) for end in (np.min, np.max))
    return {
        "interval": verdicts.interval(verdicts.exact_bounds(ratios)),
        "note": f"{len(ratios)} turns, {least} to {most}",
    }


def svhn_rows(evidence):
    """Times to the published error of the SVHN network, if it is part of the plan, and to one that
    both methods reach. Runs on a part of SVHN do not tell whether the published error can be
    reached on all of it: the claim is open.
    """
    if evidence.plan.main != "cifar":
        return []
    data = data_set(evidence.runs["svhn_kfc"][0]) if evidence.runs.get("svhn_kfc") else "SVHN"
    error = NETWORK_ERROR["SVHN"]
    kfc, sgd = (
        reached_row(
            evidence,
            f"{data}, {error:.2%} test error: minutes, {title}",
            Value(*SVHN_MINUTES[name]),
            f"svhn_{name}",
            "test_error",
            error,
            "minutes",
        )
        for name, title in (("kfc", "KFC-pre"), ("sgd", "SGD"))
    )
    if isinstance(kfc.here, Value) and not kfc.here.is_known:
        run = _typical(evidence.runs["svhn_kfc"], _lowest_test_error)
        lowest, images = _lowest_test_error(run), run.record["data"]["train_examples"]
        kfc = kfc._replace(
            verdict=OPEN if is_part(run) else evidence.final(verdicts.FAILED, "svhn_kfc"),
            reason=f"its lowest test error on {images:,} training "
            f"images was {lowest:.2%}; {_fit(run)}",
        )
    shared = _at_shared_test_error(
        evidence,
        data,
        "time of SGD over that of KFC-pre",
        "not given",
        "svhn_sgd",
        "svhn_kfc",
        "minutes",
    )
    return [kfc, sgd, shared]


def _name(evidence, name):
    """Method and mini-batch of a main curve, one of PLANNED."""
    return evidence.name(f"{evidence.plan.main}_{name}", PLANNED[name])


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
            lambda run: Value(100 * _lowest_test_error(run)),
        )
        if row.ratio != "":
            holds = row.ratio.number <= TOLERANCE  # a lowest error can only fall
            verdict = verdicts.of_comparison(holds)
            row = row._replace(
                verdict=verdict if holds else evidence.final(verdict, curve),
                reason=_fit(_typical(evidence.runs[curve], _lowest_test_error)),
            )
        result.append(row)
    small, large = (_name(evidence, name) for name in ("kfc_small", "kfc"))
    return [
        *result,
        compared_at_the_end(
            evidence,
            f"training error, {small} over {large}",
            "far worse: above 1",
            f"{main}_kfc_small",
            f"{main}_kfc",
            lambda ratios: verdicts.of_side(ratios, is_above=True),
        ),
    ]


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

    The latter is most notable in the size of a mini-batch: what the rates tell has no verdict.
    """
    sgd, kfc = _best_rates(evidence, "sgd", "the same"), _best_rates(evidence, "kfc", "a tradeoff")
    return [sgd, kfc._replace(verdict="")]


def _best_rates(evidence, name, paper):
    """A Row: the learning rates with the lowest training and with the lowest test error, of those
    in the last stage of a main curve's tuning.
    """
    claim = (
        f"{evidence.data}: learning rates of the lowest training and of the lowest test error, "
        f"{_name(evidence, name)}"
    )
    curve = f"{evidence.plan.main}_{name}"
    results = [result for result in evidence.tuned.get(curve, []) if result.row]
    if len(results) < 2:
        return Row(claim, paper, "not run")
    rates = {result.point.settings[RATE]: result.row for result in results}
    best = min(rates, key=lambda rate: rates[rate]["test_error"])
    chosen, *_ = rates
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


def clip_row(evidence):
    """ "Clipping was not needed for SGD" (footnote 1): no run gets out of hand without it."""
    curve = f"{evidence.plan.main}_sgd"
    claim = f"{evidence.data}: runs of SGD, none clipped, {OUT_OF_HAND}"
    row = _out_of_hand(evidence, claim, "needs no clip: none", curve, wanted=False)
    # Other curves do not count, but a lost run of theirs is said beside the verdict.
    lost = [
        f"{name} was lost at {' and '.join(f'{rate:g}' for rate in each.lost)}"
        for name, each in evidence.plan.curves.items()
        if name.startswith(curve) and each.lost
    ]
    return row._replace(reason="; ".join([row.reason, *lost])) if row.reason else row


def autocovariance_rows(evidence):
    """Autocovariances in Eq. 19 "could cause the optimization to diverge" (section 3.1)."""
    curve = f"{evidence.plan.main}_autocovariance"
    if curve not in evidence.plan.curves:
        return []
    claim = f"{evidence.data}: runs of KFC-pre with plugged-in autocovariances {OUT_OF_HAND}"
    return [_out_of_hand(evidence, claim, "could diverge: some did", curve, wanted=True)]


def autoencoder_rows(evidence):
    """K-FAC against SGD where it comes from, a dense autoencoder (Martens & Grosse 2015)."""
    kfac, sgd = "autoencoder_kfac", "autoencoder_sgd"
    if kfac not in evidence.plan.curves:
        return []
    return [
        compared_at_the_end(
            evidence,
            "training loss, K-FAC over SGD",
            "lower (2015): below 1",
            kfac,
            sgd,
            lambda ratios: verdicts.of_side(ratios, is_above=False),
            column="train_loss",
            data="UCI digits, dense autoencoder",
        )
    ]


def _out_of_hand(evidence, claim, paper, curve, wanted):
    """A Row: how many runs of a curve failed or rose above the loss that they began with.

    wanted: whether the paper says that some do.
    """
    if absent := evidence.absence(curve):
        return Row(claim, paper, absent)
    runs = evidence.runs[curve]
    count = sum(
        has_failed(run)
        or np.nanmax(run.metrics["train_loss"]) > SLACK * run.metrics["train_loss"][0]
        for run in runs
    )
    verdict = verdicts.of_comparison(bool(count) == wanted)
    return Row(
        claim,
        paper,
        f"{count} of {len(runs)}",
        verdict=verdict if count else evidence.final(verdict, curve),
        reason=f"training errors at the end {spread(_last_errors(runs)) or _last_errors(runs)[0]}",
    )


def _last_errors(runs):
    return [f"{error:.2%}" for error in sorted(run.metrics["train_error"][-1] for run in runs)]


def _lowest_test_error(run):
    return float(np.nanmin(run.metrics["test_error"]))


def _typical(runs, measure):
    """The run in the middle by measure(run); of an even number the lower one."""
    return sorted(runs, key=measure)[(len(runs) - 1) // 2]


def _fit(run):
    """The training error at the lowest test error, in words."""
    at = np.nanargmin(run.metrics["test_error"])
    return (
        f"the training error was {run.metrics['train_error'][at]:.2%} then, after "
        f"{run.metrics['epoch'][at]:.3g} of {run.metrics['epoch'][-1]:.3g} epochs"
    )


def update_rows(evidence):
    """Updates with large mini-batches (section 5.3)."""
    main, threshold = evidence.plan.main, evidence.plan.errors.updates
    kfc, sgd = f"{main}_kfc_large", f"{main}_sgd_large"
    what = f"{evidence.data}, {threshold:.0%} training error"
    return [
        *(
            reached_row(
                evidence,
                f"{what}: updates, {evidence.name(curve, default)}",
                Value(published),
                curve,
                "train_error",
                threshold,
                "updates",
            )
            for curve, default, published in (
                (kfc, "KFC-pre, M = 4096", UPDATES["kfc"]),
                (sgd, "SGD, M = 4096", UPDATES["sgd"]),
            )
        ),
        speed_up(
            evidence,
            f"{what}: updates of SGD over those of {evidence.name(kfc, 'KFC-pre, M = 4096')}",
            Value(UPDATES["sgd"] / UPDATES["kfc"]),
            sgd,
            kfc,
            "train_error",
            threshold,
            "updates",
        ),
    ]


def large_batch_rows(evidence):
    """Mini-batches of 4096 give a slightly worse test error (footnote 6); updates at the usual
    sizes, for which the paper has no number of its own: the least of the abstract's range, which
    names no size, is what the verdict is on.
    """
    main, threshold = evidence.plan.main, evidence.plan.errors.updates
    return [
        *(
            compared_runs(
                evidence,
                f"{evidence.data}: lowest test error, {evidence.name(large, f'{title}, large')} "
                f"over {evidence.name(small, title)}",
                "slightly worse: above 1",
                large,
                small,
                _lowest_test_error,
                lambda ratios: verdicts.of_side(ratios, is_above=True),
                "{:.1%}".format,
            )
            for large, small, title in (
                (f"{main}_kfc_large", f"{main}_kfc", "KFC-pre"),
                (f"{main}_sgd_large", f"{main}_sgd", "SGD"),
            )
        ),
        speed_up(
            evidence,
            f"{evidence.data}, {threshold:.0%} training error: updates of SGD over those of "
            "KFC-pre, at the mini-batches of Figure 1",
            Value(FEWER_UPDATES[0]),
            f"{main}_sgd",
            f"{main}_kfc",
            "train_error",
            threshold,
            "updates",
        )._replace(paper="{} to {} in the abstract".format(*FEWER_UPDATES), ratio=""),
    ]


def large_batch_test_row(evidence):
    """ "Similar speedups were obtained on test error" (section 5.3), with large mini-batches; the
    paper does not give the error.
    """
    main = evidence.plan.main
    return _at_shared_test_error(
        evidence,
        evidence.data,
        "updates of SGD over those of KFC-pre, with large mini-batches",
        f"similar to {Value(UPDATES['sgd'] / UPDATES['kfc'])}",
        f"{main}_sgd_large",
        f"{main}_kfc_large",
        "updates",
    )


def _at_shared_test_error(evidence, data, what, paper, slow, fast, unit):
    """The Row of a speed-up to the lowest whole per cent of test error to which all runs of both
    curves came. The runs themselves decide it: there is no verdict.
    """
    if absent := evidence.absence(slow, fast, unit=unit):
        return Row(f"{data}, test error: {what}", paper, absent)
    highest = max(_lowest_test_error(run) for name in (fast, slow) for run in evidence.runs[name])
    threshold = math.ceil(round(100 * highest, 6)) / 100
    claim = f"{data}, {threshold:.0%} test error: {what}"
    row = speed_up(evidence, claim, paper, slow, fast, "test_error", threshold, unit)
    return row._replace(verdict="")


def other_methods(evidence):
    """Adagrad, RMSProp and Adam against SGD, K-FAC against KFC-pre and SGD (section 5.2)."""
    main = evidence.plan.main
    return [
        *(
            compared_at_the_end(
                evidence,
                f"training error, {METHODS[name]} over SGD",
                "did not beat it: above 1",
                f"{main}_{name}",
                f"{main}_sgd",
                lambda ratios: verdicts.of_side(ratios, is_above=True),
            )
            for name in ("adagrad", "rmsprop", "adam")
        ),
        *(
            compared_at_the_end(
                evidence,
                f"training error, {METHODS[name]} with decoupled weight decay over SGD",
                "not tried",
                f"{main}_{name}w",
                f"{main}_sgd",
                lambda ratios: "",
            )
            for name in ("rmsprop", "adam")
            if f"{main}_{name}w" in evidence.plan.curves
        ),
        *kfac_rows(evidence),
    ]


def kfac_rows(evidence):
    """Full K-FAC beside KFC-pre and SGD (section 5.2)."""
    main = evidence.plan.main
    return [
        _with_its_damping(
            evidence.plan.curves.get(f"{main}_kfac"),
            compared_at_the_end(
                evidence,
                "training error, K-FAC over KFC-pre",
                "about 1",
                f"{main}_kfac",
                f"{main}_kfc",
                verdicts.of_equality,
            ),
        ),
        compared_at_the_end(
            evidence,
            "training error, K-FAC over SGD",
            "as KFC-pre: below 1",
            f"{main}_kfac",
            f"{main}_sgd",
            lambda ratios: verdicts.of_side(ratios, is_above=False),
        ),
    ]


def _with_its_damping(curve, row):
    """The Row of a comparison of K-FAC with a method that was tuned, its reason with that."""
    if not row.reason:
        return row
    tuned = "was tuned as a learning rate is, on seed 0" if curve.dampings else "was not tuned"
    said = f"the paper does not give K-FAC's settings; here its damping {tuned}"
    return row._replace(reason=f"{row.reason}; {said}")


def structure_rows(evidence):
    """Other structures and exact damping, for which the paper has no numbers."""
    main = evidence.plan.main
    names = {
        **{name: STRUCTURES[name] for name in COMPARED},
        "tikhonov": "KFC with exact Tikhonov damping",
    }
    return [
        compared_at_the_end(
            evidence,
            f"training error, {title} over KFC",
            "not measured",
            f"{main}_{name}",
            f"{main}_kfc",
            lambda ratios: "",
        )
        for name, title in names.items()
        if f"{main}_{name}" in evidence.plan.curves
    ]


def invariance_rows(evidence):
    """KFC is invariant to affine changes of the inputs but for its damping, SGD is not (section
    4.1, Theorem 3).
    """
    main = evidence.plan.main
    if f"{main}_kfc_scaled" not in evidence.plan.curves:
        return []
    return [
        compared_at_the_end(
            evidence,
            f"training error with divided inputs over that with raw ones, {title}",
            words,
            f"{main}_{divided}",
            f"{main}_{raw}",
            judge,
        )
        for raw, divided, title, words, judge in (
            ("kfc", "kfc_scaled", "KFC-pre", "invariant but for its damping", lambda ratios: ""),
            (
                "kfc_weak",
                "kfc_scaled_weak",
                "KFC-pre with a thousandth of the damping",
                "invariant: about 1",
                verdicts.of_equality,
            ),
            ("sgd", "sgd_scaled", "SGD", "not invariant", lambda ratios: ""),
        )
    ]


def choice_rows(evidence):
    """How far the network's own choices go where the paper leaves its layers open."""
    main = evidence.plan.main
    return [
        compared_at_the_end(
            evidence,
            f"training error, {title}, over the network as it is, {method}",
            "not measured",
            f"{main}_{name}_{choice}",
            f"{main}_{name}",
            lambda ratios: "",
        )
        for choice, title in (
            ("across", "response normalisation across maps"),
            ("inside", "pools without clipped windows"),
        )
        for name, method in (("kfc", "KFC-pre"), ("sgd", "SGD"))
        if f"{main}_{name}_{choice}" in evidence.plan.curves
    ]


def batch_norm_rows(evidence):
    """Batch normalisation helps both methods, and KFC-pre stays ahead (appendix D.2)."""
    main, threshold = evidence.plan.main, evidence.plan.errors.updates
    pairs = (
        ("SGD over KFC-pre, both with batch normalisation", "sgd_bn", "kfc_bn"),
        ("SGD without batch normalisation over with it", "sgd", "sgd_bn"),
        ("KFC-pre without batch normalisation over with it", "kfc", "kfc_bn"),
    )
    return [
        speed_up(
            evidence,
            f"{evidence.data}, {threshold:.0%} training error: time, {claim}",
            "above 1",
            f"{main}_{slow}",
            f"{main}_{fast}",
            "train_error",
            threshold,
            "minutes",
        )
        for claim, slow, fast in pairs
    ]
