"""Reading and writing the files of a run: a reader sees the old content or the new, never a part.

What cannot be read or written raises an error that names the file and says what to do.
"""

import csv
import errno
import io
import json
import logging
import os
import secrets
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)
"""What file systems answer that cannot flush: SMB and some of FUSE, of folders above all."""


class RecordError(RuntimeError):
    """A record cannot be read or written; the text names the file, the line and what to do."""

    exit_status = 2


class WriteError(RecordError):
    """A file cannot be written, for instance on a full disk; its old content is still whole."""

    exit_status = 1


def make_folder(path):
    """The path of a folder, which is made where it is not there. Raises WriteError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"cannot make the folder {path}: {error.strerror}; make room or name another place "
            "with --out"
        ) from error
    return Path(path)


def write_bytes(path, content):
    """Replace the content of a file and flush it to the disk.

    The bytes go to a temporary file in the same folder, which is then renamed: after a kill or on
    a full disk the old file is still whole. Raises WriteError where the bytes cannot be written.
    """
    path = Path(path)
    # Other processes may write the same figure or table, in other containers too.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "wb", buffering=0) as file:
                _write_all(file, content)
                _sync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def left_behind(folder, names):
    """The temporary files of `names` that kills during a write have left in a folder."""
    return [path for name in names for path in Path(folder).glob(f"{name}.*.tmp")]


def write_text(path, text):
    """Replace the content of a file by a text, as `write_bytes` does."""
    write_bytes(path, text.encode())


def append_line(path, line):
    """Add a line to a file and flush it to the disk.

    Raises WriteError where it cannot be written; the file is then as it was before.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                _write_all(file, f"{line}\n".encode())
                _sync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_csv(path, rows):
    """Replace a CSV file by rows of values, the header first. Raises WriteError."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def markdown_table(rows):
    """A table in Markdown. rows: lists of texts, the header and the rule below it first.

    A `|` in a text is escaped: it would begin a column.
    """
    escaped = ([text.replace("|", r"\|") for text in row] for row in rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def write_json(path, value):
    """Replace a JSON file. Raises WriteError where it cannot be written."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path):
    """The content of a JSON file. Raises RecordError with file and line."""
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise unreadable(path, error.lineno, error.msg) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}: {error}") from error


def read_entry(path, *keys):
    """The value under nested keys in a JSON file. Raises RecordError where there is none."""
    value = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise missing_entry(path, ".".join(keys))
        value = value[key]
    return value


def missing_entry(path, key):
    """The RecordError for a file without an entry that every run's record has."""
    return RecordError(
        f"{path} lacks the entry {key} that every run's record has: restore the "
        "file, or move its folder away"
    )


def no_run(folder, name):
    """What to say of a folder without the file `name` that every run has."""
    runs = sorted(path.parent.as_posix() for path in Path(folder).glob("*/metrics.csv"))
    found = f"in it there are {', '.join(runs[:2])}{' and others' * (len(runs) > 2)}"
    way_out = found if runs else "name the folder that a run was written to with --out"
    return f"{folder} holds no run (there is no {name} in it); {way_out}"


def unreadable(path, line, reason):
    """The RecordError for a line of a file that cannot be read."""
    return RecordError(f"{path}, line {line}: {reason}; mend the line, or move its folder away")


def _cannot_write(path, error):
    return WriteError(
        f"cannot write {path}: {error.strerror or error}; make room or name another "
        "place (a run then goes on with --resume)"
    )


def _write_all(file, content):
    """Write every byte: a raw write may stop early on a nearly full disk."""
    view = memoryview(content)
    while len(view):
        view = view[file.write(view) :]


def _sync(descriptor):
    """Flush to the disk, where the file system can. Raises OSError where the disk fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _say_unsynced(error.strerror)


def _sync_folder(folder):
    """Flush a rename to the disk; only POSIX systems can open a folder for that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


@cache
def _say_unsynced(reason):
    logger.warning(
        "the file system cannot flush all files and folders (%s): after a power failure the latest "
        "records may be missing",
        reason,
    )
