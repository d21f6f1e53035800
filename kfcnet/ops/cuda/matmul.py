"""Matrix products: tiles of the kernels, and their launchers.

The size of a tile is chosen by the size of the result: large tiles for few loads an operation,
small ones where large ones would leave multiprocessors idle. It depends on shapes alone, so that
the order of every sum is always the same.
"""

from typing import NamedTuple

from kfcnet.ops.cuda.launcher import MULTIPROCESSORS, Launcher
from kfcnet.ops.shapes import ceil_div


class RegisterTile(NamedTuple):
    """Tiles of `matmul_register`: of a block, of a step along the depth, of a thread."""

    rows: int
    columns: int
    depth: int
    thread: int
    groups: int = 1

    @property
    def constants(self):
        return {
            "TILE_ROWS": self.rows,
            "TILE_COLUMNS": self.columns,
            "TILE_DEPTH": self.depth,
            "THREAD_ROWS": self.thread,
            "THREAD_COLUMNS": self.thread,
            "DEPTH_GROUPS": self.groups,
        }

    @property
    def threads(self):
        return self.rows * self.columns // self.thread**2 * self.groups

    def shared(self, transpose_a, transpose_b):
        """Bytes of the double-buffered tiles, or of the sums that the groups exchange."""
        buffers = 2 * self.depth * (self.rows + self.columns + 8)
        return 4 * max(buffers, self.rows * self.columns if self.groups > 1 else 0)


class TensorCoreTile(NamedTuple):
    """Tiles of `matmul_tf32`: of a block, of a step, of a warp, and the number of buffers."""

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    stages: int = 3

    @property
    def constants(self):
        return {
            "TILE_ROWS": self.rows,
            "TILE_COLUMNS": self.columns,
            "TILE_DEPTH": self.depth,
            "WARP_ROWS": self.warp_rows,
            "WARP_COLUMNS": self.warp_columns,
            "STAGES": self.stages,
        }

    @property
    def threads(self):
        return 32 * (self.rows // self.warp_rows) * (self.columns // self.warp_columns)

    def shared(self, transpose_a, transpose_b):
        """Bytes of the buffers; rows are padded in the order that they have in memory."""
        left = self.depth * (self.rows + 8) if transpose_a else self.rows * (self.depth + 4)
        right = self.columns * (self.depth + 4) if transpose_b else self.depth * (self.columns + 8)
        return 4 * self.stages * (left + right)


# The smallest are for products like that of a classifier of ten units at 128 images: eight blocks,
# in which groups of threads share the depth. Blocks that shared it would need another launch to add
# up, and that costs what they would save.
REGISTER_TILES = (
    RegisterTile(128, 128, 16, 8),
    RegisterTile(64, 64, 16, 4),
    RegisterTile(32, 32, 64, 4, groups=4),
    RegisterTile(16, 16, 128, 4, groups=8),
)

TENSOR_CORE_TILES = (TensorCoreTile(128, 128, 16, 64, 32), TensorCoreTile(64, 64, 32, 32, 32))


def _fills_tensor_cores(rows, columns):
    """Whether a quarter of the multiprocessors get a TF32 tile. Where fewer do, as in a classifier
    of ten units, fp32 tiles are faster: they are smaller, and share the depth."""
    smallest = TENSOR_CORE_TILES[-1]
    return 4 * rows * columns >= MULTIPROCESSORS * smallest.rows * smallest.columns


def _tile(tiles, rows, columns):
    """The largest tile that gives every multiprocessor one, else the smallest."""
    filling = (
        tile for tile in tiles if rows * columns >= MULTIPROCESSORS * tile.rows * tile.columns
    )
    return next(filling, tiles[-1])


class MatrixProducts(Launcher):
    """Products of two matrices, in fp32 or, where that is asked for, in TF32."""

    def matmul(self, a, b, transpose_a=False, transpose_b=False, out=None):
        """In fp32 also where convolutions use TF32: the preconditioned step needs the bits."""
        rows, depth = a.shape[::-1] if transpose_a else a.shape
        depth_of_b, columns = b.shape[::-1] if transpose_b else b.shape
        if depth != depth_of_b:
            raise ValueError(
                f"matmul: depths {depth} and {depth_of_b} of {a.shape} and {b.shape} differ"
            )
        out = self.empty((rows, columns)) if out is None else out
        self._product(a, b, out, (rows, columns, depth), transpose_a, transpose_b)
        return out

    def _product(
        self,
        a,
        b,
        c,
        sizes,
        transpose_a=False,
        transpose_b=False,
        a_shift=0,
        b_shift=0,
        scale=1.0,
        tensor_cores=False,
        accumulate=False,
    ):
        """c = scale * op(a) op(b), or c += that. A shift puts a column of ones before an operand as
        it is stored (-1), or leaves its first column out (1): the homogeneous coordinate."""
        rows, columns, _ = sizes
        tensor_cores = tensor_cores and _fills_tensor_cores(rows, columns)
        kernel = "matmul_tf32" if tensor_cores else "matmul_register"
        tile = _tile(TENSOR_CORE_TILES if tensor_cores else REGISTER_TILES, rows, columns)
        self.launch(
            kernel,
            kernel,
            (ceil_div(columns, tile.columns), ceil_div(rows, tile.rows)),
            a,
            b,
            c,
            *sizes,
            scale,
            block=tile.threads,
            shared=tile.shared(transpose_a, transpose_b),
            TRANSPOSE_A=int(transpose_a),
            TRANSPOSE_B=int(transpose_b),
            A_SHIFT=a_shift,
            B_SHIFT=b_shift,
            ACCUMULATE=int(accumulate),
            **tile.constants,
        )
