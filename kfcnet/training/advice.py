"""What a run says of its settings: that they cost much, taught nothing, or may have failed it.

Each function returns a text, or None where there is nothing to say.
"""

import math

import numpy as np

from kfcnet.curvature.size import arithmetic, way_out, whole
from kfcnet.data.dataset import deviation
from kfcnet.training.build import reconstructs

WAYS_OUT = {
    "learning_rate": "a smaller optimizer.learning_rate",
    "damping": "a larger optimizer.damping",
}  # of a run that fails, where it has the key
MOST_INITIAL = 0.05  # share of the initial parameters in their average that goes without saying
MOST_OF_SGD = 10  # times the arithmetic of SGD's update that goes without saying
PERIODS_OF = {"statistics": "statistics_period", "inverses": "inverse_period"}


def ways_out(config, step=1):
    """Settings that may save a run that failed after update `step`."""
    if not step:
        damping = " or optimizer.damping" * hasattr(config.optimizer, "damping")
        return f"No update was made: data.input_scale, the std of a layer{damping} may be the cause"
    hints = [hint for key, hint in WAYS_OUT.items() if hasattr(config.optimizer, key)]
    return f"{' or '.join(hints).capitalize()} may help"


def of_nothing_learned(config, metrics, examples, dataset, measured):
    """Why a finished run may have learned nothing.

    examples: how many were trained on; measured: which training images the errors are of, (n,).
    """
    first, last = metrics["train_loss"][[0, -1]]
    error, latest = (metrics[name][-1] for name in ("train_error", "raw_train_error"))
    initial = math.exp(-examples / config.optimizer.averaging_timescale)
    if last > first:
        return (
            f"the training loss is {last:.4g} at the end and was {first:.4g} at the start. "
            + ways_out(config)
        )
    if initial > MOST_INITIAL and error > 2 * latest:
        return (
            f"the training error is {error:.2%} at the end, that of the latest parameters "
            f"{latest:.2%}: {initial:.0%} of their average are initial ones. More epochs or a "
            "smaller optimizer.averaging_timescale may help"
        )
    if error >= error_of_chance(config, metrics, dataset, measured) > 0:
        trivial = (
            "always the mean image"
            if reconstructs(config)
            else "always naming the most frequent class"
        )
        others = "".join(
            f" or another optimizer.{key}" for key in WAYS_OUT if hasattr(config.optimizer, key)
        )
        return (
            f"the training error is {error:.2%} at the end, no better than {trivial}. More epochs"
            f"{others} may help"
        )
    return None


def error_of_chance(config, metrics, dataset, measured):
    """What an answer that ignores the input gets, about, on the training images `measured` (n,)."""
    if reconstructs(config):
        of_mean_image = (deviation(dataset) / config.data.input_scale) ** 2
        return 0.99 * min(metrics["train_error"][0], of_mean_image)
    labels = dataset.train_labels[measured]
    return 1 - np.bincount(labels).max() / len(labels)


def of_dear_factors(config, layers):
    """Which weighted layer makes the factors cost much more than the gradient, by arithmetic."""
    c = config.optimizer
    if c.name not in ("kfc_pre", "kfac"):
        return None
    rate = 1 / c.inverse_period
    if c.name == "kfac":  # which now and then inverts for three dampings
        rate += 3 / c.factor_damping_period
    periods = c.statistics_period, 1 / rate
    counts = arithmetic(layers, c.batch_size, c.statistics_fraction)
    multiple = whole(counts).multiple(*periods)
    if multiple <= MOST_OF_SGD:
        return None
    parts = [each.more(*periods) for each in counts]
    layer, part = max(zip(layers, parts, strict=True), key=lambda pair: sum(pair[1].values()))
    what = max(part, key=part.get)
    period = PERIODS_OF.get(what)
    return (
        f"by its arithmetic an update costs {multiple:.0f} times SGD's, most of it for the {what} "
        f"of {layer.name}, whose largest factor has {max(layer.factor_sizes):,} rows. It costs "
        f"less with {way_out(layer)}" + (f", or with a longer optimizer.{period}" if period else "")
    )


def of_threads(places, shards):
    """Which machine has more threads of a run than cores for them.

    places: (machine, its cores for this process) of each process; shards: threads of a process.
    """
    said = []
    for name in sorted({name for name, _ in places}):
        there = [own for other, own in places if other == name]
        available = len(set().union(*there))
        if shards * len(there) > available:
            said.append(
                f"{len(there)} processes of {_counted(shards, 'thread')} each for "
                f"{_counted(available, 'core')} of {name}: they wait by polling, and all become "
                f"slow. {'Start fewer' if shards == 1 else 'Set ops.shards=1'}"
            )
    return "; ".join(said) or None


def _counted(number, what):
    return f"{number} {what}{'' if number == 1 else 's'}"
