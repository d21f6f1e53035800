"""Configurations, read from YAML and written back.

A configuration is a YAML file (`configs/` has one for each curve) that follows
`kfcnet.config.schema`. Anything else raises ConfigError, whose one or two lines name the key.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kfcnet.config import aliases, errors, yaml_text
from kfcnet.config.errors import ConfigError, explain, show, suggestion
from kfcnet.config.names import layer_names
from kfcnet.config.schema import Config


def load_config(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Configuration from a file of `configs/` (by name) or from a path.

    overrides: texts `key.key=value` with the value in YAML; items of a list are numbered from 0
    (`network.0.std=0.01`), layers have names too (`network.conv1.std=0.01`). Raises ConfigError.
    """
    if not isinstance(name_or_path, (str, Path)):
        raise ConfigError(
            f"load_config: expected a name or a path, got {show(name_or_path)}; kfcnet.fit takes "
            "settings as Python has them"
        )
    source, text = _find(name_or_path)
    return parse_config(text, source, overrides)


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Configuration from a file that a run left. Raises ConfigError naming the file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    return parse_config(text, str(path), overrides)


def parse_config(text: str, source: str = "config", overrides: Iterable[str] = ()) -> Config:
    """Configuration from YAML text; `source` names it in errors. Raises ConfigError.

    Settings may have their older spelling (`kfcnet.config.aliases`).
    """
    document = _parse_yaml(text, source)
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: expected keys and values, got {show(document)}")
    aliases.rename(document, source)
    if isinstance(overrides, (str, Mapping)):
        raise ConfigError(
            f"{source}: overrides: expected a list of texts such as ['epochs=3'], "
            f"got {show(overrides)}"
        )
    for override in overrides:
        _apply_override(document, override)
        aliases.rename(document, source)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain(error, Config, source)) from None


def dump_config(config: Config) -> str:
    """YAML text that loads back to an equal configuration."""
    return yaml_text.dump(config.model_dump(mode="json"))


def config_names() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in _folder().iterdir()
        if entry.name.endswith(".yaml")
    )


def config_summary(name: str) -> str:
    """What a configuration of the package is: the first sentence of its comment."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), _read(name).splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    return re.split(r"[.:;](?: |$)", comment)[0] + "."


def setting_key(name: str) -> str | None:
    """The full key of the setting whose last part is `name` or what that is an alias of; or None.

    Of learning_rate and of lr it is optimizer.learning_rate.
    """
    return errors.setting_key(name, Config)


def _read(name):
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def _folder():
    try:
        return resources.files("kfcnet.configs")
    except ModuleNotFoundError:  # a checkout that is not installed
        return Path(__file__).resolve().parents[2] / "configs"


def _find(name_or_path: str | Path) -> tuple[str, str]:
    """(source for errors, text) of a packaged configuration or of a file."""
    path, name = Path(name_or_path), str(name_or_path).removesuffix(".yaml")
    if name in config_names():
        text = _read(name)
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise ConfigError(
                f"{path} is a packaged config and another file in this folder:\n"
                f"write ./{path} for the file, {name} for the packaged one"
            )
        return f"{name}.yaml", text
    try:
        return str(path), path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file (UTF-8)") from None
    except OSError as error:
        raise ConfigError(
            f"config {path}: {error.strerror or error}{suggestion(name, config_names())}"
        ) from None


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml_text.parse(text)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _apply_override(document: dict, override: str) -> None:
    """Set one `key.key=value` in the document."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override}: expected key.key=value")
    keys = aliases.present_path(keys)
    value, part = _parse_yaml(text, f"--set {path}"), document
    for depth, key in enumerate(keys):
        index = _index(part, key, f"--set {path}: {'.'.join(keys[:depth])}")
        if depth == len(keys) - 1:
            part[index] = value
        elif isinstance(part, dict) and part.get(index) is None:
            part[index] = {}
        part = part[index]


def _index(part: Any, key: str, name: str) -> str | int:
    """The index of `key` in a part of the document; `name` names the part in errors."""
    if isinstance(part, list):
        if key.isdecimal() and int(key) < len(part):
            return int(key)
        is_network = all(isinstance(item, dict) and "layer" in item for item in part)
        names = layer_names(part) if is_network else []
        if key in names:
            return names.index(key)
        hint = suggestion(key, names) if names and not key.isdecimal() else ""
        raise ConfigError(f"{name} has items 0 to {len(part) - 1}, not {key}{hint}")
    if not isinstance(part, dict):
        raise ConfigError(f"{name} has no keys of its own")
    return key
