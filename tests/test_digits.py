"""Every method learns the embedded digits, from the configuration that comes with the package."""

import time

import pytest

from kfcnet.config import load_config
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.train import train

METHODS = "kfc", "kfac", "sgd", "adam", "rmsprop", "adagrad", "kfc_bn", "sgd_bn"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_below_a_tenth_of_errors_in_two_minutes_of_a_core(tmp_path, no_figures, method):
    config = load_config(f"digits_{method}", ["device=cpu", "ops.shards=2"])
    began = time.process_time()  # the other programs of a machine take none of it
    train(config, tmp_path / "run")
    assert time.process_time() - began < 120
    assert read_metrics(tmp_path / "run" / "metrics.csv")["test_error"][-1] < 0.1
