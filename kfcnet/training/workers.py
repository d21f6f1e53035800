"""Training several runs at a time, each in a process of its own."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal


@contextlib.contextmanager
def workers(count):
    """Within the context, an executor that calls functions in `count` processes; one: in this one.

    SIGINT and SIGTERM reach this process alone, which asks each of the others once to stop.
    """
    if count == 1:
        yield _Here()
        return
    context = multiprocessing.get_context("spawn")
    # Each worker has its own session where the system has such: a Ctrl-C does not reach it.
    with concurrent.futures.ProcessPoolExecutor(
        count, context, getattr(os, "setsid", None)
    ) as pool:
        previous = {
            number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Here:
    """Calls functions at once, in this process."""

    def submit(self, function, *arguments):
        """A Future that is done; whatever the function raises is raised here."""
        future = concurrent.futures.Future()
        future.set_result(function(*arguments))
        return future


def _stop(*_):
    for worker in multiprocessing.active_children():
        worker.terminate()
