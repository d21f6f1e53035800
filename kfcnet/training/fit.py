"""Training on arrays in memory, from one call."""

import contextlib
import itertools
import json
import math
import numbers
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel

from kfcnet import data
from kfcnet.config import ConfigError, parse_config, read_config
from kfcnet.config.errors import show
from kfcnet.data import Dataset
from kfcnet.layers import Layer
from kfcnet.layers.base import class_of
from kfcnet.network import CUSTOM, LAYERS
from kfcnet.runs.checkpoint import CheckpointError
from kfcnet.runs.files import WriteError
from kfcnet.runs.folder import RunFolderError
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.build import MOST_EXAMPLES, timescales, with_classes
from kfcnet.training.errors import TrainingInterrupted
from kfcnet.training.evaluation import TrainedNetwork
from kfcnet.training.periods import by_count
from kfcnet.training.train import train

KFAC_DAMPING = 1.0
"""K-FAC's first damping. With its default, 150 for autoencoders, the first epochs lower nothing."""

RATES = {"sgd": 0.01, "adagrad": 0.03, "rmsprop": 0.003, "adam": 0.003}
"""Learning rates of which ten epochs on some thousand images come as far as SGD's."""

ARGUMENTS = {
    "the same command and --resume": "the same call and resume=True",
    "--resume": "resume=True",
    "--overwrite": "overwrite=True",
    "--out": "out=",
}
"""What an error says of the options of a command, in words of the arguments of `fit`."""


class FittedNetwork(TrainedNetwork):
    """A TrainedNetwork and the run that it comes from.

    `history` is {column: array} of the run's metrics.csv, `class_names` the names of the classes
    where there are any. What `fit` left without `out` is kept as long as this object.
    """

    @classmethod
    def of_run(cls, folder, device="cpu", layers=(), temporary=None):
        """That of the run in a folder, which `temporary`, if given, keeps in being."""
        network = super().of_run(folder, device, layers)
        network.folder, network._temporary = Path(folder).resolve(), temporary
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

    layers: the classes of the custom layers that it was trained with, or the list of layers that
    `fit` was given.

    Raises CheckpointError or RecordError where the run cannot be read, ConfigError where it has a
    custom layer whose class is not given.
    """
    return FittedNetwork.of_run(path, device, layers)


def fit(
    images: ArrayLike,
    labels: ArrayLike | None,
    network: Iterable[Any],
    optimizer: Mapping[str, Any] | BaseModel | str | None = None,
    epochs: float = 10,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    input_scale: float | str = "auto",
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> FittedNetwork:
    """Train a network on images (M, H, W, C) or (M, H, W), uint8 or floating, and labels (M,).

    Images may have any number of channels C. network: layers in order, each a mapping like those of
    a configuration, a model such as `kfcnet.config.schema.ConvConfig`, or one of `kfcnet.layers`:
    `Conv2d.of(filters=16, kernel=3)`, `ReLU`, or a subclass of `Layer` of your own without weights,
    which runs on the CPU. The units of the last layer may be left out. optimizer: its name, its
    settings, of which those left out are chosen for the number of images, or a model such as
    `kfcnet.config.schema.SgdConfig`; KFC-pre by default. validation: (images, labels) to measure;
    without them a fifth of the images is drawn. out: the run's folder; resume: go on with the run
    in it, as if it had never stopped, with what was chosen for it then; overwrite: replace it.
    settings: further sections of a configuration. With `loss="squared_error"` the network is an
    autoencoder, and labels may be None.

    Raises DataError naming the index of a wrong image or label, ConfigError naming a wrong setting,
    TrainingFailed, RunFolderError where `out` holds a run, WriteError where a file or a temporary
    folder cannot be written, and TrainingInterrupted after SIGINT or SIGTERM.
    """
    if resume and overwrite:
        raise ConfigError("fit: resume and overwrite: a run is gone on with or replaced, not both")
    if isinstance(images, str | os.PathLike | Dataset):
        raise ConfigError(
            "fit: images: expected an array; kfcnet.train trains on a file, a folder or a Dataset"
        )
    layers, own = _described(network)
    section = _data_section(settings.pop("data", {}), input_scale)
    parts = [(images, labels), *([_held_out(validation)] if validation is not None else [])]
    if settings.get("loss") != "squared_error":
        _check_labelled(parts)
    else:
        parts = [(each, _unread(each) if given is None else given) for each, given in parts]
    split = {key: section[key] for key in ("test_share", "split_seed") if key in section}
    if split and validation is not None:
        raise ConfigError(
            f"fit: data.{next(iter(split))}: nothing is split where validation is given"
        )
    dataset = data.from_arrays(*itertools.chain(*parts), **split)
    if own and device == "auto":
        device = "cpu"
    chosen = settings_for(optimizer, len(dataset.train_labels), epochs)
    goes_on = resume and out and Path(out, "config.yaml").exists()
    document = {
        "data": section,
        "network": layers,
        "optimizer": _as_begun(chosen, optimizer, out) if goes_on else chosen,
        "epochs": epochs,
        "seed": seed,
        "device": device,
        **settings,
    }
    config = with_classes(parse_config(json.dumps(document, default=_plain), "fit"), own)
    if not goes_on:
        config = _affordable(config, dataset, _given(optimizer))
    temporary = None if out else _TemporaryFolder()
    folder = Path(out) if out else temporary.path / "run"
    with _in_words_of_python(out):
        train(config, folder, resume, overwrite, dataset=dataset)
    return FittedNetwork.of_run(folder, layers=own, temporary=temporary)


def _affordable(config, dataset, given):
    """The Config with the periods of `periods.by_count`, where none is given for KFC-pre."""
    c = config.optimizer
    if c.name != "kfc_pre" or {"statistics_period", "inverse_period"} & given.keys():
        return config
    try:
        statistics_period, inverse_period = by_count(config, dataset)
    except ValueError:  # of an impossible network: training says what is wrong with it
        return config
    update = {"statistics_period": statistics_period, "inverse_period": inverse_period}
    return config.model_copy(update={"optimizer": c.model_copy(update=update)})


def _data_section(given, input_scale):
    """The section `data` of a configuration of arrays; ConfigError for what says otherwise."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"fit: data: expected settings, got {show(given)}")
    section = {"name": "arrays", "input_scale": input_scale, **given}
    if section["name"] != "arrays" or section.get("path") is not None:
        raise ConfigError(
            "fit: data: the images are those that fit is given: of its keys test_share, split_seed "
            "and input_scale can be set; kfcnet.train trains on a file"
        )
    optimizer = {"name": "sgd", "learning_rate": 1}
    smallest = {"network": [{"layer": "dense"}], "optimizer": optimizer, "epochs": 1}
    parse_config(json.dumps(smallest | {"data": section}, default=_plain), "fit")
    return section


def _check_labelled(parts):
    """Raise ConfigError where a part (images, labels) has no labels."""
    if any(labels is None for _, labels in parts):
        raise ConfigError(
            "fit: labels: None is for an autoencoder, loss='squared_error'; a network of classes "
            "takes a label for each image"
        )


def _unread(images):
    """Labels that an autoencoder does not look at: of two classes, as data sets have at least."""
    return np.arange(len(images)) % 2


@contextlib.contextmanager
def _in_words_of_python(out):
    """Within the context, errors speak of arguments of `fit` in place of a command's options."""

    def translated(error):
        text = str(error)
        for option, argument in ARGUMENTS.items():
            text = text.replace(option, argument)
        return text

    try:
        yield
    except TrainingInterrupted as stop:
        lost = "stopped, and nothing is kept: a run with out= goes on by the same call, resume=True"
        raise TrainingInterrupted(stop.number, translated(stop) if out else lost) from None
    except (RunFolderError, WriteError, CheckpointError) as error:
        raise type(error)(translated(error)) from None


class _TemporaryFolder:
    """A folder that goes with this object, as is meant: tempfile's own would warn of that."""

    def __init__(self):
        try:
            self.path = Path(tempfile.mkdtemp(prefix="kfcnet-"))
        except OSError as error:
            raise WriteError(
                f"fit: cannot make a temporary folder ({error}); name the run's folder with out="
            ) from error
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _held_out(validation):
    """The (images, labels) of `validation`; ConfigError where they are no pair."""
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise ConfigError(
            "fit: validation: expected a pair (images, labels), got "
            f"{show(validation)}; without it a fifth of the images is held out"
        )
    return validation


def _plain(value):
    """A NumPy number or array of a setting as JSON has it; ConfigError for what is no setting."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise ConfigError(f"fit: {show(value)} is no value of a setting")


def settings_for(
    optimizer: Mapping[str, Any] | BaseModel | str | None, examples: int, epochs: float = 10
) -> dict[str, Any]:
    """An optimizer's settings, of which those that are left out suit the number of examples and of
    epochs.

    The learning rate rises over the first epoch, or the first quarter of a shorter run. At the end
    the average has a share of exp(-5) of the initial parameters at most. KFC-pre gets
    `damping: auto`, which trained at every rate that was tried (docs/settings.md); where a damping
    is given, it gets a clip that counts momentum, C (1 - mu)^2, and a lower rate, which save most
    runs. K-FAC begins with a damping of 1, keeps 0.01 at least, and sees 128 examples for its
    factors and its model where a mini-batch has them.
    """
    given = _given(optimizer)
    name = given.setdefault("name", "kfc_pre")
    span = min(examples, MOST_EXAMPLES)
    whole = float(_number({"epochs": epochs}, "epochs", 10)) * examples or span
    chosen = {"averaging_timescale": min(2 * span, whole / 5)}
    if name not in ("kfac", "hessian_free"):
        chosen["schedule"] = {"name": "constant", "warm_up": min(span, whole / 4)}
    least, most = (8, 128) if name in RATES else (64, 512)
    batch = max(1, _number(given, "batch_size", _batch_size(examples, least, most)))
    chosen["batch_size"] = batch
    if name in RATES:
        chosen["learning_rate"] = RATES[name]
    else:
        chosen["initial_examples"] = min(5000, examples)
    if name == "kfc_pre":
        is_auto = given.get("damping", "auto") == "auto"
        chosen |= {
            "learning_rate": 0.03 if is_auto else 0.01,
            "weight_decay": 1e-4,
            "damping": "auto",
            "clip": 0.3 if is_auto else 0.3 * (1 - _number(given, "momentum", 0.9)) ** 2,
            "statistics_fraction": _fraction(batch, 0.25),
            "statistics_timescale": timescales(examples)["statistics_timescale"],
            "statistics_period": max(1, int(min(5, _number(given, "inverse_period", 5)))),
            "inverse_period": max(5, _number(given, "statistics_period", 5)),
        }
    elif name == "kfac":
        chosen |= {
            "damping": KFAC_DAMPING,
            "min_damping": min(1e-2, _number(given, "damping", KFAC_DAMPING)),
            "statistics_fraction": _fraction(batch, 0.125),
            "fisher_fraction": _fraction(batch, 0.25),
        }
    return {**chosen, **given}


def _batch_size(examples, least, most):
    """An eighth of the examples between `least` and `most`, and half of few examples."""
    return min(most, max(least, examples // 8), max(1, examples // 2))


def _fraction(batch_size, least):
    """The part of a mini-batch that has 128 examples, but not below `least`; of few all."""
    return max(least, min(1.0, 128 / batch_size))


def _as_begun(chosen, optimizer, out):
    """`chosen`, but settings that `optimizer` leaves out keep their values of the run in `out`.

    These were chosen for the epochs which the run was to have at first.
    """
    begun = read_config(Path(out, "config.yaml")).optimizer.model_dump(mode="json")
    if begun["name"] != chosen["name"]:
        return chosen
    return {key: begun.get(key, value) for key, value in chosen.items()} | _given(optimizer)


def _given(optimizer):
    """A dict of the settings in `optimizer`; ConfigError for what has none."""
    if optimizer is None or isinstance(optimizer, str):
        return {"name": optimizer} if optimizer else {}
    if isinstance(optimizer, BaseModel):
        return {"name": optimizer.name} | optimizer.model_dump(mode="json", exclude_unset=True)
    if isinstance(optimizer, Mapping):
        return dict(optimizer)
    raise ConfigError(
        f"fit: optimizer: expected a name or settings such as {{'name': 'sgd'}}, "
        f"got {show(optimizer)}"
    )


def _number(settings, key, default):
    """A setting that is a number, else the default: parsing says later what is wrong with it."""
    value = settings.get(key)
    return value if isinstance(value, numbers.Real) and value >= 0 else default


def _is_finite(value):
    """Whether a setting has no number that is not finite, which a configuration cannot hold."""
    if isinstance(value, numbers.Real):
        return math.isfinite(value)
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())
    return not isinstance(value, list | tuple) or all(map(_is_finite, value))


def _described(layers):
    """(layers as the mappings of a configuration, the classes of those that are custom).

    Raises ConfigError for what is no layer.
    """
    if isinstance(layers, (str, Mapping)) or not isinstance(layers, Iterable):
        raise ConfigError(
            f"fit: network: expected a list of layers such as [{{'layer': 'dense'}}], "
            f"got {show(layers)}"
        )
    mappings, own = [], []
    for index, layer in enumerate(layers):
        layer_class = class_of(layer)
        if isinstance(layer, Mapping):
            mappings.append(dict(layer))
        elif isinstance(layer, BaseModel):
            mappings.append(layer.model_dump(mode="json"))
        elif layer_class is not None:
            settings = dict(getattr(layer, "keywords", {}))
            for key, value in settings.items():
                if not _is_finite(value):
                    raise ConfigError(f"fit: network.{index}.{key}: {show(value)} is not finite")
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
