"""The runs in the folders below one, found by their settings and not by their folders' names."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from kfcnet.config import read_config
from kfcnet.runs.checkpoint import CHECKPOINT
from kfcnet.runs.files import read_entry, read_json
from kfcnet.runs.identity import run_key
from kfcnet.runs.metrics import last_iteration, read_metrics
from kfcnet.runs.schedule import EvaluationSchedule


class RunStatus(NamedTuple):
    """How far the run in a folder has come."""

    folder: Path
    iteration: int  # of the last row of its metrics, -1 without rows
    failed: bool
    examples: int  # in its training set

    def is_over(self, config):
        """Whether there is nothing left to train up to the end of `config`."""
        return self.failed or self.iteration >= self.steps(config)

    @property
    def has_diverged(self):
        """Whether it failed and has a row that says where it began."""
        return self.failed and self.iteration >= 0

    def can_go_on(self):
        return (self.folder / CHECKPOINT).exists()

    def epochs(self, config):
        """Epochs trained so far."""
        return max(self.iteration, 0) * config.optimizer.batch_size / self.examples

    def steps(self, config):
        """Updates up to the end of `config`."""
        return EvaluationSchedule(config, self.examples).steps

    def rows(self, config):
        """{column: values} of the metrics up to the end of `config`, which a longer run may have
        passed between two evaluations; None if the run has not got so far.
        """
        if self.iteration < self.steps(config):
            return None
        # A longer run may have been killed while it wrote a later row.
        metrics = read_metrics(self.folder / "metrics.csv", cut_short=True)
        until = metrics["iteration"] <= self.steps(config)
        return {name: column[until] for name, column in metrics.items()}


class RunIndex:
    """The runs in all folders below `root`, whichever command trained them.

    A folder below that has a `runs/` of its own belongs to another reproduction: its runs are left
    out.
    """

    def __init__(self, root, to_go_on=True):
        """to_go_on: whether unfinished runs without a checkpoint are left out; for what is drawn
        from the records alone they count.

        Raises ConfigError or RecordError for a record that cannot be read.
        """
        self.to_go_on = to_go_on
        self.root, self.folders = Path(root), defaultdict(list)  # {run_key: folders}
        self.devices = defaultdict(set)  # {name of a data set: devices of its runs}
        self.checksums = defaultdict(dict)  # {DataConfig: {SHA-256 of the images: a folder}}
        for path in sorted(self.root.rglob("config.yaml")):
            if not any((folder / "runs").is_dir() for folder in self._between(path.parent)):
                self.add(path.parent)

    def _between(self, folder):
        """The folders above one and below the root."""
        return [above for above in folder.parents if self.root in above.parents]

    def add(self, folder):
        """Add the run in a folder, if there is one."""
        record = Path(folder) / "run.json"
        if record.exists() and record.with_name("metrics.csv").exists():
            config = read_config(record.with_name("config.yaml"))
            device = read_entry(record, "device", "device")
            folders = self.folders[run_key(config.model_copy(update={"device": device}))]
            if folder not in folders:
                folders.append(folder)
            self.devices[config.data.name].add(device)
            checksum = read_json(record).get("data", {}).get("sha256")
            self.checksums[images_of(config.data)].setdefault(checksum, folder)

    def status(self, config):
        """The RunStatus of the run to use for `config`, whose device is "cpu" or "cuda"; or None.

        Of the runs with its settings that have come to its end this is the shortest, so that the
        table of a sweep shows the sweep's own runs; without any, the longest that can go on.
        """
        found = [_read_status(folder) for folder in self.folders[run_key(config)]]
        over = [status for status in found if status.is_over(config)]
        if over:
            return min(over, key=lambda status: (status.failed, status.iteration))
        return max(
            (status for status in found if status.can_go_on() or not self.to_go_on),
            default=None,
            key=lambda status: status.iteration,
        )

    def has_runs_on(self, config):
        """Whether runs were trained on what a DataConfig describes."""
        return bool(self.checksums.get(images_of(config)))

    def why_not_with(self, config, checksum):
        """Why the images of a DataConfig may not be used beside the runs that there are, in words.

        checksum: SHA-256 of the images. None where the runs were trained on the same images.
        """
        for other, folder in self.checksums[images_of(config)].items():
            if other not in (checksum, None):
                return (
                    f"{folder} was trained on other data called {config.name} than are here "
                    f"(SHA-256 {other[:12]}, here {checksum[:12]}): name another folder with "
                    "--out, or the place of the same data with --data"
                )
        return None

    def new_folder(self, config, name):
        """The folder of a run that begins: below `runs/`, its name ends in the run's key."""
        rate = getattr(config.optimizer, "learning_rate", None)
        parts = [name, *([f"{rate:g}"] if rate else []), f"seed{config.seed}", run_key(config)]
        return self.root / "runs" / "_".join(parts)

    def relative(self, folder):
        """The path of a folder below the root, as text that holds on any machine."""
        return Path(folder).relative_to(self.root).as_posix()


def _read_status(folder):
    path = folder / "run.json"
    state = read_entry(path, "outcome", "state")
    return RunStatus(
        folder,
        last_iteration(folder / "metrics.csv"),
        state == "failed",
        read_entry(path, "data", "train_examples"),
    )


def images_of(config):
    """The part of a DataConfig that says which images they are."""
    return config.model_copy(update={"path": None, "input_scale": 1.0})
