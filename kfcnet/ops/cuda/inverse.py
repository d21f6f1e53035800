"""Factorizations: by the runtime's library, and by kernels of our own that a graph can hold."""

import contextlib

import numpy as np

from kfcnet.ops.cuda.gram import triangle
from kfcnet.ops.cuda.launcher import Launcher
from kfcnet.ops.shapes import ceil_div

PIVOTS, TILE, THREADS, CHUNK = 32, 64, 256, 4096  # those of kernels/spd_inverse.cu


class Factorizations(Launcher):
    """Inverses and eigenvectors of symmetric matrices."""

    adopts_inverses = True

    def __init__(self, runtime, tensor_cores):
        super().__init__(runtime, tensor_cores)
        self._failures = None  # flags of inversions that have not been asked for yet

    def spd_inverse(self, matrix, shift):
        """Waits for the device, which alone knows whether the matrix was positive definite; not
        within `_unasked`.
        """
        inverse, failed = self.runtime.spd_inverse(matrix, shift)
        if self._failures is None:
            self._raise_if(failed)
        else:
            self._failures.append(failed)
        return inverse

    @contextlib.contextmanager
    def _unasked(self):
        """Within the context inversions only queue: yields the list of their flags."""
        outer, self._failures = self._failures, []
        try:
            yield self._failures
        finally:
            self._failures = outer

    def _raise_if(self, failed):
        if self.to_numpy(failed)[0]:
            raise np.linalg.LinAlgError("matrix is not positive definite after damping")

    def eigh(self, matrix):
        """By the runtime's library; waits for the device, which knows whether it was found."""
        values, vectors = self.runtime.eigh(matrix)
        if not np.isfinite(self.to_numpy(values)).all():
            raise np.linalg.LinAlgError("eigenvalues did not converge")
        return values, vectors

    def adopt_inverses(self, factors, sides, damping, inverses, failures):
        """One chain of launches for all layers; nothing waits for the device."""
        squares = [side**2 for side in sides]
        constants = {"SIDES": ",".join(map(str, sides)), "COUNT": len(sides), "TOTAL": sum(squares)}
        buffers = self.empty(sum(squares)), self.empty(sum(squares))
        failed = self.empty(len(sides), np.int32)

        def launch(kernel, blocks, *values):
            self.launch("spd_inverse", kernel, blocks, *values, block=THREADS, **constants)

        parts = sum(ceil_div(square, CHUNK) for square in squares)
        tiles = sum(triangle(ceil_div(side, TILE)) for side in sides)
        launch("spd_damp", parts, factors, damping, buffers[0])
        for step in range(ceil_div(max(sides), PIVOTS)):
            launch("spd_sweep", tiles, buffers[step % 2], buffers[1 - step % 2], failed, step)
        launch("spd_adopt", parts, *buffers, failed, inverses, failures)
