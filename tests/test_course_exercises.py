"""The checker of the exercises: solutions are right, each mistake is called by its own name."""

import re
import runpy

import numpy as np
import pytest
from notebooks import DOCS

from kfcnet.course import EXERCISES, check, examine

SOLUTIONS = {}
for path in sorted((DOCS / "course" / "solutions").glob("*.py")):
    SOLUTIONS.update(runpy.run_path(str(path))["ANSWERS"])
MISTAKES = [
    (number, words) for number, exercise in EXERCISES.items() for words in exercise.mistakes
]


def test_every_exercise_has_a_solution():
    assert list(SOLUTIONS) == list(EXERCISES)
    per_chapter = [sum(number[0] == chapter for number in EXERCISES) for chapter in "12345"]
    assert all(3 <= count <= 5 for count in per_chapter)


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_is_right(number):
    assert examine(number, SOLUTIONS[number]) == ("right", "right.")


@pytest.mark.parametrize("number, words", MISTAKES)
def test_a_mistake_is_called_by_its_name(number, words):
    verdict = examine(number, EXERCISES[number].mistakes[words])
    assert verdict == ("wrong", f"not yet. {words}")


@pytest.mark.parametrize("number", EXERCISES)
def test_an_empty_answer_is_open(number):
    assert examine(number, lambda **arguments: ...).state == "wrong"  # an Ellipsis is a value
    assert examine(number, lambda **arguments: None).state == "open"


@pytest.mark.parametrize("number", EXERCISES)
def test_no_message_has_a_number_of_the_solution(number):
    """Whatever is wrong: known by name, in another way, or raising."""
    right, exercise = SOLUTIONS[number], EXERCISES[number]
    numbers = set()

    def wrong(**arguments):
        result = right(**arguments)
        parts = result if isinstance(result, tuple) else (result,)
        numbers.update(np.concatenate([np.ravel(part) for part in parts]).tolist())
        moved = tuple(np.array(part, float) + 0.123 for part in parts)
        return moved if isinstance(result, tuple) else moved[0]

    def raising(**arguments):
        raise ZeroDivisionError("in my own code")

    messages = [
        examine(number, answer).message for answer in (wrong, raising, *exercise.mistakes.values())
    ]
    assert "ZeroDivisionError: in my own code" in messages[1]
    shown = {float(text) for text in re.findall(r"\d+\.\d+", " ".join(messages))}
    told = {number for number in numbers if any(abs(number - other) < 1e-3 for other in shown)}
    assert not told and "right." not in messages


def test_a_lost_factor_a_shape_and_a_place_are_told():
    gamma = SOLUTIONS["3.3"]
    assert "3 times" in examine("3.3", lambda ds: 3 * gamma(ds)).message
    assert "(3, 2)" in examine("3.3", lambda ds: gamma(ds)[:, :2]).message
    assert "not finite" in examine("3.3", lambda ds: gamma(ds) * np.nan).message

    def one_wrong(ds):
        result = gamma(ds)
        result[2, 1] += 1
        return result

    assert "1 of 9 entries are wrong; the first is at (2, 1)" in examine("3.3", one_wrong).message
    assert "1 results; 2 are asked for" in examine("4.2", lambda Omega, Gamma, c: Omega).message
    assert "not a number" in examine("3.3", lambda ds: "Gamma").message


def test_an_answer_may_write_to_its_arguments():
    def in_place(Omega, Gamma, c):
        share = SOLUTIONS["4.1"](Omega, Gamma)
        Omega += share * np.sqrt(c) * np.eye(len(Omega))
        Gamma += np.sqrt(c) / share * np.eye(len(Gamma))
        return Omega, Gamma

    assert examine("4.2", in_place).state == "right"


def test_check_prints_the_number_and_the_verdict(capsys):
    check("4.3", SOLUTIONS["4.3"])
    check("4.3", lambda nu, C: min(1, C / nu))
    assert capsys.readouterr().out == (
        "Exercise 4.3: right.\n"
        "Exercise 4.3: not yet. A missing root: nu is quadratic in the step.\n"
    )
    with pytest.raises(KeyError, match="no exercise 9.9"):
        check("9.9", len)
