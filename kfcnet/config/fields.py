"""Base class of the models of a configuration, and the types of their values."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from kfcnet.config.errors import ConfigError, explain


class _Explained(type(BaseModel)):
    """The class of models whose constructor raises ConfigError."""

    def __call__(cls, /, *values, **settings):
        try:
            return super().__call__(*values, **settings)
        except ValidationError as error:
            raise ConfigError(explain(error, cls, cls.__name__)) from None


class Model(BaseModel, metaclass=_Explained):
    """Immutable; refuses unknown keys, wrong types and numbers that are not finite.

    From Python, as `KfcPreConfig(learning_rate=0.1)`, in one or two lines of a ConfigError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
LayerName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

_Number = TypeVar("_Number")
OrAuto = Annotated[
    Annotated[_Number, Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(lambda value: "auto" if isinstance(value, str) else "number"),
]
"""`OrAuto[PositiveFloat]`: a number, or "auto" for one that is chosen when a run begins."""

PerLayer = Annotated[
    Annotated[_Number, Tag("number")] | Annotated[dict[str, _Number], Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, dict) else "number"),
]
"""`PerLayer[NonNegative]`: one number for all layers, or a mapping from layer names to numbers."""
