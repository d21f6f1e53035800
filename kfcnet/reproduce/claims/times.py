"""The claims of section 5.2 on time: to an error, of an epoch, with batch normalisation."""

import numpy as np

from kfcnet.figures.paper import EPOCH_COST, MINUTES, NETWORK_ERROR, SVHN_MINUTES
from kfcnet.reproduce import verdicts
from kfcnet.reproduce.families import NORMALISED_DECAYS
from kfcnet.reproduce.rows import (
    at_shared_test_error,
    compared_runs,
    epoch_seconds,
    fit_at_lowest,
    is_waiting,
    reached_row,
    speed_up,
)
from kfcnet.reproduce.values import Value, lowest_test_error, typical
from kfcnet.reproduce.verdicts import OPEN
from kfcnet.runs.labels import PARTS, data_set, is_part

NAMES = {"kfc": "KFC-pre", "sgd": "SGD"}


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
                (kfc, NAMES["kfc"], minutes["kfc"]),
                (sgd, NAMES["sgd"], minutes["sgd"]),
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
    """An epoch's cost. The periods were chosen to keep it below twice SGD's (appendix B.3), so that
    there is no verdict.
    """
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
            f"below {EPOCH_COST}, by choice",
            kfc,
            sgd,
            epoch_seconds,
            lambda ratios: "",
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
        run = typical(evidence.runs["svhn_kfc"], lowest_test_error)
        lowest, images = lowest_test_error(run), run.record["data"]["train_examples"]
        kfc = kfc._replace(
            verdict=OPEN if is_part(run) else evidence.final(verdicts.FAILED, "svhn_kfc"),
            reason=f"its lowest test error on {images:,} training "
            f"images was {lowest:.2%}; {fit_at_lowest(run)}",
        )
    shared = at_shared_test_error(
        evidence,
        data,
        "time of SGD over that of KFC-pre",
        "not given",
        "svhn_sgd",
        "svhn_kfc",
        "minutes",
    )
    return [kfc, sgd, shared]


def decay_rows(evidence):
    """The first speed-up with other weight decays, in epochs: the decay was chosen before the rates
    were tuned, by KFC-pre's training error.
    """
    plan, shares = evidence.plan, (1, 0.1)
    if f"{plan.main}_kfc_decay_1" not in plan.curves:
        return []
    return [
        speed_up(
            evidence,
            f"{evidence.data}, {plan.errors.test:.0%} test error: epochs of SGD over those of "
            f"KFC-pre, {share:g} of the published decay",
            "not given",
            f"{plan.main}_sgd_decay_{share:g}",
            f"{plan.main}_kfc_decay_{share:g}_tuned",
            "test_error",
            plan.errors.test,
            "epochs",
        )._replace(verdict="")
        for share in shares
    ]


def normalised_decay_rows(evidence):
    """How fast both methods learn with batch normalisation and less weight decay, in epochs: the
    same decay is a heavier penalty with it.
    """
    return [row for method in ("kfc", "sgd") for row in _less_decay(evidence, method).values()]


def _less_decay(evidence, method):
    """{share of the published decay: the Row of a method with batch normalisation}."""
    plan, threshold = evidence.plan, evidence.plan.errors.updates
    curves = {share: f"{plan.main}_{method}_bn_decay_{share:g}" for share in NORMALISED_DECAYS}
    return {
        share: reached_row(
            evidence,
            f"{evidence.data}, {threshold:.0%} training error: epochs, {NAMES[method]} with batch "
            f"normalisation, {share:g} of the published decay",
            "not given",
            curve,
            "train_error",
            threshold,
            "epochs",
        )
        for share, curve in curves.items()
        if curve in plan.curves
    }


def _with_less_decay(evidence, method):
    """How many epochs a method needs with batch normalisation by the share of the published decay,
    in words; "" where that was not run.
    """
    rows = _less_decay(evidence, method).items()
    needed = ", ".join(f"{share:g}: {row.here}" for share, row in rows if not is_waiting(row))
    if not needed:
        return ""
    return f"; epochs with batch normalisation, by the share of the published decay: {needed}"


def batch_norm_rows(evidence):
    """Batch normalisation helps both methods, and KFC-pre stays ahead (appendix D.2)."""
    main, threshold = evidence.plan.main, evidence.plan.errors.updates
    pairs = (
        ("SGD over KFC-pre, both with batch normalisation", "sgd_bn", "kfc_bn"),
        ("SGD without batch normalisation over with it", "sgd", "sgd_bn"),
        ("KFC-pre without batch normalisation over with it", "kfc", "kfc_bn"),
    )
    rows = [
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
    return [
        row._replace(reason=row.reason + _with_less_decay(evidence, slow) * (not is_waiting(row)))
        for row, (_, slow, _) in zip(rows, pairs, strict=True)
    ]
