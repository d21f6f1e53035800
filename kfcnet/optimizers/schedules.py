"""Learning-rate schedules: what multiplies the learning rate, as a function of the examples seen.

Like every timescale they count examples, not updates, so that they mean the same for any size of
the mini-batch. `schedule` is kfcnet.config.schema's model of one, or anything with its attributes.
"""

import math


def factor(schedule, examples):
    """The factor of the learning rate after `examples` examples, 0 to 1.

    The decay of the schedule's `name`, times a linear rise from `warm_up_start` over the first
    `warm_up` examples.
    """
    return _warm_up(schedule, examples) * DECAYS[schedule.name](schedule, examples)


def _warm_up(schedule, examples):
    if examples >= schedule.warm_up:
        return 1.0
    start = schedule.warm_up_start
    return start + (1 - start) * examples / schedule.warm_up


def constant(schedule, examples):
    return 1.0


def step(schedule, examples):
    """Multiplied by `factor` at each of the numbers of examples in `at`."""
    return schedule.factor ** sum(examples >= drop for drop in schedule.at)


def cosine(schedule, examples):
    """Half a period of a cosine, from 1 at the end of the warm-up to `final` at `examples`."""
    length = schedule.examples - schedule.warm_up
    progress = min(max(examples - schedule.warm_up, 0) / length, 1.0)
    return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2


DECAYS = {"constant": constant, "step": step, "cosine": cosine}
