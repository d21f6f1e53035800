"""Names of runs in figures and tables, made of phrases from their records."""

from pathlib import Path

from kfcnet.config.names import layer_names
from kfcnet.runs.identity import devices, flat

METHODS = {
    "kfc_pre": "KFC-pre",
    "sgd": "SGD",
    "kfac": "K-FAC",
    "hessian_free": "Hessian-free",
    "adagrad": "Adagrad",
    "rmsprop": "RMSProp",
    "adam": "Adam",
}
STRUCTURES = {
    "diagonal": "diagonal",
    "sua": "SUA",
    "white_derivatives": "white derivatives",
    "ekfac": "EKFAC",
    "autocovariance": "plugged-in autocovariances",
}
DATA_SETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "digits": "UCI digits 8x8",
    "synthetic": "synthetic images",
}
PARTS = {"test_error": "test error", "train_error": "training error"}
WHOLE = {
    "cifar10": {60000},
    "cifar100": {60000},
    "svhn": {99289, 630420},
    "mnist": {70000},
    "fashion_mnist": {70000},
}
"""Number of a data set's images, training and test; SVHN without and with the extra part."""

BY_LAYER = ("weight_decay", "max_norm")
"""Settings of optimizers that are one number, or a mapping from layers to numbers."""


def common_titles(runs, without=()):
    """Phrases that are true of all runs. without: names of facts that are said elsewhere."""
    common = _common(_facts_of_all(runs))
    return [phrase for name, phrase in common.items() if phrase and name not in without]


def distinct_labels(runs, ignored=(), timed=True):
    """A label for each run: its method, and what `common_titles` all of them does not say.

    Runs with the same label are told apart by the settings in which they differ, except `ignored`.
    timed: whether it matters whose seconds they are; else a device is a CPU or a GPU.
    """
    facts = _facts_of_all(runs, timed)
    common, labels = _common(facts), []
    for run, fact in zip(runs, facts, strict=True):
        own = [fact[name] for name in fact if fact[name] and name not in common and name != "batch"]
        labels.append(", ".join([method(run), *own]))
    return _distinct(runs, labels, ignored)


def method(run):
    """ "KFC-pre, M = 512" or "KFC-pre (SUA), M = 512"; M is the size of the mini-batch."""
    return f"{_optimizer(run)}, {_size(run)}"


def _optimizer(run):
    optimizer = run.config["optimizer"]
    name = METHODS.get(optimizer["name"], optimizer["name"])
    structure = optimizer.get("structure", "kfc")
    name += "" if structure == "kfc" else f" ({STRUCTURES.get(structure, structure)})"
    if optimizer["name"] == "kfc_pre" and optimizer.get("tikhonov") == "exact":
        name += " (exact Tikhonov)"
    return name


def _size(run):
    return f"M = {run.config['optimizer']['batch_size']}"


def data_set(run):
    """The data set's name, with its size if it is a part of the published one."""
    title = published_data_set(run)
    return f"{title}, {_images(run) / 1000:.3g}k subset" if is_part(run) else title


def published_data_set(run):
    """The name of the published data set that the images are from."""
    name = run.config["data"]["name"]
    own = (run.record or {}).get("data", {}).get("title")
    return DATA_SETS.get(name, own or name)


def is_part(run):
    """Whether the images are only a part of the published data set."""
    images = _images(run)
    return images not in WHOLE.get(run.config["data"]["name"], {images}) | {0}


def _images(run):
    """Number of training and test images; 0 if the record does not say."""
    record = run.record.get("data", {})
    return record.get("train_examples", 0) + record.get("test_examples", 0)


def device(run):
    """Such as "CPU (name of the processor)" or "CUDA (name of the GPU)"; both of a run that went on
    with the other one.
    """
    return ", then ".join(dict.fromkeys(map(_in_words, devices(run))))


def clock(run):
    """The same of the device on which the run's seconds were measured."""
    return _in_words(run.clock) if run.clock else device(run)


def devices_apart(runs):
    """The devices of runs that are not of the same one, else nothing: they are in no title."""
    names = list(dict.fromkeys(map(clock, runs)))
    return names if len(names) > 1 else []


def _in_words(described):
    name = described.get("processor") or described.get("name")
    return described["device"].upper() + (f" ({name})" if name else "")


def layer_sizes(layers):
    """ "conv 32-32-64, dense 10": the layers that have weights."""
    parts = []
    for kind, size in (("conv", "filters"), ("dense", "units")):
        sizes = [str(layer[size]) for layer in layers if layer["layer"] == kind]
        parts += [f"{kind} {'-'.join(sizes)}"] if sizes else []
    return ", ".join(parts)


def network_and_device(run):
    """ "conv 32-32-64, dense 10, batch norm, CPU (name of the processor)": network and device."""
    facts = _facts(run)
    return ", ".join(filter(None, map(facts.get, ("network", "normalisation", "device"))))


def title_of_all(runs):
    """Method and data set, below them network and devices, without what the runs differ in."""
    common = _common(
        [
            {"optimizer": _optimizer(run), "size": _size(run), **facts}
            for run, facts in zip(runs, _facts_of_all(runs), strict=True)
        ]
    )
    common["devices"] = ", ".join(dict.fromkeys(map(clock, runs)))
    lines = ("optimizer", "size", "data"), ("network", "normalisation", "devices")
    texts = [", ".join(filter(None, map(common.get, line))) for line in lines]
    return "\n".join(filter(None, texts))


def keys_in_words(keys):
    """{key: its last part in words, after as many parts as tell it from the other keys}.

    A name is called after what it names: "optimizer.schedule.name" is "schedule".
    """
    tails = _tails([tuple(key.removesuffix(".name").split(".")) for key in keys])
    return {key: " ".join(tail).replace("_", " ") for key, tail in zip(keys, tails, strict=True)}


def with_folders(labels, folders):
    """The labels of the runs in `folders`, of which equal ones are extended by their folders."""
    tails = _tails([Path(folder).resolve().parts for folder in folders])
    return [
        f"{label}, {Path(*tail).as_posix()}" if labels.count(label) > 1 else label
        for label, tail in zip(labels, tails, strict=True)
    ]


def numbered(labels):
    """The labels, of which the second of equal ones is "SGD, M = 128 (2)"."""
    counts = [labels[: number + 1].count(label) for number, label in enumerate(labels)]
    return [
        f"{label} ({count})" if count > 1 else label
        for label, count in zip(labels, counts, strict=True)
    ]


def _tails(paths):
    """Of each tuple its fewest last parts, one at least, that no different tuple ends with."""
    return [
        next(
            (
                path[-length:]
                for length in range(1, len(path))
                if sum(other[-length:] == path[-length:] for other in set(paths)) == 1
            ),
            path,
        )
        for path in paths
    ]


def _facts(run, timed=True):
    """Data set, network, batch and device of a run, each as a phrase."""
    layers = run.config["network"]
    is_normalised = any(layer["layer"] == "batch_norm" for layer in layers)
    return {
        "data": data_set(run),
        "network": layer_sizes(layers),
        "normalisation": "batch norm" if is_normalised else "",
        "batch": f"batch {run.config['optimizer']['batch_size']}",
        "device": clock(run) if timed else run.record["device"]["device"].upper(),
    }


def _facts_of_all(runs, timed=True):
    """The `_facts` of each run. Images that differ behind one name of the data get their checksum's
    beginning, which `run.json` has whole.
    """
    facts, images = [_facts(run, timed) for run in runs], {}
    sums = [run.record.get("data", {}).get("sha256") for run in runs]
    for own, checksum in zip(facts, sums, strict=True):
        images.setdefault(own["data"], set()).add(checksum)
    for own, checksum in zip(facts, sums, strict=True):
        if checksum and len(images[own["data"]] - {None}) > 1:
            own["data"] += f" ({checksum[:6]})"
    return facts


def _common(facts):
    """The facts, {name: phrase} of each run, that are the same of all."""
    first, *others = facts
    return {
        name: phrase
        for name, phrase in first.items()
        if all(fact[name] == phrase for fact in others)
    }


def _distinct(runs, labels, ignored):
    """The labels, of which equal ones are extended by the settings in which their runs differ.

    A setting that is missing in a record is no difference: the record is older than the setting.
    """
    result = list(labels)
    for label in dict.fromkeys(labels):
        places = [place for place, other in enumerate(labels) if other == label]
        settings = _settings([runs[place].config for place in places])
        words = keys_in_words([key for key in _differing(settings) if key not in ignored])
        for place, own in zip(places, settings, strict=True):
            extra = [f"{words[key]} {value}" for key, value in own.items() if key in words]
            result[place] = ", ".join([label, *extra])
    return result


def _differing(settings):
    """The keys of which two of the dictionaries have different values."""
    values = {}
    for own in settings:
        for key, value in own.items():
            values.setdefault(key, []).append(value)
    return [key for key, found in values.items() if any(value != found[0] for value in found)]


def _settings(configs):
    """{key: value} of each configuration; that of a layer's setting is "network.conv1 std"."""
    optimizers = _comparable([config["optimizer"] for config in configs])
    return [
        flat({**config, "network": _by_layer(config["network"]), "optimizer": optimizer})
        for config, optimizer in zip(configs, optimizers, strict=True)
    ]


def _comparable(optimizers):
    """The optimizers' settings; those BY_LAYER are whole texts unless all name the same layers."""
    for key in BY_LAYER:
        values = [settings[key] for settings in optimizers if key in settings]
        layers = {frozenset(value) if isinstance(value, dict) else None for value in values}
        if len(layers) > 1:
            optimizers = [
                settings | {key: _in_braces(settings[key])} if key in settings else settings
                for settings in optimizers
            ]
    return optimizers


def _in_braces(value):
    """A mapping as "{conv1: 0.1}", a number as it is."""
    if not isinstance(value, dict):
        return value
    return "{" + ", ".join(f"{name}: {number}" for name, number in value.items()) + "}"


def _by_layer(layers):
    """{"conv1 std": 0.01, ...}: the settings of a network's layers."""
    return {
        f"{name} {key}": value
        for name, layer in zip(layer_names(layers), layers, strict=True)
        for key, value in layer.items()
        if key != "name"
    }
