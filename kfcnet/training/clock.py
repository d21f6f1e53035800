"""What the training loop reads: clock and signals."""

import contextlib
import signal
import threading
import time

from kfcnet.runs.metrics import PHASES

STEPS_BETWEEN_READS = {"cpu": 1, "cuda": 50}  # a reading waits for the device


class Stopwatch:
    """Seconds of training, in all and by phase; it runs inside its `with` blocks.

    Phases are measured on the device that does the work, between its events.
    """

    def __init__(self, ops):
        self.ops, self.seconds, self.phases = ops, 0.0, dict.fromkeys(PHASES, 0.0)
        self._started = None  # None while the watch stands still
        self._phase = self._since = None  # the innermost phase, and the event of its beginning
        self._spans = []  # (phase, event, event), not yet counted

    def __enter__(self):
        self._started = time.perf_counter()

    def __exit__(self, *_):
        self.seconds, self._started = self.read(), None

    def read(self):
        """The seconds up to now, whether the watch runs or stands still."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self.seconds + running

    @contextlib.contextmanager
    def stopped(self):
        """Within a `with` block of the watch: leave a part of it out."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    @contextlib.contextmanager
    def phase(self, name):
        """Count the block under one of PHASES, and not under the one that it may lie in."""
        outer = self._change(name)
        try:
            yield
        finally:
            self._change(outer)

    def _change(self, phase):
        """Begin another phase, or None; returns the one that ends."""
        ended, now = self._phase, self.ops.event()
        if now is not None:
            if ended:
                self._spans.append((ended, self._since, now))
            self._phase, self._since = phase, now
        return ended

    def count(self):
        """Bring `phases` up to date, once the device has done what it was given."""
        for phase, start, end in self._spans:
            self.phases[phase] += self.ops.seconds_between(start, end)
        self._spans.clear()


class StopRequested(Exception):
    """A signal asked the run to end."""

    def __init__(self, number):
        self.number = number


class Signals:
    """Keeps SIGINT and SIGTERM for the next moment between two steps; a second one acts at once."""

    def __init__(self):
        self.caught, self._previous = None, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._catch)

    def __exit__(self, *_):
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _catch(self, number, _):
        self.caught = number
        self.__exit__()

    def check(self):
        """Raise StopRequested if a signal has come."""
        if self.caught is not None:
            raise StopRequested(self.caught)
