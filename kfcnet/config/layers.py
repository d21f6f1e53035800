"""The layers of a network, one model for each kind."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from kfcnet.config.fields import Fraction, LayerName, Model, PositiveFloat, PositiveInt


def _known_rule(rule: str) -> str:
    if rule != "he":
        raise ValueError(f"must be a number or he, got {rule!r}")
    return rule


# Deviation of a layer's initial weights; "he" is sqrt(2 / fan-in).
Deviation = Annotated[
    Annotated[PositiveFloat, Tag("number")]
    | Annotated[str, AfterValidator(_known_rule), Tag("rule")],
    Discriminator(lambda value: "rule" if isinstance(value, str) else "number"),
]


class ConvConfig(Model):
    layer: Literal["conv"] = "conv"
    name: LayerName | None = None
    filters: PositiveInt
    kernel: PositiveInt
    stride: PositiveInt = 1
    padding: Annotated[int, Field(ge=0)] = 0
    std: Deviation = "he"


class DenseConfig(Model):
    layer: Literal["dense"] = "dense"
    name: LayerName | None = None
    units: PositiveInt
    std: Deviation = "he"


class ReluConfig(Model):
    layer: Literal["relu"] = "relu"


class _PoolConfig(Model):
    layer: str
    size: Annotated[int, Field(ge=1, le=16)]  # a place in the window must fit in one byte
    stride: PositiveInt

    @field_validator("stride")
    @classmethod
    def _windows_meet(cls, stride, info):
        if stride > info.data.get("size", stride):
            raise ValueError(f"{stride} is above the window's size, {info.data['size']}")
        return stride


class MaxPoolConfig(_PoolConfig):
    layer: Literal["max_pool"] = "max_pool"


class AvgPoolConfig(_PoolConfig):
    layer: Literal["avg_pool"] = "avg_pool"


class ResponseNormConfig(Model):
    """y = x (1 + scale/n sum_window x^2)^-power, n = size^2 within a map, size across maps."""

    layer: Literal["response_norm"] = "response_norm"
    size: PositiveInt
    scale: PositiveFloat = 5e-5
    power: PositiveFloat = 0.75
    across: bool = False


class BatchNormConfig(Model):
    """`affine` learns a scale and a shift of every map, in a layer named after this, `_affine`."""

    layer: Literal["batch_norm"] = "batch_norm"
    name: LayerName | None = None
    epsilon: PositiveFloat = 1e-5
    affine: bool = False


class DropoutConfig(Model):
    layer: Literal["dropout"] = "dropout"
    keep: Fraction


LayerConfig = Annotated[
    ConvConfig
    | DenseConfig
    | ReluConfig
    | MaxPoolConfig
    | AvgPoolConfig
    | ResponseNormConfig
    | BatchNormConfig
    | DropoutConfig,
    Field(discriminator="layer"),
]
