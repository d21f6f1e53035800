"""Small networks and optimizer settings that several tests share."""

import numpy as np

from kfcnet.batches import Batch
from kfcnet.config.schema import AdagradConfig, AdamConfig, KfcPreConfig, RmspropConfig, SgdConfig
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.optimizers import build_optimizer

EVERY_LAYER = [
    dict(layer="dropout", keep=0.8),
    dict(layer="conv", name="conv1", filters=3, kernel=3, padding=1, std=0.5),
    dict(layer="max_pool", size=3, stride=2),
    dict(layer="relu"),
    dict(layer="response_norm", size=3, scale=0.5, power=0.75),
    dict(layer="conv", name="conv2", filters=4, kernel=2, stride=2, padding=1, std=0.5),
    dict(layer="response_norm", size=3, scale=0.5, power=0.75, across=True),
    dict(layer="relu"),
    dict(layer="avg_pool", size=2, stride=1),
    dict(layer="dense", name="dense1", units=5, std="he"),
    dict(layer="relu"),
    dict(layer="dense", name="dense2", units=3, std=0.4),
]
INPUT_SHAPE = (7, 6, 2)


def network(ops, specification=EVERY_LAYER, input_shape=INPUT_SHAPE, seed=3):
    """A network with random biases too, so that no derivative vanishes by symmetry."""
    built = build_network(specification, input_shape, ops, seed)
    noise = np.random.default_rng(seed).standard_normal(built.theta.shape)
    ops.axpy(0.1, ops.asarray(noise), built.theta)
    return built


CONFIGS = {
    "sgd": SgdConfig,
    "kfc_pre": KfcPreConfig,
    "adagrad": AdagradConfig,
    "rmsprop": RmspropConfig,
    "adam": AdamConfig,
}


def settings(name, averaging_timescale=100.0, **changes):
    """An optimizer's configuration for short runs; `changes` are taken as they are, unchecked."""
    config = CONFIGS[name](learning_rate=0.1, averaging_timescale=averaging_timescale)
    often = dict(statistics_period=2, statistics_fraction=0.5, inverse_period=4)
    rest = {"kfc_pre": often, "sgd": {}}.get(name, dict(square_decay=0.9))
    return config.model_copy(update=rest | changes)


def batches(ops, rng, count, M=8, shape=INPUT_SHAPE, classes=3):
    """Mini-batches of M random images and labels."""
    return [
        Batch(
            ops.asarray(rng.standard_normal((M, *shape))),
            rng.integers(0, classes, M).astype(np.int32),
        )
        for _ in range(count)
    ]


def optimizer(ops, name, layers=EVERY_LAYER, seed=3, **changes):
    """That of `settings` for a network that it will train."""
    net = network(ops, layers, seed=seed)
    return build_optimizer(settings(name, **changes), net, SoftmaxCrossEntropy(ops, seed))
