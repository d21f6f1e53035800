"""Which run lies in which folder: runs are known by their settings, not by their names."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kfcnet.config import read_config
from kfcnet.runs.checkpoint import CHECKPOINT
from kfcnet.runs.files import missing_entry, read_json
from kfcnet.runs.labels import settings
from kfcnet.runs.metrics import last_iteration, read_metrics
from kfcnet.runs.schedule import EvaluationSchedule


class Standing(NamedTuple):
    """How far the run in a folder has come: its last row of metrics, and whether it failed."""

    folder: Path
    iteration: int
    failed: bool
    examples: int  # in its training set

    def is_over(self, config):
        """Whether there is nothing left to train up to the end of `config`."""
        return self.failed or self.iteration >= self.steps(config)

    def can_go_on(self):
        return (self.folder / CHECKPOINT).exists()

    def epochs(self, config):
        return max(self.iteration, 0) * config.optimizer.batch_size / self.examples

    def steps(self, config):
        return EvaluationSchedule(config, self.examples).steps

    def row(self, config):
        """The metrics {name: number} at the end of `config`'s epochs, or at the evaluation before;
        None if the run has not got so far.
        """
        if self.iteration < self.steps(config):
            return None
        metrics = read_metrics(self.folder / "metrics.csv")
        at = np.flatnonzero(metrics["iteration"] <= self.steps(config))[-1]
        return {name: column[at].item() for name, column in metrics.items()}


class Ledger:
    """The runs in all folders below one, those that others left there included.

    A folder below that has `runs/` of its own is another reproduction's, and left alone.
    """

    def __init__(self, root):
        """Raises ConfigError or RecordError for a record that cannot be read."""
        self.root, self.folders = Path(root), defaultdict(list)
        self.devices = defaultdict(set)  # {name of a data set: devices of its runs}
        self.checksums = defaultdict(dict)  # {DataConfig: {SHA-256 of the images: a folder}}
        for path in sorted(self.root.rglob("config.yaml")):
            if not any((folder / "runs").is_dir() for folder in self._between(path.parent)):
                self.add(path.parent)

    def _between(self, folder):
        """The folders above one, up to the root, which is not among them."""
        return [above for above in folder.parents if self.root in above.parents]

    def add(self, folder):
        """Take a folder in, if there is a run in it."""
        record = Path(folder) / "run.json"
        if record.exists() and record.with_name("metrics.csv").exists():
            config = read_config(record.with_name("config.yaml"))
            device = _entry(record, "device", "device")
            folders = self.folders[run_key(config.model_copy(update={"device": device}))]
            if folder not in folders:
                folders.append(folder)
            self.devices[config.data.name].add(device)
            checksum = read_json(record).get("data", {}).get("sha256")
            self.checksums[_images(config.data)].setdefault(checksum, folder)

    def standing(self, config):
        """Of the runs with these settings the one to use; None if there is none.

        Of those that have come to the end of `config` the shortest, so that the table of a sweep
        stays that of the sweep's own runs; else, of those that can go on, the one that is furthest.
        """
        found = [self._read(folder) for folder in self.folders[run_key(config)]]
        over = [run for run in found if run.is_over(config)]
        if over:
            return min(over, key=lambda run: (run.failed, run.iteration))
        return max(
            (run for run in found if run.can_go_on()), default=None, key=lambda run: run.iteration
        )

    def mixture(self, config, checksum):
        """Why a DataConfig's images, whose SHA-256 this is, may not be mixed with those of the runs
        that there are; None where these are the same.
        """
        for other, folder in self.checksums[_images(config)].items():
            if other not in (checksum, None):
                return (
                    f"{folder} was trained on other data called {config.name} than are here "
                    f"(SHA-256 {other[:12]}, here {checksum[:12]}): name another folder with "
                    "--out, or the place of the same data with --data"
                )
        return None

    def home(self, config, name):
        """The folder that a run has for itself: its name ends in its key."""
        rate = getattr(config.optimizer, "learning_rate", None)
        parts = [name, *([f"{rate:g}"] if rate else []), f"seed{config.seed}", run_key(config)]
        return self.root / "runs" / "_".join(parts)

    def name(self, folder):
        """A folder as a text that holds on any machine."""
        return Path(folder).relative_to(self.root).as_posix()

    def _read(self, folder):
        path = folder / "run.json"
        state = _entry(path, "outcome", "state")
        return Standing(
            folder,
            last_iteration(folder / "metrics.csv"),
            state == "failed",
            _entry(path, "data", "train_examples"),
        )


def run_key(config):
    """12 hexadecimal digits of the settings that decide the course of a run, and of its seed.

    The end of a run, the place of its data and how often it is looked at are not among them.
    """
    described = config.model_dump(mode="json")
    text = json.dumps([settings(described), described["seed"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _images(config):
    """What of a DataConfig says which images they are."""
    return config.model_copy(update={"path": None, "input_scale": 1.0})


def _entry(path, *keys):
    """What stands under some keys in a JSON file. Raises RecordError where there is nothing."""
    value = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise missing_entry(path, ".".join(keys))
        value = value[key]
    return value
