"""What optimizers share: the parameters' velocity, their average, counters and state."""

import contextlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from kfcnet.batches import Batch
from kfcnet.config.optimizers import open_timescales
from kfcnet.optimizers import schedules
from kfcnet.optimizers.running_sums import RunningSums
from kfcnet.ranks import of_all

NUMBERS_FAIL = FloatingPointError, np.linalg.LinAlgError
"""What `prepare` and `step` raise where a loss, a model or a factor is not what it has to be."""


class Step(NamedTuple):
    """The results of a step: device arrays, to be read only when they are needed.

    totals (2,): sum of the losses in nats and number of errors over the batch, before the move.
    clip_scale (1,): what the update was multiplied with, or None where nothing clips.
    """

    totals: Any
    clip_scale: Any


def by_layer(config, key, layers, absent):
    """A setting of an optimizer's config for each weighted layer: by name, or one for all.

    `absent` where a layer is not named, and for learned scale and shift where there is one for all.
    Raises ValueError where a name is not that of a layer.
    """
    names, setting = [layer.name for layer in layers], getattr(config, key)
    if not isinstance(setting, dict):
        return [setting if layer.is_regularised else absent for layer in layers]
    unknown = [name for name in setting if name not in names]
    if unknown:
        raise ValueError(
            f"optimizer.{key}: no weighted layer is named {unknown[0]!r}; "
            f"there are {', '.join(names)}"
        )
    return [setting.get(name, absent) for name in names]


def check_batch(batch):
    """Raise TypeError for what is no Batch."""
    if not isinstance(batch, Batch):
        kind = type(batch).__name__
        raise TypeError(f"step: expected a kfcnet.batches.Batch(inputs, targets), got a {kind}")


class Optimizer:
    """One flat vector of parameters, moved along a direction with momentum, averaged as it moves.

    `average` is the exponential moving average of the iterates with a timescale counted in
    examples; evaluation uses it. It starts at the initial parameters. `learning_rate` is that of
    the next update, of optimizers that find it themselves that of the latest.
    """

    needs_preparation = False
    moves_by_velocity = True  # whether theta's latest move, but for max-norm, is `velocity`

    def __init__(self, network, loss, config):
        """config: the optimizer's part of a configuration, e.g. kfcnet.config.schema.SgdConfig().

        Raises ValueError where `weight_decay` or `max_norm` names a layer that is not there, and
        for a timescale that is still `auto`.
        """
        if still_open := open_timescales(config):
            raise ValueError(
                f"optimizer.{still_open[0]}: auto is for kfcnet.train and a configuration's data; "
                "give a number of examples"
            )
        self.network, self.loss, self.config = network, loss, config
        self.ops = network.ops
        self.velocity = self.ops.zeros(network.theta.shape)
        self.average = self.ops.copy(network.theta)
        self.weight_decays = by_layer(config, "weight_decay", network.weighted, absent=0.0)
        self.max_norms = by_layer(config, "max_norm", network.weighted, absent=None)
        self.decay_vector = self._decay_vector()
        self.steps = 0
        self.step_counter = self.ops.counter(0)  # the same in device memory
        self.examples = 0
        self.running_sums = RunningSums(self.ops)
        self.phase = lambda name: contextlib.nullcontext()

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Estimate from batches what the first step needs; here nothing."""

    def step(self, batch: Batch) -> Step:
        """Move the parameters along one mini-batch, a Batch or the share of it that this process
        has; returns a Step.

        Raises FloatingPointError where the loss was not finite, here or in an earlier step: since
        then no update has moved a parameter. Waits for the device.
        """
        raise NotImplementedError

    def _decay_vector(self):
        """lambda of every entry of theta (n,); biases are never decayed."""
        flat = np.zeros(self.network.theta.shape)
        for view, decay in zip(self.network.views(flat), self.weight_decays, strict=True):
            view[:, 1:] = decay
        return self.ops.asarray(flat)

    def _forward(self, batch):
        """One forward pass with this step's dropout masks; the loss's Evaluated."""
        z = self.network.forward(batch.inputs, training=True, step=self.step_counter)
        return self.loss.evaluate(z, batch.targets)

    def _loss_gradient(self, dz, totals):
        """Fill network.gradient with the gradient of the mean loss.

        totals: the loss's, which become those of the whole mini-batch where processes share it.
        """
        self.network.backward_with_gradient(dz, totals)

    def add_decay(self, theta, gradient):
        """gradient (n,) += lambda * theta: from that of the mean loss to that of h."""
        self.ops.multiply_add(self.decay_vector, theta, gradient)

    def quadratic(self, predictive, tangent, decay_form):
        """d^T F d + lambda |d|^2 for a direction d (n,), F the exact Fisher matrix: (1,).

        tangent (m, C): R(z) along d, of the first m examples of `predictive`; F is of these.
        decay_form: that of d.
        """
        m = len(tangent)
        result = self.fisher_form(predictive[:m], tangent, tangent)
        self.ops.axpy(1.0, decay_form, result)
        return result

    def decay_form(self, vector):
        """lambda |d|^2 for a vector d (n,), lambda being each entry's: (1,)."""
        return self.ops.weighted_dot(self.decay_vector, vector, vector)

    def fisher_form(self, predictive, r, s):
        """r^T F_R s, the mean over the examples of `predictive`, tangents r and s (m, C): (1,)."""
        ranks = self.ops.ranks
        result = self.loss.fisher_form(predictive, r, s, scale=1 / ranks.whole(len(predictive)))
        ranks.sum(result)
        return result

    def objective(self, totals, theta, M):
        """h at theta (n,), the mean loss plus lambda/2 * |weights|^2: a float.

        totals: the loss's, over M examples. Waits for the device.
        """
        return float(self.ops.to_numpy(totals)[0]) / M + self.penalty(theta)

    def penalty(self, theta):
        """lambda/2 * |weights|^2 at theta (n,): a float. Waits for the device."""
        return float(self.ops.to_numpy(self.decay_form(theta))[0]) / 2

    @contextlib.contextmanager
    def _moving(self, examples):
        """The context of a move: yields the decay with which theta is averaged, and limits the
        weights' norms afterwards.
        """
        averaging_decay = math.exp(-examples / self.config.averaging_timescale)
        yield averaging_decay
        views = self.network.views
        for limit, weight, average in zip(
            self.max_norms, views(self.network.theta), views(self.average), strict=True
        ):
            if limit is not None:
                self.ops.max_norm(
                    weight, average, limit, averaging_decay, self.running_sums.nonfinite_step
                )

    def require_finite(self):
        """Raise FloatingPointError where the loss of a step was not finite; waits for the device.

        Processes that share a mini-batch all do: the loss is that of all of it.
        """
        first = self.read_sums().nonfinite_step
        if first is not None:
            raise of_all(
                FloatingPointError(
                    f"the loss of update {first + 1} is not finite; the parameters are as they "
                    "were before it"
                )
            )

    def read_sums(self):
        """The Reading of `running_sums`; waits for the device, and tells what it met since."""
        return self.running_sums.read()

    def _count(self, examples):
        """Count one update of `examples` examples on the host; the device has counted it."""
        self.steps += 1
        self.examples += examples

    def state(self) -> dict:
        """What a later process needs to resume bit for bit: NumPy arrays and numbers."""
        arrays = {"theta": self.network.theta, "velocity": self.velocity, "average": self.average}
        return {
            "steps": self.steps,
            "examples": self.examples,
            **{name: self.ops.to_numpy(array).copy() for name, array in arrays.items()},
        }

    def load_state(self, state: dict) -> None:
        """Restore what `state` returned; raises ValueError for that of another network."""
        if np.shape(state["theta"]) != self.network.theta.shape:
            raise ValueError(
                f"the state is of a network with {np.size(state['theta'])} parameters; this one "
                f"has {self.network.theta.size}"
            )
        self.steps, self.examples = int(state["steps"]), int(state["examples"])
        self.ops.write(self.step_counter, self.steps)
        self.running_sums.forget_nonfinite()
        for name, array in (
            ("theta", self.network.theta),
            ("velocity", self.velocity),
            ("average", self.average),
        ):
            self.ops.write(array, state[name])


class ScheduledOptimizer(Optimizer):
    """An optimizer whose learning rate follows a schedule.

    Within a step the host then reads nothing from the device, so that `update` can be captured as
    a graph: by `step` for a given mini-batch, or elsewhere together with the code that draws one
    on the device.
    """

    def __init__(self, network, loss, config):
        super().__init__(network, loss, config)
        self._learning_rate = self._scheduled_rate()
        self.learning_rate_on_device = self.ops.scalar(self.learning_rate)
        self.previous_learning_rate = None  # of the latest update
        self._captured_update = self.ops.captured(self.update, *network.layers)

    @property
    def learning_rate(self):
        """That of the next update, by the schedule; to assign it raises AttributeError."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, _):
        raise AttributeError(
            "learning_rate follows config.schedule: build an optimizer of another config, and "
            "load_state what state() of this one returns"
        )

    def step(self, batch):
        check_batch(batch)
        step = self.advance(self.ops.ranks.whole(batch.size), self._captured_update, batch)
        self.require_finite()
        return step

    def advance(self, examples, update, *inputs):
        """Take a step of `examples` examples by `update`, which calls `self.update`: a Step.

        update: a function of the inputs and of what `decide` returned.
        """
        decisions = self.decide(examples)
        with self.phase("gradient"):
            step = update(*inputs, *decisions)
        self._count(examples)
        return step

    def decide(self, examples):
        """What the host decides about the next update, of `examples` examples: hashable values."""
        return ()

    def update(self, batch, *decisions):
        """The part of a step that the device computes: gradient, direction, move; returns a Step.

        It may be a generator that yields functions: the host calls them, and a captured graph is
        cut there.
        """
        raise NotImplementedError

    def _move(self, direction, counted, examples, weight_decay=None):
        """Momentum, step and iterate average, in one pass over the flat vectors.

        counted: the step's StepCount. weight_decay (n,): where the direction lacks the penalty's
        part.
        """
        with self._moving(examples) as averaging_decay:
            self.ops.momentum_update(
                self.network.theta,
                self.velocity,
                self.average,
                direction,
                self.learning_rate_on_device,
                self.config.momentum,
                counted.clip_scale,
                averaging_decay,
                counted,
                weight_decay,
            )

    def _count(self, examples):
        super()._count(examples)
        self.previous_learning_rate = self.learning_rate
        self._set_learning_rate(self._scheduled_rate())

    def _set_learning_rate(self, learning_rate):
        if learning_rate != self.learning_rate:
            self._learning_rate = learning_rate
            self.ops.write(self.learning_rate_on_device, learning_rate)

    def _scheduled_rate(self):
        return self.config.learning_rate * schedules.factor(self.config.schedule, self.examples)

    def load_state(self, state):
        super().load_state(state)
        self._set_learning_rate(self._scheduled_rate())


class GradientMethod(ScheduledOptimizer):
    """An optimizer whose update is a gradient and a move along it, nothing in between."""

    def update(self, batch):
        _, dz, totals = self._forward(batch)
        self._loss_gradient(dz, totals)
        counted = self.running_sums.of(self.step_counter, totals)
        self._move_along_gradient(counted, self.ops.ranks.whole(batch.size))
        return Step(totals, None)

    def _move_along_gradient(self, counted, examples):
        """Count the step, a StepCount, and move the parameters along the gradient of h:
        network.gradient, the mean over `examples` examples, and that of the penalty, which the
        update adds in the same pass.
        """
        raise NotImplementedError
