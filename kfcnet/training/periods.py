"""The periods of KFC-pre's statistics and inverses, picked by what they cost (appendix B.3).

The paper picks them so that an epoch costs less than twice an epoch of SGD, by running time alone.
Here the parts of an update are timed apart, and an epoch is predicted for every pair of periods.
"""

import logging
from statistics import median
from typing import NamedTuple

import numpy as np

from kfcnet import data
from kfcnet.config import ConfigError, dump_config, parse_config, read_config
from kfcnet.config.schema import KfcPreConfig, SgdConfig
from kfcnet.curvature.size import arithmetic, whole
from kfcnet.layers.weighted import Weighted
from kfcnet.network import build_layers
from kfcnet.ops import get_ops
from kfcnet.runs.folder import RunFolder
from kfcnet.training.advice import ways_out
from kfcnet.training.build import resolved
from kfcnet.training.errors import TrainingFailed
from kfcnet.training.timed import TimedTraining

PERIODS = (1, 2, 5, 10, 20, 50)
TURNS, UPDATES = 5, 4  # each kind of update is timed in TURNS turns of UPDATES updates
NEVER = 10**9  # a period that no update comes to

logger = logging.getLogger(__name__)


class Costs(NamedTuple):
    """Seconds on one device: of KFC-pre's update of `batch_size` examples and of SGD's."""

    batch_size: int
    update: float  # without statistics and inverses
    statistics: float
    inverses: float
    sgd_batch_size: int
    sgd: float

    def multiple(self, statistics_period, inverse_period):
        """An epoch of KFC-pre as a multiple of one of SGD."""
        update = self.update + self.statistics / statistics_period + self.inverses / inverse_period
        return update / self.batch_size / (self.sgd / self.sgd_batch_size)


def settle(config, out, resume, overwrite, limit, sgd_batch_size):
    """The config to train with in the folder `out`: periods are picked for a run that starts there.

    They depend on the clock. A run that goes on (`resume`) keeps those in its config.yaml, and so
    repeats bit for bit. Raises what `pick` raises, RunFolderError for a folder that may not be
    used.
    """
    with RunFolder(out, resume, overwrite) as folder:
        record = folder.path / "config.yaml"
        if resume and record.exists():
            before = read_config(record).optimizer
            if isinstance(before, KfcPreConfig):
                return with_periods(config, before.statistics_period, before.inverse_period)
        return pick(config, limit, sgd_batch_size)


def pick(config, limit=2.0, sgd_batch_size=128):
    """`config` with the shortest periods by which an epoch costs less than `limit` times SGD's.

    What it is picked from goes to the log. Raises ConfigError where the optimizer is not kfc_pre or
    no periods will do or a mini-batch is larger than the data, DataError and DeviceError,
    TrainingFailed where updates diverge or a factor has no inverse.
    """
    if not isinstance(config.optimizer, KfcPreConfig):
        raise ConfigError(
            f"optimizer.name: {config.optimizer.name} has no periods to pick by "
            "their cost; kfc_pre has"
        )
    costs, shares = measure(config, data.load(config.data), sgd_batch_size)
    pairs = candidates(config.optimizer.inverse_delay)
    chosen = choose(costs, limit, pairs)
    logger.info("%s", format_costs(costs, shares))
    logger.info("%s", format_pairs(costs, pairs, chosen))
    if chosen is None:
        least = min(costs.multiple(*pair) for pair in pairs)
        raise ConfigError(
            f"an epoch costs {least:.2f} times SGD's even with the longest periods, "
            f"and is to cost less than {limit:g} times:\nallow more, or set a larger "
            "optimizer.batch_size or a smaller optimizer.clip_fraction"
        )
    logger.info("picked for less than %g times SGD's: --set %s", limit, " ".join(settings(*chosen)))
    return with_periods(config, *chosen)


def by_count(config, dataset, limit=2.0):
    """The periods of a KFC-pre configuration, or longer ones with which an epoch costs less than
    `limit` times SGD's; the longest candidates where none does.

    Multiply-adds are counted and no clock decides, so that a run can be repeated. Raises ValueError
    for an impossible network.
    """
    c, network = config.optimizer, resolved(config, dataset).network
    layers = build_layers(network, dataset.mean.shape, get_ops("cpu", native="off"))
    weighted = [layer for layer in layers if isinstance(layer, Weighted)]
    counts = whole(arithmetic(weighted, c.batch_size, c.statistics_fraction))
    own = c.statistics_period, c.inverse_period
    pairs = [own]
    pairs += [
        (T_s, T_f) for T_s, T_f in candidates(c.inverse_delay) if T_s >= own[0] and T_f >= own[1]
    ]
    return choose(counts, limit, pairs) or pairs[-1]


def candidates(inverse_delay=0):
    """Pairs (statistics_period, inverse_period), from the freshest curvature on.

    A step's inverses are up to inverse_period updates old, so that it counts first; every
    inversion follows an update of the factors, so that it is a multiple of the statistics' period.
    """
    inverse_periods = [T for T in PERIODS if T >= inverse_delay] or [inverse_delay]
    return [(T_s, T_f) for T_f in inverse_periods for T_s in PERIODS if T_f % T_s == 0]


def choose(costs, limit, pairs):
    """The first pair whose epoch costs less than `limit` times SGD's; None where none does."""
    return next((pair for pair in pairs if costs.multiple(*pair) < limit), None)


def settings(statistics_period, inverse_period):
    """The periods as --set takes them."""
    return [
        f"optimizer.statistics_period={statistics_period}",
        f"optimizer.inverse_period={inverse_period}",
    ]


def with_periods(config, statistics_period, inverse_period, *more):
    """`config` with these periods, checked like any other. Raises ConfigError."""
    changes = [*settings(statistics_period, inverse_period), *more]
    return parse_config(dump_config(config), "config", changes)


def measure(config, dataset, sgd_batch_size):
    """(Costs, {phase: its share} of an update without statistics and inverses).

    Medians over turns of updates on the training set, one kind of update after the other: SGD's,
    and KFC-pre's with neither statistics nor inverses, with statistics, with both. There are no
    shares where a device is given an update as a whole. Inverses are made in turn: with an
    inverse_delay they cost no more than here. Raises ConfigError and TrainingFailed like `pick`.
    """
    examples = len(dataset.train_labels)
    if sgd_batch_size > examples:
        raise ConfigError(
            f"--sgd-batch-size: {sgd_batch_size:,} is above the {examples:,} training examples of "
            f"{config.data.name}: take a smaller one"
        )
    config = resolved(config, dataset)
    shared = ("learning_rate", "momentum", "weight_decay", "max_norm")
    sgd_settings = SgdConfig(
        batch_size=sgd_batch_size, **{key: getattr(config.optimizer, key) for key in shared}
    )
    plain, with_statistics, with_both = (
        with_periods(config, *pair, "optimizer.inverse_delay=0").optimizer
        for pair in ((NEVER, NEVER), (1, NEVER), (1, 1))
    )
    try:
        sgd = TimedTraining(config.model_copy(update={"optimizer": sgd_settings}), dataset)
        kfc = TimedTraining(config, dataset)
        turns = [(sgd, sgd_settings), (kfc, with_statistics), (kfc, with_both), (kfc, plain)]
        # What is compiled and captured in three turns is not timed: from the second one on the
        # factors are as old at a turn's first statistics as they will be, and a GPU runs an update
        # of a new kind eagerly at its first call and captures it at the second.
        for _ in range(3):
            for training, kind in turns:
                _turn(training, kind)
        seconds = [[_turn(training, kind) for training, kind in turns] for _ in range(TURNS)]
        shares = _shares_of_a_turn(kfc, plain)
    except np.linalg.LinAlgError as error:
        raise TrainingFailed(
            f"while updates were timed a factor could not be inverted ({error})",
            "; a larger optimizer.damping may help",
        ) from None
    except FloatingPointError as error:
        raise TrainingFailed(
            f"while updates were timed they diverged: {error}", f". {ways_out(config)}"
        ) from None
    sgd_update, statistics_update, full_update, update = map(median, zip(*seconds, strict=True))
    costs = Costs(
        config.optimizer.batch_size,
        update,
        max(statistics_update - update, 0.0),
        max(full_update - statistics_update, 0.0),
        sgd_batch_size,
        sgd_update,
    )
    return costs, shares


def _turn(training, settings):
    """Mean seconds of a few updates by an optimizer's settings.

    Raises FloatingPointError where a loss was not finite: no update has moved a parameter since.
    """
    training.optimizer.config = settings
    seconds = training.take(UPDATES) / UPDATES
    training.optimizer.require_finite()
    return seconds


def _shares_of_a_turn(training, settings):
    """{phase: its share of the time}; empty where they cannot be told apart."""
    before = training.phases()
    _turn(training, settings)
    taken = {name: seconds - before[name] for name, seconds in training.phases().items()}
    whole = sum(taken.values())
    return (
        {name: seconds / whole for name, seconds in taken.items() if seconds}
        if taken["preconditioning"]
        else {}
    )


def format_costs(costs, shares):
    """The measured costs as a text: milliseconds of each part."""
    parts = [
        (f"update of SGD, M = {costs.sgd_batch_size}", costs.sgd),
        (f"update of KFC-pre, M = {costs.batch_size}", costs.update),
        *((f"  {name}", share * costs.update) for name, share in shares.items()),
        ("statistics", costs.statistics),
        ("inverses", costs.inverses),
    ]
    return "\n".join(
        [f"{'milliseconds':>38}", *(f"{name:<30}{1e3 * seconds:>8.1f}" for name, seconds in parts)]
    )


def format_pairs(costs, pairs, chosen):
    """The table that periods are picked from."""
    lines = [f"{'statistics_period':>17}  {'inverse_period':>14}  {'epoch / epoch of SGD':>20}"]
    lines += [
        f"{pair[0]:>17}  {pair[1]:>14}  {costs.multiple(*pair):>20.2f}"
        + ("  picked" if pair == chosen else "")
        for pair in pairs
    ]
    return "\n".join(lines)
