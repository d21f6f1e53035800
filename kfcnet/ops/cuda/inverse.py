"""Launcher of the inversion of several matrices at once, without a library."""

import itertools

import numpy as np

from kfcnet.ops.cuda.gram import triangle
from kfcnet.ops.shapes import ceil_div

PIVOTS, TILE, THREADS = 32, 64, 256  # those of kernels/spd_inverse.cu


class Inversions:
    """The part of CudaOps that inverts by kernels of its own, which a step can be recorded with."""

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
