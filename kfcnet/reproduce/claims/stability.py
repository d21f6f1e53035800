"""The claims on what gets out of hand: SGD without a clip does not, autocovariances can."""

import numpy as np

from kfcnet.reproduce import verdicts
from kfcnet.reproduce.rows import Row, spread
from kfcnet.reproduce.values import has_failed

SLACK = 1.02
"""A run is out of hand where its training loss rises above its start by more than this factor, or
ends no further below it: the start is chance."""

OUT_OF_HAND = f"that failed, ended at chance or rose more than {SLACK - 1:.0%} above it"


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


def _out_of_hand(evidence, claim, paper, curve, wanted):
    """A Row: how many runs of a curve failed, rose above the loss that they began with or came back
    to it.

    wanted: whether the paper says that some do.
    """
    if absent := evidence.absence(curve):
        return Row(claim, paper, absent)
    runs = evidence.runs[curve]
    count = sum(map(_is_out_of_hand, runs))
    verdict = verdicts.of_comparison(bool(count) == wanted)
    return Row(
        claim,
        paper,
        f"{count} of {len(runs)}",
        verdict=verdict if count else evidence.final(verdict, curve),
        reason=f"training errors at the end {spread(_last_errors(runs)) or _last_errors(runs)[0]}",
    )


def _is_out_of_hand(run):
    loss = run.metrics["train_loss"]
    return has_failed(run) or np.nanmax(loss) > SLACK * loss[0] or loss[-1] > loss[0] / SLACK


def _last_errors(runs):
    return [f"{error:.2%}" for error in sorted(run.metrics["train_error"][-1] for run in runs)]
