"""Launchers of what surrounds the passes: mini-batches, vectors, and the fused updates."""

import math

import numpy as np

from kfcnet.ops.cuda.launcher import BLOCK, Launcher, lanes_of
from kfcnet.ops.shapes import ceil_div


class Updates(Launcher):
    """The primitives over the data set and over the flat vectors of parameters."""

    # Mini-batches

    def gather(self, images, labels, indices, mean, scale, batch=None, step=0):
        M, size = batch or len(indices), math.prod(images.shape[1:])
        x, targets = self.empty((M, *images.shape[1:])), None
        if labels is not None:
            labels, targets = self._on_device(labels, np.int32), self.empty(M, np.int32)
        grid = M, ceil_div(size // lanes_of(size), BLOCK)
        self.launch(
            "gather",
            "gather",
            grid,
            self._on_device(images, np.uint8),
            labels,
            mean,
            self._on_device(indices, np.int64),
            self._step(step),
            x,
            targets,
            len(images),
            M,
            len(indices),
            scale,
            IMAGE_SIZE=size,
            **(self._shared() if batch else {}),
        )
        return x, targets

    # Vectors and matrices

    def dot(self, x, y):
        return self._sum_of_products("dot_slices", x, y)

    def weighted_dot(self, w, x, y):
        return self._sum_of_products("weighted_dot_slices", w, x, y)

    def _sum_of_products(self, kernel, *vectors):
        """Partial sums, then their sum in order; one part is the result."""
        count = vectors[0].size
        slices = min(128, ceil_div(count, 4096))
        partials = self.empty(slices)
        self.launch("reduce", kernel, slices, *vectors, partials, count, slices)
        if slices == 1:
            return partials
        result = self.empty(1)
        self.launch("reduce", "sum_slices", 1, partials, result, slices)
        return result

    def axpy(self, alpha, x, y):
        self._fours("vector", "axpy", x.size, x, y, x.size, alpha)

    def multiply_add(self, w, x, y):
        self._fours("vector", "multiply_add", x.size, w, x, y, x.size)

    def trace(self, matrix):
        result = self.empty(1)
        self.launch("reduce", "trace", 1, matrix, result, len(matrix))
        return result

    # Updates

    def count_step(self, totals, clip_scale, nu, step, sums, nonfinite_step):
        self.launch(
            "training_state",
            "count_step",
            1,
            totals,
            clip_scale,
            nu,
            step,
            sums,
            nonfinite_step,
            block=1,
        )

    def clip_scale(self, quadratic, learning_rate, clip):
        scale, nu = self.empty(1), self.empty(1)
        self.launch(
            "reduce",
            "clip_scale",
            1,
            quadratic,
            self._scalar(learning_rate),
            scale,
            nu,
            clip,
            block=1,
        )
        return scale, nu

    def polyak_scale(self, scale, totals, examples, twice_penalty, slope, learning_rate, share):
        result = self.empty(1)
        self.launch(
            "reduce",
            "polyak_scale",
            1,
            scale,
            totals,
            twice_penalty,
            slope,
            self._scalar(learning_rate),
            result,
            1 / examples,
            share,
            block=1,
        )
        return result

    def momentum_update(
        self,
        theta,
        velocity,
        average,
        direction,
        learning_rate,
        momentum,
        clip_scale,
        averaging_decay,
        counted=None,
        weight_decay=None,
    ):
        self._fours(
            "momentum_update",
            "momentum_update",
            theta.size,
            direction,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(momentum),
            clip_scale,
            self._scalar(averaging_decay),
            *_counting(counted),
            theta,
            velocity,
            average,
            theta.size,
        )

    def nesterov_update(
        self,
        theta,
        velocity,
        average,
        direction,
        learning_rate,
        momentum,
        averaging_decay,
        counted=None,
        weight_decay=None,
    ):
        self._fours(
            "momentum_update",
            "nesterov_update",
            theta.size,
            direction,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(momentum),
            self._scalar(averaging_decay),
            *_counting(counted, with_nu=False),
            theta,
            velocity,
            average,
            theta.size,
        )

    def max_norm(self, weight, average, limit, averaging_decay, nonfinite_step=None):
        rows, columns = weight.shape
        self.launch(
            "max_norm",
            "max_norm",
            rows,
            self._scalar(averaging_decay),
            nonfinite_step,
            weight,
            average,
            rows,
            columns,
            limit,
            block=128,
        )

    def adagrad_update(
        self,
        theta,
        squares,
        average,
        gradient,
        learning_rate,
        epsilon,
        averaging_decay,
        nonfinite_step=None,
        weight_decay=None,
        is_decoupled=False,
    ):
        self._fours(
            "adaptive_update",
            "adagrad_update",
            theta.size,
            gradient,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(averaging_decay),
            nonfinite_step,
            theta,
            squares,
            average,
            theta.size,
            int(is_decoupled),
            epsilon,
        )

    def rmsprop_update(
        self,
        theta,
        squares,
        average,
        gradient,
        learning_rate,
        square_decay,
        epsilon,
        averaging_decay,
        nonfinite_step=None,
        weight_decay=None,
        is_decoupled=False,
    ):
        self._fours(
            "adaptive_update",
            "rmsprop_update",
            theta.size,
            gradient,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(averaging_decay),
            nonfinite_step,
            theta,
            squares,
            average,
            theta.size,
            int(is_decoupled),
            1 - square_decay,
            epsilon,
        )

    def adam_update(
        self,
        theta,
        velocity,
        squares,
        average,
        gradient,
        learning_rate,
        momentum,
        square_decay,
        epsilon,
        number,
        averaging_decay,
        nonfinite_step=None,
        weight_decay=None,
        is_decoupled=False,
    ):
        self._fours(
            "adaptive_update",
            "adam_update",
            theta.size,
            gradient,
            weight_decay,
            self._scalar(learning_rate),
            self._scalar(averaging_decay),
            self._step(number),
            nonfinite_step,
            theta,
            velocity,
            squares,
            average,
            theta.size,
            int(is_decoupled),
            1 - momentum,
            _log(momentum),
            1 - square_decay,
            _log(square_decay),
            epsilon,
        )


def _counting(counted, with_nu=True):
    """The arguments by which an update counts a StepCount, or nothing; its own clip is counted."""
    names = ["totals", "nu", "step", "sums", "nonfinite_step"]
    return [getattr(counted, name, None) for name in names if with_nu or name != "nu"]


def _log(decay):
    return math.log(decay) if decay > 0 else -math.inf
