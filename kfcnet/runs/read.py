"""A run, read from its folder."""

import contextlib
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kfcnet.config import ConfigError, parse_config, yaml_text
from kfcnet.runs.files import RecordError, missing_entry, no_run, read_json
from kfcnet.runs.metrics import read_metrics

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """The content of a run's `metrics.csv`, `config.yaml` and `run.json`.

    clock: the device on which its seconds were measured, an entry like the record's `device`; None
    for that of the record.
    """

    metrics: dict
    config: dict
    record: dict
    clock: dict | None = None

    def until(self, epochs):
        """The Run without the rows behind the first one at so many epochs."""
        rows = slice(np.searchsorted(self.metrics["epoch"], epochs) + 1)
        return self._replace(metrics={name: column[rows] for name, column in self.metrics.items()})


def read_run(folder):
    """The Run in a folder. Raises RecordError naming the file that is missing or unreadable.

    Settings that the record lacks have their defaults, so that seeds recorded by different versions
    are one curve. A configuration that is not valid any more is taken as it is.
    """
    folder = Path(folder)
    if not (folder / "metrics.csv").exists():
        raise RecordError(no_run(folder, "metrics.csv"))
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        config = yaml_text.parse(text)
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {folder / 'config.yaml'}: {error}") from error
    record = read_json(folder / "run.json")
    for content, keys, name in (
        (config, ("data", "network", "optimizer"), "config.yaml"),
        (record, ("device",), "run.json"),
    ):
        for key in keys:
            if not isinstance(content, dict) or key not in content:
                raise missing_entry(folder / name, key)
    with contextlib.suppress(ConfigError):
        config = parse_config(text).model_dump(mode="json")
    is_over = record.get("outcome", {}).get("state") in ("finished", "failed")
    return Run(read_metrics(folder / "metrics.csv", cut_short=not is_over), config, record)


def with_rows(runs, folders):
    """The Runs, read from `folders`, that have a row: those that can be drawn.

    A notice names each of the others. Raises RecordError where none has.
    """
    pairs = list(zip(runs, folders, strict=True))
    drawable = [run for run, _ in pairs if len(run.metrics["iteration"])]
    if not drawable:
        raise RecordError(
            f"there is nothing to draw yet in {', '.join(map(str, folders))}: a run's first row "
            "comes with its first evaluation"
        )
    for run, folder in pairs:
        if not len(run.metrics["iteration"]):
            logger.warning("%s has no row yet and is not drawn", folder)
    return drawable
