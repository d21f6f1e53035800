"""YAML by the rules of version 1.2 for plain scalars: `1e-3` is a number, `off` is a word.

PyYAML follows version 1.1, where the first is text and the second is false. A key given twice is
an error here, where PyYAML keeps the last value in silence.
"""

import re
from collections import Counter
from typing import Any

import yaml

_CORE_SCHEMA = (  # tag, pattern, first characters
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, uses in Counter(keys).items():
            if uses > 1:
                problem = f"key {key} is given {uses} times"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version would not read back as text."""

    def ignore_aliases(self, data):
        return True


for _kind in (_Loader, _Dumper):
    for _tag, _pattern, _first in _CORE_SCHEMA:
        _kind.add_implicit_resolver(
            "tag:yaml.org,2002:" + _tag, re.compile(rf"(?:{_pattern})\Z"), _first
        )


def parse(text: str) -> Any:
    """The document in `text`. Raises ValueError with the place of a syntax error."""
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
