"""What all optimizers share: the parameters' velocity, their average, counters and state."""

import contextlib
import math
from typing import Any, NamedTuple

import numpy as np

from kfcnet.optimizers import schedules
from kfcnet.optimizers.tally import Tally


class Batch(NamedTuple):
    """A mini-batch on the device: inputs (M, H, W, C), targets (M,) int32 or (M, C).

    An optimizer's step takes it, or anything with `size` and `draw`, such as a Feed.
    """

    inputs: Any
    targets: Any

    @property
    def size(self):
        """M."""
        return len(self.inputs)

    def draw(self, step):
        """The Batch of a step's number: this one."""
        return self


class Step(NamedTuple):
    """What a step leaves to read: device arrays, read when somebody wants to know.

    totals (2,): sum of the losses in nats and number of errors over the batch, before the move.
    clip_scale (1,): what the update was multiplied with, or None where nothing clips.
    """

    totals: Any
    clip_scale: Any


class Optimizer:
    """One flat vector of parameters, moved along a direction with momentum, averaged as it moves.

    `average` is the exponential moving average of the iterates with a timescale counted in
    examples; evaluation uses it. It starts at the initial parameters.
    """

    def __init__(self, network, loss, config):
        """config: the optimizer's part of a configuration, e.g. kfcnet.config.SgdConfig().

        Raises ValueError where `weight_decay` or `max_norm` names a layer that is not there.
        """
        self.network, self.loss, self.config = network, loss, config
        self.ops = network.ops
        self.velocity = self.ops.zeros(network.theta.shape)
        self.average = self.ops.copy(network.theta)
        self.weight_decays = self._by_layer("weight_decay", absent=0.0)
        self.max_norms = self._by_layer("max_norm", absent=None)
        self.decay = self._decay_vector()
        self.steps = 0
        self.examples = 0
        self.learning_rate = self._scheduled_rate()  # of the next update
        # The same two in device memory, where a recorded step reads them.
        self.step_counter, self.rate = self.ops.counter(0), self.ops.scalar(self.learning_rate)
        self.latest_rate = None  # of the update before
        self.tally = Tally(self.ops)
        self.phase = lambda name: contextlib.nullcontext()

    needs_preparation = False
    moves_by_velocity = True  # whether theta's latest move, but for max-norm, is `velocity`

    def prepare(self, batches):
        """Whatever must be estimated from an iterable of batches before the first step: nothing."""

    def step(self, batch):
        """Move the parameters along one mini-batch, a Batch or what draws one; returns a Step."""
        raise NotImplementedError

    def _by_layer(self, key, absent):
        """A setting for each weighted layer: by name, or one for all but learned scales.

        `absent` where a layer is not named, and for scale and shift where there is one for all.
        """
        names = [layer.name for layer in self.network.weighted]
        setting = getattr(self.config, key)
        if not hasattr(setting, "keys"):
            return [absent if layer.is_per_map else setting for layer in self.network.weighted]
        unknown = [name for name in setting if name not in names]
        if unknown:
            raise ValueError(f"optimizer.{key}: no weighted layer is named {unknown[0]!r}; "
                             f"there are {', '.join(names)}")
        return [setting.get(name, absent) for name in names]

    def _decay_vector(self):
        """lambda of every entry of theta (n,); biases are never decayed."""
        flat = np.zeros(self.network.theta.shape)
        for view, decay in zip(self.network.views(flat), self.weight_decays, strict=True):
            view[:, 1:] = decay
        return self.ops.asarray(flat)

    def _forward(self, batch):
        """One forward pass with this step's dropout masks; (predictive, dz, totals) of the loss."""
        z = self.network.forward(batch.inputs, training=True, step=self.step_counter)
        return self.loss.evaluate(z, batch.targets)

    def _backward(self, dz):
        """Fill network.gradient with the gradient of h: mean loss plus lambda/2 * |weights|^2."""
        self.network.backward(dz)
        self.network.compute_gradient()
        self.ops.multiply_add(self.decay, self.network.theta, self.network.gradient)

    def objective(self, totals, theta, M):
        """h at theta (n,), the mean loss plus lambda/2 * |weights|^2: a float.

        totals: the loss's, over M examples. Waits for the device.
        """
        penalty = self.ops.to_numpy(self.ops.weighted_dot(self.decay, theta, theta))[0]
        return float(self.ops.to_numpy(totals)[0]) / M + float(penalty) / 2

    def _move(self, direction, clip_scale, examples):
        """Momentum, step and iterate average, in one pass over the flat vectors."""
        averaging_decay = self._averaging_decay(examples)
        self.ops.momentum_update(
            self.network.theta, self.velocity, self.average, direction, self.rate,
            self.config.momentum, clip_scale, averaging_decay, self.tally.nonfinite_step)
        self._constrain(averaging_decay)

    def _averaging_decay(self, examples):
        return math.exp(-examples / self.config.averaging_timescale)

    def _constrain(self, averaging_decay):
        """After a move that `average` has folded in: the limits of the weights' norms."""
        views = self.network.views
        for limit, weight, average in zip(self.max_norms, views(self.network.theta),
                                          views(self.average), strict=True):
            if limit is not None:
                self.ops.max_norm(weight, average, limit, averaging_decay,
                                  self.tally.nonfinite_step)

    def _count(self, examples):
        """One more update, of so many examples; the device has counted it."""
        self.steps += 1
        self.examples += examples
        self.network.passes += 1  # a repeated recording makes its own without the network's help
        self.latest_rate = self.learning_rate
        self._set_rate(self._scheduled_rate())

    def _set_rate(self, learning_rate):
        if learning_rate != self.learning_rate:
            self.learning_rate = learning_rate
            self.ops.write(self.rate, learning_rate)

    def _scheduled_rate(self):
        return self.config.learning_rate * schedules.factor(self.config.schedule, self.examples)

    def state(self):
        """Everything a later process needs to go on bit for bit: NumPy arrays and numbers."""
        arrays = {"theta": self.network.theta, "velocity": self.velocity, "average": self.average}
        return {"steps": self.steps, "examples": self.examples,
                **{name: self.ops.to_numpy(array).copy() for name, array in arrays.items()}}

    def load_state(self, state):
        """Take over what `state` returned."""
        self.steps, self.examples = int(state["steps"]), int(state["examples"])
        self.ops.write(self.step_counter, self.steps)
        self._set_rate(self._scheduled_rate())
        for name, array in (("theta", self.network.theta), ("velocity", self.velocity),
                            ("average", self.average)):
            self.ops.write(array, state[name])


class GradientMethod(Optimizer):
    """An optimizer whose step is a gradient and a move along it, nothing in between.

    All of it is one program, which a device may record once and repeat.
    """

    def __init__(self, network, loss, config):
        super().__init__(network, loss, config)
        self._program = self.ops.program(self._descend, *network.layers)

    def step(self, batch):
        with self.phase("gradient"):
            step = self._program(batch)
        self._count(batch.size)
        return step

    def _descend(self, batch):
        _, dz, totals = self._forward(batch.draw(self.step_counter))
        self._backward(dz)
        self.tally.add(self.step_counter, totals)
        self._update(batch.size)
        self.ops.advance(self.step_counter)
        return Step(totals, None)

    def _update(self, examples):
        """Move the parameters along network.gradient, the mean over so many examples."""
        raise NotImplementedError
