"""The folder of a run: its files, and the lock that keeps other processes out."""

import contextlib
from pathlib import Path

from kfcnet.config import dump_config, parse_config
from kfcnet.runs.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from kfcnet.runs.files import left_behind, read_json, write_json, write_text
from kfcnet.runs.identity import changed_setting
from kfcnet.runs.locks import locked
from kfcnet.runs.metrics import append_metrics, create_metrics, last_iteration, truncate_metrics

FILES = (
    CHECKPOINT,
    "curves.png",
    "diagnostics.png",
    "metrics.csv",
    "diagnostics.csv",
    "run.json",
    "config.yaml",
)
"""In the order in which they are removed: without its checkpoint a run cannot go on by mistake."""

DATA = "checksum of the data"
"""What a checkpoint calls it, among the conditions of a run."""


class RunFolderError(RuntimeError):
    """A run folder cannot be used as asked; the text says what to do."""

    exit_status = 2


class RunFolder:
    """The files of one run; a `with` block keeps other processes out."""

    def __init__(self, path, resume=False, overwrite=False):
        self.path, self.resume, self.overwrite = Path(path), resume, overwrite

    def __enter__(self):
        """Raises RunFolderError if the path cannot be used as asked, or is in use."""
        self._is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RunFolderError(
                f"{self.path} is a file; choose another folder with --out"
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"cannot make the folder {self.path}: {error.strerror}; choose another with --out"
            ) from error
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(alone_in(self.path))
        try:
            self._check_use()
        except RunFolderError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """Let others in; a new folder is removed if nothing was written to it."""
        if self._is_new:
            with contextlib.suppress(OSError):  # it is not empty
                self.path.rmdir()
        self._lock.close()

    def _check_use(self):
        present = {entry.name for entry in self.path.iterdir()}
        present -= {entry.name for entry in left_behind(self.path, FILES)}
        if present and present.isdisjoint({CHECKPOINT, "config.yaml", "run.json"}):
            raise RunFolderError(
                f"{self.path} holds files that are not a run's; choose another folder with --out"
            )
        if present and not (self.resume or self.overwrite):
            raise RunFolderError(
                f"{self.path} holds a run already: go on with it by --resume, "
                "replace it by --overwrite, or choose another folder with --out"
            )

    def saved_state(self, config, checksum=None):
        """The content of the checkpoint to go on from; None without one, or if the run starts anew.

        checksum: of the data, where they are at hand. They come first: settings may follow from
        them.

        Raises RunFolderError for other data, naming the first setting that may not change but
        differs in `config`, and for the records of a run whose checkpoint is gone: to start anew
        would lose them. Raises CheckpointError for a damaged checkpoint.
        """
        if not self.resume:
            return None
        if not self.checkpoint.exists():
            self._check_nothing_is_lost()
            return None
        state = load_checkpoint(self.checkpoint)
        if checksum is not None:
            check_origin({DATA: state["origin"][DATA]}, {DATA: checksum}, self.path)
        changed = changed_setting(parse_config(state["config"], str(self.checkpoint)), config)
        if changed:
            key, before, now = changed
            raise RunFolderError(
                f"{key} is {now} now and was {before} in {self.path}: set it back to go on, "
                "move that folder away to start anew, or choose another --out"
            )
        return state

    def _check_nothing_is_lost(self):
        if not (self.path / "run.json").exists():
            return
        outcome = self.record().get("outcome", {})
        state, steps = outcome.get("state"), outcome.get("iteration")
        if state == "finished" or (state == "interrupted" and steps):  # both had been saved
            raise RunFolderError(
                f"{self.path} holds the records of a run that was {state} after update {steps}, "
                "and no checkpoint to go on from: restore it, move that folder away to start anew, "
                "or choose another with --out"
            )

    def start(self, config, record):
        """Begin a run; removes the files of any other."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        self._tidy()
        self.write_config(config)
        write_json(self.path / "run.json", record)
        create_metrics(self.metrics)

    def go_on(self, config, record, iteration):
        """Go on from `iteration`: drop later rows, and add the present program to run.json."""
        self._tidy()
        truncate_metrics(self.metrics, iteration)
        if self.diagnostics.exists():
            truncate_metrics(self.diagnostics, iteration, columns=("iteration",))
        self.write_config(config)
        kept = self.record()
        now = {key: record[key] for key in ("command", "commit", "device", "versions")}
        kept.setdefault("resumed", []).append({"iteration": iteration, **now})
        kept["outcome"] = record["outcome"]
        write_json(self.path / "run.json", kept)

    def _tidy(self):
        for path in left_behind(self.path, FILES):
            path.unlink()

    def write_config(self, config):
        write_text(self.path / "config.yaml", portable_config(config))

    def record(self):
        """The contents of run.json."""
        return read_json(self.path / "run.json")

    def finish(self, state, iteration, **details):
        """Write to run.json how the run ended."""
        outcome = {"state": state, "iteration": iteration, **details}
        write_json(self.path / "run.json", {**self.record(), "outcome": outcome})

    def save(self, state):
        """Replace the checkpoint; see `save_checkpoint`."""
        save_checkpoint(self.checkpoint, state)

    def append(self, row):
        append_metrics(self.metrics, row)

    def append_diagnostics(self, row):
        """Add a row to `diagnostics.csv`; the first row creates it, its keys are the columns."""
        if not self.diagnostics.exists():
            create_metrics(self.diagnostics, columns=row)
        append_metrics(self.diagnostics, row, columns=row)

    def last_row(self):
        """Iteration of the last row of the metrics, -1 without rows."""
        return last_iteration(self.metrics)

    @property
    def checkpoint(self):
        return self.path / CHECKPOINT

    @property
    def metrics(self):
        return self.path / "metrics.csv"

    @property
    def diagnostics(self):
        return self.path / "diagnostics.csv"


def check_origin(saved, now, path):
    """Raise RunFolderError unless all conditions `saved` of the run in a folder are the same `now`.

    Both are {what it is called: value}.
    """
    for key, before in saved.items():
        if now.get(key, "unknown") != before:
            raise RunFolderError(
                f"{key} is {now.get(key, 'unknown')} now and was {before} when the run in "
                f"{path} was saved: go on with it where it was begun, or choose another folder "
                "with --out"
            )


class SharedFolder:
    """The RunFolder of several processes: the first one acts, and all have the outcome.

    What it returns all return, what it raises all raise; paths are those of the first one.
    """

    def __init__(self, folder, ranks):
        self._folder, self._ranks = folder, ranks

    def __enter__(self):
        self._ranks.of_first_process(lambda: self._folder.__enter__() and None)
        return self

    def __exit__(self, *error):
        if self._ranks.is_first:
            self._folder.__exit__(*error)

    def __getattr__(self, name):
        value = getattr(self._folder, name)
        if not callable(value):
            return value
        return lambda *arguments, **settings: self._ranks.of_first_process(
            lambda: value(*arguments, **settings)
        )


def portable_config(config):
    """YAML of a config without the path of its data, which is different on another machine."""
    data = config.data.model_copy(update={"path": None})
    return dump_config(config.model_copy(update={"data": data}))


@contextlib.contextmanager
def alone_in(folder):
    """Keep other processes out of a folder, by a lock where the file system has such.

    Raises RunFolderError if one is in it, or if the folder cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except BlockingIOError:
            raise RunFolderError(
                f"{folder} is in use by another process; wait for it or stop it, "
                "or choose another folder with --out"
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"cannot open the folder {folder}: {error.strerror}; choose another with --out"
            ) from error
        yield
