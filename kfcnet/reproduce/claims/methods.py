"""KFC-pre beside other methods and structures, and both methods on changed networks."""

import numpy as np

from kfcnet.reproduce import verdicts
from kfcnet.reproduce.families import COMPARED
from kfcnet.reproduce.rows import compared_at_the_end, ratios_by_epoch
from kfcnet.reproduce.values import Value
from kfcnet.reproduce.verdicts import REPRODUCED
from kfcnet.runs.labels import METHODS, STRUCTURES


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
            _with_its_decay(
                evidence,
                f"{main}_{name}w",
                compared_at_the_end(
                    evidence,
                    f"training error, {METHODS[name]} with decoupled weight decay over SGD",
                    "not tried",
                    f"{main}_{name}w",
                    f"{main}_sgd",
                    lambda ratios: "",
                ),
            )
            for name in ("rmsprop", "adam")
            if f"{main}_{name}w" in evidence.plan.curves
        ),
        *kfac_rows(evidence),
    ]


def _with_its_decay(evidence, curve, row):
    """The Row of a curve with decoupled decay over SGD, its note with how much it decays.

    Decoupled, an update takes learning_rate * lambda of a weight. SGD's velocity adds up
    1 / (1 - momentum) of such steps.
    """
    if not row.note:
        return row
    own, sgd = (
        evidence.runs[each][0].config["optimizer"] for each in (curve, f"{evidence.plan.main}_sgd")
    )
    share = own["learning_rate"] * (1 - sgd["momentum"]) / sgd["learning_rate"]
    said = f"; the same decay, decoupled, takes {share:.2g} of what SGD's takes of a weight"
    return row._replace(note=row.note + said)


def kfac_rows(evidence):
    """Full K-FAC beside KFC-pre and SGD (section 5.2)."""
    main = evidence.plan.main
    return [
        _as_far_as_about_one(
            evidence,
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
            "not given",
            f"{main}_kfac",
            f"{main}_sgd",
            lambda ratios: "",
        ),
    ]


def _as_far_as_about_one(evidence, row):
    """The Row of K-FAC over KFC-pre, its reason with what the paper leaves open: how K-FAC was set,
    when the two are compared, and in which error.
    """
    if not row.reason:
        return row
    kfac, kfc = (f"{evidence.plan.main}_{name}" for name in ("kfac", "kfc"))
    is_tuned = evidence.plan.curves[kfac].dampings
    tuned = "was tuned as a learning rate is, on seed 0" if is_tuned else "was not tuned"
    said = f"; the paper does not give K-FAC's settings; here its damping {tuned}"
    about_one = [
        epoch
        for epoch, ratios in ratios_by_epoch(evidence, kfac, kfc, "train_error")
        if verdicts.of_equality(ratios) == REPRODUCED
    ]
    if about_one:
        said += f"; by the same rule the two are about the same up to epoch {about_one[-1]:.3g}"
    if by_epoch := ratios_by_epoch(evidence, kfac, kfc, "test_error"):
        _, ratios = by_epoch[-1]
        least, median, most = (Value(float(each)) for each in np.quantile(ratios, (0, 0.5, 1)))
        said += f"; the ratio of test errors is {median} at the end ({least} to {most})"
    return row._replace(reason=row.reason + said)


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
        ),
        compared_at_the_end(
            evidence,
            "test loss, K-FAC over SGD",
            "not given",
            kfac,
            sgd,
            lambda ratios: "",
            column="test_loss",
            data="UCI digits, dense autoencoder",
        ),
    ]


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
    4.1, Theorem 3). The theorem is one of exact arithmetic, and a test holds it there: in practice
    no number of the paper's tells how near 1 a ratio must be.
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
            lambda ratios: "",
        )
        for raw, divided, title, words in (
            ("kfc", "kfc_scaled", "KFC-pre", "invariant but for its damping"),
            (
                "kfc_weak",
                "kfc_scaled_weak",
                "KFC-pre with a thousandth of the damping",
                "nearly invariant",
            ),
            ("sgd", "sgd_scaled", "SGD", "not invariant"),
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
