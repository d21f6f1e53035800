"""How a run can end early, and what its owner can do about it."""

from kfcnet.config import ConfigError
from kfcnet.data import DataError
from kfcnet.ops.errors import DeviceError
from kfcnet.ranks import RanksError
from kfcnet.runs.checkpoint import CheckpointError
from kfcnet.runs.files import RecordError
from kfcnet.runs.folder import RunFolderError

UNUSABLE = (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    RanksError,
    RecordError,
    RunFolderError,
)
"""Errors of what a run is given, whose texts say what to do."""


class TrainingFailed(RuntimeError):
    """A loss or a model is not finite, or a factor not inverted; the text says at which step.

    `reason` is the part of it that holds for any machine.
    """

    exit_status = 1

    def __init__(self, reason, way_out=""):
        super().__init__(reason + way_out)
        self.reason = reason


class TrainingWarning(UserWarning):
    """A run came to its end and learned nothing; the text says what may help."""


class TrainingInterrupted(Exception):
    """SIGINT or SIGTERM ended the run between two steps; its state is saved."""

    def __init__(self, number, message):
        super().__init__(message)
        self.number, self.exit_status = number, 128 + number

    def __reduce__(self):  # to cross from one process to another
        return type(self), (self.number, str(self))
