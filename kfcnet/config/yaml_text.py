"""YAML by the core schema of version 1.2: `1e-3` is a number, `off` is a word, `True` is true.

PyYAML follows version 1.1, where the first is text, the second is false, `010` is eight and `1:30`
is ninety. A key given twice is an error here, where PyYAML keeps the last value in silence.
"""

import copy
import functools
import re
from collections import Counter
from typing import Any

import yaml


def _integer(text):
    """Raises ValueError for more digits than Python reads or, in a message, writes."""
    value = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    str(value)
    return value


def _number(text):
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_CORE_SCHEMA = {  # kind: pattern, first characters, value
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: None),
    "bool": (
        r"true|True|TRUE|false|False|FALSE",
        list("tTfF"),
        lambda text: text.lower() == "true",
    ),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789"), _integer),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
        _number,
    ),
}
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}
    yaml_constructors = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (_TAG + "str", _TAG + "seq", _TAG + "map", None)
    }

    def construct_core_scalar(self, node):
        kind = node.tag.removeprefix(_TAG)
        pattern, _, value_of = _CORE_SCHEMA[kind]
        text = self.construct_scalar(node)
        try:
            if re.fullmatch(pattern, text):
                return value_of(text)
        except ValueError:  # too many digits
            pass
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise yaml.constructor.ConstructorError(
            None, None, f"{shown!r} is no {kind} of YAML 1.2", node.start_mark
        )

    def construct_mapping(self, node, deep=False):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []  # else refused below
        keys = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        for key, uses in Counter(keys).items():
            if uses > 1:
                problem = f"key {key} is given {uses} times"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version would not read back as text."""

    def ignore_aliases(self, data):
        return True


for _kind, (_pattern, _first, _) in _CORE_SCHEMA.items():
    _Loader.add_constructor(_TAG + _kind, _Loader.construct_core_scalar)
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)


def parse(text: str) -> Any:
    """The document in `text`. Raises ValueError with the place of a syntax error."""
    return copy.deepcopy(_parsed(text))


@functools.lru_cache(maxsize=1024)  # a plan asks for the same files and settings again and again
def _parsed(text):
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{place}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not YAML: {str(error).splitlines()[0]}") from None


def dump(value: Any) -> str:
    """`value` (mappings, lists, plain scalars) as YAML; innermost collections on one line."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=100,
        allow_unicode=True,
    )
