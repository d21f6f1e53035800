"""Older spellings of settings: accepted wherever a configuration is read, never written."""

import functools
import logging

from kfcnet.config.errors import ConfigError

KEYS: dict[tuple[str, ...], str] = {("optimizer", "least_damping"): "min_damping"}
VALUES = {("optimizer", "structure"): {"ekfc": "ekfac", "white": "white_derivatives"}}

logger = logging.getLogger(__name__)


def rename(document: dict, source: str) -> None:
    """Give the settings in a configuration's document their present spelling, in place.

    Raises ConfigError, naming `source`, for a key that is there under both of its names.
    """
    for (section, old), new in KEYS.items():
        part = document.get(section)
        if isinstance(part, dict) and old in part:
            notice = f"{section}.{old} is called {new} now"
            if new in part:
                raise ConfigError(f"{source}: {notice}: give one of them")
            document[section] = {(new if key == old else key): part[key] for key in part}
            _tell(notice)
    for (section, key), names in VALUES.items():
        part = document.get(section)
        if isinstance(part, dict) and isinstance(value := part.get(key), str) and value in names:
            part[key] = names[value]
            _tell(f"{section}.{key}: {value} is called {names[value]} now")


def present_path(keys: list[str]) -> list[str]:
    """A setting's path, such as ["optimizer", "least_damping"], under its present name."""
    new = KEYS.get(tuple(keys))
    if new is None:
        return keys
    _tell(f"{'.'.join(keys)} is called {new} now")
    return [*keys[:-1], new]


@functools.cache  # once for each spelling: hundreds of records may be read in one process
def _tell(notice: str) -> None:
    logger.warning(notice)
