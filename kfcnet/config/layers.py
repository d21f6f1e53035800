"""The layers of a network, one model for each kind."""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
)

from kfcnet.config.errors import ConfigError, explain
from kfcnet.config.fields import LayerName, Model, PositiveFloat, PositiveInt
from kfcnet.config.names import affine_name


def _known_rule(rule: str) -> str:
    if rule != "he":
        raise ValueError(f"must be a number or he, got {rule!r}")
    return rule


# Standard deviation of a layer's initial weights; "he" is sqrt(2 / fan-in).
Deviation = Annotated[
    Annotated[PositiveFloat, Tag("number")]
    | Annotated[str, AfterValidator(_known_rule), Tag("rule")],
    Discriminator(lambda value: "rule" if isinstance(value, str) else "number"),
]


class _LayerConfig(Model):
    """What all layers share. Without a given name, the key `name` is not written to YAML."""

    layer: str
    name: LayerName | None = None

    @property
    def weighted_name(self) -> str | None:
        """Name under which the network has parameters of this layer; None without parameters."""
        return None

    @property
    def has_open_units(self) -> bool:
        """Whether its number of units is left to the data."""
        return False

    @model_serializer(mode="wrap")
    def _without_an_absent_name(self, serialize):
        return {
            key: value for key, value in serialize(self).items() if (key, value) != ("name", None)
        }


class NamedLayerConfig(_LayerConfig):
    """A layer with a name in any case: `Config` gives it the default one of `layer_names`."""


class _WeightedConfig(NamedLayerConfig):
    @property
    def weighted_name(self) -> str | None:
        return self.name


class ConvConfig(_WeightedConfig):
    """`filters` output maps from windows of `kernel` x `kernel`, with zero `padding` all round."""

    layer: Literal["conv"] = "conv"
    filters: PositiveInt
    kernel: PositiveInt
    stride: PositiveInt = 1
    padding: Annotated[int, Field(ge=0)] = 0
    std: Deviation = "he"


class DenseConfig(_WeightedConfig):
    """Every unit is connected to all inputs. The last layer has a unit a class by default."""

    layer: Literal["dense"] = "dense"
    units: PositiveInt | None = None
    std: Deviation = "he"

    @property
    def has_open_units(self) -> bool:
        return self.units is None


class ReluConfig(_LayerConfig):
    layer: Literal["relu"] = "relu"


class _PoolConfig(_LayerConfig):
    """Windows of `size` x `size`, which may extend beyond the lower and right border.

    Where not `clipped` those that do are left out, as in PyTorch without `ceil_mode`.
    """

    size: Annotated[int, Field(ge=1, le=16)]  # an index into the window must fit in one byte
    stride: PositiveInt
    clipped: bool = True

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
    power: Annotated[PositiveFloat, Field(le=100)] = 0.75
    across: bool = False


class BatchNormConfig(NamedLayerConfig):
    """`affine`: a scale and a shift of every map are learned, in a layer named NAME_affine."""

    layer: Literal["batch_norm"] = "batch_norm"
    epsilon: PositiveFloat = 1e-5
    affine: bool = False

    @property
    def weighted_name(self) -> str | None:
        return affine_name(self.name) if self.affine else None


class DropoutConfig(_LayerConfig):
    """Each input is kept with probability `keep`, and then divided by it."""

    layer: Literal["dropout"] = "dropout"
    keep: Annotated[float, Field(ge=0.001, le=1)]  # what is divided by less overflows in time


def _class_or_name(given: Any) -> Any:
    if not isinstance(given, str | type):
        raise ValueError(f"must be a class or its name, got {given!r}")
    return given


class CustomConfig(_LayerConfig):
    """A layer of a user's own class, without weights; a file has the class by its name.

    Whoever reads the file gives the class: nothing is imported because a file names it.
    """

    layer: Literal["custom"] = "custom"
    type: Annotated[
        Any,
        AfterValidator(_class_or_name),
        PlainSerializer(lambda t: getattr(t, "__name__", t), when_used="json"),
    ]
    settings: dict[str, Any] = {}


LayerConfig = Annotated[
    ConvConfig
    | DenseConfig
    | ReluConfig
    | MaxPoolConfig
    | AvgPoolConfig
    | ResponseNormConfig
    | BatchNormConfig
    | DropoutConfig
    | CustomConfig,
    Field(discriminator="layer"),
]

_MODELS = {
    model.model_fields["layer"].default: model for model in get_args(get_args(LayerConfig)[0])
}


def completed(layer: dict[str, Any], source: str) -> dict[str, Any]:
    """The arguments of a layer with the defaults of its kind in place of those left out.

    layer: with the key `layer`, one of the kinds above. Raises ConfigError, with `source` before
    it, for arguments that the kind does not take.
    """
    model = _MODELS[layer["layer"]]
    try:
        return model.model_validate(layer).model_dump()
    except ValidationError as error:
        raise ConfigError(explain(error, model, source)) from None
