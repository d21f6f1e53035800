"""Comparing an answer, a function, with an exercise's own function and with typical mistakes.

An answer is called on small random arguments in float64. What is said of it never has a value or a
line of the solution in it: only the name of the mistake, a shape, a factor, or a position.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

TOLERANCE = 1e-8  # relative to the largest number of a result


class Exercise(NamedTuple):
    """An exercise of the course.

    cases: a function of a random generator that returns a list of arguments, a dict each.
    right: the function that is asked for. mistakes: {what is wrong, in words: a function that does
    it}. Functions return a number, an array or a tuple of these.
    """

    cases: Callable[[np.random.Generator], list[dict[str, Any]]]
    right: Callable[..., Any]
    mistakes: Mapping[str, Callable[..., Any]]


class Verdict(NamedTuple):
    """state: "open" (no answer yet), "right" or "wrong". message: what to print."""

    state: str
    message: str


def check(number: str, answer: Callable[..., Any]) -> None:
    """Print what is to be said of an answer to an exercise, such as "3.2".

    Raises KeyError for a number that no exercise has.
    """
    print(f"Exercise {number}: {examine(number, answer).message}")


def examine(number: str, answer: Callable[..., Any]) -> Verdict:
    """The Verdict on an answer. An error that the answer raises is a Verdict, too.

    Raises KeyError for a number that no exercise has.
    """
    from kfcnet.course.exercises import EXERCISES

    if number not in EXERCISES:
        raise KeyError(f"there is no exercise {number}: they are {', '.join(EXERCISES)}")
    exercise = EXERCISES[number]
    cases = exercise.cases(np.random.default_rng(1602))
    given = []
    for case in cases:
        arguments = copy.deepcopy(case)  # what an answer does to its arguments stays in the answer
        try:
            given.append(answer(**arguments))
        except Exception as error:
            return Verdict("wrong", f"the function raises {type(error).__name__}: {error}")
    if all(result is None for result in given):
        return Verdict("open", "no answer yet. Replace the `...` of the function.")
    wanted = _results(exercise.right, cases)
    try:
        results = [_arrays(result) for result in given]
    except (TypeError, ValueError):
        return Verdict("wrong", "the result is not a number, an array or a tuple of arrays.")
    if _agree(results, wanted):
        return Verdict("right", "right.")
    for words, mistake in exercise.mistakes.items():
        if _agree(results, _results(mistake, cases)):
            return Verdict("wrong", f"not yet. {words}")
    return Verdict("wrong", f"not yet. {_difference(results, wanted)}")


def _results(function, cases):
    return [_arrays(function(**copy.deepcopy(case))) for case in cases]


def _arrays(result):
    """A result as a list of float64 arrays."""
    return [np.asarray(part, np.float64) for part in (result if _is_tuple(result) else (result,))]


def _is_tuple(result):
    return isinstance(result, tuple)


def _agree(results, others):
    return all(
        len(result) == len(other) and all(map(_close, result, other))
        for result, other in zip(results, others, strict=True)
    )


def _close(array, other):
    """Whether two arrays are equal but for rounding; infinities must be at the same places."""
    if array.shape != other.shape or np.isnan(array).any():
        return False
    finite = np.isfinite(other)
    if not (np.isfinite(array) == finite).all() or (array[~finite] != other[~finite]).any():
        return False
    largest = np.abs(other[finite]).max(initial=0.0)
    return bool((np.abs(array[finite] - other[finite]) <= TOLERANCE * largest).all())


def _difference(results, wanted):
    """What a wrong result and the right one differ in, without a value of the right one."""
    for result, other in zip(results, wanted, strict=True):
        if len(result) != len(other):
            return f"The function returns {len(result)} results; {len(other)} are asked for."
        for array, right in zip(result, other, strict=True):
            if array.shape != right.shape:
                return f"The result has the shape {array.shape}; it should be {right.shape}."
            if not np.isfinite(array).all() and np.isfinite(right).all():
                return "The result has entries that are not finite."
    pairs = [
        pair for parts in zip(results, wanted, strict=True) for pair in zip(*parts, strict=True)
    ]
    array, right = next(pair for pair in pairs if not _close(*pair))
    ratio = _ratio(array, right)
    if ratio is not None:
        return f"Every entry is {ratio:.4g} times what it should be: a factor is lost or too much."
    if array.ndim == 0:
        return "The number is another one."
    wrong = np.abs(array - right) > TOLERANCE * np.abs(right).max()
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{wrong.sum()} of {wrong.size} entries are wrong; the first is at {place}."


def _ratio(array, right):
    """The number that array is of right in every entry, or None."""
    nonzero = right != 0
    if array.ndim == 0 or not np.isfinite(array).all() or not nonzero.any():
        return None
    ratio = float(np.median(array[nonzero] / right[nonzero]))
    return ratio if ratio and _close(array, ratio * right) else None
