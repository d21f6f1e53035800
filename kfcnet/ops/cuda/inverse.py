"""Factorizations: by the runtime's library, and by kernels of our own that a graph can hold."""

import contextlib
import itertools

import numpy as np

from kfcnet.ops.cuda.gram import triangle
from kfcnet.ops.cuda.launcher import Launcher
from kfcnet.ops.shapes import ceil_div

PIVOTS, TILE, THREADS = 32, 64, 256  # those of kernels/spd_inverse.cu


class Factorizations(Launcher):
    """Inverses and eigenvectors of symmetric matrices."""

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

    def swept_inverses(self, matrices, shifts):
        """([(matrix + shift*I)^-1, ...], int32 (matrices,): 1 where one is not positive definite).

        Each inverse is exactly symmetric. Nothing waits for the device.
        """
        sides = [len(matrix) for matrix in matrices]
        ends = list(itertools.accumulate(side**2 for side in sides))
        constants = {"SIDES": ",".join(map(str, sides)), "COUNT": len(sides), "TOTAL": ends[-1]}
        buffers = self.empty(ends[-1]), self.empty(ends[-1])
        parts = [
            [
                buffer[end - side**2 : end].reshape(side, side)
                for side, end in zip(sides, ends, strict=True)
            ]
            for buffer in buffers
        ]
        for matrix, shift, part in zip(matrices, shifts, parts[0], strict=True):
            self._each(
                "spd_inverse",
                "spd_shift",
                matrix.size,
                matrix,
                shift,
                part,
                len(matrix),
                **constants,
            )
        failed = self.empty(len(sides), np.int32)
        tiles = sum(triangle(ceil_div(side, TILE)) for side in sides)
        for step in range(ceil_div(max(sides), PIVOTS)):
            source, target = buffers[step % 2], buffers[1 - step % 2]
            self.launch(
                "spd_inverse",
                "spd_sweep",
                tiles,
                source,
                target,
                failed,
                step,
                block=THREADS,
                **constants,
            )
        inverses = []
        for index, side in enumerate(sides):
            swept = parts[ceil_div(side, PIVOTS) % 2][index]
            inverses.append(self.empty((side, side)))
            self._each("spd_inverse", "spd_result", side**2, swept, inverses[-1], side, **constants)
        return inverses, failed
