"""What a run is: its configuration, described by a schema, read from YAML and written back."""

from kfcnet.config.load import (
    ConfigError,
    config_names,
    config_summary,
    dump_config,
    load_config,
    parse_config,
    read_config,
    setting_key,
)
from kfcnet.config.schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "config_names",
    "config_summary",
    "dump_config",
    "load_config",
    "parse_config",
    "read_config",
    "setting_key",
]
