"""The claims of section 5.1: how strongly activations and derivatives are correlated."""

from kfcnet.reproduce import verdicts
from kfcnet.reproduce.assumptions import neighbours, neighbours_in
from kfcnet.reproduce.rows import Row
from kfcnet.reproduce.values import Value
from kfcnet.reproduce.verdicts import DIRECTION

WEAK, STRONGER = 0.5, 2
"""Correlations of derivatives are weak below this share of the activations' correlations, and
stronger above this many times those with max pooling."""


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
    row = _correlation(measurement, here, "derivatives", words, is_weak, reason)
    return [
        row._replace(verdict=DIRECTION) if is_weak and strong else row,
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
