"""Figures and tables, drawn from the records that runs leave.

A figure needs no backend, but matplotlib cannot be imported while MPLBACKEND names one that is
not there: a notebook sets it for all that it starts, in whatever environment that is.
"""

import contextlib
import os
import sys


def _import_matplotlib():
    """Import matplotlib; MPLBACKEND counts where it can, for the program's own figures."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


if "matplotlib" not in sys.modules:
    _import_matplotlib()
