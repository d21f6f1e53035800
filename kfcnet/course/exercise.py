"""What an exercise of the course consists of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Exercise(NamedTuple):
    """An exercise of the course.

    cases: a function of a random generator that returns a list of arguments, a dict each.
    right: the function that is asked for. mistakes: {what is wrong, in words: a function that does
    it}; it may raise in some of the cases. Functions return a number, an array or a tuple of these.
    """

    cases: Callable[[np.random.Generator], list[dict[str, Any]]]
    right: Callable[..., Any]
    mistakes: Mapping[str, Callable[..., Any]]
