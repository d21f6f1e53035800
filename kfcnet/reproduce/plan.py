"""The plan of a reproduction: whole on a GPU, shortened on a CPU, quick on the digits.

It holds no results: these are read from the records.
"""

import functools
import json
from typing import NamedTuple

from kfcnet.config import ConfigError, load_config
from kfcnet.figures import paper
from kfcnet.reproduce.verdicts import PAIRS
from kfcnet.runs.labels import STRUCTURES
from kfcnet.training.build import is_open
from kfcnet.training.tuning import Stage

RATE, CLIP = "optimizer.learning_rate", "optimizer.clip"
DAMPING, LEAST_DAMPING = "optimizer.damping", "optimizer.min_damping"

CLIPS = (0.03, 0.1, 0.3, 1.0)
"""Values of C that are tried where the clip is the step size."""

DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Of K-FAC, with which lambda and gamma^2 begin and below which neither falls."""

COMPARED = tuple(name for name in STRUCTURES if name != "autocovariance")
"""Structures that are methods; the other one shows what the paper warns of."""

UNTUNED = ("optimizer.learning_rate=0.003",)
"""Of the starts and of the weight decays, which are chosen before the learning rate is tuned."""

LOW_RATES = (0.0001, 0.00003)
"""Added for co-ordinatewise methods: their steps do not shrink with the small initial weights."""


class Curve(NamedTuple):
    """One method on one network: tuned by training error, then trained with several seeds.

    rates: learning rates that are tuned in `stages`; without any the configured one is used, or the
    best one of the curve `rate_of`. dampings: tuned in place of rates, of a method that finds its
    rate itself. grows: whether further values are tried until the best one lies between others.
    lost: rates that are tuned but not chosen, since a final run at them was lost.
    clips: values of C that are tuned where the run at the best rate is clipped.
    epochs: length of the final runs, None for the configured one.
    shortened: what this plan leaves out and why, in words; words: what sets it apart in its figure.
    """

    name: str
    config: str
    overrides: tuple = ()
    rates: tuple = paper.LEARNING_RATES
    rate_of: str = ""
    dampings: tuple = ()
    grows: bool = False
    lost: tuple = ()
    clips: tuple = ()
    stages: tuple = (Stage(2.0, None), Stage(8.0, 3), Stage(20.0, 2))
    epochs: float | None = None
    seeds: int = 3
    shortened: str = ""
    words: str = ""

    @property
    def tuned_key(self):
        """The setting that is tuned first."""
        return LEAST_DAMPING if self.dampings else RATE

    @property
    def tuned_values(self):
        """Those of `tuned_key` that are tried; none where nothing is tuned."""
        return self.dampings or (() if self.rate_of else self.rates)

    def tuned_settings(self, value):
        """{key: value} of a run that tries one of them."""
        return {DAMPING: value, LEAST_DAMPING: value} if self.dampings else {RATE: value}


class PanelPlan(NamedTuple):
    """A panel of a figure: "loss" or "error" of some curves over `x`, a key of curves.X_AXES."""

    letter: str
    quantity: str
    curves: tuple
    x: str = "seconds"
    is_logarithmic: bool = False


class FigurePlan(NamedTuple):
    """A figure of the curves in its panels.

    kind: "runs" shows their final runs; "starts" the first epochs of these; "scaling" what they
    gain from more processes; "tuning" the errors at the learning rates that were tried, without
    final runs; "assumptions" the plan's Measurements, without panels. caption: what is drawn, in
    sentences.
    """

    title: str
    panels: tuple = ()
    kind: str = "runs"
    caption: str = ""


class Measurement(NamedTuple):
    """A measurement of the assumptions in a curve's trained network, on `images` training images.

    data: name of the data set; pooling: "max", "average", or "published" for a network with both;
    radius: largest offset of correlations in rows and columns; layer: a small layer for which the
    distances of approximations from the exact Fisher block are measured too.
    """

    curve: str
    data: str
    pooling: str
    images: int
    radius: int
    layer: str = ""

    @property
    def group(self):
        """A name that networks share which differ in their pooling alone."""
        return f"{self.data}, tiny network" if self.layer else self.data

    @property
    def title(self):
        return f"{self.group}, {self.pooling_in_words}"

    @property
    def picture(self):
        """The name of its picture of correlations."""
        return f"assumptions_{self.curve}"

    @property
    def pooling_in_words(self):
        return f"{self.pooling} pooling" if self.pooling != "published" else "pooling as published"


class Errors(NamedTuple):
    """The errors at which methods are compared, as fractions."""

    test: float
    train: float
    updates: float  # training error, for large mini-batches


class Plan(NamedTuple):
    """All that may be trained; a figure needs a part of it.

    main: prefix of the names of the curves that most claims are about; title: the name of their
    data set; left_out: {name: reason} of curves that this plan does not have.
    """

    curves: dict
    figures: dict
    measurements: tuple
    main: str
    title: str
    errors: Errors
    device: str
    overrides: tuple = ()
    left_out: dict = {}  # noqa: RUF012
    note: str = ""

    def shows(self, figure):
        """Names of the curves of a figure, in order, with those that are left out."""
        plan = self.figures[figure]
        names = [name for panel in plan.panels for name in panel.curves]
        names += [each.curve for each in self.measurements] if plan.kind == "assumptions" else []
        return list(dict.fromkeys(names))

    def own(self, figure):
        """Names of a figure's curves that the first figure does not show; for it, all of them."""
        first = next(iter(self.figures))
        return [
            name for name in self.shows(figure) if figure == first or name not in self.shows(first)
        ]

    def needs(self, figure):
        """Names of the curves to train for a figure, or for "all"."""
        figures = self.figures if figure == "all" else [figure]
        names = [name for each in figures for name in self.shows(each) if name in self.curves]
        tuned = [self.curves[name].rate_of for name in names if self.curves[name].rate_of]
        return list(dict.fromkeys(tuned + names))

    def part(self, figure):
        """The Plan reduced to the curves that a figure, or "all", needs."""
        curves = {name: self.curves[name] for name in self.needs(figure)}
        if figure != "all" and self.figures[figure].kind == "tuning":
            curves = {name: curve._replace(seeds=0) for name, curve in curves.items()}
        return self._replace(curves=curves)

    def configure(self, curve, settings=None, seed=0, epochs=None):
        """The Config of a run of a curve; settings: {key: value}.

        Raises ConfigError for a Config that leaves something to the data: a run records what they
        decided, and would not be found by it.
        """
        overrides = [f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()]
        overrides += [f"seed={seed}", f"device={self.device}"]
        overrides += [f"epochs={epochs}"] if epochs is not None else []
        config = _load(curve.config, (*curve.overrides, *self.overrides, *overrides))
        if is_open(config):
            raise ConfigError(
                f"{curve.name}: data.input_scale=auto and a last layer without units are decided "
                "by the data, when a run begins; give numbers for a reproduction"
            )
        return config

    def final_epochs(self, curve):
        return self.configure(curve).epochs if curve.epochs is None else curve.epochs


@functools.lru_cache(maxsize=4096)
def _load(name, overrides):
    return load_config(name, overrides)


def make_plan(device, quick=False, seeds=None, overrides=()):
    """The Plan for a device, "cpu" or "cuda".

    seeds: number of seeds of every curve, in place of the planned one; overrides: for every run.
    """
    plan = _quick() if quick else _published() if device == "cuda" else _shortened()
    whole = plan.curves if quick else _published().curves
    curves = {
        name: _seeded(curve, curve.seeds if seeds is None else seeds, whole[name].seeds)
        for name, curve in plan.curves.items()
    }
    return plan._replace(device=device, overrides=tuple(overrides), curves=curves)


def _seeded(curve, seeds, whole):
    """A Curve with `seeds` seeds, which says if these are fewer than `whole`."""
    shortened = [f"{seeds} of {whole} seeds"] if seeds < whole else []
    shortened += [curve.shortened] if curve.shortened else []
    return curve._replace(seeds=seeds, shortened=", ".join(shortened))


def _published():
    """The whole plan: as in the paper where it says how, otherwise as long as the curves need."""
    large = ("optimizer.batch_size=4096",)
    # A quarter of a mini-batch at every fifth update would be the same share of the examples. But
    # Figure 2 counts updates, so factors and inverses are renewed at every one of them.
    large_kfc = (
        *large,
        "optimizer.statistics_fraction=0.125",
        "optimizer.statistics_period=1",
        "optimizer.inverse_period=1",
    )
    # Per epoch the same number of examples for the statistics and of inversions as with M = 512.
    small_kfc = (
        "optimizer.batch_size=128",
        "optimizer.statistics_fraction=1.0",
        "optimizer.statistics_period=20",
        "optimizer.inverse_period=20",
    )
    svhn = (Stage(0.5, None), Stage(2.0, 3))
    # docs/rules.md says why these, and why both methods have the same.
    main, diagnosed = dict(grows=True, seeds=5), ("diagnostics.every=98", "evaluation.every=0.5")
    # Updates of 4096 images: twelve an epoch.
    long = dict(stages=(Stage(4.0, None), Stage(12.0, 3), Stage(40.0, 2)))
    curves = [
        *_starts("cifar", 50000, 49, UNTUNED, ("conv1", "conv2", "conv3", "fc10"), seeds=2),
        Curve("cifar_kfc", "cifar_kfc", diagnosed, epochs=20, **main, clips=CLIPS),
        Curve("cifar_sgd", "cifar_sgd", diagnosed, **main),
        *_decays(),
        Curve("svhn_kfc", "svhn_kfc", stages=svhn, clips=CLIPS),
        Curve("svhn_sgd", "svhn_sgd", stages=svhn),
        Curve("cifar_kfc_large", "cifar_kfc", large_kfc, epochs=60, **long, clips=CLIPS),
        Curve("cifar_sgd_large", "cifar_sgd", large, epochs=500, **long),
        Curve("svhn_kfc_large", "svhn_kfc", large_kfc, stages=svhn, epochs=15, clips=CLIPS),
        Curve("svhn_sgd_large", "svhn_sgd", large, stages=svhn, epochs=60),
        Curve("cifar_kfc_bn", "cifar_kfc_bn", epochs=20, clips=CLIPS),
        Curve("cifar_sgd_bn", "cifar_sgd_bn", ("evaluation.every=0.5",)),
        *_others("cifar", rates=(*paper.LEARNING_RATES, *LOW_RATES)),
        Curve("cifar_kfac", "cifar_kfac", rates=(), dampings=DAMPINGS, grows=True, epochs=20),
        *_hessian_free(),
        Curve("cifar_kfc_small", "cifar_kfc", small_kfc, clips=CLIPS),
        *_structures("cifar", clips=CLIPS),
        *_scaled(),
        *_choices(),
        Curve(
            "cifar_autocovariance",
            "cifar_kfc",
            ("optimizer.structure=autocovariance", "evaluation.every=0.5"),
            rate_of="cifar_kfc",
            epochs=3,
        ),
        Curve("autoencoder_kfac", "digits_autoencoder_kfac", rates=()),
        Curve(
            "autoencoder_sgd",
            "digits_autoencoder_sgd",
            grows=True,
            stages=(Stage(10.0, None), Stage(30.0, 3), Stage(60.0, 2)),
        ),
        Curve("cifar_sgd_max", "cifar_sgd", _pools("max", 2, 3), rate_of="cifar_sgd", seeds=1),
        Curve("cifar_sgd_avg", "cifar_sgd", _pools("avg", 1), rate_of="cifar_sgd", seeds=1),
        Curve("svhn_sgd_avg", "svhn_sgd", _pools("avg", 1, 2, 3), rate_of="svhn_sgd", seeds=1),
        Curve("tiny_max", "cifar_tiny", rates=(), seeds=1),
        Curve("tiny_avg", "cifar_tiny", _pools("avg", 1, 2), rates=(), seeds=1),
    ]
    measurements = (
        Measurement("cifar_sgd", "CIFAR-10", "published", 500, 7),
        Measurement("cifar_sgd_max", "CIFAR-10", "max", 500, 7),
        Measurement("cifar_sgd_avg", "CIFAR-10", "average", 500, 7),
        Measurement("svhn_sgd", "SVHN", "max", 250, 7),
        Measurement("svhn_sgd_avg", "SVHN", "average", 250, 7),
        Measurement("tiny_max", "CIFAR-10", "max", 200, 3, "conv2"),
        Measurement("tiny_avg", "CIFAR-10", "average", 200, 3, "conv2"),
    )
    return Plan(
        {curve.name: curve for curve in curves},
        _figures("cifar", "svhn"),
        measurements,
        "cifar",
        "CIFAR-10",
        Errors(paper.TEST_ERROR, paper.TRAIN_ERROR, paper.UPDATES_TRAIN_ERROR),
        "cuda",
        note=_decay_note(),
    )


def _decay_note():
    """In words: how the main curves' weight decay differs from the published one."""
    decays = _load("cifar_kfc", ()).optimizer.weight_decay
    (share,) = {
        round(decays[name] / published, 9) for name, published in paper.WEIGHT_DECAY.items()
    }
    return (
        f"The networks on CIFAR-10 decay their weights by {share:g} of what cuda-convnet's "
        "configuration has, for both methods: the largest of the shares 1, 0.3 and 0.1 with which "
        "KFC-pre, at a learning rate of 0.003, comes to 6% training error within 20 epochs (figure "
        "*The weight decay*)."
    )


def _shortened():
    """A plan for a CPU, with less of most curves; each says what it leaves out."""
    plan = _published()
    five, time = paper.LEARNING_RATES[1:6], "to be done in hours"
    twice = dict(seeds=2, epochs=20, shortened=time)
    judged = dict(twice, seeds=PAIRS)  # where the paper says something, and fewer leave it open
    # With few images, an average over 50,000 examples keeps the initial parameters for epochs, a
    # rise over 50,000 takes six of them, and a period of 100 updates is longer than the run. With a
    # damping of 1e-3 every step of the first epochs fits its own mini-batch (14 million parameters,
    # 512 images) and is clipped, to the same length at every learning rate.
    few = (
        "data.extra=false",
        "evaluation.every=1",
        "optimizer.averaging_timescale=5000",
        "optimizer.schedule.warm_up=8000",
    )
    few_kfc = (
        *few,
        "optimizer.statistics_timescale=10000",
        "optimizer.statistics_period=5",
        "optimizer.inverse_period=10",
        "optimizer.damping=0.1",
    )
    why = (
        "the network takes twelve times the arithmetic of CIFAR-10's, and the extra images are "
        "seven eighths of all; with few images averages are shorter"
    )
    # In its first two epochs SGD predicts the most frequent digit, at any learning rate.
    stages = (Stage(3.0, None), Stage(8.0, 2))
    svhn = dict(seeds=3, rates=five, stages=stages, epochs=20, shortened=why)
    svhn_kfc = svhn | dict(epochs=12, shortened=f"{why}, inverses fresher and the damping larger")
    large = dict(rates=five, shortened="as many updates as in the paper would take a day")
    lost = "0.01, the best of the tuning, was lost after 64 epochs on another processor (`again/`)"
    others = dict(judged, rates=(0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001))
    changes = {
        "svhn_kfc": (few_kfc, svhn_kfc),
        "svhn_sgd": (few, svhn),
        "svhn_sgd_avg": (few, dict(epochs=12, shortened=why)),
        "cifar_kfc_large": ((), large | dict(epochs=40)),
        "cifar_sgd_large": (
            (),
            large | dict(epochs=415, lost=(0.01,), shortened=f"{large['shortened']}; {lost}"),
        ),
        "cifar_kfc_bn": ((), dict(judged, rates=five)),
        "cifar_sgd_bn": ((), dict(judged, rates=five)),
        "cifar_kfc_small": ((), dict(judged, rates=five, epochs=30)),
        **{curve.name: ((), dict(seeds=2, shortened=time)) for curve in _hessian_free()},
        **{curve.name: ((), others) for curve in _others("cifar")},
        **{
            curve.name: ((), dict(twice, rates=paper.LEARNING_RATES[2:]))
            for curve in _structures("cifar")
        },
        **{
            name: ((), dict(epochs=16, shortened="correlations need no network at its best"))
            for name in ("cifar_sgd_max", "cifar_sgd_avg")
        },
    }
    left_out = {
        name: "hundreds of updates of 4096 images, with twelve times the arithmetic of "
        "CIFAR-10's network, would take a CPU hours"
        for name in ("svhn_kfc_large", "svhn_sgd_large")
    }
    curves = {name: curve for name, curve in plan.curves.items() if name not in left_out}
    for name, (overrides, values) in changes.items():
        curves[name] = _change(curves[name], overrides, values)
    return plan._replace(curves=curves, device="cpu", left_out=left_out)


def _change(whole, overrides, values):
    """A Curve with other values, which says what is shorter (seeds aside) and why."""
    curve = whole._replace(overrides=(*whole.overrides, *overrides), **values)
    parts = []
    before, after = (
        one.epochs or _load(one.config, one.overrides).epochs for one in (whole, curve)
    )
    if after < before:
        parts.append(f"{after:g} of {before:g} epochs")
    if curve.tuned_values:
        if len(curve.rates) < len(whole.rates):
            parts.append(f"{len(curve.rates)} of {len(whole.rates)} learning rates")
        ends = [" and ".join(f"{stage.epochs:g}" for stage in one.stages) for one in (curve, whole)]
        if curve.stages != whole.stages:
            parts.append(f"tuned after {ends[0]} epochs in place of {ends[1]}")
    parts += [f"`{override}`" for override in overrides]
    return curve._replace(shortened=": ".join(filter(None, [", ".join(parts), curve.shortened])))


def _quick():
    """The same in minutes, on the digits that come with the package."""
    few = dict(
        rates=(0.1, 0.03, 0.01),
        stages=(Stage(1.0, None), Stage(3.0, 2)),
        epochs=6,
        seeds=2,
        shortened="few rates, epochs and seeds, for the sake of a quick run",
    )
    once = few | dict(seeds=1)
    fixed = once | dict(rates=())
    large = ("optimizer.batch_size=720",)
    large_kfc = (*large, "optimizer.statistics_period=1", "optimizer.inverse_period=1")
    small_kfc = (
        "optimizer.batch_size=32",
        "optimizer.statistics_fraction=1.0",
        "optimizer.statistics_period=4",
        "optimizer.inverse_period=8",
    )
    curves = [
        *_starts("digits", 1437, 5, shortened=few["shortened"], seeds=1),
        Curve("digits_kfc", "digits_kfc", **few),
        Curve("digits_sgd", "digits_sgd", **few),
        Curve("digits_kfc_large", "digits_kfc", large_kfc, **once),
        Curve("digits_sgd_large", "digits_sgd", large, **once | dict(epochs=12)),
        Curve("digits_kfc_bn", "digits_kfc_bn", **once),
        Curve("digits_sgd_bn", "digits_sgd_bn", **once),
        *_others("digits", **once | dict(rates=(0.01, 0.001))),
        Curve("digits_kfac", "digits_kfac", **fixed),
        Curve("digits_kfc_small", "digits_kfc", small_kfc, **once | dict(rates=(0.01, 0.003))),
        *_structures("digits", **once),
        Curve("digits_sgd_avg", "digits_sgd", _pools("avg", 1), **once, rate_of="digits_sgd"),
        Curve("tiny_max", "digits_tiny", **fixed),
        Curve("tiny_avg", "digits_tiny", _pools("avg", 1, 2), **fixed),
    ]
    measurements = (
        Measurement("digits_sgd", "UCI digits", "max", 360, 3),
        Measurement("digits_sgd_avg", "UCI digits", "average", 360, 3),
        Measurement("tiny_max", "UCI digits", "max", 360, 2, "conv2"),
        Measurement("tiny_avg", "UCI digits", "average", 360, 2, "conv2"),
    )
    return Plan(
        {curve.name: curve for curve in curves},
        _figures("digits"),
        measurements,
        "digits",
        "UCI digits",
        Errors(test=0.06, train=0.03, updates=0.05),
        "cpu",
        note="This is a quick run on the embedded digits. It shows that every step from a "
        "configuration to this page works; its numbers stand beside the paper's only "
        "because they are made the same way.",
    )


def _decays():
    """Curves with other shares of the published weight decay, without tuning."""

    def curve(method, share):
        decay = {name: round(share * value, 9) for name, value in paper.WEIGHT_DECAY.items()}
        return Curve(
            f"cifar_{method}_decay_{share:g}",
            f"cifar_{method}",
            (*UNTUNED, f"optimizer.weight_decay={json.dumps(decay)}", "evaluation.every=0.5"),
            rates=(),
            epochs=20,
            seeds=1,
            words="all of the published decay"
            if share == 1
            else f"{share:g} of the published decay",
        )

    return [curve("kfc", 1), curve("kfc", 0.3), curve("kfc", 0.1), curve("sgd", 1)]


def _starts(prefix, epoch, diagnosed, common=(), small=(), **values):
    """Curves of a few epochs that begin in different ways, without tuning.

    epoch: examples of one; diagnosed: updates of KFC-pre between two rows of diagnostics; common:
    overrides of all; small: names of the layers with initial deviations that are smaller than He's.
    """

    def warm_up(epochs):
        return (f"optimizer.schedule={{name: constant, warm_up: {epochs * epoch:g}}}",)

    momentum = 0.9
    counted = (f"optimizer.clip={0.3 * (1 - momentum) ** 2:g}",)
    fresh = ("optimizer.statistics_period=1", "optimizer.inverse_period=1")
    he = (*(f"network.{name}.std=he" for name in small), "data.input_scale=64")
    both = {
        "none": ("none", warm_up(0)),
        "fifth": ("warm-up of 0.2 epochs", warm_up(0.2)),
        "one": ("warm-up of 1 epoch", warm_up(1)),
        "two": ("warm-up of 2 epochs", warm_up(2)),
    }
    if small:
        both["he"] = "He's deviations, inputs scaled", (*warm_up(0), *he)
    kfc = {
        "clip": ("clip counting momentum", (*warm_up(0), *counted)),
        "clip_fifth": ("clip counting momentum, warm-up of 0.2 epochs", (*warm_up(0.2), *counted)),
        "fresh": ("factors and inverses at every update", (*warm_up(0), *fresh)),
    }
    return [
        Curve(
            f"{prefix}_{method}_start_{name}",
            f"{prefix}_{method}",
            (*common, *overrides, f"diagnostics.every={every}", "evaluation.every=0.5"),
            rates=(),
            epochs=3,
            words=words,
            **values,
        )
        for method, starts, every in (("kfc", both | kfc, diagnosed), ("sgd", both, 4 * diagnosed))
        for name, (words, overrides) in starts.items()
    ]


def _pools(kind, *numbers):
    """Overrides that make some pools "max" or "avg" ones."""
    return tuple(f"network.pool{number}.layer={kind}_pool" for number in numbers)


def _others(prefix, **values):
    """The co-ordinatewise methods, two of them also with decoupled weight decay."""
    decoupled = dict(values, words="decoupled decay")
    return [
        *(
            Curve(f"{prefix}_{name}", f"{prefix}_{name}", **values)
            for name in ("adagrad", "rmsprop", "adam")
        ),
        *(
            Curve(
                f"{prefix}_{name}w",
                f"{prefix}_{name}",
                ("optimizer.decoupled_decay=true",),
                **decoupled,
            )
            for name in ("rmsprop", "adam")
        ),
    ]


def _structures(prefix, **values):
    """KFC-pre with other structures of the Fisher blocks, and with the product itself damped."""
    return [
        Curve(f"{prefix}_{name}", f"{prefix}_kfc", (override,), **values)
        for name, override in (
            *((name, f"optimizer.structure={name}") for name in COMPARED),
            ("tikhonov", "optimizer.tikhonov=exact"),
        )
    ]


def _hessian_free():
    """Hessian-free optimization, by conjugate gradients with KFC as the preconditioner or none."""
    decay = _load("cifar_kfc", ()).optimizer.weight_decay
    return [
        Curve(
            f"cifar_free_{name}",
            "cifar_kfc",
            (
                f"optimizer={{name: hessian_free, preconditioner: {name}, batch_size: 2048, "
                f"weight_decay: {json.dumps(decay)}}}",
                "evaluation.every=0.25",
            ),
            rates=(),
            epochs=3,
            words=words,
        )
        for name, words in (("kfc", "KFC as preconditioner"), ("none", "no preconditioner"))
    ]


def _scaled():
    """Both methods on inputs divided by 64, with conv1's weights and decay such that the network
    and its objective are the same functions; KFC-pre also with a thousandth of the damping, without
    which Theorem 3 holds, and with that on inputs as they are.
    """
    scale, config = 64, _load("cifar_kfc", ())
    std, decay = config.network[0].std * scale, config.optimizer.weight_decay["conv1"] / scale**2
    divided = (
        f"data.input_scale={scale}",
        f"network.conv1.std={std:g}",
        f"optimizer.weight_decay.conv1={decay:g}",
    )
    weak = (f"optimizer.damping={config.optimizer.damping / 1000:g}",)
    return [
        Curve(
            f"cifar_{name}",
            f"cifar_{name[:3]}",
            (*overrides, "evaluation.every=0.5"),
            rate_of=f"cifar_{name[:3]}",
            epochs=4,
            words=words,
        )
        for name, overrides, words in (
            ("kfc_scaled", divided, "inputs / 64"),
            ("sgd_scaled", divided, "inputs / 64"),
            ("kfc_weak", weak, "damping / 1000"),
            ("kfc_scaled_weak", (*divided, *weak), "inputs / 64, damping / 1000"),
        )
    ]


def _choices():
    """Both methods on the network as it is where the paper leaves its layers open."""
    normalised = tuple(
        f"network.{number}.across=true"
        for number, layer in enumerate(_load("cifar_kfc", ()).network)
        if layer.layer == "response_norm"
    )
    inside = tuple(f"network.pool{number}.clipped=false" for number in (1, 2, 3))
    return [
        Curve(
            f"cifar_{method}_{name}",
            f"cifar_{method}",
            (*overrides, "evaluation.every=0.5"),
            rate_of=f"cifar_{method}",
            epochs=6,
            seeds=1,
            words=words,
        )
        for method in ("kfc", "sgd")
        for name, overrides, words in (
            ("across", normalised, "normalised across maps"),
            ("inside", inside, "pools without clipped windows"),
        )
    ]


def _figures(main, *others):
    """{name: FigurePlan}; each data set has a row in fig1 and a panel in fig2."""
    letters = iter("abcdefgh")
    prefixes = (main, *others)
    fig1 = tuple(
        PanelPlan(next(letters), quantity, (f"{prefix}_kfc", f"{prefix}_sgd"))
        for prefix in prefixes
        for quantity in ("loss", "error")
    )
    fig2 = tuple(
        PanelPlan(letter, "error", (f"{prefix}_kfc_large", f"{prefix}_sgd_large"), "updates", True)
        for letter, prefix in zip("ab", prefixes, strict=False)
    )
    normalised = tuple(f"{main}_{name}" for name in ("kfc", "sgd", "kfc_bn", "sgd_bn"))
    methods = tuple(
        f"{main}_{name}"
        for name in ("kfc", "sgd", "kfac", "adam", "rmsprop", "adagrad", "adamw", "rmspropw")
    )
    structures = tuple(f"{main}_{name}" for name in ("kfc", *COMPARED, "tikhonov"))
    pair = f"{main}_kfc", f"{main}_sgd"
    starts = tuple(curve.name for curve in _starts(main, 1, 1, small=others))
    of_cifar = {}
    if main == "cifar":
        shares, free, scaled, choices = (
            tuple(curve.name for curve in group)
            for group in (_decays(), _hessian_free(), _scaled(), _choices())
        )
        of_cifar = {
            "decay": FigurePlan(
                "The weight decay",
                _loss_and_error(shares, "epochs"),
                caption="Loss and error with shares of the published weight decay, at a learning "
                "rate of 0.003 that was not tuned, one seed each.",
            ),
            "free": FigurePlan(
                "Hessian-free optimization, with and without KFC (section 3.2)",
                _loss_and_error(free, "updates"),
                caption="Loss and error over updates, each of several products with F.",
            ),
            "autoencoder": FigurePlan(
                "K-FAC and SGD on a dense autoencoder (Martens and Grosse 2015)",
                (
                    *_loss_and_error(("autoencoder_kfac", "autoencoder_sgd"), "updates"),
                    PanelPlan("c", "error", ("autoencoder_kfac", "autoencoder_sgd"), "epochs"),
                ),
                caption="Loss (a) and error (b) over updates, error over epochs (c). The loss is "
                "half the squared error, summed over 64 pixels; the error is the mean squared "
                "error of a pixel in percent of one, which is about a pixel's variance: it begins "
                "above 100%.",
            ),
            "autocovariance": FigurePlan(
                "Empirical autocovariances plugged into Eq. 19 (section 3.1)",
                _loss_and_error(("cifar_kfc", "cifar_autocovariance"), "updates", "ab", True),
                caption="Loss and error over updates, with Omega as KFC computes it (Theorem 2) "
                "and from empirical autocovariances.",
            ),
            "invariance": FigurePlan(
                "Inputs as they are and divided by 64 (section 4.1)",
                _loss_and_error((*pair, *scaled), "epochs", "ab", True),
                caption="Loss and error over epochs. With divided inputs conv1's initial weights "
                "are 64 times as large and its weight decay is smaller by 64^2: network and "
                "objective are the same functions at the start, and a method that is invariant "
                "draws one curve. Learning rates are those tuned with inputs as they are.",
            ),
            "choices": FigurePlan(
                "What the paper leaves open: response normalisation and pooling",
                _loss_and_error((*pair, *choices), "epochs", "ab", True),
                caption="Loss and error over epochs. The changed networks have one seed and six "
                "epochs; where their curves lie on those of the network as it is, the choice does "
                "not matter.",
            ),
        }
    return {
        "fig1": FigurePlan(
            "KFC-pre and SGD over time (the paper's Figure 1)",
            fig1,
            caption="Loss (left) and error (right) over training time, which is epochs times the "
            "measured cost of one.",
        ),
        "fig2": FigurePlan(
            "KFC-pre and SGD over updates, with large mini-batches (Figure 2)",
            fig2,
            caption="Error over updates, both on logarithmic axes.",
        ),
        "assumptions": FigurePlan(
            "The assumptions (section 5.1, appendix D.1)",
            kind="assumptions",
            caption="First picture: mean absolute correlation of two locations in one map, over "
            "their distance in a row or a column; below, how far approximations of the Fisher "
            "block of one small layer are from the exact one. Other pictures: absolute "
            "correlations in one trained network, of derivatives on the left and of activations "
            "on the right; by offset in three maps (the middle is offset 0), and between all maps "
            "at one location.",
        ),
        "batchnorm": FigurePlan(
            "With and without batch normalisation (appendix D.2)",
            _loss_and_error(normalised),
            caption="Loss and error over training time.",
        ),
        "minibatch": FigurePlan(
            "KFC-pre with smaller mini-batches (section 5.2, footnote 3)",
            _loss_and_error((*pair, f"{main}_kfc_small"), "epochs"),
            caption="Loss and error over epochs: an epoch of KFC-pre has four times as many "
            "updates with the smaller mini-batches.",
        ),
        "methods": FigurePlan(
            "Full K-FAC and co-ordinatewise methods (section 5.2)",
            (*_loss_and_error(methods), *_loss_and_error(methods, "updates", "cd", True)),
            caption="Loss (left) and error (right), above over time or epochs, below over updates.",
        ),
        "structures": FigurePlan(
            "Other structures of the Fisher blocks (section 4.2, appendix C)",
            _loss_and_error(structures, "updates"),
            caption="Loss and error over updates.",
        ),
        "sensitivity": FigurePlan(
            "Sensitivity to the learning rate",
            (PanelPlan("a", "error", pair),),
            "tuning",
            "Training error of the averaged parameters after each stage of the tuning, at the "
            "learning rates that were tried in it; the best ones are taken further.",
        ),
        "starts": FigurePlan(
            "How training begins",
            (PanelPlan("a", "error", starts, "epochs"),),
            "starts",
            "Above: training error of the latest parameters, which are not averaged. Below: dead "
            "maps, all layers together. Each seed is a line; the learning rate was not tuned.",
        ),
        "scaling": FigurePlan(
            "Large mini-batches on more than one processor (section 5.3)",
            (PanelPlan("a", "error", (*pair, *(f"{name}_large" for name in pair))),),
            "scaling",
            "Seconds to a training error, updates times seconds of one, over the number of "
            "processes, on logarithmic axes: measured on the left, modelled on the right.",
        ),
        **of_cifar,
    }


def _loss_and_error(curves, x="seconds", letters="ab", is_logarithmic=False):
    """Two panels of the same curves, of the loss and of the error."""
    return tuple(
        PanelPlan(letter, quantity, curves, x, is_logarithmic)
        for letter, quantity in zip(letters, ("loss", "error"), strict=True)
    )
