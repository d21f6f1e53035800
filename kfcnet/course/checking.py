"""Comparing an answer, a function, with an exercise's own function and with typical mistakes.

An answer is called on small random arguments in float64. What is said of it never has a value or a
line of the solution in it: only the name of the mistake, a shape, a factor, or a position.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kfcnet.course.exercises import EXERCISES

# Of rounding, relative to the largest number of a result: an answer may be in any precision.
TOLERANCES = {2: 2e-2, 4: 1e-4}  # by the bytes of a float
TOLERANCE = 1e-8  # of longer floats and of integers


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
    if number not in EXERCISES:
        raise KeyError(f"there is no exercise {number}: they are {', '.join(EXERCISES)}")
    if not callable(answer):
        return Verdict("wrong", "this is no function. Give its name, without calling it.")
    exercise = EXERCISES[number]
    cases = exercise.cases(np.random.default_rng(1602))
    given = _called(answer, cases)
    if all(result is None or result is Ellipsis for result in given):
        return Verdict("open", "no answer yet. Replace the `...` of the function.")
    for case, result in zip(cases, given, strict=True):
        if result is None:
            words = f"for {_described(case)} the function returns nothing: where is its `return`?"
            return Verdict("wrong", words)
    wanted = [_parts(result) for result in _called(exercise.right, cases)]
    try:
        results = [_parts(result, len(wanted[0])) for result in given]
    except (TypeError, ValueError):
        return Verdict("wrong", "the result is not a number, an array or a tuple of arrays.")
    if _agree(results, wanted):
        return Verdict("right", "right.")
    words = _mistake_in_words(exercise.mistakes, cases, results, wanted)
    if words is not None:
        return Verdict("wrong", f"not yet. {words}")
    for case, result in zip(cases, results, strict=True):
        if isinstance(result, Exception):
            error = f"{type(result).__name__}: {result}"
            return Verdict("wrong", f"for {_described(case)} the function raises {error}")
    return Verdict("wrong", f"not yet. {_difference(cases, results, wanted)}")


def _called(function, cases):
    """What a function returns, or the error that it raises, case by case."""
    results = []
    for case in cases:
        arguments = copy.deepcopy(case)  # what an answer does to its arguments stays in the answer
        try:
            results.append(function(**arguments))
        except Exception as error:
            results.append(error)
    return results


def _parts(result, count=1):
    """A result as a list of real arrays; an error as it is.

    Where `count` > 1 parts are asked for, a list of as many is taken for a tuple. Raises TypeError
    or ValueError for what is no number and no array of real numbers.
    """
    if isinstance(result, Exception):
        return result
    several = isinstance(result, tuple) or (
        isinstance(result, list) and len(result) == count and count > 1
    )
    arrays = [np.asarray(part) for part in (result if several else (result,))]
    if any(array.dtype.kind not in "biuf" for array in arrays):
        raise TypeError
    return arrays


def _mistake_in_words(mistakes, cases, results, wanted):
    """The words of the mistake that gives these results, if need be up to a factor; or None.

    A right answer but for a factor comes before a mistake and a factor.
    """
    known = {
        words: [_parts(result) for result in _called(mistake, cases)]
        for words, mistake in mistakes.items()
    }
    for words, others in known.items():
        if _agree(results, others):
            return words
    if factors := _factors(results, wanted):
        return f"Every entry is {factors} times what it should be: a factor is lost or too much."
    for words, others in known.items():
        if factors := _factors(results, others):
            return f"{words} Besides, every entry is {factors} times that."
    return None


def _agree(results, others):
    """Whether all results are equal but for rounding; an error equals an error, if not all are."""
    pairs = [pair for pair in zip(results, others, strict=True) if not _both_raise(*pair)]
    return bool(pairs) and all(_equal(*pair) for pair in pairs)


def _both_raise(result, other):
    return isinstance(result, Exception) and isinstance(other, Exception)


def _equal(result, other):
    if isinstance(result, Exception) or isinstance(other, Exception):
        return False
    return len(result) == len(other) and all(map(_close, result, other))


def _close(array, other):
    """Whether two arrays are equal but for rounding; infinities must be at the same places."""
    if array.shape != other.shape or np.isnan(array).any():
        return False
    finite = np.isfinite(other)
    if not (np.isfinite(array) == finite).all() or (array[~finite] != other[~finite]).any():
        return False
    largest = np.abs(other[finite]).max(initial=0.0)
    return bool((np.abs(array[finite] - other[finite]) <= _tolerance(array) * largest).all())


def _tolerance(array):
    return TOLERANCES.get(array.dtype.itemsize, TOLERANCE) if array.dtype.kind == "f" else TOLERANCE


def _difference(cases, results, wanted):
    """What a wrong result and the right one differ in, without a value of the right one."""
    for result, other in zip(results, wanted, strict=True):
        if len(result) != len(other):
            return f"The function returns {len(result)} results; {len(other)} are asked for."
        for array, right in zip(result, other, strict=True):
            if array.shape != right.shape:
                return f"The result has the shape {array.shape}; it should be {right.shape}."
            if not np.isfinite(array).all() and np.isfinite(right).all():
                return "The result has entries that are not finite."
    case, array, right = next(
        (case, *pair)
        for case, result, other in zip(cases, results, wanted, strict=True)
        for pair in zip(result, other, strict=True)
        if not _close(*pair)
    )
    if array.ndim == 0:
        return f"For {_described(case)} the number is another one."
    wrong = np.abs(array - right) > _tolerance(array) * np.abs(right).max()
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{wrong.sum()} of {wrong.size} entries are wrong; the first is at {place}."


def _factors(results, others):
    """The numbers, not 0, that results, one array each, are of others in every entry, in words:
    "7", or "7 and 9" where it is another one in another case; or None.
    """
    if any(isinstance(result, Exception) or len(result) > 1 for result in [*results, *others]):
        return None
    factors = [_factor(*result, *other) for result, other in zip(results, others, strict=True)]
    if None in factors:
        return None
    return " and ".join(dict.fromkeys(f"{factor:.4g}" for factor in factors))


def _factor(array, other):
    """The number, not 0, that array is of other in every entry, or None."""
    nonzero = other != 0
    if array.shape != other.shape or array.ndim == 0 or nonzero.sum() < 2:
        return None
    if not np.isfinite(array).all():
        return None
    factor = float(np.median(array[nonzero] / other[nonzero]))
    return factor if factor != 0 and _close(array, factor * other) else None


def _described(case):
    """The arguments of a case in words: a shape for an array, other values as they are."""
    return ", ".join(
        f"{name} {value.shape}" if isinstance(value, np.ndarray) else f"{name} = {_short(value)}"
        for name, value in case.items()
    )


def _short(value):
    return f"{value:g}" if isinstance(value, float) else value
