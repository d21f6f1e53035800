"""Optimizers: step(batch), the averaged parameters, and a state to resume from."""

from typing import Any

from kfcnet.batches import Batch
from kfcnet.network import Network
from kfcnet.optimizers.adaptive import Adagrad, Adam, RMSProp
from kfcnet.optimizers.base import Optimizer, Step
from kfcnet.optimizers.hessian_free import HessianFree
from kfcnet.optimizers.kfac import KFAC
from kfcnet.optimizers.kfc_pre import KfcPre
from kfcnet.optimizers.sgd import SGD

OPTIMIZERS = {
    "sgd": SGD,
    "kfc_pre": KfcPre,
    "kfac": KFAC,
    "hessian_free": HessianFree,
    "adagrad": Adagrad,
    "rmsprop": RMSProp,
    "adam": Adam,
}

__all__ = [
    "KFAC",
    "OPTIMIZERS",
    "SGD",
    "Adagrad",
    "Adam",
    "Batch",
    "HessianFree",
    "KfcPre",
    "Optimizer",
    "RMSProp",
    "Step",
    "build_optimizer",
]


def build_optimizer(config: Any, network: Network, loss: Any) -> Optimizer:
    """The optimizer that config.name asks for, such as kfcnet.config.schema.SgdConfig's.

    Raises ValueError for an unknown name, TypeError for what is no such model.
    """
    if not hasattr(config, "name"):
        raise TypeError(
            f"config: expected a model such as kfcnet.config.schema.KfcPreConfig(learning_rate=0.1)"
            f", got {config!r}"
        )
    if config.name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name: {config.name!r} is not one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[config.name](network, loss, config)
