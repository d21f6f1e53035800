"""Every layer behind every other, and every setting at the ends of its range, on every device.

What a schema allows either trains, with the numbers of the float64 reference, or is refused by a
text that names the layer or the setting. Nothing here is chosen by hand: the layers, the settings
and their bounds are read from the models of a configuration.
"""

import itertools
import re
import types
import typing

import numpy as np
import pytest
from checks import assert_close
from pydantic import Field, TypeAdapter, ValidationError

from kfcnet.batches import Batch
from kfcnet.config import ConfigError, schema
from kfcnet.config.schema import (
    KfcPreConfig,
    LayerConfig,
    OptimizerConfig,
    ScheduleConfig,
    SgdConfig,
)
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import build_optimizer

SHAPE, CLASSES, M = (6, 5, 2), 3, 6
LAYERS = {
    "conv": dict(layer="conv", filters=2, kernel=3, padding=1, std=0.5),
    "dense": dict(layer="dense", units=4, std=0.5),
    "relu": dict(layer="relu"),
    "max_pool": dict(layer="max_pool", size=2, stride=1),
    "avg_pool": dict(layer="avg_pool", size=2, stride=1),
    "avg_pool inside": dict(layer="avg_pool", size=2, stride=2, clipped=False),
    "response_norm": dict(layer="response_norm", size=3, scale=0.5, power=0.75),
    "response_norm across": dict(layer="response_norm", size=3, scale=0.5, power=0.75, across=True),
    "batch_norm": dict(layer="batch_norm", epsilon=0.1),
    "batch_norm affine": dict(layer="batch_norm", epsilon=0.1, affine=True),
    "dropout": dict(layer="dropout", keep=0.8),
}
END = dict(layer="dense", name="end", units=CLASSES, std=0.5)
OPTIMIZER = KfcPreConfig(
    learning_rate=0.1,
    batch_size=M,
    weight_decay=0.01,
    damping=0.1,
    averaging_timescale=50,
    statistics_period=1,
    statistics_fraction=0.5,
    inverse_period=1,
)


def trained(ops, layers, optimizer=OPTIMIZER, updates=2):
    """The parameters after some updates, (n,). Raises ValueError where the network is refused."""
    rng = np.random.default_rng(5)
    network = build_network(layers, SHAPE, ops, seed=3)
    opt = build_optimizer(optimizer, network, SoftmaxCrossEntropy(ops, 3))
    batches = [
        Batch(
            ops.asarray(rng.standard_normal((M, *SHAPE))),
            rng.integers(0, CLASSES, M).astype(np.int32),
        )
        for _ in range(updates)
    ]
    opt.prepare(batches[:1])
    for batch in batches:
        opt.step(batch)
    return ops.to_numpy(network.theta)


def test_every_kind_of_layer_is_among_them():
    kinds = {
        model.model_fields["layer"].default for model in typing.get_args(LayerConfig)[0].__args__
    }
    assert kinds - {"custom"} == {layer["layer"] for layer in LAYERS.values()}


@pytest.mark.parametrize("first", LAYERS)
def test_every_layer_behind_every_other_trains_as_the_reference_or_is_refused_by_name(
    ops_of_many_shapes, first
):
    ops = ops_of_many_shapes
    reference = CpuOps("float64", shards=1, native="off")
    tolerance = 2e-3 if ops.dtype == np.float32 else 1e-9
    for second in LAYERS:
        pair = [dict(LAYERS[first], name="first"), dict(LAYERS[second], name="second"), END]
        try:
            expected = trained(reference, pair)
        except ValueError as error:
            assert re.search("network.1|first|second", str(error)), (second, error)
            with pytest.raises(ValueError, match=re.escape(str(error))):
                trained(ops, pair)
            continue
        got = trained(ops, pair)
        assert np.isfinite(got).all(), second
        assert_close(got, expected, tolerance)


def ends(kind, rules=()):
    """The ends of a type's values: the bounds of a number, of an excluded one its neighbour; every
    choice where there is one, None included.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        nested = [getattr(part, "metadata", [part]) for part in parts[1:]]
        yield from ends(parts[0], [*rules, *itertools.chain(*nested)])
    elif origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from ends(part)
    elif origin is typing.Literal:
        yield from parts if len(parts) > 1 else ()
    elif kind is types.NoneType:
        yield None
    elif kind is bool:
        yield from (False, True)
    elif kind in (int, float):
        for rule in rules:
            for bound, beyond in (("ge", None), ("le", None), ("gt", np.inf), ("lt", -np.inf)):
                if (value := getattr(rule, bound, None)) is not None:
                    yield kind(value if beyond is None else np.nextafter(value, beyond))


def models(union):
    return typing.get_args(typing.get_args(union)[0])


def settings_at_ends(union):
    """(model, name of a field, value) of every end in the models of a union."""
    return [
        (model, name, value)
        for model in models(union)
        if model is not schema.CustomConfig
        for name, field in model.model_fields.items()
        if name != "name"
        for value in ends(field.annotation, field.metadata)
        if (name, value) != ("units", None)  # which leaves them to the data
    ]


def at_bounds(cases):
    """A test of each case, (model, name of a field, value)."""
    ids = [f"{model.__name__}.{name}={value}" for model, name, value in cases]
    return pytest.mark.parametrize("model, name, value", cases, ids=ids)


REFUSED_BY = {"factor_damping": "damping"}
"""{setting: what an error of it speaks of}: the settings that may be refused late."""

LAYER_BOUNDS = settings_at_ends(LayerConfig)
OPTIMIZER_BOUNDS = settings_at_ends(OptimizerConfig)
SCHEDULE_BOUNDS = settings_at_ends(ScheduleConfig)


@pytest.mark.parametrize(
    "kind, expected",
    [
        (typing.Annotated[int, Field(ge=1, le=16)], [1, 16]),
        (typing.Annotated[float, Field(gt=0, lt=1)], [5e-324, np.nextafter(1, 0)]),
        (typing.Annotated[float, Field(ge=0)] | None, [0.0, None]),
        (typing.Literal["a", "b"] | bool, ["a", "b", False, True]),
    ],
)
def test_ends_are_found_wherever_they_stand_in_a_type(kind, expected):
    assert [*ends(kind)] == expected


@at_bounds(LAYER_BOUNDS)
def test_a_layer_at_the_end_of_its_range_trains_or_is_refused_by_name(
    ops_of_many_shapes, model, name, value
):
    ops = ops_of_many_shapes
    kind = model.model_fields["layer"].default
    settings = dict(LAYERS[kind]) | {name: value}
    try:
        layer = TypeAdapter(LayerConfig).validate_python(settings | {"name": "first"})
    except ValidationError:
        return  # another setting forbids it
    layers = [layer.model_dump(), END]
    try:
        theta = trained(ops, layers)
    except ValueError as error:
        assert re.search(rf"\b({name}|{REFUSED_BY.get(name, name)})\b", str(error))
        return
    assert np.isfinite(theta).all()


@at_bounds(OPTIMIZER_BOUNDS)
def test_an_optimizer_at_the_end_of_a_range_trains_or_is_refused_by_name(
    ops_of_many_shapes, model, name, value
):
    ops = ops_of_many_shapes
    rate = {"learning_rate": 0.01} if "learning_rate" in model.model_fields else {}
    few = dict(batch_size=M, averaging_timescale=50.0)
    few |= {
        key: 1
        for key in ("statistics_period", "inverse_period", "factor_damping_period")
        if key in model.model_fields
    }
    try:
        optimizer = model(**(rate | few | {name: value}))
    except ConfigError:
        return  # another setting forbids it
    layers = [LAYERS["conv"], LAYERS["relu"], END]
    try:
        theta = trained(ops, layers, optimizer)
    except (ValueError, FloatingPointError, np.linalg.LinAlgError) as error:
        assert re.search(rf"\b({name}|{REFUSED_BY.get(name, name)})\b", str(error))
        return
    assert np.isfinite(theta).all()


@at_bounds(SCHEDULE_BOUNDS)
def test_a_schedule_at_the_end_of_a_range_trains_or_is_refused_by_name(model, name, value):
    needed = {"at": (2.0 * M,), "examples": 2.0 * M}
    own = {key: needed[key] for key in needed if key in model.model_fields}
    try:
        schedule = model(**(own | {"warm_up": 1.5 * M} | {name: value}))
    except ConfigError as error:
        assert name in str(error)
        return
    optimizer = SgdConfig(learning_rate=0.01, batch_size=M, schedule=schedule)
    theta = trained(CpuOps("float64", shards=1), [LAYERS["conv"], END], optimizer, updates=4)
    assert np.isfinite(theta).all()
