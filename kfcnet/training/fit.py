"""Training on arrays in memory, from one call."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike
from pydantic import BaseModel

from kfcnet import data
from kfcnet.config import ConfigError, parse_config
from kfcnet.layers import Layer
from kfcnet.network import CUSTOM, LAYERS
from kfcnet.runs.files import WriteError
from kfcnet.runs.folder import RunFolderError
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.build import with_classes
from kfcnet.training.evaluation import TrainedNetwork
from kfcnet.training.trainer import train

MOST_EXAMPLES = 50000
"""Timescales and the rise of the learning rate are an epoch, and at most so many examples."""


class FittedNetwork(TrainedNetwork):
    """A TrainedNetwork and the run that it comes from.

    `history` is {column: array} of the run's metrics.csv, `class_names` the names of the classes
    where there are any. What `fit` left without `out` is kept as long as this object.
    """

    @classmethod
    def of_run(cls, folder, device="cpu", layers=(), temporary=None):
        """That of the run in a folder, which `temporary`, if given, keeps in being."""
        network = super().of_run(folder, device, layers)
        network.folder, network._temporary = Path(folder), temporary
        network.history = read_metrics(network.folder / "metrics.csv")
        return network

    def save(self, path: str | Path) -> None:
        """Copy the run to a new folder `path`, for `kfcnet.load`.

        Raises RunFolderError if it is there, WriteError where it cannot be written; nothing stays
        then.
        """
        path = Path(path)
        if os.path.lexists(path):
            raise RunFolderError(f"{path} is there already: name another folder")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as own:
                os.rename(shutil.copytree(self.folder, Path(own, path.name)), path)
        except (OSError, shutil.Error) as error:
            raise WriteError(f"cannot write {path}: {error}; name another folder") from error


def load(
    path: str | Path, device: str = "cpu", layers: Iterable[type[Layer]] = ()
) -> FittedNetwork:
    """The network of the run in a folder, with its history.

    layers: the classes of the custom layers that it was trained with.

    Raises CheckpointError or RecordError where the run cannot be read, ConfigError where it has a
    custom layer whose class is not given.
    """
    return FittedNetwork.of_run(path, device, layers)


def fit(
    images: ArrayLike,
    labels: ArrayLike,
    network: Iterable[Any],
    optimizer: Mapping[str, Any] | str | None = None,
    epochs: float = 10,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    input_scale: float | str = "auto",
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    **settings: Any,
) -> FittedNetwork:
    """Train a network on images (M, H, W, C) or (M, H, W), uint8 or floating, and labels (M,).

    network: layers in order, each a mapping like those of a configuration, a model such as
    `kfcnet.config.schema.ConvConfig`, or one of `kfcnet.layers`: `Conv2d.of(filters=16, kernel=3)`,
    `ReLU`, or a subclass of `Layer` of your own without weights, which runs on the CPU. The units
    of the last layer may be left out. optimizer: its settings or its name, KFC-pre by default; what
    is left out is chosen for the number of images. validation: (images, labels) to measure; without
    them a fifth of the images is drawn. out: the run's folder. settings: further sections of a
    configuration.

    Raises DataError naming the index of a wrong image or label, ConfigError naming a wrong setting,
    TrainingFailed, and RunFolderError where `out` holds a run.
    """
    held_out = () if validation is None else validation
    dataset = data.from_arrays(images, labels, *held_out)
    layers, own = _described(network)
    if own and device == "auto":
        device = "cpu"
    document = {
        "data": {"name": "arrays", "input_scale": input_scale},
        "network": layers,
        "optimizer": settings_for(optimizer, len(dataset.train_labels)),
        "epochs": epochs,
        "seed": seed,
        "device": device,
        **settings,
    }
    config = with_classes(parse_config(json.dumps(document), "fit"), own)
    temporary = None if out else tempfile.TemporaryDirectory(prefix="kfcnet-")
    folder = Path(out or temporary.name) / ("" if out else "run")
    train(config, folder, dataset=dataset)
    return FittedNetwork.of_run(folder, layers=own, temporary=temporary)


def settings_for(optimizer: Mapping[str, Any] | str | None, examples: int) -> dict[str, Any]:
    """An optimizer's settings, of which those that are left out suit the number of examples.

    The learning rate rises over the first epoch. KFC-pre gets `damping: auto`, which trained at
    every rate that was tried (docs/settings.md); where a damping is given, it gets a clip that
    counts momentum, C (1 - mu)^2, and a lower rate, which save most runs.
    """
    given = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer or {})
    name = given.setdefault("name", "kfc_pre")
    span = min(examples, MOST_EXAMPLES)
    chosen = {"averaging_timescale": 2 * span}
    if name not in ("kfac", "hessian_free"):
        chosen["schedule"] = {"name": "constant", "warm_up": span}
    if name == "kfc_pre":
        batch = given.get("batch_size", min(512, max(1, examples // 8)))
        is_auto = given.get("damping", "auto") == "auto"
        chosen |= {
            "batch_size": batch,
            "learning_rate": 0.03 if is_auto else 0.01,
            "weight_decay": 1e-4,
            "damping": "auto",
            "clip": 0.3 if is_auto else 0.3 * (1 - given.get("momentum", 0.9)) ** 2,
            "statistics_fraction": min(1.0, max(0.25, 128 / batch)),
            "statistics_timescale": min(10000, 2 * span),
            "initial_examples": min(5000, examples),
            "inverse_period": 5,
        }
    elif name in ("sgd", "adagrad", "rmsprop", "adam"):
        chosen["batch_size"] = min(128, max(1, examples // 8))
        chosen["learning_rate"] = 0.01 if name == "sgd" else 0.001
    else:
        chosen["batch_size"] = min(512, max(1, examples // 8))
        chosen["initial_examples"] = min(5000, examples)
    return {**chosen, **given}


def _described(layers):
    """(layers as the mappings of a configuration, the classes of those that are custom).

    Raises ConfigError for what is no layer.
    """
    mappings, own = [], []
    for index, layer in enumerate(layers):
        layer_class = getattr(layer, "func", layer)
        if isinstance(layer, Mapping):
            mappings.append(dict(layer))
        elif isinstance(layer, BaseModel):
            mappings.append(layer.model_dump(mode="json"))
        elif isinstance(layer_class, type) and issubclass(layer_class, Layer):
            settings = dict(getattr(layer, "keywords", {}))
            kinds = [kind for kind, known in LAYERS.items() if known is layer_class]
            if kinds:
                mappings.append({"layer": kinds[0], **settings})
            else:
                name = layer_class.__name__
                mappings.append({"layer": CUSTOM, "type": name, "settings": settings})
                own.append(layer_class)
        else:
            raise ConfigError(
                f"fit: network.{index}: {layer!r} is no layer; give a mapping such as "
                "{'layer': 'relu'}, or a class of kfcnet.layers: ReLU, Dense.of(units=10)"
            )
    return mappings, own
