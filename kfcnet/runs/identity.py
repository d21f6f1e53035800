"""What makes two runs the same: the settings that identify a run, and its key made of them."""

import hashlib
import json
from collections import Counter

NOT_IDENTIFYING = (
    "seed",
    "epochs",
    "data.path",
    "checkpoint_minutes",
    "evaluation.every",
    "evaluation.unit",
    "diagnostics",
    "diagnostics.every",
)
"""Settings that do not identify a run: which seed it has, where it ends, where its data are stored,
how often it is saved, evaluated and looked into."""

MAY_CHANGE = ("epochs", "data.path", "checkpoint_minutes")
"""Settings that may change when a run goes on: no row of its metrics depends on them."""

NAMED_LAYERS = ("conv", "dense", "batch_norm")
"""Layers whose parameters or statistics are saved under their name. The names of others, such as
pools, do not identify a run."""


LATER_SETTINGS = {
    "kfc_pre": {"optimizer.tikhonov": "factored"},
    **dict.fromkeys(("adagrad", "rmsprop", "adam"), {"optimizer.decoupled_decay": False}),
}
"""{optimizer: {setting: value}} of settings that came after runs were recorded: with this value a
run is what it was before there was the setting, and has the same key."""

LATER_LAYER_SETTINGS = {"clipped": True}
"""{setting: value} of such settings of layers."""


def flat(config, prefix=""):
    """{"optimizer.learning_rate": 0.01, ...} of a nested dictionary."""
    pairs = {}
    for key, value in config.items():
        pairs.update(
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return pairs


def identifying_settings(config):
    """{"optimizer.learning_rate": 0.01, ...}: the settings that identify a run, without its seed.

    config: the content of a `config.yaml`.
    """
    config = {**config, "network": _identifying(config["network"])}
    return {key: value for key, value in flat(config).items() if key not in NOT_IDENTIFYING}


def run_key(config):
    """12 hexadecimal digits: a hash of a Config's identifying settings and its seed."""
    return _hashed([_settings(config), config.seed])


def work_key(config):
    """The same for runs whose updates take the same work: whatever seed and learning rate."""
    settings = _settings(config)
    settings.pop("optimizer.learning_rate", None)
    return _hashed(settings)


def _settings(config):
    """The identifying settings of a Config, without later ones that have their first value."""
    settings = identifying_settings(config.model_dump(mode="json"))
    for key, value in LATER_SETTINGS.get(config.optimizer.name, {}).items():
        if settings[key] == value:
            del settings[key]
    return settings


def _hashed(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def machine_of(device):
    """What runs have in common whose seconds can be compared, as a text: processor or GPU, and
    whether they have the C extension.

    device: the entry of that name in `run.json`.
    """
    parts = [device["device"], device.get("processor") or device.get("name")]
    parts += ["without the C extension"] if device.get("native") is False else []
    return ", ".join(filter(None, parts))


def changed_setting(before, now):
    """(key, its value before, its value now) of the first setting that may not change but differs.

    before, now: Configs. The key of a layer's setting has the layer's number, as in
    "network.0.std". None if there is no such setting.
    """
    before, now = map(_by_layer, (before, now))
    for key in before | now:
        if key not in MAY_CHANGE and before.get(key) != now.get(key):
            outer = key.rpartition(".")[0]
            key = outer if outer in before or outer in now else key
            return key, _whole(before, key), _whole(now, key)
    return None


def _whole(settings, key):
    """Of flat settings the value of `key`, or a mapping of the keys below it."""
    inner = f"{key}."
    below = {
        name.removeprefix(inner): value
        for name, value in settings.items()
        if name.startswith(inner)
    }
    return below or settings.get(key)


def resumed_config(begun, now):
    """The Config `begun` of a run with the settings of the Config `now` that may change."""
    data = begun.data.model_copy(update={"path": now.data.path})
    changes = {"epochs": now.epochs, "checkpoint_minutes": now.checkpoint_minutes, "data": data}
    return begun.model_copy(update=changes)


def _by_layer(config):
    described = config.model_dump(mode="json")
    layers = _identifying(described["network"])
    return flat({**described, "network": dict(enumerate(layers))})


def _identifying(layers):
    return [
        {
            key: value
            for key, value in layer.items()
            if (key != "name" or layer["layer"] in NAMED_LAYERS)
            and (key not in LATER_LAYER_SETTINGS or value != LATER_LAYER_SETTINGS[key])
        }
        for layer in layers
    ]


def devices(run):
    """The entries `device` of a run's record: where it began, and where it went on."""
    return [run.record["device"]] + [
        again["device"] for again in run.record.get("resumed", []) if "device" in again
    ]


def group_by_seed(runs, timed=True):
    """Lists of the Runs that differ in nothing but their seed, in order.

    Runs in a list are on a CPU or on a GPU, and on the same images. With `timed` their seconds are
    also of one processor, with the C extension or without, and of the same number of processes. A
    run whose seed its list already has begins another list.
    """
    groups, seen = {}, Counter()
    for run in runs:
        clocks = [run.clock] if run.clock else devices(run)
        machines = sorted({f"{machine_of(each)}, {each.get('processes')}" for each in clocks})
        identity = json.dumps(
            [
                identifying_settings(run.config),
                run.record["device"]["device"],
                run.record.get("data", {}).get("sha256"),
                machines if timed else None,
            ]
        )
        seed = identity, run.config.get("seed")
        groups.setdefault((identity, seen[seed]), []).append(run)
        seen[seed] += 1
    return list(groups.values())
