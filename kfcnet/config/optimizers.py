"""The optimizers and the schedules of their learning rates, one model for each."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from kfcnet.config.fields import (
    Decay,
    Fraction,
    Model,
    NonNegative,
    OrAuto,
    PerLayer,
    PositiveFloat,
    PositiveInt,
)


class _ScheduleConfig(Model):
    """A schedule of the learning rate, in examples: a linear rise over `warm_up` comes first."""

    name: str
    warm_up: NonNegative = 0.0
    warm_up_start: Fraction = 0.01  # share of the learning rate at the start of the rise


class ConstantConfig(_ScheduleConfig):
    """The learning rate itself."""

    name: Literal["constant"] = "constant"


class StepConfig(_ScheduleConfig):
    """The learning rate is multiplied by `factor` after each number of examples in `at`."""

    name: Literal["step"] = "step"
    at: Annotated[tuple[PositiveFloat, ...], Field(strict=False, min_length=1)]
    factor: Fraction = 0.1


class CosineConfig(_ScheduleConfig):
    """A half-cosine from the end of the warm-up to `examples`, then `final` times the rate."""

    name: Literal["cosine"] = "cosine"
    examples: PositiveFloat
    final: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("examples")
    @classmethod
    def _ends_after_the_warm_up(cls, examples, info):
        if examples <= info.data.get("warm_up", 0):
            raise ValueError(f"{examples:g} is not above warm_up, {info.data['warm_up']:g}")
        return examples


ScheduleConfig = Annotated[ConstantConfig | StepConfig | CosineConfig, Field(discriminator="name")]


TIMESCALES = ("averaging_timescale", "statistics_timescale")


class _OptimizerConfig(Model):
    """What all optimizers share.

    Timescales are in examples; `auto`, the default on own images, goes with their number.
    """

    name: str
    batch_size: PositiveInt = 128
    weight_decay: PerLayer[NonNegative] = 0.0  # biases never decay
    max_norm: PerLayer[PositiveFloat] | None = None  # of a unit's incoming weights; None: no limit
    averaging_timescale: OrAuto[PositiveFloat] = 50000.0


class _RateConfig(_OptimizerConfig):
    """An optimizer with a learning rate and its schedule."""

    learning_rate: PositiveFloat
    schedule: ScheduleConfig = ConstantConfig()


class StatisticsConfig(_OptimizerConfig):
    """An optimizer with Kronecker factors: how they are estimated, and how often.

    Periods are in updates, fractions are shares of the mini-batch. The factors are initialised from
    `initial_examples` training examples. `tikhonov`: the damping is added to the factors of KFC's
    matrix (`factored`, Eq. 21) or to their product (`exact`).
    """

    batch_size: PositiveInt = 512
    tikhonov: Literal["factored", "exact"] = "factored"
    statistics_timescale: Annotated[OrAuto[PositiveFloat] | None, Field(validate_default=True)] = (
        None
    )
    statistics_period: PositiveInt = 5
    statistics_fraction: Fraction = 0.25
    initial_examples: PositiveInt = 5000
    inverse_period: Annotated[PositiveInt, Field(validate_default=True)] = 20

    @field_validator("statistics_timescale")
    @classmethod
    def _default_timescale(cls, timescale, info):
        return info.data.get("averaging_timescale") if timescale is None else timescale

    @field_validator("inverse_period")
    @classmethod
    def _statistics_come_first(cls, period, info):
        if period < info.data.get("statistics_period", period):
            raise ValueError(
                f"{period} is below statistics_period, {info.data['statistics_period']}: "
                "the same factors would be inverted twice"
            )
        return period


class SgdConfig(_RateConfig):
    """SGD with momentum, plain or Nesterov's, and averaged parameters."""

    name: Literal["sgd"] = "sgd"
    momentum: Decay = 0.9
    nesterov: bool = False


class _AdaptiveConfig(_RateConfig):
    """A co-ordinatewise method, whose weight decay may be kept out of its measure of size."""

    decoupled_decay: bool = False
    epsilon: PositiveFloat = 1e-8


class AdagradConfig(_AdaptiveConfig):
    """The gradient divided by the root of the sum of all squared gradients."""

    name: Literal["adagrad"] = "adagrad"


class RmspropConfig(_AdaptiveConfig):
    """The gradient divided by the root of a running mean of squared gradients."""

    name: Literal["rmsprop"] = "rmsprop"
    square_decay: Decay = 0.9


class AdamConfig(_AdaptiveConfig):
    """Running means of the gradient and of its square, corrected for their start at zero."""

    name: Literal["adam"] = "adam"
    momentum: Decay = 0.9
    square_decay: Decay = 0.999


class KfcPreConfig(StatisticsConfig, _RateConfig):
    """SGD with momentum on the natural gradient of KFC, with clipped updates.

    The damping is added to the factors. With `damping: auto` it is a third of the learning rate,
    but at least the paper's 1e-3, and no step promises more than a share of the objective
    (docs/settings.md).

    `structure` is the approximation of each layer's Fisher block (`kfcnet.curvature`). The clipping
    norm is computed on a share `clip_fraction` of the mini-batch; `clip: null` means no clipping.
    With an `inverse_delay`, factors are inverted during training, on the device or the host
    (`inverse_on`), and their inverses are used that many updates later; not with structure `ekfac`.
    """

    name: Literal["kfc_pre"] = "kfc_pre"
    structure: Literal["kfc", "diagonal", "sua", "white_derivatives", "ekfac", "autocovariance"] = (
        "kfc"
    )
    momentum: Decay = 0.9
    damping: OrAuto[NonNegative] = 1e-3
    clip: PositiveFloat | None = 0.3
    clip_fraction: Fraction = 0.25
    inverse_delay: Annotated[int, Field(ge=0)] = 0
    inverse_on: Literal["device", "host"] = "device"

    @field_validator("structure")
    @classmethod
    def _has_a_product_to_damp(cls, structure, info):
        if structure != "kfc" and info.data.get("tikhonov") == "exact":
            raise ValueError(f"{structure} with tikhonov exact: exact goes with kfc alone")
        return structure

    @field_validator("inverse_delay")
    @classmethod
    def _can_wait(cls, delay, info):
        if delay and info.data.get("structure") == "ekfac":
            raise ValueError(f"{delay} with structure ekfac would lose the moments seen meanwhile")
        if delay > info.data.get("inverse_period", delay):
            raise ValueError(
                f"{delay} is above inverse_period, {info.data['inverse_period']}: "
                "the next inversion would begin before this one is adopted"
            )
        return delay


# What the damping is multiplied with, or divided by: one near zero would overflow at once.
DampingDecay = Annotated[float, Field(ge=0.01, lt=1)]


class _TrustConfig(StatisticsConfig):
    """An optimizer with a quadratic model of the objective and Levenberg-Marquardt damping.

    `damping` is the initial value. The Levenberg-Marquardt rule multiplies or divides it by
    `damping_decay` for each update since the rule was last applied, but it stays above
    `min_damping`. Without this bound it would keep falling, because the model fits its own small
    mini-batch well, and updates would follow the noise of mini-batches. The exact Fisher matrix is
    computed on a share `fisher_fraction` of the mini-batch.
    """

    damping: PositiveFloat = 150.0
    damping_decay: DampingDecay = 0.95
    min_damping: NonNegative = 0.0
    fisher_fraction: Fraction = 0.25


class KfacConfig(_TrustConfig):
    """K-FAC with KFC's factors: step size and momentum from the exact Fisher matrix, and damping
    adapted during training.

    The defaults are those of Martens & Grosse (2015) for autoencoders, in brackets their names; the
    paper states that it ran K-FAC, but not with which values.

        damping 150 (lambda_0), damping_decay 19/20 (w_1 = (19/20)^T_1, w_2^2 = (19/20)^T_2),
        damping_period 5 (T_1), factor_damping_period 20 (T_2), inverse_period 20 (T_3),
        statistics_fraction 1/8 (tau_1), fisher_fraction 1/4 (tau_2), statistics_period 1,
        statistics_timescale 10,000 examples: their 0.95 an update, in mini-batches of 512.

    `factor_damping` is the initial value of gamma^2, the damping of the factors besides weight
    decay; its default is `damping`, as theirs. `min_damping` bounds both values; they have no such
    bound. Here the mini-batch size is constant and the parameters are averaged as with the other
    optimizers; theirs grows, and they average with a decay of 0.99 an update.
    """

    name: Literal["kfac"] = "kfac"
    factor_damping: PositiveFloat | None = None
    damping_period: PositiveInt = 5
    statistics_timescale: PositiveFloat | None = 10000.0
    statistics_period: PositiveInt = 1
    statistics_fraction: Fraction = 0.125
    factor_damping_period: Annotated[PositiveInt, Field(validate_default=True)] = 20

    @field_validator("factor_damping_period")
    @classmethod
    def _inverts_anyway(cls, period, info):
        if period % info.data.get("inverse_period", period):
            raise ValueError(
                f"{period} is not a multiple of inverse_period, {info.data['inverse_period']}"
            )
        return period


class HessianFreeConfig(_TrustConfig):
    """Hessian-free optimization: SciPy's conjugate gradients on the exact Fisher matrix.

    The preconditioner is the inverse of KFC's matrix or none. The iteration starts from
    `warm_start` times the previous update, and ends after `cg_iterations` iterations or when the
    residual is below `cg_tolerance` times the gradient. KFC's matrix is damped like the model
    itself, except that weight decay damps the biases too. The paper only mentions the idea
    (section 3.2). damping_decay 2/3 and the line search follow Martens (2010), warm_start 0.95
    follows Martens & Sutskever (2012); the other values are chosen here.
    """

    name: Literal["hessian_free"] = "hessian_free"
    batch_size: PositiveInt = 2048
    damping: PositiveFloat = 1.0
    damping_decay: DampingDecay = 2 / 3
    tikhonov: Literal["factored", "exact"] = "exact"
    statistics_timescale: PositiveFloat | None = 10000.0
    statistics_period: PositiveInt = 1
    inverse_period: PositiveInt = 1
    preconditioner: Literal["kfc", "none"] = "kfc"
    cg_iterations: PositiveInt = 50
    cg_tolerance: Annotated[float, Field(ge=1e-5, lt=1)] = 1e-3
    warm_start: Annotated[float, Field(ge=0, le=1)] = 0.95


OptimizerConfig = Annotated[
    SgdConfig
    | KfcPreConfig
    | KfacConfig
    | HessianFreeConfig
    | AdagradConfig
    | RmspropConfig
    | AdamConfig,
    Field(discriminator="name"),
]


def open_timescales(optimizer):
    """The TIMESCALES of an optimizer's model that are still to be chosen."""
    return [key for key in TIMESCALES if getattr(optimizer, key, None) == "auto"]
