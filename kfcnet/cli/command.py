"""What every command does around its own work: streams, notices, errors, exit status, processes."""

import contextlib
import functools
import io
import os
import sys

from kfcnet import ranks
from kfcnet.training.notices import notices_on_stderr


def command(function):
    """Make a command print foreseen errors as one or two lines and return an exit status.

    Only `train` may be started by mpiexec as several processes. What all of them raise the first
    one prints; one that fails alone says which it is, and ends the others, who would wait for it.
    """

    @functools.wraps(function)
    def run(argv=None, prog=None):
        _open_missing_streams()
        _write_what_cannot_be_encoded()
        try:
            processes = ranks.world()
        except ranks.RanksError as error:
            if ranks.is_first_started():
                print(f"error: {error}", file=sys.stderr)
            return 2
        try:
            with _shown_by_the_first(processes), notices_on_stderr(is_shown=processes.is_first):
                if processes.count > 1:
                    arguments = sys.argv[1:] if argv is None else argv
                    _check_processes(processes, function.__name__, list(arguments))
                return function(argv, prog) or 0
        except BaseException as error:
            if processes.count > 1:
                return _end_of_one(error, processes)
            status, text = _outcome(error)
            if status is None:
                raise
            if status == 141:  # the reader of our output has gone
                sys.stderr.close()
            elif text:
                print(text, file=sys.stderr)
            return status

    return run


def _check_processes(processes, name, arguments):
    """Raise RanksError unless several processes all run `train`, with the same arguments."""
    if unlike := processes.first_unlike([name, *arguments]):
        number, other, first = unlike
        text = (
            f"process {number} of {processes.count} was started as `{' '.join(other)}`, process 1 "
            f"as `{' '.join(first)}`: all processes need the same arguments"
        )
        raise ranks.of_all(ranks.RanksError(text))
    if name != "train":
        text = f"{name} runs in one process: start it without mpiexec"
        raise ranks.of_all(ranks.RanksError(text))


def _outcome(error):
    """(exit status, text) of an error that is foreseen; (None, None) of any other."""
    if isinstance(error, SystemExit):  # told already, by the parser of the arguments
        return None, None
    if isinstance(error, KeyboardInterrupt):
        return 130, None
    if isinstance(error, BrokenPipeError):
        return 141, None
    if isinstance(error, MemoryError):
        reason = f" ({error})" if str(error) else ""
        return 1, (
            f"error: out of memory{reason}: a smaller network or optimizer.batch_size takes less"
        )
    status = getattr(error, "exit_status", None)  # of an error that the user can solve
    if status is None:
        return None, None
    return status, str(error) if status > 2 else f"error: {error}"


def _end_of_one(error, processes):
    """The exit status of one of several processes; unless all of them have the error, it is told
    here and ends them all.
    """
    if isinstance(error, SystemExit):
        status, text = error.code if isinstance(error.code, int) else 1, f"error: exit {error.code}"
        if ranks.is_of_all(error):
            raise error
    else:
        status, text = _outcome(error)
    if status is None:
        status, text = 1, ranks.traceback_of(error)
    if ranks.is_of_all(error):
        text = text and ranks.process_of(error) + text
    else:
        # On a line of its own, whatever another process is showing.
        text = f"\nprocess {processes.rank + 1} of {processes.count}: {text or 'interrupted'}"
        processes.abort(status)
    if text and (processes.is_first or not ranks.is_of_all(error)):
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)
    return status


@contextlib.contextmanager
def _shown_by_the_first(processes):
    """Leave standard output to the first of several processes."""
    if processes.is_first:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as null, contextlib.redirect_stdout(null):
        yield


def _open_missing_streams():
    """Let standard output and standard error, where they were closed, lead nowhere.

    Under their numbers too: the next file to be opened would get such a number, and with it what
    libraries in C write there. Worker processes inherit them.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is not None:
            continue
        is_free = not _is_open(number)
        null = os.open(os.devnull, os.O_WRONLY)
        if is_free:
            os.dup2(null, number)
            os.set_inheritable(number, True)  # no matter whether `null` is that number
        setattr(sys, name, open(null, "w", encoding="utf-8"))


def _write_what_cannot_be_encoded():
    r"""Let standard output have \u732b for a letter of a name that its encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
