"""From a configuration to what trains: device, network, loss, optimizer, and its captured step."""

import math
from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel

from kfcnet.batches import Examples
from kfcnet.config import ConfigError
from kfcnet.config.layers import CustomConfig
from kfcnet.config.optimizers import open_timescales
from kfcnet.data.dataset import deviation
from kfcnet.layers.base import class_of
from kfcnet.layers.normalization import BatchNorm
from kfcnet.losses import LOSSES
from kfcnet.network import build_network
from kfcnet.ops import get_ops
from kfcnet.ops.deferred import as_generator
from kfcnet.optimizers import build_optimizer
from kfcnet.optimizers.base import ScheduledOptimizer
from kfcnet.ranks import of_all


def build_ops(config, device=None, ranks=None):
    """The primitives of a configuration's device, or of another one.

    ranks: the processes that share a mini-batch, by default this one alone. Raises ConfigError for
    settings that the device does not have, DeviceError where it is missing.
    """
    c = config.ops
    try:
        return get_ops(
            device or config.device,
            config.dtype,
            c.shards,
            c.native,
            tensor_cores=c.tensor_cores,
            ranks=ranks,
        )
    except ValueError as error:
        raise of_all(ConfigError(str(error))) from None  # all have the settings and the device


MOST_EXAMPLES = 50000
"""Timescales and the rise of the learning rate are an epoch, and at most so many examples."""


def is_open(config):
    """Whether a configuration leaves something to the data: see `resolved`."""
    return (
        config.data.input_scale == "auto"
        or config.network[-1].has_open_units
        or bool(open_timescales(config.optimizer))
    )


def timescales(examples):
    """{setting: examples} of `auto`, for a number of training examples.

    They do not depend on the length of a run: one that is to go on has the same.
    """
    span = float(min(examples, MOST_EXAMPLES))
    return {"averaging_timescale": span, "statistics_timescale": min(10000.0, 2 * span)}


def resolved(config, dataset):
    """The Config with what the data decide: the inputs' scale, timescales, the units of the last
    layer.
    """
    suitable = timescales(len(dataset.train_labels))
    found = {key: suitable[key] for key in open_timescales(config.optimizer)}
    optimizer = config.optimizer.model_copy(update=found)
    config = config.model_copy(update={"optimizer": optimizer})
    if config.data.input_scale == "auto":
        data = config.data.model_copy(update={"input_scale": deviation(dataset)})
        config = config.model_copy(update={"data": data})
    *layers, last = config.network
    if last.has_open_units:
        last = last.model_copy(update={"units": outputs(config, dataset)})
        config = config.model_copy(update={"network": (*layers, last)})
    return config


def reconstructs(config):
    """Whether a configuration's network is an autoencoder."""
    return config.loss == "squared_error"


def outputs(config, dataset):
    """How many units the last layer has: one a class, or one a pixel and map."""
    return dataset.mean.size if reconstructs(config) else dataset.classes


def with_classes(config, layers):
    """The Config whose custom layers that are known by name have their classes, of `layers`.

    Raises ConfigError where two classes have one name, and for what is no layer.
    """
    if isinstance(layers, type):
        raise ConfigError(f"layers: expected a list of classes, got {layers.__name__} alone")
    classes = {}
    for given in layers:
        if isinstance(given, Mapping | BaseModel):  # of the package, as `fit` takes them
            continue
        layer = class_of(given)
        if layer is None:
            raise ConfigError(f"layers: {given!r} is no class of layers")
        if classes.setdefault(layer.__name__, layer) is not layer:
            raise ConfigError(
                f"network: two classes of layers are called {layer.__name__}; give each a name of "
                "its own"
            )
    network = tuple(
        layer.model_copy(update={"type": classes.get(layer.type, layer.type)})
        if isinstance(layer, CustomConfig)
        else layer
        for layer in config.network
    )
    return config.model_copy(update={"network": network})


def build_model(config, ops, input_shape):
    """(Network at its initial parameters, loss) of a configuration for inputs (H, W, C).

    Raises ValueError naming the layer for an impossible network.
    """
    network = build_network(config.network, input_shape, ops, config.seed)
    return network, LOSSES[config.loss](ops, config.seed)


def build(config, ops, input_shape):
    """The optimizer of a configuration, over a network and a loss of its own.

    Raises ValueError for an impossible network, and for a setting that names a layer that is not
    there.
    """
    return build_optimizer(config.optimizer, *build_model(config, ops, input_shape))


def build_for(dataset, config, ops):
    """`build` for a Dataset. Raises ConfigError for a network or a batch that does not fit it, and
    for a batch that the processes of the run cannot share.
    """
    examples, batch_size = len(dataset.train_labels), config.optimizer.batch_size
    if batch_size > examples:
        raise ConfigError(
            f"optimizer.batch_size: {batch_size:,} is above the {examples:,} training examples of "
            f"{config.data.name}: take a smaller one"
        )
    check_shares(config.optimizer, ops.ranks.count)
    if ops.name != "cpu" and dataset.train_images.dtype != np.uint8:
        raise ConfigError("data: a GPU takes pixels of uint8 only; give such, or set device=cpu")
    try:
        optimizer = build(config, ops, dataset.mean.shape)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for layer in optimizer.network.layers:
        if isinstance(layer, BatchNorm) and batch_size * math.prod(layer.input_shape[:-1]) < 2:
            raise ConfigError(
                f"optimizer.batch_size: {layer.name} normalises each map over a mini-batch, of "
                "which there is one value: take a larger one"
            )
    shape = optimizer.network.layers[-1].output_shape
    if shape != (outputs(config, dataset),):
        what = "values an image" if reconstructs(config) else "classes"
        raise ConfigError(
            f"network: its output has shape {shape}, but {config.data.name} has "
            f"{outputs(config, dataset)} {what}: end with a dense layer of so many "
            "units"
        )
    return optimizer


FRACTIONS = "statistics_fraction", "clip_fraction", "fisher_fraction"
"""Settings of the optimizers: which first part of a mini-batch something is computed on."""


def check_shares(optimizer, count):
    """Raise ConfigError where a mini-batch, or a part of one, is no multiple of the processes."""
    size = optimizer.batch_size
    if size % count:
        below = size // count * count
        others = f"{below} or {below + count}" if below else below + count
        raise ConfigError(
            f"optimizer.batch_size: {size} examples cannot be shared equally by {count} processes: "
            f"take {others}, or another number of processes"
        )
    for key in FRACTIONS:
        fraction = getattr(optimizer, key, None)
        part = size if fraction is None else math.ceil(fraction * size)
        if part % count:
            wanted = -(-part // count) * count
            raise ConfigError(
                f"optimizer.{key}: {fraction:g} of {size} are {part} examples, which cannot be "
                f"shared equally by {count} processes: {_fraction(wanted, size):.6g} makes them "
                f"{wanted}"
            )


def _fraction(part, size):
    """A fraction of six digits whose part of `size` examples, rounded up, is `part`."""
    millionths = 10**6 * part // size
    is_above = math.ceil(millionths / 10**6 * size) > part  # by the rounding of the product alone
    return (millionths - is_above) / 10**6


def examples_of(dataset, part, config, ops):
    """The Examples of a Dataset's "train" or "test" part, scaled as a configuration says."""
    images, labels = (getattr(dataset, f"{part}_{kind}") for kind in ("images", "labels"))
    scale = config.data.input_scale
    return Examples(ops, images, labels, dataset.mean, scale, reconstructs(config))


def period(config):
    """Steps after which everything that a step may do has been done."""
    keys = ("statistics_period", "inverse_period", "damping_period", "factor_damping_period")
    return math.lcm(*(getattr(config.optimizer, key, 1) for key in keys))


def whole_periods(config, updates):
    """The least number of updates from `updates` on in which each kind has its share of time."""
    return period(config) * math.ceil(updates / period(config))


def captured_step(optimizer, draw, size):
    """step() -> Step: an update along draw(step counter), a Batch of `size` examples.

    The mini-batch is drawn on the device; where the optimizer's update can be captured, drawing is
    part of the same graph.
    """
    if not isinstance(optimizer, ScheduledOptimizer):
        return lambda: optimizer.step(_drawn(optimizer, draw))

    def update(*decisions):
        batch = draw(optimizer.step_counter)
        return (yield from as_generator(optimizer.update)(batch, *decisions))

    captured = optimizer.ops.captured(update, *optimizer.network.layers)
    return lambda: optimizer.advance(size, captured)


def _drawn(optimizer, draw):
    with optimizer.phase("gradient"):
        return draw(optimizer.step_counter)
