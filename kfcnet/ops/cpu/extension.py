"""The optional C extension, where it is built from the sources that lie beside this file."""

import warnings
import zlib
from pathlib import Path

SOURCES = ("native.c", "native_kernels.h")


def load():
    """The module, or None where it is not built.

    A checkout whose sources have changed since, by a pull perhaps, warns and goes without it: the
    old one may lack a function, or compute something else. An installed package has no sources.
    """
    try:
        from kfcnet.ops.cpu import _native
    except ImportError:
        return None
    sources = [Path(__file__).with_name(name) for name in SOURCES]
    if all(source.exists() for source in sources):
        checksum = zlib.crc32(b"".join(source.read_bytes() for source in sources))
        if getattr(_native, "SOURCES_CRC", None) != checksum:
            warnings.warn(
                "the C extension was built from other sources than there are now, and is left "
                "aside: build it again with pip install -e . (without it the CPU takes two to "
                "three times as long)",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
    return _native
