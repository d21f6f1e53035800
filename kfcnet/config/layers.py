"""The layers of a network, one model for each kind."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_serializer

from kfcnet.config.fields import Fraction, LayerName, Model, PositiveFloat, PositiveInt
from kfcnet.config.names import affine_name


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


class _LayerConfig(Model):
    """What all layers share. A `name` that is not given is not written into a run's config.yaml."""

    layer: str
    name: LayerName | None = None

    @property
    def weighted_name(self) -> str | None:
        """Name of the layer that holds this one's parameters; None where there are none."""
        return None

    @model_serializer(mode="wrap")
    def _without_an_absent_name(self, serialize):
        return {
            key: value for key, value in serialize(self).items() if (key, value) != ("name", None)
        }


class NamedLayerConfig(_LayerConfig):
    """A layer that a run's config.yaml names always; Config gives it its default name."""


class _WeightedConfig(NamedLayerConfig):
    @property
    def weighted_name(self) -> str | None:
        return self.name


class ConvConfig(_WeightedConfig):
    layer: Literal["conv"] = "conv"
    filters: PositiveInt
    kernel: PositiveInt
    stride: PositiveInt = 1
    padding: Annotated[int, Field(ge=0)] = 0
    std: Deviation = "he"


class DenseConfig(_WeightedConfig):
    layer: Literal["dense"] = "dense"
    units: PositiveInt
    std: Deviation = "he"


class ReluConfig(_LayerConfig):
    layer: Literal["relu"] = "relu"


class _PoolConfig(_LayerConfig):
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


class ResponseNormConfig(_LayerConfig):
    """y = x (1 + scale/n sum_window x^2)^-power, n = size^2 within a map, size across maps."""

    layer: Literal["response_norm"] = "response_norm"
    size: PositiveInt
    scale: PositiveFloat = 5e-5
    power: PositiveFloat = 0.75
    across: bool = False


class BatchNormConfig(NamedLayerConfig):
    """`affine` learns a scale and a shift of every map, in a layer named after this, `_affine`."""

    layer: Literal["batch_norm"] = "batch_norm"
    epsilon: PositiveFloat = 1e-5
    affine: bool = False

    @property
    def weighted_name(self) -> str | None:
        return affine_name(self.name) if self.affine else None


class DropoutConfig(_LayerConfig):
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
