"""`metrics.csv`, one row of numbers per evaluation, and `diagnostics.csv`, a table like it."""

import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kfcnet.runs.files import RecordError, append_line, unreadable, write_text

PHASES = ("gradient", "statistics", "inverses", "preconditioning", "clip")
COUNTS = ("iteration", "examples")
COLUMNS = (
    "iteration",
    "epoch",
    "examples",
    "seconds",
    "train_loss",
    "train_error",
    "test_loss",
    "test_error",
    "train_objective",
    "raw_train_error",
    "raw_test_error",
    "learning_rate",
    "update_norm",
    "clipped",
    "nu",
    *(f"seconds_{phase}" for phase in PHASES),
)
"""Columns of `metrics.csv`. Losses are nats per example, errors fractions, both of the averaged
parameters.

- `seconds`: training time since the start, without evaluation, warm-up, compilation, checkpoints;
- `seconds_<phase>`: its parts. `clip` is in K-FAC the quadratic model and the objective after a
  step, in Hessian-free optimization the line search;
- `train_objective`: h of the averaged parameters, train_loss and the penalty of weight decay;
- `raw_train_error`, `raw_test_error`: of the latest parameters, not averaged;
- `learning_rate`: that of the next update, for K-FAC and Hessian-free optimization the latest;
- `update_norm`: Euclidean norm of the parameters' latest update, before max-norm. NaN for
  Nesterov's momentum, Adagrad, RMSProp and Adam, which do not store their update;
- `clipped`: share of clipped steps since the row before;
- `nu`: mean over the same steps of nu, which the clip compares with its cap; NaN without a clip.
"""
LATER_COLUMNS = ("train_objective", "raw_train_error", "raw_test_error", "nu")
"""Columns that tables of earlier versions lack: they read as NaN there."""

DIAGNOSTICS = ("iteration", "examples", "nu", "cosine", "predicted_reduction", "actual_reduction")
LAYER_DIAGNOSTICS = ("nu", "cosine", "pi", "Omega_min", "Omega_max", "Gamma_min", "Gamma_max")
ACTIVITY = ("active", "dead")
"""Columns of `diagnostics.csv`. Those of a layer are called `<layer>_nu` and so on: ACTIVITY for
each layer that a ReLU follows, LAYER_DIAGNOSTICS for each weighted layer. An optimizer without
Kronecker factors has `iteration`, `examples` and ACTIVITY alone.

- `active`: share of the layer's pixels (of a dense layer, its units) that are above zero after the
  ReLU, on the same training images at every row, with the latest parameters;
- `dead`: number of its maps (units) that are above zero on less than 1% of these pixels;
- `nu`: v^T F v + weight decay * |v|^2 of the step v = -learning_rate * natural gradient, before
  clip and momentum; F is the exact Fisher matrix on the part of the mini-batch that the clip uses.
  For a layer's nu, v is zero in all other layers;
- `cosine`: cosine of the angle between the gradient and the natural gradient;
- `pi`: how the damping is divided between the layer's two factors (Eq. 21);
- `Omega_min` to `Gamma_max`: smallest and largest eigenvalue of the factors after the update,
  damped as in Eq. 21, also where the method damps the product instead of the factors. A layer that
  learns scales and shifts has its block in Omega's place, damped as it is, with pi = Gamma = 1;
- `predicted_reduction`, `actual_reduction`: of h (mean loss and weight decay) on the mini-batch by
  the parameters' whole update; the first by the quadratic model with the exact Fisher matrix.
"""


class Crossing(NamedTuple):
    """Where a curve first reached a threshold: in epochs, updates and seconds of training."""

    epoch: float
    updates: int
    seconds: float


def create_metrics(path, columns=COLUMNS):
    """Write a table without rows: the header alone. Raises WriteError."""
    write_text(path, ",".join(columns) + "\n")


def append_metrics(path, row, columns=COLUMNS):
    """Add one row {column: number} and flush it to the disk; floats keep all their digits.

    Raises WriteError where it cannot be written; the file is then as it was before.
    """
    append_line(path, ",".join(_text(name, row[name]) for name in columns))


def read_metrics(path, columns=COLUMNS, cut_short=False):
    """{column: array (rows,)} of all columns of a table: int64 for counts, float64 for the rest.

    cut_short: ignore a last line without a line end, which a kill may have left. Raises
    RecordError, with file and line, for a table without one of `columns` and for anything but
    complete rows of numbers in the order of their iterations.
    """
    header, rows = _parse(path, columns, cut_short)
    types = {name: np.int64 if name in COUNTS else np.float64 for name in header}
    return {name: np.array([row[i] for row in rows], types[name]) for i, name in enumerate(header)}


def last_iteration(path):
    """Iteration of the last complete row, -1 without rows; a line cut short does not count."""
    header, rows = _parse(path, cut_short=True)
    return rows[-1][header.index("iteration")] if rows else -1


def truncate_metrics(path, iteration, columns=COLUMNS):
    """Drop the rows after `iteration`, and a last line that a kill cut short."""
    header, rows = _parse(path, columns, cut_short=True)
    kept = [row for row in rows if row[header.index("iteration")] <= iteration]
    lines = [header] + [[_text(*pair) for pair in zip(header, row, strict=True)] for row in kept]
    write_text(path, "".join(",".join(line) + "\n" for line in lines))


def first_crossing(metrics, column, threshold):
    """The Crossing where `column` is first at or below `threshold`; None if it never is."""
    reached = np.flatnonzero(metrics[column] <= threshold)
    if not len(reached):
        return None
    first = reached[0]
    return Crossing(
        float(metrics["epoch"][first]),
        int(metrics["iteration"][first]),
        float(metrics["seconds"][first]),
    )


def _parse(path, columns=COLUMNS, cut_short=False):
    """Header and rows (lists of numbers) of a table, checked, with all of `columns`.

    cut_short: ignore a last line without a line end.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}: {error}") from error
    if cut_short:
        text = text[: text.rfind("\n") + 1]
    elif not text.endswith("\n"):
        raise unreadable(path, text.count("\n") + 1, "the line is cut short")
    lines = list(csv.reader(io.StringIO(text)))
    header = lines[0] if lines else []
    later = [name for name in columns if name in LATER_COLUMNS and name not in header]
    for name in columns:
        if name not in (*header, *later):
            raise unreadable(path, 1, f"the header has no column {name!r}")
    rows = []
    for number, fields in enumerate(lines[1:], start=2):
        rows.append(_numbers(path, number, header, fields))
        at = header.index("iteration")
        if len(rows) > 1 and rows[-1][at] <= rows[-2][at]:
            raise unreadable(path, number, "its iteration is not above that of the line before")
    if later:
        names = [*columns, *(name for name in header if name not in columns)]
        found = [dict(zip(header, row, strict=True)) for row in rows]
        header, rows = names, [[row.get(name, math.nan) for name in names] for row in found]
    return header, rows


def _numbers(path, number, header, fields):
    if len(fields) != len(header):
        raise unreadable(path, number, f"{len(fields)} fields where the header has {len(header)}")
    row = []
    for name, field in zip(header, fields, strict=True):
        try:
            row.append(int(field) if name in COUNTS else float(field))
        except ValueError:
            raise unreadable(path, number, f"{name} is {field!r}, not a number") from None
    return row


def _text(name, value):
    return str(int(value)) if name in COUNTS else repr(float(value))
