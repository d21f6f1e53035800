"""Short runs on the embedded digits that several tests share."""

import numpy as np

from kfcnet.config import parse_config
from kfcnet.runs.checkpoint import load_checkpoint
from kfcnet.runs.metrics import read_metrics

SMALL = """
data: {name: digits, input_scale: 16}
network:
- {layer: conv, filters: 3, kernel: 3, padding: 1}
- {layer: relu}
- {layer: max_pool, size: 2, stride: 2}
- {layer: dense, units: 10}
optimizer:
  {name: kfc_pre, learning_rate: 0.01, batch_size: 120, initial_examples: 300,
   averaging_timescale: 1000, statistics_period: 2, inverse_period: 4, weight_decay: 0.001,
   clip: 0.0003}
evaluation: {every: 5, unit: updates}
epochs: 1
device: cpu
ops: {native: "off"}
"""

SGD = """
data: {name: digits, input_scale: 16}
network:
- {layer: dropout, keep: 0.9}
- {layer: conv, filters: 3, kernel: 3, stride: 2, padding: 1}
- {layer: batch_norm}
- {layer: relu}
- {layer: dense, units: 10}
optimizer: {name: sgd, learning_rate: 0.05, batch_size: 120, averaging_timescale: 1000}
evaluation: {every: 5, unit: updates}
epochs: 1
device: cpu
ops: {native: "off"}
"""


def small(*overrides, text=SMALL):
    """The configuration of a run of 12 updates of 120 examples: one epoch."""
    return parse_config(text, "test", overrides)


def assert_same_run(folder, expected):
    """The two runs have the same parameters, states and rows, bit for bit, but for the times."""
    states = [load_checkpoint(path / "checkpoint.h5") for path in (folder, expected)]
    assert_same_bits(*(state["optimizer"] for state in states))
    assert_same_bits(*(state["statistics"] for state in states))
    rows, others = (read_metrics(path / "metrics.csv") for path in (folder, expected))
    for name in rows:
        if not name.startswith("seconds"):
            np.testing.assert_array_equal(rows[name], others[name], name)


def assert_same_bits(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same_bits(state[name], value)
        elif isinstance(value, np.ndarray):
            assert np.isfinite(value).all() and state[name].dtype == value.dtype
            assert state[name].tobytes() == value.tobytes(), name
        else:
            assert state[name] == value, name
