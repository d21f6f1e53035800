"""The processes of one run, which share every mini-batch. Only this file imports mpi4py.

mpiexec starts R processes of the same program, its ranks. All of them hold the same parameters and
the same state, and take the same steps; each sends its own share of a mini-batch through the
network, and what is a sum over examples they add up. `ops.ranks` is what a device uses for that,
`Alone` unless it was given another.

A share is every R-th example: local example k of rank r is example k*R + r of the whole mini-batch.
Its first part, for statistics or a clip, is then the first part of every share.
"""

import math
import os
import pickle
import socket
import traceback
import warnings
from abc import ABC, abstractmethod
from functools import cache

import numpy as np

_OPEN_MPI = "OMPI_COMM_WORLD_SIZE"
_SIZES = "PMI_SIZE", _OPEN_MPI
"""Variables that an mpiexec sets: MPICH's and its relatives', Open MPI's."""
_RANKS = "PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"
INSTALL = "pip install -e '.[mpi]' in the checkout of kfcnet brings mpi4py and an MPI"


def balanced(costs, count):
    """Which of `count` does each piece of work, so that the sum of the dearest one is small."""
    loads, result = [0.0] * count, [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        result[piece] = min(range(count), key=loads.__getitem__)
        loads[result[piece]] += costs[piece]
    return result


class RanksError(RuntimeError):
    """The processes of a run cannot work together; the text says what to do."""

    exit_status = 2


class Ranks(ABC):
    """What one of `count` processes knows of the others: its own number is `rank`, from 0 on.

    `sum`, `max`, `broadcast`, `allgather`, `agreed`, `check_alike`, `first_unlike` and
    `of_first_process` are collective: all processes call them, in the same order. The other methods
    are each process's own.
    """

    rank, count = 0, 1

    @property
    def is_first(self):
        return self.rank == 0

    def share(self, examples):
        """This process's share of an array (n, ...) that all have alike: every R-th entry."""
        return examples[self.rank :: self.count]

    def whole(self, examples):
        """How many examples a whole mini-batch has of which every share has `examples`."""
        return examples * self.count

    def part(self, fraction, examples):
        """How many examples of a share of `examples` belong to a first part of the whole."""
        return math.ceil(fraction * self.whole(examples)) // self.count

    def rows(self, n):
        """(begin, end): this process's part of n rows, of work that is shared row by row."""
        return n * self.rank // self.count, n * (self.rank + 1) // self.count

    def of_first(self, factor):
        """`factor` on the first process, 0 on the others: of what all hold, it counts once."""
        return factor if self.is_first else 0.0

    @abstractmethod
    def sum(self, *arrays):
        """Each array <- the sum of its values on all processes, the same bits on each."""

    @abstractmethod
    def broadcast(self, owner, *arrays):
        """Each array <- its value on the process `owner`."""

    @abstractmethod
    def max(self, *numbers):
        """Of each integer the largest one of all processes: a list."""

    @abstractmethod
    def allgather(self, value):
        """The values of all processes, in their order; any object that can be pickled."""

    @abstractmethod
    def abort(self, status):
        """At the end of this process end the others with it, with this exit status."""

    def of_first_process(self, function):
        """What function() returns on the first process, the only one that calls it; there it
        waits for no other.

        Where it raises there, all raise the same.
        """
        outcome = _outcome(function) if self.is_first else None
        return _result(self._from_first(outcome))

    def agreed(self, function):
        """function() of every process; where it raises on some, all raise what the first of them
        did.

        It is what a process does alone: where it waited for the others, one that failed before
        would answer them with its error.
        """
        value, error = _outcome(function)
        for number, failure in enumerate(self.allgather(error), 1):
            if failure is not None:
                if number > 1:
                    failure.process = f"process {number} of {self.count}"
                raise failure
        return value

    def check_alike(self, named):
        """Raise RanksError, on all processes, unless they have the same {name: value}."""
        if (unlike := self.first_unlike(named)) is None:
            return
        number, other, first = unlike
        name = next(name for name in first if other[name] != first[name])
        values = f"{other[name]}, not {first[name]}"
        if len(values) > 200:  # such as configurations
            values = "not that of process 1"
        raise of_all(
            RanksError(
                f"{name} of process {number} of {self.count} is {values}: all processes need the "
                "same"
            )
        )

    def first_unlike(self, value):
        """(its number from 1 on, its value, that of process 1) of the first process whose value is
        not that of process 1; None where all have the same.
        """
        first, *others = self.allgather(value)
        unlike = ((number, other) for number, other in enumerate(others, 2) if other != first)
        return next(((*each, first) for each in unlike), None)

    @abstractmethod
    def _from_first(self, value):
        """The first process's value."""

    def describe(self):
        """{"processes": R} for the record of a run, nothing for one process."""
        return {"processes": self.count} if self.count > 1 else {}


def _outcome(function):
    """(function(), None), or (None, its exception as other processes can have it)."""
    try:
        return function(), None
    except Exception as error:
        lines = traceback.format_exception(error)  # which pickle leaves out
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # its class asks for more than a text
            error = RuntimeError("".join(traceback.format_exception_only(error)).strip())
        error.traceback_lines = lines
        return None, of_all(error)


def _result(outcome):
    value, error = outcome
    if error is not None:
        raise error
    return value


def of_all(error):
    """An error that every process raises, marked as such."""
    error.of_all_processes = True
    return error


def is_of_all(error):
    """Whether every process raises this error, so that one of them can tell of it for all."""
    return getattr(error, "of_all_processes", False)


def process_of(error):
    """What to put before the text of an error of all: "process 2 of 4: ", "" of the first one's."""
    return f"{error.process}: " if hasattr(error, "process") else ""


def traceback_of(error):
    """The traceback of an error, from the process where it arose."""
    lines = getattr(error, "traceback_lines", None) or traceback.format_exception(error)
    return "".join(lines).rstrip()


class Alone(Ranks):
    """One process: there is nothing to add up and nobody to wait for."""

    def sum(self, *arrays):
        pass

    def broadcast(self, owner, *arrays):
        pass

    def max(self, *numbers):
        return list(numbers)

    def allgather(self, value):
        return [value]

    def abort(self, status):
        pass

    def of_first_process(self, function):
        return function()

    def agreed(self, function):
        return function()

    def _from_first(self, value):
        return value


class MpiRanks(Ranks):
    """The processes of an MPI communicator; arrays are NumPy's."""

    def __init__(self, mpi):
        """mpi: the module mpi4py.MPI."""
        self._mpi, self._communicator = mpi, mpi.COMM_WORLD
        self.rank, self.count = self._communicator.Get_rank(), self._communicator.Get_size()

    def sum(self, *arrays):
        for array in arrays:
            self._communicator.Allreduce(self._mpi.IN_PLACE, array)

    def broadcast(self, owner, *arrays):
        for array in arrays:
            self._communicator.Bcast(array, owner)

    def max(self, *numbers):
        values = np.array(numbers, np.int64)
        self._communicator.Allreduce(self._mpi.IN_PLACE, values, self._mpi.MAX)
        return values.tolist()

    def allgather(self, value):
        return self._communicator.allgather(value)

    def abort(self, status):
        from mpi4py.run import set_abort_status

        set_abort_status(status)

    def _from_first(self, value):
        return self._communicator.bcast(value)


@cache
def world():
    """The processes that mpiexec has started, or Alone where there is none.

    Raises RanksError where it started several that cannot find each other.
    """
    started = _started()
    if started in (None, 1):
        return Alone()
    try:
        with warnings.catch_warnings():  # of what is raised below
            warnings.simplefilter("ignore", RuntimeWarning)
            import mpi4py

            mpi4py.rc(initialize=False, finalize=True)  # not before its library is known
            from mpi4py import MPI
    except ImportError as error:
        cause = " ".join(str(error).split())
        raise RanksError(
            f"several processes work together through mpi4py, which cannot be imported ({cause}): "
            f"{INSTALL}; or start the program without mpiexec"
        ) from None
    except RuntimeError as error:  # no library of MPI
        cause = " ".join(str(error).split())
        raise RanksError(
            f"mpi4py finds no MPI ({cause}): {INSTALL}; or start the program without mpiexec"
        ) from None
    library = MPI.Get_library_version().splitlines()[0].strip("\0 ")
    of_another = (
        f"mpiexec is of another MPI than mpi4py's, which is {library}. Start the processes by the "
        "mpiexec of that one"
    )
    if _OPEN_MPI in os.environ and not library.startswith("Open MPI"):
        raise RanksError(of_another)  # some libraries end the process where they find that
    if not MPI.Is_initialized():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            MPI.Init_thread()
    ranks = MpiRanks(MPI)
    if started > 1 and ranks.count == 1:
        raise RanksError(
            f"mpiexec started {started} processes, but each finds itself alone: {of_another}"
        )
    return ranks if ranks.count > 1 else Alone()


def _started():
    """How many processes mpiexec says that it started; 0 where it does not say; None without."""
    found = [os.environ[name] for name in _SIZES if name in os.environ]
    if not found and "PMIX_RANK" in os.environ:  # PMIx says no number, but Slurm does
        found = [os.environ.get("SLURM_NTASKS", "")]
    if not found:
        return None
    return int(found[0]) if found[0].isdecimal() else 0


def is_started_among_others():
    """Whether mpiexec started this process as one of several, by what it says."""
    return (_started() or 1) > 1


def is_first_started():
    """Whether this is the first process by what mpiexec says, before any of them is known."""
    number = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    return number == "0"


def machine():
    """The name of this process's machine."""
    return socket.gethostname()


def cores():
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
