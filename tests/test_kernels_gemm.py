"""The kernels that are matrix products: products, convolutions, patches, factors.

Every launch runs under several orders of the block's threads, on a GPU twice, and the results must
be equal bit for bit. References are in float64, on small asymmetric shapes that no tile divides;
for tensor cores they take the operands rounded to TF32, so that only the rounding of sums is left.
The constants of a launch are those of a small machine: several tiles, buffers and groups even for
these shapes.
"""

from math import prod

import numpy as np
import pytest
from checks import assert_close
from cuda_on_cpu import launch_in_all_orders

from kfcnet.benchmarks.reference import nearest_tf32
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.shapes import output_size

pytestmark = pytest.mark.usefixtures("device")


def empty(*shape):
    """Memory whose bytes no kernel writes by chance: what stays unwritten fails the comparison."""
    return np.full(shape, np.nan, np.float32)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


TF32 = {"mma", "stages", "fragments", "rounded", "ldmatrix", "tf32"}


def operand(rung, array):
    """What a rung multiplies: float64, for tensor cores of the nearest TF32."""
    return nearest_tf32(array) if rung in TF32 else array.astype(np.float64)


def weights(rung, weight):
    """Wbar as a rung uses it: the biases are added, never multiplied."""
    return np.hstack([weight[:, :1], operand(rung, weight[:, 1:])])


def slow_but(names, quick):
    """Parameters of which only some are tried in every run: a rung is a compilation a shape."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def ceil(count, size):
    return -(-count // size)


# Matrix products

THREAD_TILE = dict(TILE_ROWS=32, TILE_COLUMNS=32, TILE_DEPTH=8, THREAD_ROWS=4, THREAD_COLUMNS=8)
WARP_TILE = dict(TILE_ROWS=32, TILE_COLUMNS=16, TILE_DEPTH=8, WARP_ROWS=16, WARP_COLUMNS=16)
MATMULS = {
    "naive": {},
    "tiled": dict(TILE=8),
    "thread_tile": THREAD_TILE,
    "vector": THREAD_TILE,
    "prefetch": THREAD_TILE,
    "async": THREAD_TILE,
    "register": THREAD_TILE | dict(TILE_ROWS=16, DEPTH_GROUPS=2),
    "mma": WARP_TILE,
    "stages": WARP_TILE | dict(STAGES=3),
    "tf32": WARP_TILE | dict(STAGES=3),
}


def matmul_shared(rung, macros):
    """Floats of dynamic shared memory that a rung needs."""
    rows, columns, depth = (macros.get(f"TILE_{side}") for side in ("ROWS", "COLUMNS", "DEPTH"))
    if rung in ("async", "register"):
        tile = rows * columns if macros.get("DEPTH_GROUPS", 1) > 1 else 0
        return max(2 * depth * (rows + columns + 8), tile)
    if rung in ("mma", "stages"):
        return macros.get("STAGES", 2) * depth * (rows + columns + 16)
    if rung == "tf32":
        left = depth * (rows + 8) if macros["TRANSPOSE_A"] else rows * (depth + 4)
        right = columns * (depth + 4) if macros["TRANSPOSE_B"] else depth * (columns + 8)
        return macros["STAGES"] * (left + right)
    return 0


def matmul(rung, a, b, size, scale=1.0, transpose_a=0, transpose_b=0, a_shift=0, b_shift=0, c=None):
    """c = scale * op(a) op(b) by one rung of the ladder; size is (rows, columns, depth).

    c: what that is added to.
    """
    rows, columns, depth = size
    macros = MATMULS[rung] | dict(
        TRANSPOSE_A=transpose_a,
        TRANSPOSE_B=transpose_b,
        A_SHIFT=a_shift,
        B_SHIFT=b_shift,
        ACCUMULATE=int(c is not None),
    )
    tile = {"naive": (8, 4), "tiled": (8, 8)}.get(
        rung, (macros.get("TILE_COLUMNS"), macros.get("TILE_ROWS"))
    )
    threads = 64 if rung in TF32 else 32
    block = {"naive": (8, 4), "tiled": (8, 8)}.get(rung, (threads,))
    c = empty(rows, columns) if c is None else c
    launch_in_all_orders(
        f"matmul_{rung}",
        f"matmul_{rung}",
        (ceil(columns, tile[0]), ceil(rows, tile[1])),
        block,
        [a, b, c, rows, columns, depth, scale],
        macros,
        4 * matmul_shared(rung, macros),
    )
    return c


@pytest.mark.parametrize("transpose_a, transpose_b", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("rung", MATMULS)
def test_matmul_multiplies_any_shape_and_transposes(rng, rung, transpose_a, transpose_b):
    for size in [(37, 45, 29), (1, 3, 5), (16, 32, 16)]:
        a, b = normal(rng, size[0], size[2]), normal(rng, size[2], size[1])
        expected = -0.5 * operand(rung, a) @ operand(rung, b)
        stored = [
            np.ascontiguousarray(m.T) if transposed else m
            for m, transposed in ((a, transpose_a), (b, transpose_b))
        ]
        c = matmul(rung, *stored, size, -0.5, transpose_a, transpose_b)
        assert_close(c, expected)


@pytest.mark.parametrize("rung", slow_but(MATMULS, ("naive", "tiled", "register", "tf32")))
def test_matmul_does_the_dense_layer_with_its_homogeneous_column(rng, rung):
    x, weight, dy = normal(rng, 11, 21), normal(rng, 10, 22), normal(rng, 11, 10)
    y = matmul(rung, x, weight, (11, 10, 22), transpose_b=1, a_shift=-1)
    without_bias = matmul(rung, x, weight, (11, 10, 21), transpose_b=1, b_shift=1)
    dx = matmul(rung, dy, weight, (11, 21, 10), b_shift=1)
    gradient = matmul(rung, dy, x, (10, 22, 11), 0.25, transpose_a=1, b_shift=-1)

    x, weight, dy = (operand(rung, array) for array in (x, weight, dy))
    homogeneous = np.hstack([np.ones((11, 1)), x])
    assert_close(y, homogeneous @ weight.T)
    assert_close(without_bias, x @ weight[:, 1:].T)
    assert_close(dx, dy @ weight[:, 1:])
    assert_close(gradient, 0.25 * dy.T @ homogeneous)


@pytest.mark.parametrize("rung", ["register", "tf32"])
def test_matmul_adds_to_what_is_there(rng, rung):
    a, b, c = normal(rng, 37, 29), normal(rng, 29, 45), normal(rng, 37, 45)
    expected = c.astype(np.float64) - 0.5 * operand(rung, a) @ operand(rung, b)
    assert_close(matmul(rung, a, b, (37, 45, 29), -0.5, c=c), expected)


# Convolutions

CONVS = [  # M, H, W, J, filters, kernel, stride, padding
    (3, 7, 6, 3, 10, 5, 1, 2),
    (3, 5, 7, 33, 6, 3, 2, 1),
    (2, 6, 5, 32, 33, 3, 1, 1),
    (5, 4, 3, 1, 6, 2, 1, 0),
    (1, 7, 4, 8, 3, 3, 1, 3),
]
TILE = dict(TILE_IMAGES=2, TILE_HEIGHT=2, TILE_WIDTH=8)
PIXEL_TILE = dict(TILE_MAPS=32, THREAD_PIXELS=2, WARPS_PIXELS=2, WARPS_MAPS=1)
MAP_TILE = dict(TILE_MAPS=32, WARPS_PIXELS=1, WARPS_MAPS=2, WEIGHT_STAGES=3)
FORWARD = {  # with packed weights
    "packed": PIXEL_TILE,
    "register": PIXEL_TILE | dict(WEIGHT_STAGES=2),
    "mma": MAP_TILE,
    "fragments": MAP_TILE,
    "rounded": MAP_TILE,
    "ldmatrix": MAP_TILE,
    "tf32": MAP_TILE,
}
CONV_FORWARDS = ["naive", "tiled", "image", "thread_tile", *FORWARD]


@pytest.fixture(scope="module")
def reference():
    """The definition of every primitive, in float64."""
    return CpuOps("float64", shards=1, native="off")


def conv_arrays(rng, shape):
    """x, weight, dy of a layer, and the macros that give its shape."""
    M, H, W, J, filters, kernel, stride, padding = shape
    out = [output_size(side, kernel, stride, padding) for side in (H, W)]
    macros = dict(
        HEIGHT=H,
        WIDTH=W,
        IN_MAPS=J,
        OUT_MAPS=filters,
        KERNEL_SIZE=kernel,
        STRIDE=stride,
        PADDING=padding,
        OUT_HEIGHT=out[0],
        OUT_WIDTH=out[1],
    )
    weight, dy = normal(rng, filters, 1 + kernel**2 * J), normal(rng, M, *out, filters)
    return normal(rng, M, H, W, J), weight, dy, macros


def transposed(macros):
    """The layer's macros as the convolution of backward-data sees them."""
    side = macros["KERNEL_SIZE"] - 1 - macros["PADDING"]
    return dict(
        HEIGHT=macros["OUT_HEIGHT"],
        WIDTH=macros["OUT_WIDTH"],
        OUT_HEIGHT=macros["HEIGHT"],
        OUT_WIDTH=macros["WIDTH"],
        IN_MAPS=macros["OUT_MAPS"],
        OUT_MAPS=macros["IN_MAPS"],
        KERNEL_SIZE=macros["KERNEL_SIZE"],
        STRIDE=1,
        PADDING=side,
        DILATION=macros["STRIDE"],
    )


def with_segments(macros):
    """Adds CHUNK_MAPS; returns segments, floats of a segment and of a pixel, how many overhang."""
    maps, kernel = macros["IN_MAPS"], macros["KERNEL_SIZE"]
    macros["CHUNK_MAPS"] = 8 * ceil(maps, 8) if maps < 33 else 24
    if maps < 8:
        length = kernel * maps
        return kernel, 8 * ceil(length, 8), maps, 8 * ceil(length, 8) - length
    chunk = macros["CHUNK_MAPS"]
    return kernel**2 * ceil(maps, chunk), chunk, chunk, 0


def input_floats(macros, pitch, overhang):
    """Floats of a tile of inputs in shared memory."""
    rows, columns = (
        (macros[f"TILE_{side}"] - 1) * macros["STRIDE"] + macros["KERNEL_SIZE"]
        for side in ("HEIGHT", "WIDTH")
    )
    return 4 * ceil(macros["TILE_IMAGES"] * rows * columns * pitch + overhang, 4)


def tiles(M, macros):
    return prod(
        map(
            ceil,
            (M, macros["OUT_HEIGHT"], macros["OUT_WIDTH"]),
            (macros["TILE_IMAGES"], macros["TILE_HEIGHT"], macros["TILE_WIDTH"]),
        )
    )


def pack_line(place, begin, macros, flipped):
    """A line of the table of conv_pack."""
    segments = ",".join(str(macros[name]) for name in ("IN_MAPS", "KERNEL_SIZE", "CHUNK_MAPS"))
    maps = f"{macros['OUT_MAPS']},{macros['TILE_MAPS']}"
    return f"{{{place},{begin},{{{segments}}},{maps},{flipped}}}"


def packed_conv(rung, x, weight, macros, flipped=False, y=None):
    """The convolution with packed weights; macros has the shape, BIAS and RELU. y: what it is added
    to.
    """
    groups = 2 if rung == "tf32" and macros["IN_MAPS"] >= 8 else 1
    fragments = int(rung in ("fragments", "rounded", "ldmatrix", "tf32"))
    accumulate = int(y is not None)
    macros = macros | dict(FRAGMENTS=fragments, DEPTH_GROUPS=groups, ACCUMULATE=accumulate)
    macros = TILE | FORWARD[rung] | dict(DILATION=1) | macros
    segments, depth, pixel, overhang = with_segments(macros)
    map_tiles = ceil(macros["OUT_MAPS"], macros["TILE_MAPS"])
    size = map_tiles * macros["TILE_MAPS"] * (1 + segments * depth)
    packed = empty(size)
    line = pack_line(0, 0, macros, int(flipped))
    launch_in_all_orders(
        "conv_pack",
        "conv_pack",
        (ceil(size, 128),),
        (128,),
        [weight, packed, weight.size, size],
        dict(PACKS=line, FRAGMENTS=fragments),
    )
    if y is None:
        y = empty(len(x), macros["OUT_HEIGHT"], macros["OUT_WIDTH"], macros["OUT_MAPS"])
    pitch = pixel + 4 if macros["IN_MAPS"] >= 8 else pixel
    floats = input_floats(macros, pitch, overhang)
    floats += macros.get("WEIGHT_STAGES", 1) * groups * depth * macros["TILE_MAPS"]
    launch_in_all_orders(
        f"conv_forward_{rung}",
        f"conv_forward_{rung}",
        (tiles(len(x), macros), map_tiles),
        (32 * macros["WARPS_PIXELS"] * macros["WARPS_MAPS"] * groups,),
        [x, packed, y, len(x)],
        macros | {"PACKED_SIZE": size},
        0 if rung == "packed" else 4 * floats,
    )
    return y


def conv_forward(rung, x, weight, dy, macros):
    if rung in FORWARD:
        return packed_conv(rung, x, weight, macros)
    y = empty(*dy.shape)
    filters = y.shape[-1]
    if rung == "naive":
        grid, block = (ceil(y.size, 64),), (64,)
    elif rung == "tiled":
        macros = macros | {"TILE": 8}
        grid, block = (ceil(y.size // filters, 8), ceil(filters, 8)), (8, 8)
    else:
        threads = {"image": dict(TILE_MAPS=4), "thread_tile": PIXEL_TILE}[rung]
        macros = TILE | threads | dict(DILATION=1) | macros
        with_segments(macros)
        grid = tiles(len(x), macros), ceil(filters, macros["TILE_MAPS"])
        block = (128,) if rung == "image" else (64,)
    launch_in_all_orders(
        f"conv_forward_{rung}", f"conv_forward_{rung}", grid, block, [x, weight, y, len(x)], macros
    )
    return y


@pytest.mark.parametrize(
    "shape, rung",
    [(shape, rung) for rung in ("naive", "tiled", "register", "tf32") for shape in CONVS]
    + [
        pytest.param(shape, rung, marks=pytest.mark.slow if shape in CONVS[2:] else ())
        for rung in ("image", "thread_tile", "packed", "mma", "fragments", "rounded", "ldmatrix")
        for shape in CONVS
    ],
)
def test_conv_forward_matches_the_reference_at_every_rung(reference, rng, shape, rung):
    x, weight, dy, macros = conv_arrays(rng, shape)
    relu = shape[0] % 2  # of the five shapes some with, some without
    y = conv_forward(rung, x, weight, dy, macros | dict(BIAS=1, RELU=relu))
    expected = reference.conv_forward(operand(rung, x), weights(rung, weight), *shape[5:])
    assert_close(y, np.maximum(expected, 0) if relu else expected)


@pytest.mark.parametrize(
    "rung", slow_but(CONV_FORWARDS, ("naive", "tiled", "image", "register", "tf32"))
)
def test_conv_forward_leaves_out_the_bias_for_the_tangent(reference, rng, rung):
    x, weight, dy, macros = conv_arrays(rng, CONVS[0])
    y = conv_forward(rung, x, weight, dy, macros | dict(BIAS=0, RELU=0))
    weight[:, 0] = 0
    expected = reference.conv_forward(operand(rung, x), weights(rung, weight), *CONVS[0][5:])
    assert_close(y, expected)


@pytest.mark.parametrize("shape", [CONVS[0], CONVS[1], CONVS[4]])  # maps in twos, fours, alone
@pytest.mark.parametrize("rung", ["register", "tf32"])
def test_conv_forward_adds_to_what_is_there(reference, rng, shape, rung):
    x, weight, dy, macros = conv_arrays(rng, shape)
    expected = dy + reference.conv_forward(operand(rung, x), weights(rung, weight), *shape[5:])
    assert_close(packed_conv(rung, x, weight, macros | dict(BIAS=1, RELU=0), y=dy), expected)


@pytest.mark.parametrize("rung", ["naive", "register", "tf32"])
@pytest.mark.parametrize("shape", CONVS)
def test_conv_backward_data_matches_the_reference(reference, rng, shape, rung):
    x, weight, dy, macros = conv_arrays(rng, shape)
    if rung == "naive":
        dx = empty(*x.shape)
        launch_in_all_orders(
            "conv_backward_naive",
            "conv_backward_data_naive",
            (ceil(x.size, 64),),
            (64,),
            [dy, weight, dx, len(x)],
            macros,
        )
    else:
        macros = transposed(macros) | dict(BIAS=0, RELU=0)
        dx = packed_conv(rung, dy, weight, macros, flipped=True)
    expected = reference.conv_backward_data(
        operand(rung, dy), weights(rung, weight), x.shape, *shape[5:]
    )
    assert_close(dx, expected)


WEIGHTS = {
    "register": dict(LANE_ROWS=8, ROW_LANES=2, SLOTS=2, WARPS_COLUMNS=1, WARPS_DEPTH=2),
    "tf32": dict(MAP_TILES=1, COLUMN_TILES=3, WARPS_COLUMNS=2, WARPS_DEPTH=2),
}


def weights_partials(rung, x, dy, macros, slices):
    """The slices' sums of dy^T [[x]]_H."""
    macros = TILE | WEIGHTS[rung] | dict(DILATION=1) | macros
    if rung == "tf32":  # nothing is pooled
        pooled = dict(POOLED_HEIGHT=macros["OUT_HEIGHT"], POOLED_WIDTH=macros["OUT_WIDTH"])
        macros |= pooled | dict(POOL_SIZE=0, POOL_STRIDE=1)
    segments, depth, pixel, overhang = with_segments(macros)
    chunks = 1 if macros["IN_MAPS"] < 8 else ceil(macros["IN_MAPS"], macros["CHUNK_MAPS"])
    if rung == "register":
        length = depth - overhang
        maps, width, pitch = 16, 16 * 2, pixel  # of dy in a block, slots of a block
        dy_pitch, columns, sums = maps, segments // chunks * ceil(length, 4), 8 * 2 * 4
    else:
        maps, width = 16, 2 * 3
        dy_pitch, columns, sums = 40, segments // chunks * depth // 8, 3 * 4
        pitch = pixel + 8 if pixel % 16 == 0 else pixel
    floats = input_floats(macros, pitch, overhang) + 32 * dy_pitch
    threads = 32 * macros["WARPS_COLUMNS"]
    partials = empty(slices, dy.shape[-1], 1 + macros["KERNEL_SIZE"] ** 2 * macros["IN_MAPS"])
    launch_in_all_orders(
        f"conv_backward_weights_{rung}",
        f"conv_backward_weights_{rung}",
        (slices, ceil(dy.shape[-1], maps), chunks * ceil(columns, width)),
        (threads * macros["WARPS_DEPTH"],),
        [x, dy, *([None] if rung == "tf32" else []), partials, len(x), slices],
        macros,
        4 * max(2 * floats, sums * threads),
    )
    return partials


@pytest.mark.parametrize("rung", ["naive", "register", "tf32"])
@pytest.mark.parametrize("shape", CONVS)
def test_conv_backward_weights_matches_the_reference(reference, rng, shape, rung):
    x, weight, dy, macros = conv_arrays(rng, shape)
    gradient = empty(*weight.shape)
    if rung == "naive":
        launch_in_all_orders(
            "conv_backward_naive",
            "conv_backward_weights_naive",
            (ceil(weight.size, 64),),
            (64,),
            [x, dy, gradient, len(x), 0.25],
            macros,
        )
    else:
        slices = 3  # of so few tiles that one slice can be empty
        partials = weights_partials(rung, x, dy, macros, slices)
        launch_in_all_orders(
            "conv_backward_weights_sum",
            "conv_backward_weights_sum",
            (ceil(weight.size, 32),),
            (32, 8),
            [partials, gradient, len(x), partials.size, weight.size, 0.25],
            dict(LAYERS=f"{{0,{weight.size},{slices},{slices}}}"),
        )
    expected = np.empty(weight.shape)
    reference.conv_backward_weights(operand(rung, x), operand(rung, dy), *shape[5:], 0.25, expected)
    assert_close(gradient, expected)


# Kronecker factors

GRAMS = [  # M, H, W, J, kernel, padding
    (5, 7, 6, 3, 5, 2),
    (3, 6, 7, 33, 3, 1),
    (3, 5, 7, 32, 3, 0),
    (4, 4, 5, 1, 2, 1),
    (2, 3, 4, 8, 3, 2),
    (3, 5, 6, 12, 1, 0),
]


def gram_offsets(x, macros, positions, scale, decay, out):
    """Omega by relative offsets, the slices of a region holding about `positions` pixels each."""
    (M, H, W, J), kernel = x.shape, macros["KERNEL_SIZE"]
    pitch = J if J < 8 else 4 * ceil(J, 4) if J < 33 else 20
    rows, lanes = (4, 1) if J < 8 else (8, 4)
    tile = dict(TILE_HEIGHT=2, TILE_WIDTH=3, BUFFER_PIXELS=(2 * kernel + 3) * (kernel + 2) * 2)
    columns = 1 + (2 * kernel * (kernel - 1) + 1) * J
    macros = (
        macros
        | tile
        | dict(
            CHUNK_MAPS=pitch,
            LANE_ROWS=rows,
            ROW_LANES=lanes,
            SLOTS=2,
            WARPS_COLUMNS=2,
            WARPS_DEPTH=2,
            SUM_BLOCK=64,
            ITEM_SIZE=J * columns,
        )
    )
    areas = np.outer(
        *(
            np.diff(region_borders(side, macros["OUT_" + name], macros))
            for side, name in ((H, "HEIGHT"), (W, "WIDTH"))
        )
    )
    items = sum(ceil(M * int(area), positions) for area in areas.flat)
    chunks = ceil(J, pitch)
    segments, length = (kernel, (2 * kernel - 1) * J) if J < 8 else (columns // J, pitch)
    buffer = macros["BUFFER_PIXELS"] * pitch + 8
    partials = empty(items, J, columns)
    launch_in_all_orders(
        "gram_offsets",
        "gram_offsets_slices",
        (items, chunks**2, ceil(segments * ceil(length, 4), 4 * (32 // lanes))),
        (128,),
        [x, partials, M, positions, items],
        macros,
        4 * max(2 * (2 if chunks > 1 else 1) * buffer, rows * 8 * 64),
    )
    launch_in_all_orders(
        "gram_offsets",
        "gram_offsets_sum",
        (ceil(J * columns, 64),),
        (64,),
        [partials, out, M, positions, items, scale, decay],
        macros,
    )


def region_borders(side, out_side, macros):
    """Where the windows of the kernel's offsets cut a side of the image, and its ends."""
    starts = [delta - macros["PADDING"] for delta in range(macros["KERNEL_SIZE"])]
    inside = {s for start in starts for s in (start, start + out_side) if 0 < s < side}
    return sorted(inside | {0, side})


def average(rng, *shape):
    """A symmetric running average, or NaN that a decay of zero must not read."""
    out = normal(rng, *shape)
    return out + out.T


@pytest.mark.parametrize("shape", GRAMS)
def test_gram_offsets_is_omega_with_its_running_average(reference, rng, shape):
    x, weight, _, macros = conv_arrays(rng, (*shape[:4], 1, shape[4], 1, shape[5]))
    P, window = weight.shape[1], (shape[4], 1, shape[5])
    expected = np.empty((P, P))
    reference.patch_gram(x.astype(np.float64), *window, 0.3, 0.0, expected)
    out = empty(P, P)
    gram_offsets(x, macros, 11, 0.3, 0.0, out)
    assert_close(out, expected)
    before = out = average(rng, P, P)
    expected += 0.7 * before
    gram_offsets(x, macros, 1000, 0.3, 0.7, out)
    assert_close(out, expected)
    assert np.array_equal(out, out.T)


def gram_sum(partials, scale, decay, out):
    """The ordered sum of the slices with the running average."""
    slices, side, _ = partials.shape
    pairs = ceil(side, 32) * (ceil(side, 32) + 1) // 2
    launch_in_all_orders(
        "gram_sum", "gram_sum", (pairs,), (32, 8), [partials, out, side, slices, scale, decay], {}
    )


@pytest.mark.parametrize("shape", [*CONVS[:2], (11, 1, 1, 21, 5, 1, 1, 0)])
def test_gram_patches_is_omega_for_any_stride(reference, rng, shape):
    x, weight, _, macros = conv_arrays(rng, shape)
    P, slices, tiles = weight.shape[1], 3, ceil(weight.shape[1], 16)
    partials, out = empty(slices, P, P), average(rng, P, P)
    expected = out.astype(np.float64)
    reference.patch_gram(x.astype(np.float64), *shape[5:], 0.3, 0.7, expected)
    launch_in_all_orders(
        "gram_patches",
        "gram_patches_slices",
        (tiles * (tiles + 1) // 2, slices),
        (16,),
        [x, partials, len(x), slices],
        macros | dict(TILE=16, DEPTH=4),
    )
    gram_sum(partials, 0.3, 0.7, out)
    assert_close(out, expected)
    assert np.array_equal(out, out.T)


@pytest.mark.parametrize("count, maps", [(53, 3), (41, 33), (70, 32), (5, 64)])
def test_gram_rows_is_gamma_and_reads_no_average_without_decay(rng, count, maps):
    rows, slices, pairs = normal(rng, count, maps), 3, ceil(maps, 32) * (ceil(maps, 32) + 1) // 2
    partials, out = empty(slices, maps, maps), empty(maps, maps)
    launch_in_all_orders(
        "gram_rows",
        "gram_rows_slices",
        (slices, pairs),
        (64,),
        [rows, partials, count, slices],
        dict(MAPS=maps, WARPS=2, TILE_ROWS=8),
        4 * max(4 * 8 * 32, 32 * 32),
    )
    gram_sum(partials, 0.3, 0.0, out)
    assert_close(out, 0.3 * rows.astype(np.float64).T @ rows)
    assert np.array_equal(out, out.T)


@pytest.mark.parametrize("slices, side", [(1, 5), (11, 33), (21, 7)])
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_lanes_add_up_slices_and_read_no_average_without_decay(rng, slices, side, decay):
    partials = normal(rng, slices, side, side)
    partials[:, np.tril(np.ones((side, side), bool), -1)] = np.nan  # nobody has written there
    out = average(rng, side, side) if decay else empty(side, side)
    expected = 0.3 * np.triu(partials.astype(np.float64).sum(0))
    expected += np.triu(expected, 1).T + (decay * out.astype(np.float64) if decay else 0)
    launch_in_all_orders(
        "gram_sum",
        "gram_sum_lanes",
        (ceil(side * side, 32),),
        (32, 8),
        [partials, out, side, slices, 0.3, decay],
        {},
    )
    assert_close(out, expected)
    assert np.array_equal(out, out.T)


# Patches


@pytest.mark.parametrize("shape", CONVS)
def test_patches_and_their_adjoint_match_the_reference(reference, rng, shape):
    x, weight, _, macros = conv_arrays(rng, shape)
    expected = reference.patches(x.astype(np.float64), *shape[5:])
    rows, back = empty(*expected.shape), empty(*x.shape)
    launch_in_all_orders(
        "patches", "patches", (ceil(rows.size, 64),), (64,), [x, rows, len(x)], macros
    )
    assert np.array_equal(rows, expected)
    rows = normal(rng, *rows.shape)
    launch_in_all_orders(
        "patches", "patches_adjoint", (ceil(x.size, 64),), (64,), [rows, back, len(x)], macros
    )
    expected = reference.patches_adjoint(rows.astype(np.float64), x.shape, *shape[5:])
    assert_close(back, expected)
