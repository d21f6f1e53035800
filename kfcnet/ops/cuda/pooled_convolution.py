"""A convolution of few input maps with the maximum pool and the ReLU behind it, in one pass."""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from kfcnet.ops.cuda.convolution import (
    Convolutions,
    ConvShape,
    ForwardTile,
    PoolShape,
    Weights,
    weights_tile,
)
from kfcnet.ops.primitives import Placed
from kfcnet.ops.shapes import ceil_div

MOST_STRIDE = 4  # of a pool: the gradient's kernel is unrolled for it
MOST_POSITIONS = 288  # of a tile: nine rows of 32, four rows of windows of 3 x 3 with stride 2
MOST_TWICE = 1.5  # positions computed for one that there is; beyond, a pass of its own is faster
WEIGHTS_ARE_WORTH = 64  # positions of a tile


@dataclass(frozen=True)
class PooledTile:
    """One block of `conv_max_pool`: rows x columns of pooled pixels, and the height x width
    positions of the convolution under them.

    packed: the tile whose packed weights it reads.
    """

    packed: ForwardTile
    pool: PoolShape
    rows: int
    columns: int
    height: int
    width: int

    @property
    def threads(self):
        """One a position: a warp makes 32 of them."""
        return self.height * self.width

    @property
    def shared(self):
        """Bytes of inputs and weights, or of the positions."""
        layer, packed = self.packed.layer, self.packed
        overhang = packed.depth - layer.kernel * layer.in_maps
        inputs = layer.input_floats(self.height, self.width, layer.in_maps, overhang)
        weights = layer.kernel * packed.depth * packed.maps
        return 4 * max(inputs + weights, self.threads * (packed.maps + 8))

    @property
    def cost(self):
        """Positions computed for an image, and the cost of copying weights, in positions."""
        return self.grid(1)[0] * (self.threads + WEIGHTS_ARE_WORTH)

    def grid(self, M):
        down = ceil_div(self.pool.height, self.rows)
        across = ceil_div(self.pool.width, self.columns)
        return M * down * across, self.packed.map_tiles

    @cached_property
    def constants(self):
        layer, packed = self.packed.layer, self.packed
        return (
            layer.constants
            | self.pool.constants
            | {
                "DILATION": layer.dilation,
                "PACKED_SIZE": packed.packed_size,
                "CHUNK_MAPS": packed.chunk,
                "TILE_IMAGES": 1,
                "TILE_HEIGHT": self.height,
                "TILE_WIDTH": self.width,
                "TILE_MAPS": packed.maps,
                "POOL_ROWS": self.rows,
                "POOL_COLUMNS": self.columns,
            }
        )


@cache
def pooled_tile(packed, pool, limit):
    """The tile of least cost in `limit` bytes of shared memory, or None."""
    layer = packed.layer
    tiles = []
    for width in (32, 16, 8):
        columns = pool.width
        if layer.out_width > width:
            columns = (width - pool.size) // pool.stride + 1
        if columns < 1:
            continue
        lines = 32 // width  # positions come in 32s
        for rows in range(1, pool.height + 1):
            height = lines * ceil_div((rows - 1) * pool.stride + pool.size, lines)
            tiles.append(PooledTile(packed, pool, rows, columns, height, width))
    tiles = [tile for tile in tiles if tile.threads <= MOST_POSITIONS and tile.shared <= limit]
    return min(tiles, key=lambda tile: tile.cost, default=None)


class PooledConvolutions(Convolutions):
    """`conv_max_pool`, its gradient and its tangent, on tensor cores."""

    def can_convolve_and_pool(self, x_shape, out_maps, window, pool):
        layer = ConvShape.of(x_shape, out_maps, *window)
        if not (self.tensor_cores and layer.few_maps and out_maps % 4 == 0 and not layer.is_dense):
            return False
        if pool.stride > MOST_STRIDE or not pool.has_nowhere:
            return False
        try:
            tile, limit = self._pooled_tile(layer, pool), self.runtime.shared_limit
            alone, pooled = (weights_tile(layer, True, limit, one) for one in (None, pool))
        except ValueError:  # no tile fits
            return False
        if tile is None or (alone.height, alone.width) != (pooled.height, pooled.width):
            return False
        return tile.grid(1)[0] * tile.threads <= MOST_TWICE * layer.locations

    def _pooled_tile(self, layer, pool):
        limit = self.runtime.shared_limit
        return pooled_tile(self._tile_of(layer), PoolShape.of(layer, pool), limit)

    def conv_max_pool(self, x, weight, kernel, stride, padding, pool):
        layer = ConvShape.of(x.shape, len(weight), kernel, stride, padding)
        tile = self._pooled_tile(layer, pool)
        y = self.empty((len(x), tile.pool.height, tile.pool.width, layer.out_maps))
        argmax = self.empty(y.shape, np.uint8)
        self._convolve_and_pool("conv_max_pool", tile, x, weight, y, argmax)
        return y, argmax

    def conv_max_pool_backward_weights(
        self, x, dy, argmax, kernel, stride, padding, pool, scale, out
    ):
        layer = Placed(0, len(out), x.shape, (kernel, stride, padding), pool)
        self._gradient_of(layer, scale, out, x, dy, argmax)

    def conv_max_pool_tangent(self, x, weight, kernel, stride, padding, pool, argmax):
        layer = ConvShape.of(x.shape, len(weight), kernel, stride, padding)
        ry = self.empty(argmax.shape)
        tile = self._pooled_tile(layer, pool)
        self._convolve_and_pool("conv_max_pool_tangent", tile, x, weight, argmax, ry)
        return ry

    def _convolve_and_pool(self, kernel, tile, x, weight, *arrays):
        is_packed = isinstance(weight, Weights)
        packed = weight.forward if is_packed else self._packed(tile.packed.layer, weight)
        self.launch(
            "conv_max_pool",
            kernel,
            tile.grid(len(x)),
            x,
            packed,
            *arrays,
            len(x),
            block=tile.threads,
            shared=tile.shared,
            **tile.constants,
        )
