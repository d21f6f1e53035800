"""BLAS held to one thread while kfcnet computes, and given back to the program afterwards."""

import contextlib
import functools
import os
import threading

import threadpoolctl


@functools.cache
def _libraries():
    """The BLAS libraries that NumPy and SciPy have loaded: (of the process, of each thread).

    The latter, OpenBLAS over OpenMP, keep a limit for the thread that set it.
    """
    libraries = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    parts = [], []
    for library in libraries:
        parts[getattr(library, "threading_layer", None) == "openmp"].append(library)
    return parts


def _limit(libraries, limits):
    for library, threads in zip(libraries, limits, strict=True):
        # For threadpoolctl only the thread that set a limit may change it; here the last one to
        # leave does.
        release = getattr(library, "clear_controlling_thread", lambda force: None)
        release(force=True)
        library.set_num_threads(threads)
        release(force=True)


def _threads(libraries):
    return [library.num_threads for library in libraries]


def hold_own_thread():
    """Hold the calling thread to one for good where the limit is a thread's own."""
    _, of_thread = _libraries()
    _limit(of_thread, [1] * len(of_thread))


class _OneThread(contextlib.ContextDecorator):
    """The context, also as a decorator; within itself and in other threads it costs next to none.

    The number of threads belongs to the process: the first thread that enters sets it, and the
    last one that leaves restores it.
    """

    def __init__(self):
        self._lock, self._inside, self._before = threading.Lock(), 0, []
        self._own = threading.local()

    def __enter__(self):
        depth = getattr(self._own, "depth", 0)
        self._own.depth = depth + 1
        if depth:
            return
        of_process, of_thread = _libraries()
        with self._lock:
            if not self._inside:
                self._before = _threads(of_process)
                _limit(of_process, [1] * len(of_process))
            self._inside += 1
        self._own.before = _threads(of_thread)
        _limit(of_thread, [1] * len(of_thread))

    def __exit__(self, *_):
        self._own.depth -= 1
        if self._own.depth:
            return
        of_process, of_thread = _libraries()
        _limit(of_thread, self._own.before)
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _limit(of_process, self._before)


one_blas_thread = _OneThread()
if hasattr(os, "register_at_fork"):  # no child inherits the lock from a thread that it lacks
    lock = one_blas_thread._lock
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )
