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
    assert examine(number, lambda **arguments: None).state == "open"
    assert examine(number, lambda **arguments: ...).state == "open"


@pytest.mark.parametrize("number", EXERCISES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble])
def test_a_right_answer_may_be_in_any_precision(number, dtype):
    def rounded(**arguments):
        result = SOLUTIONS[number](**arguments)
        if isinstance(result, tuple):
            return [np.array(part, dtype) for part in result]  # a list of results will do, too
        return np.array(result, dtype)

    assert examine(number, rounded).state == "right"


@pytest.mark.parametrize("number", EXERCISES)
def test_what_is_no_real_number_is_not_right(number):
    def changed(change):
        def answer(**arguments):
            result = SOLUTIONS[number](**arguments)
            return tuple(map(change, result)) if isinstance(result, tuple) else change(result)

        return answer

    for change in (lambda part: np.array(part) * (1 + 1e-30j), str, lambda part: {"": part}):
        assert "not a number, an array or a tuple" in examine(number, changed(change)).message
    assert "not finite" in examine(number, changed(lambda part: np.nan * part)).message
    assert "no function" in examine(number, 3.0).message


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
    assert "7 times" in examine("3.3", lambda ds: 7 * gamma(ds)).message
    assert "(2, 1)" in examine("3.3", lambda ds: gamma(ds)[:, :1]).message
    assert "not finite" in examine("3.3", lambda ds: gamma(ds) * np.nan).message

    def one_wrong(ds):
        result = gamma(ds)
        result[1, 0] += 1
        return result

    assert "1 of 4 entries are wrong; the first is at (1, 0)" in examine("3.3", one_wrong).message
    assert "1 results; 2 are asked for" in examine("4.2", lambda Omega, Gamma, c: Omega).message
    assert "not a number" in examine("3.3", lambda ds: "Gamma").message


def test_the_arguments_of_a_wrong_number_an_error_and_a_missing_return_are_told():
    beta, adapted = SOLUTIONS["3.1"], SOLUTIONS["4.5"]
    off = examine("3.1", lambda T1, T2, d, d2: beta(T1, T2, d, d2) + (d == (2, 1)))
    assert "For T1 = 5, T2 = 7, d = (2, 1), d2 = (1, 2) the number" in off.message
    silent = examine("4.5", lambda damping, rho, factor: None if rho == 0.5 else damping)
    assert "for damping = 2, rho = 0.5, factor = 0.9 the function returns nothing" in silent.message
    raising = examine("4.5", lambda damping, rho, factor: adapted(damping, rho, factor) / (rho > 0))
    assert "for damping = 2, rho = -1, factor = 0.9 the function raises Zero" in raising.message


def test_transposed_factors_are_named_though_they_fit_a_square_gradient_alone():
    verdict = examine("2.3", lambda dW, Omega_inv, Gamma_inv: Omega_inv @ dW @ Gamma_inv)
    assert "The factors are transposed" in verdict.message

    def always(dW, Omega_inv, Gamma_inv):
        raise ValueError("shapes do not match")

    assert "raises ValueError: shapes" in examine("2.3", always).message


def test_a_mistake_is_named_beside_a_lost_factor():
    def empirical(J, p, labels, u):
        gradients = np.einsum("mcn,mc->mn", J, p - np.eye(p.shape[1])[labels])
        return gradients.T @ gradients

    message = examine("1.3", empirical).message
    assert "the empirical Fisher matrix" in message
    assert "Besides, every entry is 7 and 9 times that" in message  # a lost 1/M


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


@pytest.mark.parametrize("number", EXERCISES)
def test_no_argument_is_the_same_in_all_cases(number):
    """An answer that has its value, or its shape, in place of the argument would be right."""
    cases = EXERCISES[number].cases(np.random.default_rng(0))
    for name in cases[0]:
        values = [case[name] for case in cases]
        assert len({getattr(value, "shape", value) for value in values}) > 1, name


@pytest.mark.parametrize("axis", [1, 2])
def test_a_patch_that_leaves_the_image_on_one_side_alone_is_asked_for_on_every_side(axis):
    cases = EXERCISES["5.4"].cases(np.random.default_rng(0))
    left = set()
    for case in cases:
        (_, H, W, J), K = case["x"].shape, case["K"]
        if case["column"] > 0:
            place = divmod(case["row"] % (H * W), W)
            offset = divmod((case["column"] - 1) // J, K)
            h, w = (t + d - K // 2 for t, d in zip(place, offset, strict=True))
            sides = [h < 0, h >= H, w < 0, w >= W]
            if sum(sides) == 1:
                left.add(sides.index(True))
    assert left == {0, 1, 2, 3}
