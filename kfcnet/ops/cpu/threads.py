"""Threads that outlive a fork."""

import os
from concurrent.futures import ThreadPoolExecutor, wait

from kfcnet.ops.cpu.blas import hold_own_thread


class Threads:
    """A pool of threads, made when it is first used and made anew in a forked process.

    A child has the executor of its parent but none of its threads, and would wait for them for
    ever.
    """

    def __init__(self, count, name):
        self._arguments = count, name
        self._executor = self._process = None

    def map(self, function, arguments):
        """[function(argument) for each], the last one in the calling thread.

        Waking a thread, and being woken by it, takes tens of microseconds: one less for each call.
        """
        *others, last = arguments
        begun = [self.submit(function, argument) for argument in others]
        try:
            result = function(last)
        finally:
            wait(begun)  # whichever fails, they still write into arrays of the caller
        return [*(future.result() for future in begun), result]

    def submit(self, function, *arguments):
        """The concurrent.futures.Future of function(*arguments)."""
        return self._running().submit(function, *arguments)

    def _running(self):
        if self._process != os.getpid():
            self._executor = ThreadPoolExecutor(*self._arguments, initializer=hold_own_thread)
            self._process = os.getpid()
        return self._executor
