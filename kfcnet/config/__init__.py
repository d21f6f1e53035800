"""What a run is: its configuration, described by a schema, read from YAML and written back."""

from kfcnet.config.load import (
    ConfigError,
    config_names,
    dump_config,
    load_config,
    parse_config,
    read_config,
)
from kfcnet.config.schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "config_names",
    "dump_config",
    "load_config",
    "parse_config",
    "read_config",
]
