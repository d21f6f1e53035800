"""What Kronecker factors take by their sizes, and what is said and done where that is much."""

import logging
import re

import numpy as np
import pytest
from runs import small

import kfcnet
from kfcnet import data
from kfcnet.config import ConfigError, load_config, read_config
from kfcnet.curvature import size
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps
from kfcnet.training import advice, periods

LAYERS = [
    {"layer": "conv", "filters": 3, "kernel": 2, "stride": 2, "padding": 1},
    {"layer": "relu"},
    {"layer": "batch_norm", "affine": True},
    {"layer": "conv", "filters": 5, "kernel": 2},
    {"layer": "dense", "units": 4},
]


def weighted(ops):
    return build_network(LAYERS, (5, 7, 2), ops).weighted


def test_the_arithmetic_is_that_of_the_passes_the_offsets_and_the_inverses(ops64):
    """conv: 3 x 4 locations, I = 3, P = 9, J = 2; scale and shift: I = 3, P = 2; conv without a
    stride: 2 x 3 locations, I = 5, P = 13, J = 3; dense: 4 x 31.
    """
    counts = size.arithmetic(weighted(ops64), batch_size=10, statistics_fraction=0.25)
    sampled = 3  # of 2.5
    assert counts == [
        size.Arithmetic(
            gradient=2 * 10 * 12 * 3 * 9,  # nothing comes before it
            preconditioning=3 * 9 * (3 + 9),
            statistics=sampled * (12 * (9**2 + 3**2) // 2),
            inverses=9**3 + 3**3,
        ),
        size.Arithmetic(3 * 10 * 12 * 3 * 2, 6**2, sampled * (6**2 // 2 + 12 * 3 * 2), 6**3),
        size.Arithmetic(
            gradient=3 * 10 * 6 * 5 * 13,
            preconditioning=5 * 13 * (5 + 13),
            statistics=sampled * (6 * (3**2 * 3**2 + 5**2) // 2 + 6 * 5 * 13),
            inverses=13**3 + 5**3,
        ),
        size.Arithmetic(
            gradient=3 * 10 * 4 * 31,
            preconditioning=4 * 31 * (4 + 31),
            statistics=sampled * ((30**2 + 4**2) // 2 + 4 * 31),
            inverses=31**3 + 4**3,
        ),
    ]


def test_the_parts_of_all_layers_count_at_their_periods():
    small = size.SMALL_CALLS
    counts = [size.Arithmetic(small // 2, 0, 6 * small, small)] * 2
    counts[1] = size.Arithmetic(small // 2, 3 * small, 0, 39 * small)
    assert size.whole(counts) == (small, 3 * small, 6 * small, 40 * small)
    assert size.whole(counts).multiple(3, 10) == 1 + (3 + 6 / 3 + 40 / 10) / 2


@pytest.mark.parametrize(
    "layers, words",
    [
        ([dict(layer="dense", units=2)], "a pool or a stride before last"),
        ([dict(layer="dense", units=200)], "fewer units in last"),
        ([dict(layer="dense", units=9), dict(layer="dense", units=2)], "fewer units before last"),
        ([dict(layer="conv", filters=4, kernel=3)], "fewer maps before last or a smaller kernel"),
        ([dict(layer="conv", filters=40, kernel=3)], "fewer filters in last"),
    ],
)
def test_the_way_out_of_a_large_factor_is_that_of_its_layer(ops64, layers, words):
    named = [*layers[:-1], layers[-1] | {"name": "last"}]
    assert size.way_out(build_network(named, (5, 7, 2), ops64).weighted[-1]) == words


def test_factors_that_the_memory_cannot_hold_are_refused_by_name(ops64, monkeypatch):
    layers = weighted(ops64)
    elements = 2 * (9**2 + 3**2 + 6**2 + 13**2 + 5**2 + 31**2 + 4**2) + 2 * 31**2
    for enough in (8 * elements, None):
        monkeypatch.setattr(CpuOps, "memory", enough)
        size.check_memory(layers, ops64)
    monkeypatch.setattr(CpuOps, "memory", 8 * elements - 1)
    with pytest.raises(ValueError, match="of dense1, has 31 rows, and fewer with a pool or a str"):
        size.check_memory(layers, ops64)


def test_the_memory_of_this_machine_is_known_where_its_system_tells(ops64, monkeypatch):
    assert ops64.memory is None or ops64.memory > 2**28
    monkeypatch.setattr("os.sysconf", lambda name: -1, raising=False)
    assert ops64.memory is None
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
    counts = size.Arithmetic(0, 0, 0.1 * dear * size.SMALL_CALLS, 0.2 * dear * size.SMALL_CALLS)
    monkeypatch.setattr(periods, "arithmetic", lambda *arguments: [counts])
    assert periods.by_count(small(KFC), digits) == pair


def fitted(images, labels, **given):
    layers = [{"layer": "conv", "filters": 16, "kernel": 3}, {"layer": "dense"}]
    return kfcnet.fit(images, labels, layers, device="cpu", epochs=0.5, **given)


@pytest.fixture
def wide(monkeypatch):
    """Images whose dense layer takes in 576 values, on a machine where products alone cost much."""
    monkeypatch.setattr(size, "SMALL_CALLS", 10**6)
    draws = np.random.default_rng(0)
    return draws.integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 2


def settings_of(run):
    optimizer = read_config(run.folder / "config.yaml").optimizer
    return optimizer.statistics_period, optimizer.inverse_period


def test_fit_renews_large_factors_less_often_and_says_what_they_cost(wide, caplog, monkeypatch):
    monkeypatch.setattr(advice, "MOST_OF_SGD", 3)
    with caplog.at_level(logging.WARNING):
        given = {"name": "kfc_pre", "batch_size": 4}
        assert settings_of(fitted(*wide, optimizer=given)) == (50, 50)
    said = (
        "by its arithmetic an update costs 5 times SGD's, most of it for the inverses of dense1, "
        "whose largest factor has 577 rows. It costs less with a pool or a stride before dense1, "
        "or with a longer optimizer.inverse_period"
    )
    assert said in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert settings_of(fitted(wide[0][:, :4, :4], wide[1])) == (5, 5)
    assert "rows" not in caplog.text


@pytest.mark.parametrize(
    "given, pair",
    [
        ({"inverse_period": 2}, (2, 2)),
        ({"inverse_period": 20}, (5, 20)),
        ({"statistics_period": 8}, (8, 8)),
        ({"statistics_period": 2}, (2, 5)),
    ],
)
def test_one_period_that_is_given_goes_with_the_other(wide, given, pair):
    assert settings_of(fitted(*wide, optimizer={"name": "kfc_pre", **given})) == pair


def test_kfac_inverts_for_three_dampings_now_and_then(wide, caplog):
    """Each 577^3 products: of one every 20 updates, and of three as often."""
    with caplog.at_level(logging.WARNING):
        given = {"name": "kfac", "batch_size": 4, "statistics_fraction": 0.125}
        fitted(*wide, optimizer=given)
    products = 577**3 * (1 / 20 + 3 / 20)
    of_sgd = 10**6 + 4 * (2 * 36 * 16 * 28 + 3 * 2 * 577)
    (times,) = re.findall(r"costs (\d+) times SGD's, most of it for the inverses", caplog.text)
    assert int(times) == pytest.approx(1 + products / of_sgd, rel=0.03)


def test_fit_keeps_periods_that_are_given_or_begun_with(wide, tmp_path):
    given = {"name": "kfc_pre", "inverse_period": 10}
    run = fitted(*wide, optimizer=given, out=tmp_path / "a")
    assert settings_of(run) == (5, 10)
    again = fitted(*wide, out=tmp_path / "a", resume=True)
    assert settings_of(again) == (5, 10)


def test_fit_says_which_layer_is_too_wide_for_the_memory(wide, monkeypatch):
    monkeypatch.setattr(CpuOps, "memory", 5 * 10**6)
    with pytest.raises(ConfigError, match="the largest factor, of dense1, has 577 rows, and fewer"):
        fitted(*wide)
    assert fitted(*wide, optimizer="sgd").predict(wide[0]).shape == (40,)
