"""Write what the pages on kernels take from the code: compiled counts, an instance, a floor.

    python scripts/render_kernels.py

In docs/ladder.md and kernels/README.md the parts between `<!-- written: NAME -->` and
`<!-- end -->` are replaced, and docs/ladder.png is drawn. Counts are those of the newest NVRTC that
is installed, for sm_90; the values of the instance are computed by the kernel's own text, run on
the CPU. Needs `pip install -e '.[test]'`.
"""

import math
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the code of this checkout, and its compilers

import compiled_counts  # noqa: E402
import ladder  # noqa: E402
import nvrtc  # noqa: E402
import recorded_steps  # noqa: E402
from cuda_on_cpu import Library  # noqa: E402
from matplotlib import style  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

from kfcnet.figures.curves import COLOURS, DATELESS, STYLE  # noqa: E402
from kfcnet.ops.cuda import kernels  # noqa: E402

PAGE, PICTURE = ROOT / "docs" / "ladder.md", ROOT / "docs" / "ladder.png"
README = ROOT / "kernels" / "README.md"
FP32, TF32, BANDWIDTH = 67e12, 495e12, 4.8e12  # of an H200: operations and bytes a second
COLUMNS = (
    "rung",
    "idea",
    "lines",
    "bytes",
    "shared reads",
    "instructions",
    "share",
    "registers",
    "shared KB",
    "warps",
    "conflicts",
)

# What the macros of the last rung of the convolution are, and the constants that follow from them.
MACROS = {
    "HEIGHT": "rows of an image",
    "WIDTH": "columns of an image",
    "IN_MAPS": "maps of the input, J",
    "OUT_MAPS": "maps of the output, I",
    "KERNEL_SIZE": "side of the kernel, K",
    "STRIDE": "input pixels from one output position to the next",
    "PADDING": "rows and columns of zeros around the image",
    "OUT_HEIGHT": "rows of an output",
    "OUT_WIDTH": "columns of an output",
    "DILATION": "1 forward; backward to the data it is the layer's stride",
    "BIAS": "1 adds the biases; 0 for the tangent and backward",
    "RELU": "1 where the next layer is a ReLU, which is then done here",
    "ACCUMULATE": "1 adds the result to y: the tangent has two such terms",
    "TILE_IMAGES": "images of a block's tile",
    "TILE_HEIGHT": "output rows of a tile",
    "TILE_WIDTH": "output columns of a tile",
    "TILE_MAPS": "output maps of a block",
    "CHUNK_MAPS": "input maps in shared memory at a time",
    "WARPS_PIXELS": "warps that share the tile's positions",
    "WARPS_MAPS": "warps that share its maps",
    "WEIGHT_STAGES": "buffers through which the weights pass",
    "DEPTH_GROUPS": "groups of warps that share the depth",
    "FRAGMENTS": "1: weights are packed as fragments of mma.sync",
    "PACKED_SIZE": "floats of the packed weights: I biases, then the slabs",
}
DERIVED = {
    "PIXELS": "output positions of a tile",
    "TILES_DOWN": "tiles down an image",
    "TILES_ACROSS": "tiles across an image",
    "IN_ROWS": "rows of the input that a tile sees",
    "IN_COLUMNS": "columns of the input that a tile sees",
    "IN_PIXELS": "pixels of the input that a tile sees",
    "PIXEL_FLOATS": "floats of a pixel that are copied",
    "PITCH": "floats from a pixel to the next in shared memory",
    "SEGMENTS": "segments of a patch: offsets of the kernel",
    "SEGMENT_DEPTH": "inputs of a segment: the maps of an offset",
    "CHUNKS": "chunks of the input maps",
    "SLAB": "floats of a slab, the weights of a segment",
    "STAGE": "floats of a stage: a slab for each group",
    "STEPS": "stages that a block goes through",
    "GROUP_THREADS": "threads of a group",
    "THREADS": "threads of a block",
    "ROW_TILES": "fragments of 16 positions that a warp makes",
    "MAP_PAIRS": "pairs of fragments of 8 maps that a warp makes",
    "input_floats<PITCH>()": "floats of the tile of inputs",
    "input_floats<PITCH>() + WEIGHT_STAGES * STAGE": "floats of shared memory",
}
BLOCK, THREAD = 9, 205  # whose work is followed
FOLLOWED = {
    "tile_at(BLOCK).image": "its block's image",
    "tile_at(BLOCK).row": "its tile's first output row",
    "tile_at(BLOCK).column": "its tile's first output column",
    "warp": "its warp",
    "group": "its group, which takes segments 1, 3, 5 and so on",
    "lane": "its lane",
    "g": "its row in a fragment, lane / 4",
    "t": "its column in a fragment, lane % 4",
    "first_pixel": "the first of its positions in the tile; the others are 8, 16 and 24 further",
    "patch_offset<PITCH>(first_pixel) + t": "the float of its first input of segment 0",
    "segment_offset<PITCH>(7)": "floats from there to the same input of segment 7, row 1, column 2",
    "output_index(tile_at(BLOCK), first_pixel, 128)": "its position in y, seen as (M*T, I)",
}


@cache
def counts(name):
    """[{column: number}] of the rungs of a ladder."""
    return [rung.counts() for rung in ladder.LADDERS[name]]


def compiled(name):
    """[(text of each column but the last, ...)] of the rungs of a ladder."""
    return [
        (
            f"{rung.number} [`{rung.file}`](../kernels/{rung.file}.cu)",
            rung.idea,
            "+{} -{}".format(*rung.changed),
            f"{row['bytes']:.2g}",
            f"{row['shared reads']:.2g}",
            f"{row['instructions']:.2f}",
            f"{row['share']:.0%}",
            f"{row['registers']}",
            f"{row['shared KB']:.1f}",
            f"{row['warps']}",
        )
        for rung, row in zip(ladder.LADDERS[name], counts(name), strict=True)
    ]


def table(name):
    """The rungs of a ladder and what each compiles to, as Markdown."""
    conflicts = [rung.conflicts() for rung in ladder.LADDERS[name]]
    rows = [COLUMNS, ("---",) * 2 + ("---:",) * (len(COLUMNS) - 2)]
    for row, found in zip(compiled(name), conflicts, strict=True):
        rows.append((*row, f"{found:.1f}" if found else ""))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def compiler():
    """With which the counts were made."""
    return f"NVRTC {'.'.join(map(str, nvrtc.newest()))} for {compiled_counts.ARCHITECTURE}.\n"


def instance():
    """The constants of the followed specialisation."""
    launched = dict(BIAS=1, RELU=0, ACCUMULATE=0)
    return ladder.CONV_FORWARD["tf32"] | launched | ladder.CONV2.constants


def values(expressions):
    """What the last rung's own text makes of expressions, for the followed thread."""
    listed = "".join(f"    out[{i}] = {text};\n" for i, text in enumerate(expressions))
    text = f"""{kernels.source("conv_forward_tf32")}
extern "C" __global__ void values(
    int* out,  // ({len(expressions)})
    int BLOCK) {{
    const int thread = {THREAD}, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int group = warp / GROUP_WARPS;
    const int first_pixel = warp % GROUP_WARPS / WARPS_MAPS * 16 * ROW_TILES + g;
    if (group + lane + t + first_pixel < 0) return;
{listed}}}
"""
    out = np.zeros(len(expressions), np.int32)
    library = Library(text, instance(), "conv_forward_values")
    library.kernel("values").launch((1,), (1,), [out, np.int32(BLOCK)])
    return out.tolist()


def macros():
    """Every macro of the instance."""
    rows = "".join(f"| `{name}` | {instance()[name]} | {MACROS[name]} |\n" for name in MACROS)
    return "| macro | value | what |\n| --- | ---: | --- |\n" + rows


def derived():
    """What the headers make of the macros."""
    found = zip(DERIVED.items(), values(tuple(DERIVED)), strict=True)
    rows = "".join(f"| `{name}` | {value} | {what} |\n" for (name, what), value in found)
    return "| constant | value | what |\n| --- | ---: | --- |\n" + rows


def followed():
    """Where one thread works."""
    found = zip(FOLLOWED.items(), values(tuple(FOLLOWED)), strict=True)
    rows = "".join(f"| `{name}` | {value} | {what} |\n" for (name, what), value in found)
    head = f"| block {BLOCK}, thread {THREAD} | value | what |\n| --- | ---: | --- |\n"
    return head + rows.replace("BLOCK", str(BLOCK))


def operations(launch):
    """Of a product or a convolution, a multiply-add being two; 0 of what is limited by memory."""
    c, sizes = (
        dict(launch.constants),
        [v for v in launch.values if isinstance(v, (int, np.integer))],
    )
    if launch.kernel.startswith("matmul"):
        return 2 * math.prod(map(int, sizes[:3]))
    convolutions = "conv_forward", "conv_max_pool", "conv_backward_weights_"
    if launch.kernel.startswith(convolutions) and "OUT_HEIGHT" in c:
        positions = int(sizes[0]) * c["OUT_HEIGHT"] * c["OUT_WIDTH"]
        return 2 * positions * c["OUT_MAPS"] * c["KERNEL_SIZE"] ** 2 * c["IN_MAPS"]
    return 0


def floor():
    """Operations and bytes of an SGD step at 512 images by kernel, and how long they take at least.

    Every array of a launch is counted once.
    """
    found = {}
    for launch in recorded_steps.record("cifar_sgd", 512).launches:
        arrays = {id(v): v.nbytes for v in launch.values if isinstance(v, np.ndarray)}
        done, moved = operations(launch), sum(arrays.values())
        rate = TF32 if "mma_m16n8k8_tf32" in kernels.source(launch.file) else FP32
        row = np.array([1, done, moved, max(done / rate, moved / BANDWIDTH)])
        found[launch.kernel] = found.get(launch.kernel, 0) + row
    found["SGD step"] = sum(found.values())
    rows = ["| kernel | launches | GFLOP | MB | us |\n| --- | ---: | ---: | ---: | ---: |\n"]
    for name, (launches, done, moved, seconds) in found.items():
        kernel = name if " " in name else f"`{name}`"
        gflop = f"{done / 1e9:.1f}" if done else ""
        rows.append(
            f"| {kernel} | {launches:.0f} | {gflop} | {moved / 1e6:.1f} | {seconds * 1e6:.1f} |\n"
        )
    return "".join(rows)


PARTS = {
    "compiler": compiler,
    "matmul": lambda: table("matmul"),
    "conv_forward": lambda: table("conv_forward"),
    "macros": macros,
    "derived": derived,
    "followed": followed,
    "floor": floor,
}


def part(page, name):
    """What a page has between the marks of a part."""
    return re.search(rf"<!-- written: {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)[1]


def written(page):
    """The page with all its parts written anew."""
    for name in re.findall(r"<!-- written: (\w+) -->", page):
        texts = part(page, name), PARTS[name]()
        old, new = (f"<!-- written: {name} -->\n{text}<!-- end -->" for text in texts)
        page = page.replace(old, new)
    return page


def banks():
    """(32,) the bank of shared memory of each lane's first input, by the kernel's text."""
    offset = "(patch_offset<PITCH>({0} / 4) + {0} % 4) % 32"
    return np.array(values([offset.format(lane) for lane in range(32)]))


POSITION, SEGMENT = (11, 6), 7  # of the image, whose patch is drawn, and the segment that is marked


def draw(path):
    """The tile of the instance: what it sees, what a warp reads, what is copied when."""
    with style.context(["default", STYLE | {"axes.grid": False}]):
        figure = Figure(figsize=(7.2, 3.7))
        FigureCanvasAgg(figure)
        panels = figure.subplot_mosaic([["image", "memory"], ["image", "slabs"]])
        _draw_image(panels["image"])
        _draw_memory(panels["memory"])
        _draw_slabs(panels["slabs"])
        for axes in panels.values():
            axes.set_axis_off()
        figure.savefig(path, dpi=150, metadata=DATELESS["png"])


def _box(axes, left, top, width, height, **look):
    return axes.add_patch(Rectangle((left, top), width, height, **look))


def _draw_image(axes):
    """The second tile of an image: its positions by warps, the inputs it sees, a patch of it."""
    c, tile = instance(), ladder.FORWARD
    border, top, side = c["PADDING"], tile.height, c["KERNEL_SIZE"]
    lines = tile.pixels // tile.warps_pixels // tile.width  # of a warp
    _box(axes, -border, -border, c["WIDTH"] + 2 * border, c["HEIGHT"] + 2 * border, fc="#e8e8e8")
    _box(axes, 0, 0, c["WIDTH"], c["HEIGHT"], fc="white", ec="black", lw=1)
    for warp in range(tile.warps_pixels):
        row = top + warp * lines
        for line, column in np.ndindex(lines, tile.width):
            _box(axes, column, row + line, 1, 1, fc=COLOURS[warp], alpha=0.3, ec="white")
        axes.text(-border - 0.3, row + lines / 2, f"warp {warp}", ha="right", va="center")
    columns, rows = tile.width + 2 * border, tile.height + 2 * border
    look = dict(fc="none", lw=1.5)
    seen = _box(axes, -border, top - border, columns, rows, ec="black", ls="--", **look)
    row, column = POSITION
    patch = _box(axes, column - border, row - border, side, side, ec=COLOURS[1], **look)
    position = _box(axes, column, row, 1, 1, fc=COLOURS[1])
    down, across = divmod(SEGMENT, side)
    segment = _box(
        axes, column - border + across, row - border + down, 1, 1, fc="black", ec="black"
    )
    axes.legend(
        [seen, position, patch, segment],
        [
            f"inputs of the tile, {rows} x {columns} pixels",
            "an output position",
            f"its patch, {side} x {side} segments",
            f"segment {SEGMENT} of the patch: {c['IN_MAPS']} floats",
        ],
        loc="upper center",
        bbox_to_anchor=(0.57, 0.0),
        frameon=False,
        fontsize=7,
        ncols=2,
        columnspacing=1,
    )
    axes.set_xlim(-border - 4.5, c["WIDTH"] + border + 0.3)
    axes.set_ylim(c["HEIGHT"] + border + 0.3, -border - 0.3)
    axes.set_aspect("equal")
    axes.set_title(f"the lower tile of an image: {tile.height} x {tile.width} positions")


def _draw_memory(axes):
    """The first eight pixels of the tile in shared memory, and the lanes' first reads."""
    depth, pitch, width = ladder.FORWARD.depth, values(["PITCH"])[0], 14
    places = banks()
    for pixel in range(8):
        _box(axes, 0, pixel, width - 2, 1, fc="white", ec="black", lw=0.6)
        _box(axes, width - 2, pixel, 2, 1, fc="#d0d0d0", ec="black", lw=0.6)
        for t in range(4):
            _box(axes, t, pixel, 1, 1, fc=COLOURS[5], alpha=0.6, ec="black", lw=0.4)
            _box(axes, t + 4, pixel, 1, 1, fc=COLOURS[4], alpha=0.4, ec="black", lw=0.4)
            bank = places[4 * pixel + t]
            axes.text(t + 0.5, pixel + 0.55, bank, ha="center", va="center", fontsize=6)
        axes.text(10, pixel + 0.55, "...", ha="center", va="center", fontsize=6)
        axes.text(-0.2, pixel + 0.55, f"g = {pixel}", ha="right", va="center", fontsize=6)
    axes.text(4, -0.3, "t = 0 ... 3, twice", ha="center", fontsize=6)
    axes.text(width - 1, -0.3, f"{pitch - depth} pad", ha="center", fontsize=6)
    axes.set_xlim(-2.5, width + 0.3)
    axes.set_ylim(8.2, -1.2)
    axes.set_title(f"eight pixels of {depth} maps in shared memory,\nthe bank of each lane's read")


def _draw_slabs(axes):
    """Which slab of weights lies in which buffer at which step."""
    stages, steps = ladder.FORWARD.stages, 8
    for step in range(steps):
        for slab in range(step, step + stages):
            buffer, used = slab % stages, slab == step
            look = dict(fc=COLOURS[2] if used else "white", alpha=0.7, ec="black", lw=0.6)
            _box(axes, step, buffer, 1, 1, **look)
            axes.text(step + 0.5, buffer + 0.55, slab, ha="center", va="center", fontsize=6)
        axes.text(step + 0.5, -0.2, f"step {step}", ha="center", fontsize=6)
    for buffer in range(stages):
        axes.text(-0.1, buffer + 0.55, f"buffer {buffer}", ha="right", va="center", fontsize=6)
    axes.set_xlim(-1.6, steps + 0.2)
    axes.set_ylim(stages + 0.3, -0.8)
    axes.set_title("stages of weights; green: multiplied")


def main():
    """Write the pages and the figure."""
    for page in (PAGE, README):
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    draw(PICTURE)


if __name__ == "__main__":
    main()
