"""What Kronecker factors take by their sizes, and what is said and done where that is much."""

import logging

import numpy as np
import pytest
from runs import small

import kfcnet
from kfcnet import data
from kfcnet.config import ConfigError, load_config, read_config
from kfcnet.curvature import size
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps
from kfcnet.training import periods, trainer

LAYERS = [
    {"layer": "conv", "filters": 3, "kernel": 2, "stride": 2, "padding": 1},
    {"layer": "relu"},
    {"layer": "batch_norm", "affine": True},
    {"layer": "dense", "units": 4},
]


def weighted(ops):
    return build_network(LAYERS, (5, 7, 2), ops).weighted


def test_the_arithmetic_is_that_of_the_passes_the_offsets_and_the_inverses(ops64):
    """conv: 3 x 4 locations, I = 3, P = 9, J = 2; scale and shift: I = 3, P = 2; dense: 4 x 37."""
    counts = size.arithmetic(weighted(ops64), batch_size=10, statistics_fraction=0.25)
    assert counts.gradient == 3 * 10 * (12 * 3 * 9 + 12 * 3 * 2 + 4 * 37)
    sampled = 3  # of 2.5
    offsets = 3**2
    conv, shift = sampled * 12 * (2**2 * offsets + 3**2) // 2, sampled * 12 * (3**2 + 3**2) // 2
    assert counts.statistics == conv + shift + sampled * (36**2 + 4**2) // 2
    assert counts.inverses == (9**3 + 3**3) + 6**3 + (37**3 + 4**3)


def test_statistics_and_inverses_count_at_their_periods():
    counts = size.Arithmetic(size.SMALL_CALLS, 6 * size.SMALL_CALLS, 40 * size.SMALL_CALLS)
    assert counts.multiple(3, 10) == 1 + (6 / 3 + 40 / 10) / 2


def test_factors_that_the_memory_cannot_hold_are_refused_by_name(ops64, monkeypatch):
    layers = weighted(ops64)
    elements = 2 * (9**2 + 3**2 + 6**2 + 37**2 + 4**2) + 2 * 37**2
    for enough in (8 * elements, None):
        monkeypatch.setattr(CpuOps, "memory", enough)
        size.check_memory(layers, ops64)
    monkeypatch.setattr(CpuOps, "memory", 8 * elements - 1)
    with pytest.raises(ValueError, match=r"of dense1, has 37 rows. A pool or a stride before dens"):
        size.check_memory(layers, ops64)


def test_the_memory_of_this_machine_is_known_where_its_system_tells(ops64, monkeypatch):
    assert ops64.memory is None or ops64.memory > 2**28
    monkeypatch.delattr("os.sysconf", raising=False)  # as on Windows
    assert ops64.memory is None


@pytest.fixture
def digits():
    return data.load(load_config("digits_kfc").data)


KFC = (
    "optimizer={name: kfc_pre, batch_size: 100, learning_rate: 0.01, damping: 0.1, "
    "averaging_timescale: 500, statistics_period: 2, inverse_period: 4, initial_examples: 100}"
)


@pytest.mark.parametrize(
    "dear, pair", [(1, (2, 4)), (10, (5, 5)), (25, (10, 10)), (40, (10, 20)), (1e6, (50, 50))]
)
def test_periods_by_count_are_the_own_or_longer_ones(digits, monkeypatch, dear, pair):
    """At periods (2, 4) an update costs 1 + 0.1 dear of SGD's, by statistics and inverses alike."""
    counts = size.Arithmetic(0, 0.1 * dear * size.SMALL_CALLS, 0.2 * dear * size.SMALL_CALLS)
    monkeypatch.setattr(periods, "arithmetic", lambda *arguments: counts)
    assert periods.by_count(small(KFC), digits) == pair


def fitted(images, labels, **given):
    layers = [{"layer": "conv", "filters": 16, "kernel": 3}, {"layer": "dense"}]
    return kfcnet.fit(images, labels, layers, device="cpu", epochs=0.5, **given)


@pytest.fixture
def wide():
    """Images whose dense layer takes in 3,137 values."""
    draws = np.random.default_rng(0)
    return draws.integers(0, 256, (40, 16, 16, 3), np.uint8), np.arange(40) % 2


def settings_of(run):
    optimizer = read_config(run.folder / "config.yaml").optimizer
    return optimizer.statistics_period, optimizer.inverse_period


def test_fit_renews_large_factors_less_often_and_says_what_they_cost(wide, caplog, monkeypatch):
    monkeypatch.setattr(trainer, "MOST_OF_SGD", 3)
    with caplog.at_level(logging.WARNING):
        assert settings_of(fitted(*wide)) == (50, 50)
    assert "costs 3 times SGD's, since the largest factor, of dense1, has 3,137 rows" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert settings_of(fitted(wide[0][:, :8, :8], wide[1])) == (5, 5)
    assert "rows" not in caplog.text


def test_fit_keeps_periods_that_are_given_or_begun_with(wide, tmp_path):
    given = {"name": "kfc_pre", "inverse_period": 10}
    run = fitted(*wide, optimizer=given, out=tmp_path / "a")
    assert settings_of(run) == (5, 10)
    again = fitted(*wide, out=tmp_path / "a", resume=True)
    assert settings_of(again) == (5, 10)


def test_fit_says_which_layer_is_too_wide_for_the_memory(wide, monkeypatch):
    monkeypatch.setattr(CpuOps, "memory", 50 * 10**6)
    message = (
        "take 0.2 GB, and this machine has 0.1 GB: the largest factor, of dense1, has 3,137 rows"
    )
    with pytest.raises(ConfigError, match=message):
        fitted(*wide)
    assert fitted(*wide, optimizer="sgd").predict(wide[0]).shape == (40,)
