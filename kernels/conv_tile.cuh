// kernels/conv_tile.cuh: a tile of output positions and the part of the images that it sees.
//
// A tile is TILE_HEIGHT x TILE_WIDTH positions of TILE_IMAGES images; its inputs overlap so much
// that they are copied to shared memory once, for all segments of the patches.
#pragma once
#include "conv_segments.cuh"
#include "image_tile.cuh"

constexpr Segmentation PATCH = {IN_MAPS, KERNEL_SIZE, CHUNK_MAPS};
constexpr bool FEW_MAPS = PATCH.few_maps();
constexpr int CHUNKS = PATCH.chunks(), SEGMENTS = PATCH.segments();  // of a patch, in a chunk
constexpr int SEGMENT_LENGTH = PATCH.length(), SEGMENT_DEPTH = PATCH.depth();
constexpr int PIXEL_FLOATS = FEW_MAPS ? IN_MAPS : CHUNK_MAPS;  // of a pixel in a tile
constexpr int PIXELS = TILE_IMAGES * TILE_HEIGHT * TILE_WIDTH;
constexpr int TILES_DOWN = (OUT_HEIGHT + TILE_HEIGHT - 1) / TILE_HEIGHT;
constexpr int TILES_ACROSS = (OUT_WIDTH + TILE_WIDTH - 1) / TILE_WIDTH;
constexpr int IN_ROWS = (TILE_HEIGHT - 1) * STRIDE + KERNEL_SIZE;
constexpr int IN_COLUMNS = (TILE_WIDTH - 1) * STRIDE + KERNEL_SIZE;
constexpr int IN_PIXELS = TILE_IMAGES * IN_ROWS * IN_COLUMNS;
constexpr int SEGMENT_OVERHANG = FEW_MAPS ? SEGMENT_DEPTH - SEGMENT_LENGTH : 0;  // of a tile's last

// Floats of a tile of inputs with PITCH floats a pixel, a multiple of four.
template <int PITCH>
__device__ constexpr int input_floats() {
    return (IN_PIXELS * PITCH + SEGMENT_OVERHANG + 3) / 4 * 4;
}

struct Tile {
    int image, row, column;  // of its first output position
};

__device__ __forceinline__ Tile tile_at(int index) {
    const int line = index / TILES_ACROSS;
    return {line / TILES_DOWN * TILE_IMAGES, line % TILES_DOWN * TILE_HEIGHT,
            index % TILES_ACROSS * TILE_WIDTH};
}

__device__ __forceinline__ int segment_element(int chunk, int segment, int e) {
    return Segmentation{IN_MAPS, KERNEL_SIZE, CHUNK_MAPS}.element(chunk, segment, e);
}

// Output position `pixel` of a tile, as an index into (M, OUT_HEIGHT, OUT_WIDTH), or -1 outside.
__device__ __forceinline__ int output_index(const Tile& tile, int pixel, int M) {
    const int m = tile.image + pixel / (TILE_HEIGHT * TILE_WIDTH);
    const int row = tile.row + pixel / TILE_WIDTH % TILE_HEIGHT;
    const int column = tile.column + pixel % TILE_WIDTH;
    const bool inside = m < M && row < OUT_HEIGHT && column < OUT_WIDTH;
    return inside ? (m * OUT_HEIGHT + row) * OUT_WIDTH + column : -1;
}

// Where the patch of a pixel begins in the tile of inputs, and where a segment begins in the patch.
template <int PITCH>
__device__ __forceinline__ int patch_offset(int pixel) {
    const int line = pixel / TILE_WIDTH;
    const int row = line / TILE_HEIGHT * IN_ROWS + line % TILE_HEIGHT * STRIDE;
    return (row * IN_COLUMNS + pixel % TILE_WIDTH * STRIDE) * PITCH;
}
template <int PITCH>
__device__ __forceinline__ int segment_offset(int segment) {
    if (FEW_MAPS) return segment * IN_COLUMNS * PITCH;
    return (segment / KERNEL_SIZE * IN_COLUMNS + segment % KERNEL_SIZE) * PITCH;
}

// Start copying what a tile sees of a chunk of the maps of x (M, HEIGHT, WIDTH, IN_MAPS).
template <int PITCH, int THREADS>
__device__ __forceinline__ void load_inputs(float* inputs, const float* x, int M, const Tile& tile,
                                            int chunk) {
    const Rectangle seen = {tile.image, tile.row * STRIDE - PADDING, tile.column * STRIDE - PADDING,
                            TILE_IMAGES, IN_ROWS, IN_COLUMNS};
    load_rectangle<HEIGHT, WIDTH, IN_MAPS, PIXEL_FLOATS, PITCH, DILATION, THREADS>(
        inputs, x, M, seen, chunk * CHUNK_MAPS);
    if (int(threadIdx.x) < SEGMENT_OVERHANG) inputs[IN_PIXELS * PITCH + threadIdx.x] = 0.0f;
}

// value = change(value) for the inputs that this thread copied.
template <int PITCH, int THREADS, class Change>
__device__ __forceinline__ void change_inputs(float* inputs, Change change) {
    change_copied<IN_MAPS, PIXEL_FLOATS, PITCH, THREADS>(inputs, IN_PIXELS, change);
}
