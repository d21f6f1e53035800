"""The package's notices and warnings on standard error, one line each."""

import contextlib
import logging
import sys
import warnings

PACKAGE = logging.getLogger("kfcnet")


@contextlib.contextmanager
def notices_on_stderr(level=logging.INFO, is_shown=True):
    """Within the context, print the package's notices from a level on, and warnings; or nothing."""
    handler = logging.StreamHandler() if is_shown else logging.NullHandler()
    previous = PACKAGE.level
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(level)
    try:
        with warnings.catch_warnings():
            # Where numbers first fail is for the trainer to say.
            warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning)
            warnings.showwarning = lambda message, *_: (
                print(f"warning: {message}", file=sys.stderr) if is_shown else None
            )
            yield
    finally:
        PACKAGE.removeHandler(handler)
        PACKAGE.setLevel(previous)
