"""Work whose result is taken later, and functions that yield work to the host."""

import inspect


class Future:
    """Work that was submitted, and whose result is taken at a later, fixed step.

    inputs: the arrays it works on, as they were when it was submitted.
    """

    def __init__(self, inputs, take):
        self.inputs, self._take = inputs, take

    def result(self):
        """The arrays; raises what the work raised, numpy.linalg.LinAlgError for an inverse."""
        return self._take()


def as_generator(function):
    """`function` if its calls are generators, else one that yields nothing and returns the same."""
    if inspect.isgeneratorfunction(function):
        return function

    def generator(*inputs):
        yield from ()
        return function(*inputs)

    return generator
