"""Training several runs at a time, each in a process of its own."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from concurrent.futures.process import BrokenProcessPool

from kfcnet.training.errors import UNUSABLE, TrainingInterrupted
from kfcnet.training.notices import PACKAGE, notices_on_stderr


def reason_of(error):
    """Why a run could not be trained, in words; the traceback of an error that nobody foresaw is
    printed. A text: the error itself would keep the run's memory.
    """
    if isinstance(error, UNUSABLE):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory ({error})" if str(error) else "out of memory"
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def _noticed(level, function, *arguments):
    """function(*arguments), in a process to which nobody has said where notices go."""
    with notices_on_stderr(level):
        return function(*arguments)


class WorkerDied(RuntimeError):
    """The process that a function was called in has ended before the function did."""


@contextlib.contextmanager
def workers(count):
    """Within the context, an executor that calls functions in `count` processes; one: in this one.

    SIGINT and SIGTERM reach this process alone, which asks each of the others once to stop; in
    another thread than the main one nothing changes for signals.
    """
    if count == 1:
        yield _Here()
        return
    pool = _Processes(count)
    previous = {}
    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, pool.stop)
    try:
        yield pool
    finally:
        pool.shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Here:
    """Calls functions at once, in this process."""

    def submit(self, function, *arguments):
        """A Future that is done; whatever the function raises is raised here."""
        future = concurrent.futures.Future()
        future.set_result(function(*arguments))
        return future


class _Processes:
    """Calls functions in `count` processes, one a thread: one that is killed fails its own call.

    A ProcessPoolExecutor of several fails all calls when one of its processes is killed, and does
    not tell which.
    """

    def __init__(self, count):
        self._threads = concurrent.futures.ThreadPoolExecutor(count)
        self._own = threading.local()  # .executor, of one process
        self._executors, self._pids, self._stopped_by = [], set(), None

    def submit(self, function, *arguments):
        """A Future of function(*arguments).

        Its result raises what the function raises, WorkerDied where the process was killed, and
        TrainingInterrupted where a signal came before the function could save anything.
        """
        return self._threads.submit(self._call, function, *arguments)

    def _call(self, function, *arguments):
        try:
            executor = self._executor()
            if self._stopped_by is None:
                call = _noticed, PACKAGE.getEffectiveLevel(), function, *arguments
                return executor.submit(*call).result()
        except BrokenProcessPool:
            del self._own.executor  # the next call has a new one
            if self._stopped_by is None:
                raise WorkerDied(
                    "its process was killed, perhaps because memory was short: see --workers"
                ) from None
        raise TrainingInterrupted(
            self._stopped_by,
            f"stopped by {signal.Signals(self._stopped_by).name}: the same command goes on",
        )

    def _executor(self):
        if not hasattr(self._own, "executor"):
            # A worker has its own session where the system has such: a Ctrl-C does not reach it.
            self._own.executor = concurrent.futures.ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), getattr(os, "setsid", None)
            )
            self._executors.append(self._own.executor)
            self._pids.add(self._own.executor.submit(os.getpid).result())
        return self._own.executor

    def stop(self, number, _):
        """Handle a signal: begin no call any more, and ask the processes to stop."""
        self._stopped_by = number
        for child in multiprocessing.active_children():  # of the program, which may have others
            if child.pid in self._pids:
                child.terminate()

    def shutdown(self):
        """Wait for the calls that are under way; the others are dropped."""
        self._threads.shutdown(cancel_futures=True)
        for executor in self._executors:
            executor.shutdown()
