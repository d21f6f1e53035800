"""The claims of section 5.3 and of footnote 6: updates and errors with large mini-batches."""

from kfcnet.figures.paper import FEWER_UPDATES, UPDATES
from kfcnet.reproduce import verdicts
from kfcnet.reproduce.rows import at_shared_test_error, compared_runs, reached_row, speed_up
from kfcnet.reproduce.values import Value, lowest_test_error


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
    sizes, for which the paper has no number: its abstract's range names no size, and a part of
    the ratio is that of the sizes, so that there is no verdict.
    """
    main, threshold = evidence.plan.main, evidence.plan.errors.updates
    usual = speed_up(
        evidence,
        f"{evidence.data}, {threshold:.0%} training error: updates of SGD over those of "
        "KFC-pre, at the mini-batches of Figure 1",
        "{} to {}, no size given".format(*FEWER_UPDATES),
        f"{main}_sgd",
        f"{main}_kfc",
        "train_error",
        threshold,
        "updates",
    )
    if usual.reason:
        kfc, sgd = (
            evidence.runs[f"{main}_{name}"][0].config["optimizer"]["batch_size"]
            for name in ("kfc", "sgd")
        )
        said = f"; {Value(kfc / sgd)} times as many are due to the sizes alone"
        usual = usual._replace(reason=usual.reason + said)
    return [
        *(
            compared_runs(
                evidence,
                f"{evidence.data}: lowest test error, {evidence.name(large, f'{title}, large')} "
                f"over {evidence.name(small, title)}",
                "slightly worse: above 1",
                large,
                small,
                lowest_test_error,
                lambda ratios: verdicts.of_side(ratios, is_above=True),
                "{:.1%}".format,
            )
            for large, small, title in (
                (f"{main}_kfc_large", f"{main}_kfc", "KFC-pre"),
                (f"{main}_sgd_large", f"{main}_sgd", "SGD"),
            )
        ),
        usual._replace(verdict=""),
    ]


def large_batch_test_row(evidence):
    """ "Similar speedups were obtained on test error" (section 5.3), with large mini-batches; the
    paper does not give the error.
    """
    main = evidence.plan.main
    return at_shared_test_error(
        evidence,
        evidence.data,
        "updates of SGD over those of KFC-pre, with large mini-batches",
        f"similar to {Value(UPDATES['sgd'] / UPDATES['kfc'])}",
        f"{main}_sgd_large",
        f"{main}_kfc_large",
        "updates",
    )
