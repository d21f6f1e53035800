"""The progress bar of a run: its updates, and how long those to come will take."""

import contextlib
import time

from tqdm import tqdm

UPDATES_OF_AN_ESTIMATE = 10
"""After fewer, what one update in five or ten does would weigh too much."""


class ProgressBar(tqdm):
    """A bar over the updates of a run on an output stream; without one nothing is shown.

    The rate is that of updates alone, by the clock of training. The time left is that of the
    updates and the evaluations to come: it is shown once both have been seen. tqdm's own would take
    evaluations, checkpoints and the first estimate of the factors for updates.
    """

    def __init__(self, clock, schedule, done, file):
        """clock: the Stopwatch of the run; done: the updates before this bar."""
        self._clock, self._schedule = clock, schedule
        self._evaluation = None  # seconds of the latest
        self.begin()
        super().__init__(
            total=schedule.steps,
            initial=done,
            unit="update",
            file=file,
            dynamic_ncols=True,
            # On a terminal it is redrawn at once, in a log file now and then.
            mininterval=0.2 if file and file.isatty() else 30,
            disable=file is None,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}, {rate_fmt}{postfix}]",
        )

    def begin(self):
        """Count the seconds of the clock from now on."""
        self._begun = self._clock.read()

    @contextlib.contextmanager
    def evaluating(self):
        """Within the context an evaluation is under way."""
        began = time.perf_counter()
        yield
        self._evaluation = time.perf_counter() - began

    @property
    def format_dict(self):
        """What tqdm fills its line with."""
        updates, seconds = self.n - self.initial, self._clock.read() - self._begun
        values = super().format_dict | {"left": "?"}
        if not updates or not seconds:
            return values
        evaluations = self._schedule.left(self.n)
        if updates >= UPDATES_OF_AN_ESTIMATE and self._evaluation is not None:
            left = (self.total - self.n) * seconds / updates + evaluations * self._evaluation
            values["left"] = self.format_interval(left)
        return values | {"rate": updates / seconds}
