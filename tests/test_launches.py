"""How many launches the recorded steps of the CIFAR-10 network have; each costs some microsecond.

Counted at M = 128 (SGD) and 512 (KFC-pre) on a runtime that launches nothing.
"""

import pytest
from recorded_steps import record


@pytest.mark.parametrize(
    "step, most",
    [(("cifar_sgd", 128), 24), (("cifar_kfc", 512, None, False), 50)],
    ids=["SGD", "KFC-pre"],
)
def test_a_step_has_no_more_launches_than_it_had(step, most):
    counts = record(*step).counts()
    assert counts.total() <= most, counts


def test_inverting_all_factors_takes_at_most_forty_launches_and_no_host():
    inverting, plain = (record("cifar_kfc", 512, None, due).counts() for due in (True, False))
    inverting -= plain
    assert inverting.keys() == {"spd_damp", "spd_sweep", "spd_adopt"}
    assert inverting["spd_sweep"] == 33 and inverting.total() <= 40
