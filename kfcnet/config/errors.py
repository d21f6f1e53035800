"""Messages about a wrong configuration: one or two lines that name the full key."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

ALIASES = {"lr": "learning_rate", "batch": "batch_size", "bs": "batch_size", "wd": "weight_decay"}
"""Names of settings that other programs' users know."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and fits on two lines."""

    exit_status = 2


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Message of one or two lines: unknown keys first, a missing key last (it may be misspelt)."""
    order = {"extra_forbidden": 0, "missing": 2}
    errors = sorted(error.errors(), key=lambda item: order.get(item["type"], 1))
    lines = [f"{source}: {_explain_one(item, model)}" for item in errors]
    if errors[0]["type"] == "extra_forbidden" and len(errors) == 2:
        missing = errors[1]["type"] == "missing" and errors[1]["loc"][-1]
        if missing and lines[0].endswith(f"did you mean {missing}?"):
            return lines[0]
    if len(lines) > 2:
        lines = [lines[0], f"(and {len(lines) - 1} more errors)"]
    return "\n".join(lines)


def _explain_one(error: ErrorDetails, model: type[BaseModel]) -> str:
    kind, context, got = error["type"], error.get("ctx", {}), show(error["input"])
    key, fields = _locate(error["loc"], model)
    if kind == "extra_forbidden":
        elsewhere = setting_key(key, model)
        hint = (
            f"; did you mean {elsewhere}?"
            if elsewhere
            else suggestion(ALIASES.get(error["loc"][-1], str(error["loc"][-1])), fields)
        )
        return f"{key}: unknown key{hint}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = f"{key}.{context['discriminator'].strip(chr(39))}"
        if kind == "union_tag_not_found":
            return f"{key}: missing"
        tags = context["expected_tags"].replace("'", "").split(", ")
        return f"{key}: unknown value {context['tag']}" + suggestion(context["tag"], tags)
    if kind == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    if kind == "missing":
        return f"{key}: missing"
    wanted = {
        "float_type": "a number",
        "int_type": "a whole number",
        "bool_type": "true or false",
        "string_type": "text",
        "finite_number": "a finite number",
        "tuple_type": "a list",
        "model_type": "keys and values",
        "model_attributes_type": "keys and values",
        "dict_type": "keys and values",
        "path_type": "a path",
        "too_short": "a list of at least one item",
        "string_pattern_mismatch": "letters, digits and _ only",
        "literal_error": context.get("expected", "").replace("'", ""),
        "greater_than": f"above {context.get('gt', 0):.10g}",
        "greater_than_equal": f"at least {context.get('ge', 0):.10g}",
        "less_than": f"below {context.get('lt', 0):.10g}",
        "less_than_equal": f"at most {context.get('le', 0):.10g}",
    }.get(kind)
    if wanted == "auto":  # the other kind of such a setting is a number
        wanted = "a number or auto"
    if wanted is None:
        return f"{key}: {error['msg']} (got {got})"
    return f"{key}: must be {wanted}, got {got}"


def _locate(location: tuple, model: type[BaseModel]) -> tuple[str, Iterable[str]]:
    """Full dotted key of an error in a configuration of `model`, and the keys known beside it.

    pydantic's location also has the tag of each chosen member of a discriminated union.
    """
    keys: list[Any] = []
    part: Any = model
    choices: dict[str | None, Any] = {}
    for step in location:
        if step in choices:
            part, choices = choices[step], {}
        elif step != "[key]":  # the key of a mapping is wrong, not its value
            keys.append(step)
            fields = getattr(part, "model_fields", {})
            if step in fields:
                choices = _choices(fields[step].annotation)
                part = choices.pop(None, part)
    return ".".join(map(str, keys)), getattr(part, "model_fields", {})


def _choices(annotation: Any) -> dict[str | None, Any]:
    """{tag: member} of the discriminated union in a field's annotation.

    A model outside of a union has no tag; its key is None.
    """
    if hasattr(annotation, "model_fields"):
        first = next(iter(annotation.model_fields.values()))
        values = get_args(first.annotation)  # a tag is a value of a Literal
        none = {} if len(values) == 1 else {None: annotation}
        return {**dict.fromkeys(values, annotation), **none}
    choices: dict[str | None, Any] = {}
    for part in get_args(annotation):
        choices |= {part.tag: annotation} if isinstance(part, Tag) else _choices(part)
    return choices


def show(value: Any) -> str:
    """The value as Python writes it, cut after 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def suggestion(name: str, known: Iterable[str]) -> str:
    """End of a message about an unknown name: the most similar known one, or all of them."""
    known = list(known)
    close = [other for other in known if name and other.startswith(name)]
    close += difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def setting_key(name: str, model: type[BaseModel]) -> str | None:
    """The full key of the setting of a configuration of `model` whose last part is `name`, or what
    `name` is an alias of.

    Of several the first, those of the top level before those of sections; None where none is.
    """
    name, fields = ALIASES.get(name, name), model.model_fields
    if name in fields:
        return name
    for section, field in fields.items():
        if any(name in getattr(part, "model_fields", {}) for part in _models(field.annotation)):
            return f"{section}.{name}"
    return None


def _models(annotation: Any) -> list[Any]:
    """The models in a field's annotation, those of unions included; layers have no key."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    if getattr(annotation, "__origin__", None) is tuple:
        return []
    return [model for part in get_args(annotation) for model in _models(part)]
