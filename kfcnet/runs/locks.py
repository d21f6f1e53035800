"""Keeping other processes out of a folder, where the file system can."""

import contextlib
import logging
import os
from functools import cache

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder, wait=False):
    """Hold the lock of a folder; the context's value is whether there is one.

    Only POSIX systems have such locks, and some file systems refuse them (Lustre, NFS, FUSE), which
    is said once: nobody is kept out then. The lock of a killed process ends by itself.

    wait: for the process that holds it. Raises BlockingIOError where another holds it and `wait` is
    not set, OSError for a folder that cannot be opened.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            _lock(fcntl, descriptor, folder, wait)
            is_locked = True
        except BlockingIOError:
            raise
        except OSError as error:
            _say_unlocked(error.strerror)
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def _lock(fcntl, descriptor, folder, wait):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        logger.info("waiting for another process that uses %s", folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@cache
def _say_unlocked(reason):
    logger.warning(
        "the file system has no locks (%s), so nobody is kept out: see that no other process uses "
        "the same folder",
        reason,
    )
