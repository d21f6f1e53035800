"""Training a few updates at a time, so that they can be timed."""

import time

from kfcnet.batches import Loader
from kfcnet.training.build import build_for, build_ops, captured_step, examples_of, resolved
from kfcnet.training.clock import Stopwatch


class TimedTraining:
    """A network on its way through a training set: its updates are those of a run of the Config.

    The first mini-batch gives the factors their first estimate. Raises what `build_for` raises,
    numpy.linalg.LinAlgError for a factor without an inverse.
    """

    def __init__(self, config, dataset):
        config = resolved(config, dataset)
        self.ops = build_ops(config)
        self.optimizer = build_for(dataset, config, self.ops)
        self._clock = Stopwatch(self.ops)
        self.optimizer.phase = self._clock.phase
        examples = examples_of(dataset, "train", config, self.ops)
        self.loader = Loader(examples, config.optimizer.batch_size, config.seed)
        self.optimizer.prepare([self.loader.batch(0)])
        self._take_step = captured_step(self.optimizer, self.loader.draw, self.loader.size)

    def take(self, updates):
        """Seconds of so many updates; the device has done them."""
        began = time.perf_counter()
        for _ in range(updates):
            self.loader.provide(self.optimizer.steps)
            step = self._take_step()
        self.ops.to_numpy(step.totals)
        return time.perf_counter() - began

    def phases(self):
        """{phase: its seconds so far}, where the device can tell them apart."""
        self._clock.count()
        return dict(self._clock.phases)
