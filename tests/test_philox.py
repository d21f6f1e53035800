"""The random numbers: the published test vectors, and the promises that resuming rests on."""

import numpy as np
import pytest

from kfcnet import philox


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    assert philox.philox4x32(np.array(counter)[:, None], key)[:, 0].tolist() == expected


def test_a_number_does_not_depend_on_how_many_are_drawn():
    long = philox.words(7, philox.TARGETS, 3, 103)
    assert np.array_equal(philox.words(7, philox.TARGETS, 3, 13), long[:13])


@pytest.mark.parametrize("positions", [[], [0], [5, 6, 7, 8], [2, 3, 4, 13, 21]])
def test_words_at_some_positions_are_those_of_the_whole_sequence(positions):
    some = philox.words_at(np.array(positions, int), 7, philox.TARGETS, 2**33 + 3, 5)
    assert np.array_equal(some, philox.words(7, philox.TARGETS, 2**33 + 3, 22, 5)[positions])


@pytest.mark.parametrize(
    "changed", [dict(seed=8), dict(purpose=1), dict(step=4), dict(stream=1), dict(step=3 + 2**32)]
)
def test_seed_purpose_step_and_stream_each_give_another_sequence(changed):
    arguments = dict(seed=7, purpose=2, step=3, count=64, stream=0)
    other = philox.words(**(arguments | changed))
    assert (philox.words(**arguments) != other).mean() > 0.9


def test_uniforms_are_in_range_and_exact_in_float32():
    u = philox.uniforms(1, philox.DROPOUT, 0, 20_000)
    assert u.min() >= 0 and u.max() < 1
    assert np.array_equal(u.astype(np.float32), u)
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005


def test_normals_have_unit_moments():
    z = philox.normals(1, philox.INITIAL, 0, 40_001)
    assert len(z) == 40_001 and np.isfinite(z).all()
    moments = [z.mean(), z.var(), (z**3).mean(), (z**4).mean()]
    assert np.allclose(moments, [0, 1, 0, 3], atol=0.1)
