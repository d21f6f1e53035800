"""What a plan of a reproduction is: curves, their figures, and the configurations of their runs.

It holds no results: these are read from the records.
"""

import functools
import json
import math
from typing import NamedTuple

from kfcnet.config import ConfigError, load_config
from kfcnet.figures import paper
from kfcnet.training.build import is_open
from kfcnet.training.tuning import Stage

RATE, CLIP = "optimizer.learning_rate", "optimizer.clip"
DAMPING, LEAST_DAMPING = "optimizer.damping", "optimizer.min_damping"


STAGES = Stage(2.0, None), Stage(8.0, 3), Stage(20.0, 2)
"""Of a tuning, where a curve has none of its own."""


class Curve(NamedTuple):
    """One method on one network: tuned by training error, then trained with several seeds.

    rates: learning rates that are tuned in `stages`; without any the configured one is used, or the
    best one of the curve `rate_of`. dampings: tuned in place of rates, of a method that finds its
    rate itself. grows: whether further values are tried until the best one lies between others,
    also in the last stage.
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
    stages: tuple = STAGES
    epochs: float | None = None
    seeds: int = 3
    shortened: str = ""
    words: str = ""

    @property
    def tuned_key(self):
        """The setting that is tuned first."""
        return DAMPING if self.dampings else RATE

    @property
    def tuned_values(self):
        """Those of `tuned_key` that are tried; none where nothing is tuned."""
        return self.dampings or (() if self.rate_of else self.rates)

    def tuned_settings(self, value):
        """{key: value} of a run that tries one of them."""
        return {DAMPING: value, LEAST_DAMPING: value} if self.dampings else {RATE: value}


class PanelPlan(NamedTuple):
    """A panel of a figure: "loss" or "error" of some curves over `x`, a key of curves.X_AXES.

    until: epochs, behind which nothing is drawn.
    """

    letter: str
    quantity: str
    curves: tuple
    x: str = "seconds"
    is_logarithmic: bool = False
    until: float = math.inf


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
        config = config_of(curve.config, (*curve.overrides, *self.overrides, *overrides))
        if is_open(config):
            raise ConfigError(
                f"{curve.name}: data.input_scale=auto and a last layer without units are decided "
                "by the data, when a run begins; give numbers for a reproduction"
            )
        return config

    def final_epochs(self, curve):
        return self.configure(curve).epochs if curve.epochs is None else curve.epochs


@functools.lru_cache(maxsize=4096)
def config_of(name, overrides=()):
    """The Config of a name, or of a path, with overrides; read once."""
    return load_config(name, overrides)
