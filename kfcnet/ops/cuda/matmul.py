"""Launchers of the heavy kernels: matrix products, convolutions, Gram matrices, patches.

The sizes of their tiles are chosen here, by the size of the result: large tiles for few loads an
operation, small ones where large ones would leave multiprocessors idle. They depend on shapes and
on what a block of the device can hold, so that the order of every sum is always the same there.
"""

from dataclasses import dataclass
from typing import NamedTuple

from kfcnet.ops.cuda.convolution import MULTIPROCESSORS, ConvShape, forward_tile, weights_tile
from kfcnet.ops.cuda.gram import (
    ITEMS,
    MANY_SLICES,
    offsets_tile,
    patch_slices,
    row_slices,
    triangle,
)
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


REGISTER_TILES = (
    RegisterTile(128, 128, 16, 8),
    RegisterTile(64, 64, 16, 4),
    RegisterTile(32, 32, 64, 4, groups=4),
    RegisterTile(16, 16, 128, 4, groups=8),
)
PATCHES_TILE = 64  # rows and columns of Omega that a block of gram_patches makes
ROWS_TILE, ROWS_WARPS = 64, 8  # rows that a block of gram_rows takes at a time, its warps
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


@dataclass(frozen=True)
class Weights:
    """A layer's weights (I, P) as they are now, packed once for all passes that use them.

    Whoever changes the array makes another one of these. backward: None after an evaluation, whose
    backward pass, if there is one, packs for itself: what is packed later than the forward pass may
    lie outside of the recording that would read it.
    """

    array: object
    forward: object
    backward: object

    def __len__(self):
        return len(self.array)


class Products:
    """The part of CudaOps whose work is a matrix product of some kind."""

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
    ):
        """c = scale * op(a) op(b). A shift puts a column of ones before an operand as it is stored
        (-1), or leaves its first column out (1): the homogeneous coordinate."""
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
            **tile.constants,
        )

    # Convolution. Over 1 x 1 patches it is the product of all pixels with the weights.

    def weights(self, weight, x_shape, kernel, stride, padding, backward=True):
        layer = ConvShape.of(x_shape, len(weight), kernel, stride, padding)
        if layer.is_dense:
            return weight
        return Weights(
            weight,
            self._packed(layer, weight),
            self._packed(layer.transposed, weight, "_flipped") if backward else None,
        )

    def conv_forward(self, x, weight, kernel, stride, padding, bias=True, relu=False):
        layer = ConvShape.of(x.shape, len(weight), kernel, stride, padding)
        y = self.empty((len(x), layer.out_height, layer.out_width, len(weight)))
        if layer.is_dense:
            sizes = y.size // layer.out_maps, layer.out_maps, layer.in_maps + bias
            self._product(
                x,
                weight,
                y,
                sizes,
                transpose_b=True,
                a_shift=-1 if bias else 0,
                b_shift=0 if bias else 1,
                tensor_cores=self.tensor_cores,
            )
            if relu:
                self._fours("relu", "relu", y.size, y, y, y.size)
        else:
            packed = weight.forward if isinstance(weight, Weights) else self._packed(layer, weight)
            self._convolve(layer, x, packed, y, int(bias), int(relu))
        return y

    def conv_backward_data(self, dy, weight, x_shape, kernel, stride, padding):
        layer = ConvShape.of(x_shape, len(weight), kernel, stride, padding)
        dx = self.empty((len(dy), *x_shape[1:]))
        if layer.is_dense:
            sizes = dx.size // layer.in_maps, layer.in_maps, layer.out_maps
            self._product(dy, weight, dx, sizes, b_shift=1, tensor_cores=self.tensor_cores)
        else:
            packed, array = (
                (weight.backward, weight.array) if isinstance(weight, Weights) else (None, weight)
            )
            if packed is None:
                packed = self._packed(layer.transposed, array, "_flipped")
            self._convolve(layer.transposed, dy, packed, dx)
        return dx

    def _tile_of(self, layer):
        return forward_tile(layer, self.tensor_cores, self.runtime.shared_limit)

    def _packed(self, layer, weight, flipped=""):
        """The weights in the order in which the blocks of `_convolve` read them."""
        tile = self._tile_of(layer)
        packed = self.empty(tile.packed_size)
        self._each(
            "conv_pack",
            "conv_pack" + flipped,
            packed.size,
            weight,
            packed,
            packed.size,
            **tile.packing_constants,
        )
        return packed

    def _convolve(self, layer, x, packed, y, bias=0, relu=0):
        tile = self._tile_of(layer)
        kernel = "conv_forward_tf32" if self.tensor_cores else "conv_forward_register"
        self.launch(
            kernel,
            kernel,
            (tile.tiles(len(x)), tile.map_tiles),
            x,
            packed,
            y,
            len(x),
            block=tile.threads,
            shared=tile.shared,
            BIAS=bias,
            RELU=relu,
            **tile.constants,
        )

    def conv_backward_weights(self, x, dy, kernel, stride, padding, scale, out):
        layer = ConvShape.of(x.shape, dy.shape[-1], kernel, stride, padding)
        if layer.is_dense:
            sizes = layer.out_maps, layer.patch, dy.size // layer.out_maps
            self._product(
                dy,
                x,
                out,
                sizes,
                transpose_a=True,
                b_shift=-1,
                scale=scale,
                tensor_cores=self.tensor_cores,
            )
        else:
            self._sum_over_pixels(layer, x, dy, scale, out)

    def _sum_over_pixels(self, layer, x, dy, scale, out):
        """out = scale * dy^T [[x]]_H: sums over slices of the pixels, then the slices in order."""
        tile = weights_tile(layer, self.tensor_cores, self.runtime.shared_limit)
        grid = tile.grid(len(x))
        partials = self.empty((grid[0], *out.shape))
        kernel = f"conv_backward_weights_{'tf32' if self.tensor_cores else 'register'}"
        self.launch(
            kernel,
            kernel,
            grid,
            x,
            dy,
            partials,
            len(x),
            grid[0],
            block=tile.threads,
            shared=tile.shared,
            **tile.constants,
        )
        self.launch(
            "conv_backward_weights_sum",
            "conv_backward_weights_sum",
            ceil_div(out.size, 32),
            partials,
            out,
            grid[0],
            out.size,
            scale,
            block=(32, 8),
        )

    # Kronecker factors, always in fp32: TF32 would add its rounding to what is inverted.

    def patch_gram(self, x, kernel, stride, padding, scale, decay, out):
        layer = ConvShape.of(x.shape, 1, kernel, stride, padding)
        sum_up = self._gram_by_offsets if stride == 1 and kernel > 1 else self._gram_of_patches
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

    def patches(self, x, kernel, stride, padding):
        layer = ConvShape.of(x.shape, 1, kernel, stride, padding)
        rows = self.empty((len(x) * layer.locations, layer.patch))
        self._each("patches", "patches", rows.size, x, rows, len(x), **layer.constants)
        return rows

    def patches_adjoint(self, rows, x_shape, kernel, stride, padding):
        layer = ConvShape.of(x_shape, 1, kernel, stride, padding)
        x = self.empty(x_shape)
        self._each("patches", "patches_adjoint", x.size, rows, x, len(x), **layer.constants)
        return x
