"""What is wrong with a configuration, in words: validation errors with the full key of each."""

from typing import Any

from pydantic import ValidationError

from kfcnet.config.schema import (
    AdagradConfig,
    AdamConfig,
    AvgPoolConfig,
    BatchNormConfig,
    Config,
    ConstantConfig,
    ConvConfig,
    CosineConfig,
    DataConfig,
    DenseConfig,
    DiagnosticsConfig,
    DropoutConfig,
    EvaluationConfig,
    HessianFreeConfig,
    KfacConfig,
    KfcPreConfig,
    MaxPoolConfig,
    OpsConfig,
    ReluConfig,
    ResponseNormConfig,
    RmspropConfig,
    SgdConfig,
    StepConfig,
    suggestion,
)

_SECTIONS = {
    "data": DataConfig,
    "evaluation": EvaluationConfig,
    "ops": OpsConfig,
    "diagnostics": DiagnosticsConfig,
}

# After a choice, the location of an error also names the model that was chosen.
_CHOICES = {
    "sgd": SgdConfig,
    "kfc_pre": KfcPreConfig,
    "kfac": KfacConfig,
    "hessian_free": HessianFreeConfig,
    "adagrad": AdagradConfig,
    "rmsprop": RmspropConfig,
    "adam": AdamConfig,
    "conv": ConvConfig,
    "dense": DenseConfig,
    "relu": ReluConfig,
    "max_pool": MaxPoolConfig,
    "avg_pool": AvgPoolConfig,
    "response_norm": ResponseNormConfig,
    "batch_norm": BatchNormConfig,
    "dropout": DropoutConfig,
    "constant": ConstantConfig,
    "step": StepConfig,
    "cosine": CosineConfig,
}


def explain(error: ValidationError, document: dict, source: str) -> str:
    """One or two lines: unknown keys first, a missing key last (it may only be misspelt)."""
    order = {"extra_forbidden": 0, "missing": 2}
    errors = sorted(error.errors(), key=lambda item: order.get(item["type"], 1))
    lines = [f"{source}: {_explain_one(item, document)}" for item in errors]
    if errors[0]["type"] == "extra_forbidden" and len(errors) == 2:
        missing = errors[1]["type"] == "missing" and errors[1]["loc"][-1]
        if missing and lines[0].endswith(f"did you mean {missing}?"):
            return lines[0]
    if len(lines) > 2:
        lines = [lines[0], f"(and {len(lines) - 1} more errors)"]
    return "\n".join(lines)


def _explain_one(error: dict, document: dict) -> str:
    kind, context, got = error["type"], error.get("ctx", {}), show(error["input"])
    key = _key(error["loc"], document)
    if kind == "extra_forbidden":
        model = Config
        for step in error["loc"][:-1]:
            model = (_SECTIONS | _CHOICES).get(step, model)
        return f"{key}: unknown key" + suggestion(str(error["loc"][-1]), model.model_fields)
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
    if wanted is None:
        return f"{key}: {error['msg']} (got {got})"
    return f"{key}: must be {wanted}, got {got}"


def _key(location: tuple, document: Any) -> str:
    """Full dotted key of an error: its location without the names of chosen models."""
    keys = []
    for depth, step in enumerate(location):
        last = depth == len(location) - 1
        if isinstance(document, dict) and step in document:
            keys, document = [*keys, step], document[step]
        elif isinstance(document, list | tuple) and isinstance(step, int) and step < len(document):
            keys, document = [*keys, step], document[step]
        elif last and isinstance(document, dict) and step not in _CHOICES and step != "mapping":
            keys.append(step)
    return ".".join(map(str, keys))


def show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
