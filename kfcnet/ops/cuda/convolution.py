"""Convolutions: tiles of the kernels, and their launchers.

How a layer's shape is cut for blocks, warps and threads follows from the shape, from whether tensor
cores are used, and from the shared memory that a block can have.
"""

import itertools
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from kfcnet.ops.cuda.launcher import MULTIPROCESSORS
from kfcnet.ops.cuda.matmul import MatrixProducts
from kfcnet.ops.primitives import ConvGradients, Placed
from kfcnet.ops.shapes import ceil_div, output_sides, pooled_size


def chunk_maps(J):
    """Input maps that are taken at a time: a multiple of eight, at most 40, little padding."""
    if J < 8:
        return 8
    if J % 32 == 0:
        return 32
    return 8 * ceil_div(ceil_div(J, ceil_div(J, 40)), 8)


def too_much_shared(layer, needed, limit):
    """The error of a layer whose smallest tile is too large."""
    return ValueError(
        f"convolution of {layer.kernel} x {layer.kernel} with stride {layer.stride}: "
        f"its inputs need {needed} bytes of shared memory, a block has {limit}"
    )


@dataclass(frozen=True)
class ConvShape:
    """Sides of a convolution's images and windows.

    dilation: of the input, what backward-data makes of a stride.
    """

    height: int
    width: int
    in_maps: int
    out_maps: int
    kernel: int
    stride: int
    padding: int
    out_height: int
    out_width: int
    dilation: int = 1

    @classmethod
    def of(cls, x_shape, out_maps, kernel, stride, padding):
        """The convolution that takes x (M, H, W, J)."""
        _, H, W, J = x_shape
        return cls(
            H,
            W,
            J,
            out_maps,
            kernel,
            stride,
            padding,
            *output_sides(x_shape, kernel, stride, padding),
        )

    @property
    def transposed(self):
        """The convolution that takes derivatives of the outputs back to the inputs."""
        return replace(
            self,
            height=self.out_height,
            width=self.out_width,
            out_height=self.height,
            out_width=self.width,
            in_maps=self.out_maps,
            out_maps=self.in_maps,
            stride=1,
            padding=self.kernel - 1 - self.padding,
            dilation=self.stride,
        )

    @property
    def is_dense(self):
        """Whether a pixel's neighbours have no part in it: one matrix product over all pixels."""
        return (self.kernel, self.stride, self.padding) == (1, 1, 0)

    @property
    def patch(self):
        """P: inputs of one output, the constant 1 included."""
        return 1 + self.kernel**2 * self.in_maps

    @property
    def few_maps(self):
        """Whether the maps of one pixel do not fill a step along the depth."""
        return self.in_maps < 8

    @property
    def locations(self):
        """|T|: outputs of one map."""
        return self.out_height * self.out_width

    def input_floats(self, rows, columns, pitch, overhang=0):
        """Floats of shared memory, in fours, of the inputs that rows x columns outputs see: `pitch`
        a pixel, and `overhang` behind the last.
        """
        rows, columns = ((n - 1) * self.stride + self.kernel for n in (rows, columns))
        return 4 * ceil_div(rows * columns * pitch + overhang, 4)

    @cached_property
    def constants(self):
        return {
            "HEIGHT": self.height,
            "WIDTH": self.width,
            "IN_MAPS": self.in_maps,
            "OUT_MAPS": self.out_maps,
            "KERNEL_SIZE": self.kernel,
            "STRIDE": self.stride,
            "PADDING": self.padding,
            "OUT_HEIGHT": self.out_height,
            "OUT_WIDTH": self.out_width,
        }


@dataclass(frozen=True)
class PoolShape:
    """Sides of a maximum pool's windows, and of the pooled image."""

    size: int
    stride: int
    height: int
    width: int

    @classmethod
    def of(cls, layer, pool):
        """Of a Pooling behind a ConvShape; None: outputs as they are, without windows."""
        if pool is None:
            return cls(0, 1, layer.out_height, layer.out_width)
        sides = (pooled_size(side, *pool) for side in (layer.out_height, layer.out_width))
        return cls(pool.size, pool.stride, *sides)

    def reaching(self, side):
        """Windows, along a side, that reach into a tile of so many positions."""
        misaligned = self.stride - 1 if side % self.stride else 0
        pieces = (side - 1 + misaligned) // self.stride + 1
        return pieces + (self.size - 1) // self.stride

    @cached_property
    def constants(self):
        return {
            "POOL_SIZE": self.size,
            "POOL_STRIDE": self.stride,
            "POOLED_HEIGHT": self.height,
            "POOLED_WIDTH": self.width,
        }


@dataclass(frozen=True)
class ForwardTile:
    """One block of `conv_forward_register` or `conv_forward_tf32`: pixels and maps of the output.

    The block holds the inputs that its pixels see in shared memory and streams packed weights past
    them, CHUNK_MAPS input maps of one offset at a time (for few input maps, one kernel row).
    """

    layer: ConvShape
    images: int
    height: int
    width: int
    maps: int
    warps_pixels: int
    warps_maps: int
    thread_pixels: int | None  # None: tensor cores
    stages: int
    depth_groups: int = 1  # of warps, which share the segments

    @property
    def pixels(self):
        return self.images * self.height * self.width

    @property
    def few_maps(self):
        """Whether a segment of the patch is a whole row of the kernel."""
        return self.layer.few_maps

    @property
    def chunk(self):
        return chunk_maps(self.layer.in_maps)

    @property
    def depth(self):
        """Length of one segment, padded to eights."""
        if self.few_maps:
            return 8 * ceil_div(self.layer.kernel * self.layer.in_maps, 8)
        return self.chunk

    @property
    def packed_size(self):
        """Elements of the weights as the kernel reads them, bias included."""
        K = self.layer.kernel
        segments = K if self.few_maps else K * K * ceil_div(self.layer.in_maps, self.chunk)
        return self.map_tiles * self.maps * (1 + segments * self.depth)

    @property
    def map_tiles(self):
        return ceil_div(self.layer.out_maps, self.maps)

    def tiles(self, M):
        return (
            ceil_div(M, self.images)
            * ceil_div(self.layer.out_height, self.height)
            * ceil_div(self.layer.out_width, self.width)
        )

    @property
    def threads(self):
        return 32 * self.warps_pixels * self.warps_maps * self.depth_groups

    @property
    def shared(self):
        """Bytes of the inputs under the tile and of the weights in flight, or of the sums that the
        groups exchange.
        """
        K, J = self.layer.kernel, self.layer.in_maps
        pitch, overhang = (J, self.depth - K * J) if self.few_maps else (self.chunk + 4, 0)
        pitch *= self.images
        inputs = self.layer.input_floats(self.height, self.width, pitch, overhang)
        buffers = inputs + self.stages * self.depth_groups * self.depth * self.maps
        return 4 * max(buffers, self.pixels * self.maps if self.depth_groups > 1 else 0)

    @cached_property
    def constants(self):
        constants = self.layer.constants | {
            "DILATION": self.layer.dilation,
            "PACKED_SIZE": self.packed_size,
            "CHUNK_MAPS": self.chunk,
            "TILE_IMAGES": self.images,
            "TILE_HEIGHT": self.height,
            "TILE_WIDTH": self.width,
            "TILE_MAPS": self.maps,
            "WARPS_PIXELS": self.warps_pixels,
            "WARPS_MAPS": self.warps_maps,
            "WEIGHT_STAGES": self.stages,
            "DEPTH_GROUPS": self.depth_groups,
            "FRAGMENTS": int(self.thread_pixels is None),
        }
        return constants | ({"THREAD_PIXELS": self.thread_pixels} if self.thread_pixels else {})

    def packing(self, place, begin, is_flipped):
        """A line of the table of `conv_pack`."""
        layer = self.layer
        segments = f"{{{layer.in_maps},{layer.kernel},{self.chunk}}}"
        numbers = place, begin, segments, layer.out_maps, self.maps, int(is_flipped)
        return f"{{{','.join(map(str, numbers))}}}"


@cache
def forward_tile(layer, tensor_cores, limit):
    """The largest tile, up to 128 pixels, in `limit` bytes of shared memory.

    Raises ValueError where even 16 pixels need too much.
    """
    width = 16 if layer.out_width > 8 else 8
    images, height = (2, 4) if layer.out_height <= 4 else (1, 8)
    while True:
        tile = _forward_tile(layer, images, height, width, tensor_cores)
        if tile.shared <= limit:
            return tile
        if tile.pixels <= 16:
            raise too_much_shared(layer, tile.shared, limit)
        if height > 4 or width == 4:
            height //= 2
        else:
            width //= 2


def _forward_tile(layer, images, height, width, tensor_cores):
    pixels = images * height * width
    if not tensor_cores:
        thread_pixels = 4 if pixels >= 32 else 2
        return ForwardTile(
            layer,
            images,
            height,
            width,
            maps=32,
            warps_pixels=pixels // (8 * thread_pixels),
            warps_maps=1,
            thread_pixels=thread_pixels,
            stages=2,
        )
    maps, warps_maps = (16, 1) if layer.out_maps <= 16 else (32, 1)
    if pixels == 64 and layer.out_maps >= 64:
        maps, warps_maps = 64, 2
    return ForwardTile(
        layer,
        images,
        height,
        width,
        maps,
        min(4 // warps_maps, pixels // 16),
        warps_maps,
        thread_pixels=None,
        stages=3,
        depth_groups=1 if layer.few_maps else 2,
    )


@dataclass(frozen=True)
class WeightsTile:
    """One block of `conv_backward_weights_*`: output maps by columns of the patch, over pixels.

    Blocks share the pixels of the mini-batch in slices; a second kernel adds the slices in order.
    Columns come in groups, of four for fp32 and of eight for tensor cores. pool: what the
    derivatives have come through, on tensor cores alone.
    """

    layer: ConvShape
    height: int
    width: int
    tensor_cores: bool
    pool: PoolShape

    @property
    def few_maps(self):
        return self.layer.few_maps

    @property
    def chunk(self):
        return chunk_maps(self.layer.in_maps)

    @property
    def columns(self):
        """Groups of columns in one chunk of the input maps."""
        K, J = self.layer.kernel, self.layer.in_maps
        segments, length = (K, K * J) if self.few_maps else (K * K, self.chunk)
        return segments * ceil_div(length, 8 if self.tensor_cores else 4)

    @property
    def row_lanes(self):
        """Lanes of a warp along the output maps (fp32)."""
        return 4 if self.layer.out_maps > 16 else 2 if self.layer.out_maps > 8 else 1

    @property
    def maps(self):
        if self.tensor_cores:
            return 32 if self.layer.out_maps > 16 else 16
        return 8 * self.row_lanes

    @property
    def groups(self):
        """Groups of columns that one warp makes; on tensor cores whole segments of maps."""
        if not self.tensor_cores:
            return (3 if self.few_maps else 2) * 32 // self.row_lanes
        segment = self.chunk // 8
        return min(10, self.columns) if self.few_maps else segment * max(1, 8 // segment)

    @property
    def warps_columns(self):
        return 1 if self.few_maps else min(13, ceil_div(self.columns, self.groups))

    @property
    def warps_depth(self):
        """Warps that share the pixels: where there are few columns, many."""
        return max(1, 8 // self.warps_columns)

    @property
    def threads(self):
        return 32 * self.warps_columns * self.warps_depth

    @property
    def shared(self):
        """Bytes of the inputs and derivatives in flight, or of the sums that warps exchange."""
        K, J = self.layer.kernel, self.layer.in_maps
        pixel, overhang = (J, 8 * ceil_div(K * J, 8) - K * J) if self.few_maps else (self.chunk, 0)
        pitch_x, pitch_dy = pixel, self.maps
        if self.tensor_cores:
            pitch_x += 0 if self.few_maps or pixel % 16 else 8
            pitch_dy += 24 if self.maps % 32 == 16 else 8
        inputs = self.layer.input_floats(self.height, self.width, pitch_x, overhang)
        sums = self.maps * self.groups * (8 if self.tensor_cores else 4) * self.warps_columns
        derivatives = self.height * self.width * pitch_dy
        buffers = 2 * (inputs + derivatives)
        if self.pool.size:
            windows = self.pool.reaching(self.height) * self.pool.reaching(self.width)
            buffers = 2 * (inputs + windows * self.maps * 5 // 4) + derivatives
        return 4 * max(buffers, sums if self.warps_depth > 1 else 0)

    @property
    def blocks(self):
        """(along the maps, along the columns), of one slice."""
        chunks = 1 if self.few_maps else ceil_div(self.layer.in_maps, self.chunk)
        columns = chunks * ceil_div(self.columns, self.warps_columns * self.groups)
        return ceil_div(self.layer.out_maps, self.maps), columns

    @property
    def tiles(self):
        """Tiles of an image."""
        layer = self.layer
        return ceil_div(layer.out_height, self.height) * ceil_div(layer.out_width, self.width)

    @property
    def most_slices(self):
        """As many as give a block a multiprocessor, two where they are short."""
        across, along = self.blocks
        blocks = MULTIPROCESSORS * (2 if self.few_maps else 1)
        return max(1, blocks // (across * along))

    def slices(self, M):
        """No more than there are tiles."""
        return min(M * self.tiles, self.most_slices)

    def summing(self, place):
        """A line of the table of `conv_backward_weights_sum`."""
        count = self.layer.out_maps * self.layer.patch
        return f"{{{place},{count},{self.tiles},{self.most_slices}}}"

    @cached_property
    def constants(self):
        constants = self.layer.constants | {
            "DILATION": 1,
            "CHUNK_MAPS": self.chunk,
            "TILE_IMAGES": 1,
            "TILE_HEIGHT": self.height,
            "TILE_WIDTH": self.width,
            "WARPS_COLUMNS": self.warps_columns,
            "WARPS_DEPTH": self.warps_depth,
        }
        if self.tensor_cores:
            constants |= self.pool.constants
            return constants | {"MAP_TILES": self.maps // 16, "COLUMN_TILES": self.groups}
        return constants | {
            "LANE_ROWS": 8,
            "ROW_LANES": self.row_lanes,
            "SLOTS": self.groups * self.row_lanes // 32,
        }


@cache
def weights_tile(layer, tensor_cores, limit, pool=None):
    """The largest tile in `limit` bytes of shared memory; raises ValueError without one.

    pool: a Pooling that the derivatives have come through.
    """
    if layer.few_maps:
        width, height = next(w for w in (32, 16, 8) if layer.out_width > w // 2 or w == 8), 4
    else:
        width = 16 if layer.out_width > 8 else 8
        height = 64 // width
    while True:
        tile = WeightsTile(layer, height, width, tensor_cores, PoolShape.of(layer, pool))
        if tile.shared <= limit:
            return tile
        if height == 1 and width == 8:
            raise too_much_shared(layer, tile.shared, limit)
        height, width = (height // 2, width) if height > 1 else (height, width // 2)


@dataclass(frozen=True)
class Weights:
    """A layer's weights (I, P) as they are now, packed once for all passes that use them.

    array: the weights before packing; whoever changes it makes new Weights. backward: None after
    an evaluation, whose backward pass, if there is one, packs for itself: what is packed later than
    the forward pass may lie outside of the graph that would read it.
    """

    array: object
    forward: object
    backward: object

    def __len__(self):
        return len(self.array)


class SlicedGradients(ConvGradients):
    """Sums over slices of the pixels, layer by layer, on a branch beside what follows; at the end
    one launch adds the slices of all layers. A dense layer takes one product.
    """

    def __init__(self, ops, layers, scale, out):
        super().__init__(ops, scale, out)
        self.shapes = {one: ConvShape.of(one.x_shape, one.out_maps, *one.window) for one in layers}
        limit = ops.runtime.shared_limit
        self.tiles = {
            one: weights_tile(shape, ops.tensor_cores, limit, one.pool)
            for one, shape in self.shapes.items()
            if not shape.is_dense
        }
        sizes = [
            tile.slices(one.x_shape[0]) * one.out_maps * tile.layer.patch
            for one, tile in self.tiles.items()
        ]
        ends = list(itertools.accumulate(sizes))
        # All of it now: in a branch it would get memory that the launches before may still use.
        self.partials = ops.empty(ends[-1]) if sizes else None
        self.parts = {
            one: self.partials[end - size : end]
            for one, size, end in zip(self.tiles, sizes, ends, strict=True)
        }

    def add(self, layer, x, dy, argmax=None):
        with self.ops.beside():
            if layer in self.tiles:
                self._sum_slices(self.tiles[layer], x, dy, argmax, self.parts[layer])
            else:
                self._multiply(self.shapes[layer], x, dy, layer.of(self.out))

    def _multiply(self, shape, x, dy, out):
        self.ops._product(
            dy,
            x,
            out,
            (shape.out_maps, shape.patch, dy.size // shape.out_maps),
            transpose_a=True,
            b_shift=-1,
            scale=self.scale,
            tensor_cores=self.ops.tensor_cores,
        )

    def _sum_slices(self, tile, x, dy, argmax, partials):
        if (argmax is None) != (tile.pool.size == 0):
            raise ValueError("derivatives of a pool need its argmax, and others take none")
        kernel, arrays = "conv_backward_weights_register", (x, dy, partials)
        if self.ops.tensor_cores:
            offsets = None if argmax is None else argmax.view(np.float32)  # to be copied in fours
            kernel, arrays = "conv_backward_weights_tf32", (x, dy, offsets, partials)
        slices = tile.slices(len(x))
        self.ops.launch(
            kernel,
            kernel,
            (slices, *tile.blocks),
            *arrays,
            len(x),
            slices,
            block=tile.threads,
            shared=tile.shared,
            **tile.constants,
        )

    def finish(self):
        self.ops.join()
        if not self.tiles:
            return
        counts = [one.out_maps * tile.layer.patch for one, tile in self.tiles.items()]
        self.ops.launch(
            "conv_backward_weights_sum",
            "conv_backward_weights_sum",
            sum(ceil_div(count, 32) for count in counts),
            self.partials,
            self.out,
            next(iter(self.tiles)).x_shape[0],
            self.partials.size,
            self.out.size,
            self.scale,
            block=(32, 8),
            LAYERS=",".join(tile.summing(one.place) for one, tile in self.tiles.items()),
        )


class Convolutions(MatrixProducts):
    """Convolutions as implicit matrix products. Over 1 x 1 patches it is the product of all pixels
    with the weights.
    """

    def weights(self, flat, layers, backward=()):
        shapes = {one: ConvShape.of(one.x_shape, one.out_maps, *one.window) for one in layers}
        packed = {one: shape for one, shape in shapes.items() if not shape.is_dense}
        forward = [(one.place, shape, False) for one, shape in packed.items()]
        flipped = [(one.place, packed[one].transposed, True) for one in backward if one in packed]
        arrays = iter(self._pack(flat, forward + flipped))
        forward = dict(zip(packed, arrays, strict=False))
        flipped = dict(zip((one for one in backward if one in packed), arrays, strict=True))
        return [
            Weights(one.of(flat), forward[one], flipped.get(one)) if one in packed else one.of(flat)
            for one in layers
        ]

    def conv_forward(self, x, weight, kernel, stride, padding, bias=True, relu=False, add_to=None):
        layer = ConvShape.of(x.shape, len(weight), kernel, stride, padding)
        y = add_to
        if add_to is None:
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
                accumulate=add_to is not None,
            )
            if relu:
                self._fours("relu", "relu", y.size, y, y, y.size)
        else:
            packed = weight.forward if isinstance(weight, Weights) else self._packed(layer, weight)
            self._convolve(layer, x, packed, y, bias, relu, accumulate=add_to is not None)
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
                packed = self._packed(layer.transposed, array, is_flipped=True)
            self._convolve(layer.transposed, dy, packed, dx)
        return dx

    def _tile_of(self, layer):
        return forward_tile(layer, self.tensor_cores, self.runtime.shared_limit)

    def _packed(self, layer, weight, is_flipped=False):
        (packed,) = self._pack(weight.reshape(-1), [(0, layer, is_flipped)])
        return packed

    def _pack(self, flat, wanted):
        """Weights in the order in which the blocks of `_convolve` read them, in one launch.

        wanted: [(place in flat (n,), ConvShape of the pass, whether flipped)].
        """
        if not wanted:
            return []
        tiles = [self._tile_of(layer) for _, layer, _ in wanted]
        ends = list(itertools.accumulate(tile.packed_size for tile in tiles))
        begins = [0, *ends[:-1]]
        lines = [
            tile.packing(place, begin, is_flipped)
            for tile, begin, (place, _, is_flipped) in zip(tiles, begins, wanted, strict=True)
        ]
        packed = self.empty(ends[-1])
        self._each(
            "conv_pack",
            "conv_pack",
            packed.size,
            flat,
            packed,
            flat.size,
            packed.size,
            PACKS=",".join(lines),
            FRAGMENTS=int(self.tensor_cores),
        )
        return [packed[begin:end] for begin, end in zip(begins, ends, strict=True)]

    def _convolve(self, layer, x, packed, y, bias=False, relu=False, accumulate=False):
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
            BIAS=int(bias),
            RELU=int(relu),
            ACCUMULATE=int(accumulate),
            **tile.constants,
        )

    def conv_backward_weights(self, x, dy, kernel, stride, padding, scale, out):
        layer = Placed(0, len(out), x.shape, (kernel, stride, padding))
        self._gradient_of(layer, scale, out, x, dy)

    def _gradient_of(self, layer, scale, out, *arrays):
        """That of one layer alone, into out (I, P), from what a ConvGradients adds."""
        gradients = self.conv_gradients([layer], scale, out.reshape(-1))
        gradients.add(layer, *arrays)
        gradients.finish()

    def conv_gradients(self, layers, scale, out):
        return SlicedGradients(self, layers, scale, out)

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
