"""What a run leaves in writing: `metrics.csv`, one row per evaluation, and `run.json`, its origin.

Both are small, hold no path of the machine they were made on, and are all that the figures and
tables are drawn from.
"""

import csv
import io
import json
import math
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np

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
    "learning_rate",
    "update_norm",
    "clipped",
    "nu",
    *(f"seconds_{phase}" for phase in PHASES),
)
"""Losses are nats per example, errors fractions. `seconds` is training time since the start,
without evaluation, warm-up, compilation and checkpoints; `seconds_<phase>` are its parts, `clip` in
K-FAC the quadratic model and the objective after a step, in Hessian-free optimization the line
search.
`learning_rate` is that of the next update, `update_norm` the Euclidean norm of the latest move of
the parameters, before max-norm; NaN for Nesterov's momentum, Adagrad, RMSProp and Adam, which keep
no move. `clipped` is the share of clipped steps since the row before and `nu` the mean of their nu,
which the clip holds against its cap; NaN where there is none."""
DIAGNOSTICS = ("iteration", "examples", "nu", "cosine", "predicted_reduction", "actual_reduction")
LAYER_DIAGNOSTICS = ("nu", "cosine", "pi", "Omega_min", "Omega_max", "Gamma_min", "Gamma_max")
"""Columns of `diagnostics.csv`, the latter for each weighted layer as `<layer>_nu` and so on.

`nu` is v^T F v + weight decay * |v|^2 of the step v = -learning_rate * natural gradient, before
clip and momentum, F the exact Fisher matrix on the part of the mini-batch that the clip looks at;
that of a layer takes v as zero elsewhere. `cosine` is the cosine of the angle between the gradient
and the natural gradient. `pi` shares the damping between the layer's factors, whose eigenvalues
after damping lie between `min` and `max`: both as in Eq. 21, also where the product is damped
instead of the factors, and for the factors as they stand after the update. The block of a learned
scale and shift stands in Omega's place, damped as it is, with pi = Gamma = 1. The reductions are
those of h, mean loss and weight decay, on the mini-batch by the parameters' whole move: by the
quadratic model of h with the exact Fisher matrix, and actually."""

LATER = {"nu"}  # what older records lack; read as NaN

LIBRARIES = ("numpy", "scipy", "h5py", "matplotlib", "pydantic", "PyYAML", "threadpoolctl", "tqdm")


class RecordError(RuntimeError):
    """A record cannot be read or written; the text names the file, the line and what to do."""


class WriteError(RecordError):
    """A file cannot be written, on a full disk for instance; what was there before is whole."""


class Crossing(NamedTuple):
    """Where a curve first reached a threshold: in epochs, updates and seconds of training."""

    epoch: float
    updates: int
    seconds: float


def create_metrics(path, columns=COLUMNS):
    """Start an empty `metrics.csv`, or a table of other columns like it: the header alone."""
    write_text(path, ",".join(columns) + "\n")


def append_metrics(path, row, columns=COLUMNS):
    """Add one row {column: number} and bring it to the disk; floats keep all their digits.

    Raises WriteError where it cannot be written; the file then is as it was before.
    """
    line = ",".join(_text(name, row[name]) for name in columns) + "\n"
    try:
        with open(path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                _write_all(file, line.encode())
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_metrics(path, columns=COLUMNS):
    """{column: array (rows,)} of a `metrics.csv`: int64 for counts, float64 for all else.

    `columns` must be among its columns, but for the LATER ones, `iteration` one of them.

    Raises RecordError, with file and line, for anything but complete rows of numbers in the order
    of their iterations.
    """
    header, rows = _parse(path, columns)
    types = {name: np.int64 if name in COUNTS else np.float64 for name in header}
    return {name: np.array([row[i] for row in rows], types[name]) for i, name in enumerate(header)}


def last_iteration(path):
    """Iteration of the latest whole row, a line cut short left aside; -1 where there is none."""
    header, rows = _parse(path, cut_short=True)
    return rows[-1][header.index("iteration")] if rows else -1


def truncate_metrics(path, iteration, columns=COLUMNS):
    """Drop the rows after `iteration`, and a last line that a kill cut short; add LATER columns."""
    header, rows = _parse(path, columns, cut_short=True)
    kept = [row for row in rows if row[header.index("iteration")] <= iteration]
    lines = [header] + [[_text(*pair) for pair in zip(header, row, strict=True)] for row in kept]
    write_text(path, "".join(",".join(line) + "\n" for line in lines))


def first_crossing(records, column, threshold):
    """The Crossing at which `column` is first at or below `threshold`; None if it never is."""
    reached = np.flatnonzero(records[column] <= threshold)
    if not len(reached):
        return None
    first = reached[0]
    return Crossing(
        float(records["epoch"][first]),
        int(records["iteration"][first]),
        float(records["seconds"][first]),
    )


def describe_run(config, ops, provenance, train_measured_on):
    """The contents of `run.json`: enough to say where the numbers of a run come from.

    `provenance`: base names, checksums and notes of the data; `train_measured_on`: a phrase.
    """
    return base_names(
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            **describe_program(),
            "seed": config.seed,
            "device": ops.describe(),
            "data": provenance,
            "train_measured_on": train_measured_on,
            "phases_measured": ops.phases_measured,
            "outcome": {"state": "running"},
        }
    )


def describe_program():
    """What computes, and where: {"commit", "versions", "machine"}."""
    return {
        "commit": _commit(),
        "versions": {
            "kfcnet": _version("kfcnet"),
            "python": platform.python_version(),
            **{name: _version(name) for name in LIBRARIES},
        },
        "machine": {"system": platform.system(), "cores": os.cpu_count()},
    }


def write_json(path, value):
    """Replace a JSON file in one go. Raises WriteError where it cannot be written."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path):
    """The contents of a JSON file. Raises RecordError with file and line."""
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise _unreadable(path, error.lineno, error.msg) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}: {error}") from error


def lacks(path, entry):
    """The RecordError for a file without what every run records."""
    return RecordError(
        f"{path} lacks the entry {entry} that every run's record has: restore the "
        "file, or move its folder away"
    )


def write_text(path, text):
    """Replace a file in one go: its readers see the old text or the new one, never a part."""
    write_bytes(path, text.encode())


def markdown_table(lines):
    """Lines of cells (texts), the header and its rule among them, as a table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_bytes(path, content):
    """Replace a file in one go and bring it to the disk.

    The bytes go to a temporary file in the same folder, which then takes the file's name: a kill
    or a full disk leaves the old file whole. Raises WriteError where the bytes cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        try:
            with open(temporary, "wb", buffering=0) as file:
                _write_all(file, content)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def base_names(value):
    """`value` with every path that is absolute or climbs out of the current folder shortened.

    Strings (also those behind a `key=`) keep the last part of such a path; lists, tuples and
    dictionaries are searched.
    """
    if isinstance(value, dict):
        return {key: base_names(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [base_names(item) for item in value]
    if not isinstance(value, (str, os.PathLike)):
        return value
    key, equals, last = str(value).rpartition("=")
    return key + equals + _base_name(last)


def _base_name(text):
    path = PureWindowsPath(text)  # splits at both kinds of slash
    return path.name if path.root or path.drive or ".." in path.parts else text


def _parse(path, columns=COLUMNS, cut_short=False):
    """Header and rows (lists of numbers) of a metrics file, checked."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}: {error}") from error
    if cut_short:
        text = text[: text.rfind("\n") + 1]
    elif not text.endswith("\n"):
        raise _unreadable(path, text.count("\n") + 1, "the line is cut short")
    lines = list(csv.reader(io.StringIO(text)))
    header = lines[0] if lines else []
    missing = [name for name in columns if name not in header]
    required = [name for name in missing if name not in LATER]
    if required:
        raise _unreadable(path, 1, f"the header has no column {required[0]!r}")
    rows = []
    for number, fields in enumerate(lines[1:], start=2):
        rows.append(_numbers(path, number, header, fields))
        at = header.index("iteration")
        if len(rows) > 1 and rows[-1][at] <= rows[-2][at]:
            raise _unreadable(path, number, "its iteration is not above that of the line before")
    for name in missing:
        for line, value in [(header, name), *((row, math.nan) for row in rows)]:
            line.insert(columns.index(name), value)
    return header, rows


def _numbers(path, number, header, fields):
    if len(fields) != len(header):
        raise _unreadable(path, number, f"{len(fields)} fields where the header has {len(header)}")
    row = []
    for name, field in zip(header, fields, strict=True):
        try:
            row.append(int(field) if name in COUNTS else float(field))
        except ValueError:
            raise _unreadable(path, number, f"{name} is {field!r}, not a number") from None
    return row


def _text(name, value):
    return str(int(value)) if name in COUNTS else repr(float(value))


def _unreadable(path, line, reason):
    return RecordError(
        f"{path}, line {line}: {reason}; mend the line, start the run again with "
        "--overwrite, or move its folder away"
    )


def _cannot_write(path, error):
    return WriteError(
        f"cannot write {path}: {error.strerror or error}; make room or name another "
        "place (a run then goes on with --resume)"
    )


def _write_all(file, content):
    """Write every byte: a raw write may stop early where the disk is nearly full."""
    view = memoryview(content)
    while len(view):
        view = view[file.write(view) :]


def _sync_folder(folder):
    """Bring a rename to the disk; only POSIX systems can open a folder for that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _commit():
    """The commit of the project's own working tree, with `-dirty` where what runs was changed; None
    outside of a repository. Results may differ: the runs themselves write them.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments):
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
