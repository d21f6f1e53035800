"""Training as a configuration says: the run's folder, its data, the processes that share it."""

import logging
from pathlib import Path
from typing import TextIO

from kfcnet import data
from kfcnet.config import ConfigError
from kfcnet.config.errors import show
from kfcnet.config.schema import Config
from kfcnet.data import Dataset
from kfcnet.ops.cpu.blas import one_blas_thread
from kfcnet.ranks import (
    Alone,
    Ranks,
    RanksError,
    is_first_started,
    is_of_all,
    is_started_among_others,
    of_all,
)
from kfcnet.runs.folder import RunFolder, RunFolderError, SharedFolder, portable_config
from kfcnet.runs.schedule import EvaluationSchedule
from kfcnet.training.build import is_open, resolved
from kfcnet.training.trainer import Trainer

logger = logging.getLogger(__name__)


@one_blas_thread
def train(
    config: Config,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    rows: TextIO | None = None,
    dataset: Dataset | None = None,
    ranks: Ranks | None = None,
    figures: bool = True,
) -> None:
    """Train as `config` says, leaving a run in the folder `out`.

    resume: go on from the checkpoint in `out` as if the run had never stopped; without a
    checkpoint start it, and of a finished run redraw the figure. overwrite: replace the run that
    is there.

    dataset: to train on in place of the configured one, as `kfcnet.data.from_arrays` makes it.

    ranks: the processes that share this run, each of which calls `train`, as `kfcnet.ranks.world()`
    finds them; by default this one alone. The first of them writes and shows. At the end of one
    that raised what the others did not, these are ended too.

    rows: where a line for each row of metrics is printed, by default standard output; the progress
    bar and notices go to standard error. Nothing is shown on a stream that the process lacks.

    figures: whether the curves, and the diagnostics if there are any, are drawn at the end.

    Raises RunFolderError for a folder that may not be used, ConfigError for an impossible network,
    DataError, DeviceError and CheckpointError for what is missing or damaged, RanksError for
    processes that are unlike each other, WriteError where `out` cannot be written, TrainingFailed
    where the numbers fail, and TrainingInterrupted, once the state is saved, after SIGINT or
    SIGTERM.
    """
    if ranks is None and is_started_among_others() and is_first_started():
        logger.warning(
            "mpiexec started several processes, each of which trains a network of its own: "
            "kfcnet.train(config, out, ranks=kfcnet.ranks.world()) lets them share one"
        )
    ranks = ranks or Alone()
    try:
        _check_given(config, dataset, ranks)
        folder = RunFolder(out, resume, overwrite)
        with SharedFolder(folder, ranks) if ranks.count > 1 else folder as folder:
            _train_in(folder, config, rows, dataset, ranks)
            if figures:
                ranks.of_first_process(lambda: _draw(folder.path))
    except BaseException as error:
        if not is_of_all(error):
            ranks.abort(1)  # the others wait for this process
        raise


def _check_given(config, dataset, ranks):
    """Raise ConfigError for what is no Config, RanksError where processes are given unlike things:
    what they do next depends on them.
    """
    ranks.agreed(lambda: _check_config(config))
    ranks.check_alike({"the configuration": portable_config(config)})
    if len(set(ranks.allgather(dataset is not None))) > 1:
        raise of_all(
            RanksError("the data were given to some processes only: give them to all, or to none")
        )


def _check_config(config):
    if not isinstance(config, Config):
        raise ConfigError(
            f"train: expected a Config, got {show(config)}; kfcnet.load_config(name) reads one, "
            "and kfcnet.fit trains on arrays"
        )


def _train_in(folder, config, rows, dataset, ranks):
    if is_open(config):
        dataset = dataset or _load(config, ranks)
        config = resolved(config, dataset)
    state = folder.saved_state(config, dataset and dataset.provenance["sha256"])
    if state is not None and _is_finished(config, state, folder, ranks):
        # It may have been killed between its last checkpoint and saying how it ended.
        folder.finish("finished", state["optimizer"]["steps"])
    else:
        Trainer(config, folder, dataset or _load(config, ranks), rows, ranks).run(state)


def _load(config, ranks):
    """The configured Dataset; the first process alone downloads it and makes its cache."""
    loaded = []
    ranks.of_first_process(lambda: loaded.append(data.load(config.data)))
    return ranks.agreed(lambda: loaded[0] if loaded else data.load(config.data))


def _draw(path):
    # Here, because matplotlib takes as long to import as all the rest.
    from kfcnet.figures import curves
    from kfcnet.figures import diagnostics as diagnostic_figures

    curves.plot_runs([path], path / "curves.png")
    if (path / "diagnostics.csv").exists():
        diagnostic_figures.plot_diagnostics(path, path / "diagnostics.png")


def _is_finished(config, state, folder, ranks):
    """Raises RunFolderError where the run has passed the end of `config` and was stopped there."""
    steps, examples = ranks.agreed(lambda: (state["optimizer"]["steps"], state["data"]["examples"]))
    wanted = EvaluationSchedule(config, examples).steps
    if folder.last_row() == steps:
        return steps >= wanted
    if steps > wanted:
        at = steps * config.optimizer.batch_size / examples
        raise RunFolderError(
            f"the run in {folder.path} is at epoch {at:.3g} already, behind epochs="
            f"{config.epochs:g}: set more to go on, move that folder away to start anew, or "
            "choose another --out"
        )
    return False
