"""Gram matrices: tiles of the kernels, and their launchers.

Omega of a convolution with stride 1 is summed by relative offsets (`gram_offsets`), any other from
patches formed on the fly (`gram_patches`), Gamma from the rows of derivatives (`gram_rows`).
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from kfcnet.ops.cuda.convolution import ConvShape, too_much_shared
from kfcnet.ops.cuda.launcher import MULTIPROCESSORS, Launcher
from kfcnet.ops.shapes import ceil_div

PATCHES_TILE = 64  # rows and columns of Omega that a block of gram_patches makes
ROWS_TILE, ROWS_WARPS = 64, 8  # rows that a block of gram_rows takes at a time, its warps
ITEMS = 64  # slices that the pixels of a mini-batch are summed in, about
MANY_SLICES = 16  # more than these are added up by several lanes
MOST_THREADS = 1024  # of a block, on any GPU


def triangle(count):
    """Pairs of tiles on and above the diagonal."""
    return count * (count + 1) // 2


def patch_slices(layer, M, tile):
    """Slices of the rows of the patch matrix: two blocks a multiprocessor, none too short."""
    pairs = triangle(ceil_div(layer.patch, tile))
    return max(1, min(16, ceil_div(2 * MULTIPROCESSORS, pairs), ceil_div(M * layer.locations, 256)))


def row_slices(count, maps, tile_rows):
    pairs = triangle(ceil_div(maps, 32))
    return max(1, min(ceil_div(count, tile_rows), 2 * MULTIPROCESSORS // pairs))


@dataclass(frozen=True)
class OffsetsTile:
    """One block of `gram_offsets_slices`: some pixels of one region, times all of their offsets.

    A region is where the windows of all kernel offsets begin and end together. Columns are pairs of
    an offset and four maps, in slots; `depth` warps take turns with the pixels.
    """

    layer: ConvShape
    height: int
    width: int

    @property
    def few_maps(self):
        return self.layer.few_maps

    @property
    def chunk(self):
        """Input maps taken at a time."""
        J = self.layer.in_maps
        if J < 8:
            return 8
        if J <= 32:
            return 4 * ceil_div(J, 4)
        return 32 if J % 32 == 0 else 4 * ceil_div(ceil_div(J, ceil_div(J, 32)), 4)

    @property
    def chunks(self):
        return 1 if self.few_maps else ceil_div(self.layer.in_maps, self.chunk)

    @property
    def pitch(self):
        return self.layer.in_maps if self.few_maps else self.chunk

    @property
    def lanes(self):
        """(rows of a lane, lanes of a warp along the rows)."""
        if self.pitch <= 4:
            return 4, 1
        return 8, next(lanes for lanes in (1, 2, 4) if self.pitch <= 8 * lanes)

    @property
    def item_size(self):
        """Elements of one partial sum: of J maps with one and with J maps at every offset."""
        K, J = self.layer.kernel, self.layer.in_maps
        return J * (1 + (2 * K * (K - 1) + 1) * J)

    @property
    def slots(self):
        K, J = self.layer.kernel, self.layer.in_maps
        if self.few_maps:
            return K * ceil_div((2 * K - 1) * J, 4)
        return (2 * K * (K - 1) + 1) * ceil_div(self.chunk, 4)

    @property
    def slots_of_warp(self):
        return 2 * 32 // self.lanes[1]

    @property
    def warps_columns(self):
        warps = ceil_div(self.slots, self.slots_of_warp)
        return warps if self.few_maps else min(7, warps)

    @property
    def warps_depth(self):
        if self.few_maps or self.warps_columns < 4:
            return max(1, 8 // self.warps_columns)
        return 1

    @property
    def threads(self):
        return 32 * self.warps_columns * self.warps_depth

    @property
    def buffer_pixels(self):
        K = self.layer.kernel
        return (self.height + K - 1) * (self.width + 2 * K - 2)

    @property
    def shared(self):
        """Bytes of two buffers of pixels, or of the sums that the warps exchange."""
        buffers = 2 * min(2, self.chunks) * (self.buffer_pixels * self.pitch + 8)
        sums = self.lanes[0] * 2 * 4 * 32 * self.warps_columns
        return 4 * max(buffers, sums if self.warps_depth > 1 else 0)

    @property
    def sum_block(self):
        """Threads of the second kernel, which holds a number a region and thread: 48 KB."""
        block = 64 if self.item_size < 10000 else 128
        while 4 * block * region_areas(self.layer).size > 48 * 1024:
            block //= 2
        return block

    def items(self, M, positions):
        """Partial sums: of every region as many as it has times `positions` pixels."""
        return sum(ceil_div(M * int(area), positions) for area in region_areas(self.layer).flat)

    def grid(self, items):
        columns = ceil_div(self.slots, self.warps_columns * self.slots_of_warp)
        return items, self.chunks**2, columns

    @cached_property
    def constants(self):
        names = ("HEIGHT", "WIDTH", "IN_MAPS", "KERNEL_SIZE", "PADDING", "OUT_HEIGHT", "OUT_WIDTH")
        shape = self.layer.constants
        return {name: shape[name] for name in names} | {
            "CHUNK_MAPS": self.chunk,
            "TILE_HEIGHT": self.height,
            "TILE_WIDTH": self.width,
            "BUFFER_PIXELS": self.buffer_pixels,
            "LANE_ROWS": self.lanes[0],
            "ROW_LANES": self.lanes[1],
            "SLOTS": 2,
            "WARPS_COLUMNS": self.warps_columns,
            "WARPS_DEPTH": self.warps_depth,
            "SUM_BLOCK": self.sum_block,
            "ITEM_SIZE": self.item_size,
        }


def _piece_lengths(side, out_side, kernel, padding):
    """Lengths of the pieces that the windows of all offsets cut a side of the image into."""
    ends = (delta - padding + end for delta in range(kernel) for end in (0, out_side))
    return np.diff(sorted({0, side} | {end for end in ends if 0 < end < side}))


def region_areas(layer):
    """Pixels of every region: rows of the image by columns."""
    return np.outer(
        _piece_lengths(layer.height, layer.out_height, layer.kernel, layer.padding),
        _piece_lengths(layer.width, layer.out_width, layer.kernel, layer.padding),
    )


@cache
def offsets_tile(layer, limit):
    """The largest tile, no larger than the largest region, in `limit` bytes of shared memory.

    Raises ValueError where a single pixel needs too much.
    """
    most = 28 if layer.few_maps else 12
    height, width = (
        min(most, int(max(_piece_lengths(side, out_side, layer.kernel, layer.padding))))
        for side, out_side in ((layer.height, layer.out_height), (layer.width, layer.out_width))
    )
    while True:
        tile = OffsetsTile(layer, height, width)
        if tile.shared <= limit:
            return tile
        if height == width == 1:
            raise too_much_shared(layer, tile.shared, limit)
        height, width = (
            (ceil_div(height, 2), width) if height >= width else (height, ceil_div(width, 2))
        )


class GramMatrices(Launcher):
    """The Kronecker factors, always in fp32: TF32 would add its rounding to what is inverted."""

    def patch_gram(self, x, kernel, stride, padding, scale, decay, out):
        layer = ConvShape.of(x.shape, 1, kernel, stride, padding)
        # A block has threads for all offsets of a few maps: a large kernel has too many of them.
        by_offsets = stride == 1 and kernel > 1 and OffsetsTile(layer, 1, 1).threads <= MOST_THREADS
        sum_up = self._gram_by_offsets if by_offsets else self._gram_of_patches
        sum_up(layer, x, scale, decay, out)

    def _gram_by_offsets(self, layer, x, scale, decay, out):
        tile = offsets_tile(layer, self.runtime.shared_limit)
        positions = ceil_div(len(x) * layer.height * layer.width, ITEMS)
        items = tile.items(len(x), positions)
        partials = self.empty((items, tile.item_size))
        self.launch(
            "gram_offsets",
            "gram_offsets_slices",
            tile.grid(items),
            x,
            partials,
            len(x),
            positions,
            items,
            block=tile.threads,
            shared=tile.shared,
            **tile.constants,
        )
        self.launch(
            "gram_offsets",
            "gram_offsets_sum",
            ceil_div(tile.item_size, tile.sum_block),
            partials,
            out,
            len(x),
            positions,
            items,
            scale,
            decay,
            block=tile.sum_block,
            **tile.constants,
        )

    def _gram_of_patches(self, layer, x, scale, decay, out):
        tile = PATCHES_TILE
        slices = patch_slices(layer, len(x), tile)
        partials = self.empty((slices, layer.patch, layer.patch))
        pairs = triangle(ceil_div(layer.patch, tile))
        self.launch(
            "gram_patches",
            "gram_patches_slices",
            (pairs, slices),
            x,
            partials,
            len(x),
            slices,
            block=(tile // 4) ** 2,
            TILE=tile,
            DEPTH=16,
            **layer.constants,
        )
        self._sum_gram(partials, scale, decay, out)

    def gram(self, rows, scale, decay, out):
        count, maps = rows.shape
        slices = row_slices(count, maps, ROWS_TILE)
        partials = self.empty((slices, maps, maps))
        self.launch(
            "gram_rows",
            "gram_rows_slices",
            (slices, triangle(ceil_div(maps, 32))),
            rows,
            partials,
            count,
            slices,
            block=32 * ROWS_WARPS,
            shared=16 * 32 * ROWS_TILE,
            MAPS=maps,
            WARPS=ROWS_WARPS,
            TILE_ROWS=ROWS_TILE,
        )
        self._sum_gram(partials, scale, decay, out)

    def _sum_gram(self, partials, scale, decay, out):
        """out = decay*out + scale * the sum of the slices in a fixed order, and mirrored."""
        slices, side, _ = partials.shape
        kernel, blocks = (
            ("gram_sum_lanes", ceil_div(side * side, 32))
            if slices > MANY_SLICES
            else ("gram_sum", triangle(ceil_div(side, 32)))
        )
        self.launch(
            "gram_sum", kernel, blocks, partials, out, side, slices, scale, decay, block=(32, 8)
        )
