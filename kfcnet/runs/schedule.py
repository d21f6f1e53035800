"""When a run is evaluated, and when it ends."""

import math

ROUNDING = 1e-9
"""In numbers of updates or evaluations: 1.1 epochs of 100 updates are 110.00000000000001."""


class EvaluationSchedule:
    """The updates after which a run is evaluated; `steps` is the last one, where the run ends."""

    def __init__(self, config, examples):
        """examples: the size of the training set, which is one epoch."""
        updates_per_epoch = examples / config.optimizer.batch_size
        self.steps = math.ceil(config.epochs * updates_per_epoch - ROUNDING)
        in_epochs = config.evaluation.unit == "epochs"
        every = config.evaluation.every * (updates_per_epoch if in_epochs else 1)
        self.every = max(1.0, every)  # an update at least

    def due(self, step):
        """Whether to evaluate after `step` updates; always at the start and at the end."""
        return step in (0, self.steps) or self._passed(step) > self._passed(step - 1)

    def left(self, step):
        """The number of evaluations after more than `step` updates."""
        if step >= self.steps:
            return 0
        return self._passed(self.steps - 1) - self._passed(step) + 1

    def _passed(self, step):
        """The number of whole periods in the first `step` updates."""
        return math.floor(step / self.every + ROUNDING)
