"""What a run is: the schema of a configuration.

Every key is checked. An unknown key, a wrong type or a value out of range is a ValidationError,
which `kfcnet.config` turns into one or two lines that name the key.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from kfcnet.config.errors import suggestion
from kfcnet.config.fields import Model, OrAuto, PositiveFloat, PositiveInt
from kfcnet.config.layers import (
    AvgPoolConfig,
    BatchNormConfig,
    ConvConfig,
    CustomConfig,
    DenseConfig,
    DropoutConfig,
    LayerConfig,
    MaxPoolConfig,
    NamedLayerConfig,
    ReluConfig,
    ResponseNormConfig,
)
from kfcnet.config.names import layer_names
from kfcnet.config.optimizers import (
    TIMESCALES,
    AdagradConfig,
    AdamConfig,
    ConstantConfig,
    CosineConfig,
    HessianFreeConfig,
    KfacConfig,
    KfcPreConfig,
    OptimizerConfig,
    RmspropConfig,
    ScheduleConfig,
    SgdConfig,
    StatisticsConfig,
    StepConfig,
)

__all__ = [
    "ArraysDataConfig",
    "AdagradConfig",
    "AdamConfig",
    "AvgPoolConfig",
    "BatchNormConfig",
    "Config",
    "ConstantConfig",
    "ConvConfig",
    "CosineConfig",
    "CustomConfig",
    "DataConfig",
    "DenseConfig",
    "DiagnosticsConfig",
    "DropoutConfig",
    "EvaluationConfig",
    "FolderDataConfig",
    "HessianFreeConfig",
    "IdxDataConfig",
    "KfacConfig",
    "KfcPreConfig",
    "LayerConfig",
    "MaxPoolConfig",
    "OpsConfig",
    "OptimizerConfig",
    "ReluConfig",
    "ResponseNormConfig",
    "RmspropConfig",
    "ScheduleConfig",
    "SgdConfig",
    "StepConfig",
]


InputScale = OrAuto[PositiveFloat]
"""What pixels are divided by; "auto" is the deviation of the training set's."""

DataPath = Annotated[Path | None, Field(strict=False)]


class DataConfig(Model):
    """A data set. The input of the network is (pixel - training mean) / input_scale."""

    name: Literal["cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "digits", "synthetic"]
    path: DataPath = None  # the only directory searched, if given
    input_scale: InputScale = 1.0
    extra: bool = False  # SVHN: the extra set belongs to the training set
    examples: PositiveInt = 10000  # synthetic: size of the training set


class _OwnDataConfig(Model):
    """A user's own images."""

    name: str
    path: DataPath = None
    input_scale: InputScale = "auto"


class _SplitDataConfig(_OwnDataConfig):
    """Images of which `test_share` is drawn by `split_seed` where they have no test part."""

    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class ArraysDataConfig(_SplitDataConfig):
    """A file of arrays, .npz, HDF5 or MATLAB (`kfcnet.data.arrays`)."""

    name: Literal["arrays"] = "arrays"


class FolderDataConfig(_SplitDataConfig):
    """Images in a folder a class (`kfcnet.data.folder`), resized to `size` where it is given."""

    name: Literal["folder"] = "folder"
    size: Annotated[tuple[PositiveInt, PositiveInt] | None, Field(strict=False)] = None


class IdxDataConfig(_OwnDataConfig):
    """A folder of the four IDX files of a set in MNIST's format (`kfcnet.data.idx`)."""

    name: Literal["idx"] = "idx"


AnyDataConfig = Annotated[
    DataConfig | ArraysDataConfig | FolderDataConfig | IdxDataConfig, Field(discriminator="name")
]


class EvaluationConfig(Model):
    """Evaluate after every `every` units, on the test set and on a part of the training set."""

    every: PositiveFloat = 1.0
    unit: Literal["epochs", "updates"] = "epochs"
    train_examples: PositiveInt = 10000  # on the CPU; a GPU evaluates the whole training set

    @model_validator(mode="after")
    def _whole_updates(self):
        if self.unit == "updates" and self.every != int(self.every):
            raise ValueError(f"every must be a whole number of updates, got {self.every}")
        return self


class DiagnosticsConfig(Model):
    """Look into the run after every `every` updates (`kfcnet.training.diagnostics`): how many units
    are active, and with Kronecker factors what the curvature is like.
    """

    every: PositiveInt


class OpsConfig(Model):
    """How a device computes.

    On the CPU: use of the C extension (`native`), and the number of `shards` of a batch. On a GPU:
    `tensor_cores` for convolutions and dense layers, in TF32; statistics and preconditioning are
    always in fp32.
    """

    native: Literal["auto", "on", "off"] = "auto"
    shards: Annotated[int, Field(ge=1, le=256)] = 2
    tensor_cores: Literal["auto", "on", "off"] = "auto"


class Config(Model):
    """The configuration of one run.

    With `loss: squared_error` the network is an autoencoder: its targets are its own inputs.
    """

    data: AnyDataConfig
    network: Annotated[tuple[LayerConfig, ...], Field(strict=False, min_length=1)]
    loss: Literal["softmax_cross_entropy", "squared_error"] = "softmax_cross_entropy"
    optimizer: OptimizerConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    diagnostics: DiagnosticsConfig | None = None
    checkpoint_minutes: PositiveFloat = 5.0
    epochs: Annotated[float, Field(gt=0, le=1e9)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    ops: OpsConfig = OpsConfig()

    @field_validator("optimizer")
    @classmethod
    def _own_data_have_settings_auto(cls, optimizer, info):
        """The defaults on a user's own images; the paper's numbers were chosen for its data."""
        if not isinstance(info.data.get("data"), _OwnDataConfig):
            return optimizer
        given = optimizer.model_fields_set
        if "averaging_timescale" in given:  # the other one follows it
            given = given.union(TIMESCALES)
        keys = TIMESCALES + (("damping",) if optimizer.name == "kfc_pre" else ())
        left_out = [key for key in keys if hasattr(optimizer, key) and key not in given]
        return optimizer.model_copy(update=dict.fromkeys(left_out, "auto"))

    @field_validator("network")
    @classmethod
    def _name_layers(cls, network):
        """Give every NamedLayerConfig a name; refuse a name that two layers share."""
        names = layer_names(layer.model_dump() for layer in network)
        network = tuple(
            layer.model_copy(update={"name": name})
            if isinstance(layer, NamedLayerConfig)
            else layer
            for layer, name in zip(network, names, strict=True)
        )
        weighted = _weighted_names(network)
        if not weighted:
            raise ValueError("no conv or dense layer, so there is nothing to train")
        affine = [
            name for layer in network if (name := layer.weighted_name) not in (None, layer.name)
        ]
        for name, uses in Counter(names + affine).items():
            if uses > 1:
                raise ValueError(f"{uses} layers are named {name}; names must differ")
        return network

    @model_validator(mode="after")
    def _units_may_be_left_out_at_the_end(self):
        for index, layer in enumerate(self.network[:-1]):
            if layer.has_open_units:
                raise ValueError(
                    f"network.{index}.units: missing; only the last layer leaves them to the data"
                )
        return self

    @model_validator(mode="after")
    def _mappings_name_layers(self):
        names = _weighted_names(self.network)
        for key in ("weight_decay", "max_norm"):
            value = getattr(self.optimizer, key)
            for name in value if isinstance(value, dict) else ():
                if name not in names:
                    raise ValueError(
                        f"optimizer.{key}.{name}: the network has no such layer"
                        + suggestion(name, names)
                    )
        return self

    @model_validator(mode="after")
    def _diagnostics_have_something_to_look_at(self):
        has_relu = any(isinstance(layer, ReluConfig) for layer in self.network)
        if self.diagnostics and not (has_relu or isinstance(self.optimizer, StatisticsConfig)):
            raise ValueError(
                f"diagnostics: {self.optimizer.name} has no Kronecker factors to look at, and the "
                "network no ReLU; leave diagnostics out"
            )
        return self


def _weighted_names(network) -> list[str]:
    return [layer.weighted_name for layer in network if layer.weighted_name]
