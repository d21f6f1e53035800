"""The paper's claims and what was measured here: rows of a table with paper, here, ratio.

The paper's numbers are in `kfcnet.figures.paper`; all others are computed from the records. A claim
without runs says so.
"""

from kfcnet.reproduce.claims import correlations, errors, large_batches, methods, stability, times
from kfcnet.reproduce.rows import is_waiting


def rows(evidence):
    """All Rows of the table, in the order of the paper's sections."""
    return [
        *correlations.assumption_rows(evidence),
        *times.time_rows(evidence),
        *times.cost_rows(evidence),
        *times.decay_rows(evidence),
        *times.svhn_rows(evidence),
        *errors.error_rows(evidence),
        *errors.early_error_rows(evidence),
        *errors.rate_rows(evidence),
        *errors.objective_rows(evidence),
        *errors.overfitting_rows(evidence),
        *errors.averaging_rows(evidence),
        stability.clip_row(evidence),
        *large_batches.update_rows(evidence),
        *large_batches.large_batch_rows(evidence),
        large_batches.large_batch_test_row(evidence),
        *methods.other_methods(evidence),
        *methods.structure_rows(evidence),
        *stability.autocovariance_rows(evidence),
        *methods.autoencoder_rows(evidence),
        *methods.invariance_rows(evidence),
        *methods.choice_rows(evidence),
        *times.batch_norm_rows(evidence),
        *times.normalised_decay_rows(evidence),
    ]


def headline(evidence):
    """The Rows of Figures 1 and 2 (times, their cost, the lowest errors, how many updates fewer),
    and that of K-FAC beside KFC-pre.
    """
    *_, fewer = large_batches.update_rows(evidence)
    kfac, _ = methods.kfac_rows(evidence)
    rows = [
        *times.time_rows(evidence),
        *times.cost_rows(evidence),
        *errors.error_rows(evidence),
        *large_batches.large_batch_rows(evidence),
        fewer,
        kfac,
    ]
    return [row for row in rows if not is_waiting(row)]
