"""KFC: Kronecker-factored curvature for convolutional networks (Grosse & Martens 2016).

`fit(images, labels, network)` trains on arrays, `load(path)` reads what it saved; `train(config,
out)` trains as a configuration says, `load_run(path)` gives a trained network back;
`load_config(name)` reads a configuration. Layers, networks and optimizers work without one.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kfcnet.config import load_config
    from kfcnet.layers import check_layer
    from kfcnet.network import build_network
    from kfcnet.ops import get_ops
    from kfcnet.optimizers import build_optimizer
    from kfcnet.training.evaluation import load_run
    from kfcnet.training.fit import fit, load
    from kfcnet.training.train import train

_HOMES = {
    "check_layer": "layers",
    "fit": "training.fit",
    "load": "training.fit",
    "load_config": "config",
    "load_run": "training.evaluation",
    "train": "training.train",
    "build_network": "network",
    "build_optimizer": "optimizers",
    "get_ops": "ops",
}

_PARTS = ("config", "curvature", "data", "layers", "ops", "optimizers", "ranks")

__all__ = [
    "build_network",
    "build_optimizer",
    "check_layer",
    "fit",
    "get_ops",
    "load",
    "load_config",
    "load_run",
    "train",
]


def __getattr__(name):
    """Functions and parts are imported when first asked for: `import kfcnet` stays light."""
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOMES, *_PARTS])
