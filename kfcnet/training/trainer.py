"""The training loop: mini-batches, evaluations, checkpoints, and going on after an interruption."""

import contextlib
import hashlib
import json
import logging
import math
import signal
import sys
import time
import warnings

import numpy as np

from kfcnet.batches import Loader
from kfcnet.ops import which_device
from kfcnet.optimizers.base import NUMBERS_FAIL
from kfcnet.optimizers.kronecker import KroneckerOptimizer
from kfcnet.philox import SHUFFLE, permutation
from kfcnet.ranks import Alone, RanksError, cores, is_of_all, machine, of_all
from kfcnet.runs.folder import DATA, check_origin, portable_config
from kfcnet.runs.metrics import read_metrics
from kfcnet.runs.provenance import describe_run
from kfcnet.runs.schedule import EvaluationSchedule
from kfcnet.training import advice, diagnostics
from kfcnet.training.build import build_for, build_ops, captured_step, examples_of, period
from kfcnet.training.clock import STEPS_BETWEEN_READS, Signals, StopRequested, Stopwatch
from kfcnet.training.errors import TrainingFailed, TrainingInterrupted, TrainingWarning
from kfcnet.training.evaluation import batch_statistics, evaluate
from kfcnet.training.output import Output
from kfcnet.training.progress_bar import ProgressBar

logger = logging.getLogger(__name__)

ACTIVITY_EXAMPLES = 1000  # what the share of active units is measured on
STATISTICS_EXAMPLES = 1024  # what batch normalisation's statistics for evaluation are measured on


class Trainer:
    """One run: the data on the device, the optimizer, and what has been measured so far."""

    def __init__(self, config, folder, dataset, rows=None, ranks=None):
        """Raises ConfigError for a network that does not fit the data, DeviceError, RanksError."""
        self.config, self.folder, self.dataset = config, folder, dataset
        self.ranks = ranks = ranks or Alone()
        shown = (rows or sys.stdout, sys.stderr) if ranks.is_first else (None, None)
        self.rows, self.stderr = (stream and Output(stream) for stream in shown)
        self.ops = build_ops(config, ranks=ranks)
        ranks.check_alike(self._origin())
        self._warn_of_threads()
        self.train_set, self.test_set = (
            examples_of(dataset, part, config, self.ops) for part in ("train", "test")
        )
        self.clock, self.signals = Stopwatch(self.ops), Signals()
        self.loader = Loader(self.train_set, config.optimizer.batch_size, config.seed)
        self.optimizer = ranks.agreed(lambda: build_for(dataset, config, self.ops))
        self.optimizer.phase = self.clock.phase
        self.network, self.loss = self.optimizer.network, self.optimizer.loss
        self._warn_of_dear_factors()
        self.take_step = captured_step(self.optimizer, self.loader.draw, self.loader.size)
        # A captured step goes on reading what the layers of the trained network saved: evaluation
        # leaves them alone.
        self.evaluated = self.network.copy()
        self.schedule = EvaluationSchedule(config, len(self.train_set))
        self.shuffled = _shuffled(len(self.train_set))
        self.measured = _measured_examples(config, self.ops, self.shuffled)
        self.sums = self.optimizer.running_sums.read()  # of the steps since the latest row, as read
        self.read_steps = self.steps_since_row = 0
        self.warm = False
        self.saved_steps, self.saved_at = None, time.monotonic()

    def run(self, state=None):
        """Start, or go on from a checkpoint's `state`, up to the configured number of epochs."""
        measured_on = (
            f"{len(self.measured):,} of {len(self.train_set):,} training images, "
            "the same at every evaluation"
        )
        record = describe_run(self.config, self.ops, self.dataset.provenance, measured_on)
        if state is None:
            self.folder.start(self.config, record)
        else:
            self.ranks.agreed(lambda: self._restore(state))
            self.folder.go_on(self.config, record, self.optimizer.steps)
        self.last_row = self.folder.last_row()
        if self.last_row == self.optimizer.steps:
            # A run stopped within an evaluation, and killed after it, has the row all the same.
            self.steps_since_row = 0
            self._restart_sums()
        if self.config.device == "auto" and self.stderr:
            print(which_device(self.ops), file=self.stderr)
        done = self.optimizer.steps
        with self.signals, ProgressBar(self.clock, self.schedule, done, self.stderr) as self.bar:
            try:
                self._loop()
            except TrainingInterrupted:
                # A signal may have met the last checkpoint, which leaves nothing to go on with.
                is_whole = self.last_row == self.schedule.steps
                state = "finished" if is_whole else "interrupted"
                self.folder.finish(state, self.optimizer.steps)
                raise
            except TrainingFailed as error:
                self.folder.finish("failed", self.optimizer.steps, reason=error.reason)
                raise
        self.folder.finish("finished", self.optimizer.steps)
        if self.ranks.is_first:
            self._warn_if_nothing_was_learned()

    def _warn_if_nothing_was_learned(self):
        metrics, examples = read_metrics(self.folder.metrics), self.optimizer.examples
        if said := advice.of_nothing_learned(
            self.config, metrics, examples, self.dataset, self.measured
        ):
            warnings.warn(said, TrainingWarning, stacklevel=2)

    def _loop(self):
        """Evaluate, save, train to the next stop; a signal ends it with everything saved.

        The row of a step is written before its checkpoint: a checkpoint without its row is then
        one whose evaluation is still to come, and the counters since the last row are right.
        """
        try:
            while True:
                steps = self.optimizer.steps
                if self.schedule.due(steps) and self.last_row < steps:
                    with self.bar.evaluating():
                        self._evaluate()
                if self._save_is_due():
                    self._save()
                if steps >= self.schedule.steps:
                    break
                self._train_to_next_stop()
                self._stop_if_asked()
            self._save()
            self._stop_if_asked()  # what comes after the run, in a sweep the next one
        except StopRequested as stop:
            self._save()
            raise of_all(TrainingInterrupted(stop.number, self._farewell(stop))) from None

    def _train_to_next_stop(self):
        """Steps up to the next evaluation, checkpoint or signal; the clock runs in here only."""
        if not self.warm:
            self._warm_up()
        with self.clock:
            if self.optimizer.needs_preparation:
                self.bar.set_description("first estimate of the factors")
                with self._computing():
                    self._prepare()
                self.bar.set_description()
                self.bar.begin()
            while True:
                self._step()
                if self.schedule.due(self.optimizer.steps) or self._is_asked_for():
                    break
            self._read()

    def _step(self):
        """One update; its results are read now or together with those of later ones."""
        step, wanted = self.optimizer.steps, self.config.diagnostics
        is_diagnosed = wanted is not None and (step + 1) % wanted.every == 0
        before = self.ops.copy(self.network.theta) if is_diagnosed else None
        self.loader.provide(step)
        with self._computing():
            self.take_step()
        unread = self.optimizer.steps - self.read_steps
        if unread >= STEPS_BETWEEN_READS[self.ops.name] or is_diagnosed:
            self._read()
        if is_diagnosed:
            with self.clock.stopped():
                self.folder.append_diagnostics(self._diagnose(before, self.loader.batch(step)))

    def _diagnose(self, before, batch):
        """A row of diagnostics about the update from `before` (n,) on a Batch."""
        row = {"iteration": self.optimizer.steps, "examples": self.optimizer.examples}
        if isinstance(self.optimizer, KroneckerOptimizer):
            row |= diagnostics.measure(self.optimizer, before, batch)
        self._bind_evaluated(self.network.theta)
        images = self.shuffled[:ACTIVITY_EXAMPLES]
        return row | diagnostics.activity(self.evaluated, self.train_set, images)

    @contextlib.contextmanager
    def _computing(self):
        """End the run where its optimizer gives up, often the first that is seen of a NaN."""
        try:
            yield
        except FloatingPointError as error:
            self._check_all_have(error)
            what = str(error)
        except np.linalg.LinAlgError as error:
            self._check_all_have(error)
            what = f"a factor cannot be inverted ({error})"
        else:
            return
        self._read()
        self._fail(self.optimizer.steps, what, self.network.theta)

    def _prepare(self):
        """Start the factors from the mini-batches that training will begin with."""
        count = -(-self.config.optimizer.initial_examples // self.loader.size)
        self.optimizer.prepare(self.loader.batch(step) for step in range(count))

    def _warm_up(self):
        """Let another network of the same kind take one step, in which all that a step may do is
        due, so that compilation is not timed.
        """
        optimizer = build_for(self.dataset, self.config, self.ops)
        optimizer.steps = period(self.config) - 1
        self.loader.provide(0)
        try:
            optimizer.prepare([self.loader.batch(0)])
            captured_step(optimizer, self.loader.draw, self.loader.size)()
        except NUMBERS_FAIL as error:
            self._check_all_have(error)  # then the real step will report it
        self.warm = True

    def _check_all_have(self, error):
        """Raise an error of this process alone: the others are in a step, and cannot be asked."""
        if self.ranks.count > 1 and not is_of_all(error):
            raise error

    # Measuring

    def _read(self):
        """Fetch what the steps since the latest row add up to, and whether it is finite."""
        steps = self.optimizer.steps - self.read_steps
        if not steps:
            return
        before, self.sums = self.sums, self.optimizer.read_sums()  # waits for the device
        self.clock.count()
        self.read_steps += steps
        self.steps_since_row += steps
        if self.sums.nonfinite_step is not None:
            self._fail(self.sums.nonfinite_step, "the loss is not finite", self.network.theta)
        examples = steps * self.loader.size
        self.bar.set_postfix_str(
            f"epoch {self._epoch():.2f}; mini-batches: "
            f"loss {(self.sums.losses - before.losses) / examples:.4f},"
            f" error {(self.sums.errors - before.errors) / examples:.2%}",
            refresh=False,
        )
        self.bar.update(steps)

    def _evaluate(self):
        """Add a row to the metrics, measured with the averaged and with the latest parameters."""
        self._check_drift()
        steps, average = self.optimizer.steps, self.optimizer.average
        train, test = averaged = self._errors(average)
        raw_train, raw_test = self._errors(self.network.theta) if steps else averaged
        if not np.isfinite([*train, *test]).all():
            self._fail(
                steps, "the loss of the averaged parameters is not finite", self.optimizer.average
            )
        self.folder.append(
            {
                "iteration": steps,
                "epoch": self._epoch(),
                "examples": self.optimizer.examples,
                "seconds": self.clock.seconds,
                "train_loss": train[0],
                "train_error": train[1],
                "test_loss": test[0],
                "test_error": test[1],
                "train_objective": train[0] + self.optimizer.penalty(average),
                "raw_train_error": raw_train[1],
                "raw_test_error": raw_test[1],
                "learning_rate": self.optimizer.learning_rate,
                "update_norm": self._update_norm(),
                "clipped": self.sums.clipped / max(self.steps_since_row, 1),
                "nu": self.sums.nu / self.steps_since_row if self.steps_since_row else math.nan,
                **{f"seconds_{phase}": seconds for phase, seconds in self.clock.phases.items()},
            }
        )
        self.last_row, self.steps_since_row = steps, 0
        self._restart_sums()
        if self.rows:
            self.bar.write(
                f"epoch {self._epoch():.2f}, update {steps}, {self.clock.seconds:.1f} s; averaged "
                f"parameters: training loss {train[0]:.4f}, error {train[1]:.2%}; "
                f"test loss {test[0]:.4f}, error {test[1]:.2%}",
                file=self.rows,
            )
            self.rows.flush()

    def _errors(self, theta):
        """((loss, error) on the measured training examples, the same on the test set) at theta."""
        self._bind_evaluated(theta)
        # Processes agree on a signal between steps only.
        check = self.signals.check if self.ranks.count == 1 else lambda: None
        return tuple(
            evaluate(self.evaluated, self.loss, *examples, check)
            for examples in ((self.train_set, self.measured), (self.test_set, None))
        )

    def _restart_sums(self, *earlier):
        self.optimizer.running_sums.restart(*earlier)
        self.sums = self.optimizer.running_sums.read()

    def _update_norm(self):
        """The length of the latest move, NaN where the optimizer does not keep its moves."""
        if not self.optimizer.moves_by_velocity:
            return math.nan
        velocity = self.optimizer.velocity
        return math.sqrt(self.ops.to_numpy(self.ops.dot(velocity, velocity))[0])

    def _bind_evaluated(self, theta):
        """Let the network that is evaluated use `theta`, batch normalisation its own statistics."""
        self.evaluated.bind(theta)
        if self.evaluated.has_batch_statistics:
            batch = self.train_set.batch(self.shuffled[:STATISTICS_EXAMPLES])
            self.evaluated.measure_statistics(batch.inputs)

    def _epoch(self):
        return self.optimizer.examples / len(self.train_set)

    def _fail(self, step, what, theta):
        """Raise TrainingFailed, naming the layer where the first non-finite number appeared.

        theta: the parameters that the mini-batch of `step` met.
        """
        self._bind_evaluated(theta)
        layer = self.evaluated.first_nonfinite(self.loader.batch(step).inputs)
        found = [name for name in self.ranks.allgather(layer) if name]
        layer = min(found, key=[layer.name for layer in self.network.layers].index, default=None)
        reason = f"after update {step} {what}" + (
            f"; non-finite numbers appear first in layer {layer}" if layer else ""
        )
        saved = (
            f"the last good checkpoint is {self.folder.checkpoint}, of update {self.saved_steps}"
            if self.saved_steps
            else "there is no checkpoint yet"
        )
        raise of_all(TrainingFailed(reason, f"; {saved}. {advice.ways_out(self.config, step)}"))

    # Saving: what processes decide together, since each has a clock and signals of its own

    def _save_is_due(self):
        """Whether it is time for a checkpoint, by the first process's clock."""
        return bool(self.ranks.max(self._is_time_to_save())[0])

    def _is_time_to_save(self):
        passed = time.monotonic() - self.saved_at
        return self.ranks.is_first and passed >= 60 * self.config.checkpoint_minutes

    def _is_asked_for(self):
        """Whether the loop has to do with anything but the next step: a checkpoint, a signal.

        Processes ask each other when they read what steps have left: until then no host waits for
        another.
        """
        if self.ranks.count > 1 and self.optimizer.steps % STEPS_BETWEEN_READS[self.ops.name]:
            return False
        return any(self.ranks.max(self._is_time_to_save(), self.signals.caught or 0))

    def _stop_if_asked(self):
        """Raise StopRequested in all processes where a signal has come to one of them."""
        (caught,) = self.ranks.max(self.signals.caught or 0)
        if caught:
            raise StopRequested(caught)

    def _save(self):
        """Write the checkpoint, unless there is nothing new to write or it would not be good."""
        steps = self.optimizer.steps
        if steps == (self.saved_steps or 0):
            return
        state = self.optimizer.state()
        vectors = [state[name] for name in ("theta", "velocity", "average")]
        is_bad = not all(np.isfinite(vector).all() for vector in vectors)
        if self.ranks.max(is_bad)[0]:  # a process may have gone wrong alone
            self._fail(steps, "the parameters are not finite", self.network.theta)
        self._bind_evaluated(self.optimizer.average)
        self.folder.save(
            {
                "config": portable_config(self.config),
                "origin": self._origin(),
                "data": self._data_state(),
                "optimizer": state,
                "statistics": batch_statistics(self.evaluated),
                "clock": {"seconds": self.clock.seconds, "phases": self.clock.phases},
                "row": {
                    "clipped": self.sums.clipped,
                    "nu": self.sums.nu,
                    "steps": self.steps_since_row,
                },
                **self.ranks.describe(),
            }
        )
        self.saved_steps, self.saved_at = steps, time.monotonic()

    def _data_state(self):
        """What a trained network needs to know of its data."""
        names = self.dataset.class_names
        return {
            "mean": self.dataset.mean,
            "examples": len(self.train_set),
            "pixels": self.dataset.train_images.dtype.name,
            **({"classes": json.dumps(names)} if names else {}),
        }

    def _restore(self, state):
        """Take over what `_save` wrote.

        Raises RunFolderError for another device or other data, CheckpointError for the contents of
        another version.
        """
        check_origin(state["origin"], self._origin(), self.folder.path)
        self._say_if_shared_otherwise(state.get("processes", 1))
        self.optimizer.load_state(state["optimizer"])
        self.clock.seconds = state["clock"]["seconds"]
        self.clock.phases.update(state["clock"]["phases"])
        row = state["row"]
        self.steps_since_row = row["steps"]
        self._restart_sums(row["clipped"], row.get("nu", math.nan))  # older ones have no nu
        self.saved_steps = self.read_steps = self.optimizer.steps

    def _say_if_shared_otherwise(self, before):
        if before != self.ranks.count and self.ranks.is_first:
            logger.info(
                "the run was saved by %d process%s and goes on with %d: the same up to rounding, "
                "not bit for bit",
                before,
                "" if before == 1 else "es",
                self.ranks.count,
            )

    def _warn_of_dear_factors(self):
        if not self.ranks.is_first:
            return
        if said := advice.of_dear_factors(self.config, self.network.weighted):
            logger.warning("%s", said)

    def _warn_of_threads(self):
        if self.ops.name != "cpu" or self.ranks.count == 1:
            return
        places = self.ranks.allgather((machine(), cores()))
        said = advice.of_threads(places, self.config.ops.shards)
        if said and self.ranks.is_first:
            logger.warning("%s", said)

    def _check_drift(self):
        """Raise RanksError unless all processes still have the same parameters, bit for bit."""
        if self.ranks.count == 1:
            return
        theta = self.ops.to_numpy(self.network.theta)
        checksum = hashlib.sha256(np.ascontiguousarray(theta)).hexdigest()
        if unlike := self.ranks.first_unlike(checksum):
            raise of_all(
                RanksError(
                    f"after update {self.optimizer.steps} the parameters of process {unlike[0]} of "
                    f"{self.ranks.count} are not those of process 1: they run on unlike processors "
                    "or libraries. Start all of them on machines of one kind"
                )
            )

    def _origin(self):
        """What must be the same for a run to go on as if it had never stopped."""
        device = self.ops.describe()
        return {
            "device": device["device"],
            "use of the C extension": device.get("native", False),
            "use of tensor cores": device.get("tensor_cores", False),
            DATA: self.dataset.provenance["sha256"],
        }

    def _farewell(self, stop):
        name = signal.Signals(stop.number).name
        if not self.saved_steps:
            return (
                f"stopped by {name} before the first update: begin again with the same command and "
                "--resume"
            )
        return (
            f"stopped by {name} after update {self.saved_steps}; everything is saved in "
            f"{self.folder.path}: go on with the same command and --resume"
        )


def _shuffled(examples):
    """Indices (n,) of all examples in the same random order for every run: data may be sorted."""
    return permutation(0, SHUFFLE, 0, examples, stream=1)


def _measured_examples(config, ops, shuffled):
    """Indices (n,) of what train_* are measured on: on the CPU a part, the same in all runs."""
    if ops.name != "cpu" or config.evaluation.train_examples >= len(shuffled):
        return np.arange(len(shuffled))
    return shuffled[: config.evaluation.train_examples]
