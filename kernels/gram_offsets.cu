// kernels/gram_offsets.cu: Omega of a convolution with stride 1, from its relative offsets.
//
// x (M, HEIGHT, WIDTH, IN_MAPS) -> out (P, P) = decay*out + scale*[[x]]_H^T [[x]]_H, P = 1 + K*K*J.
// The entry of (delta, j) and (delta', j') is the sum of x[s, j] x[s + d, j'] over the window of
// delta: it depends on d = delta' - delta, and on delta only through the window. So this sums, for
// each region (gram_regions.cuh) and each d of one half of the plane, the outer products
// x[s, :]^T x[s + d, :] over the region's pixels s; an entry is the sum of the regions in its
// window. For K = 5 these are 41 products of J x J for a pixel instead of 313, and the same matrix
// to rounding: nothing is subtracted.
//
// gram_offsets_slices: a block (x) is an item, a slice of the images of one region, and writes
// partials (items, J, 1 + N): column 0 the sum of x[s, j], then N = (2K(K-1) + 1)*J columns (d, j')
// in the order of d. It goes through tiles of the region with two buffers. A pair of chunks of
// CHUNK_MAPS maps is a block each (y), as is a part of the columns (z); warps and outer products as
// in conv_backward_weights_register.cu.
// gram_offsets_sum: a thread has one j and one column; it adds up the items of every region in
// their order, then writes all entries that need them, and their mirror images.
// Launcher: kfcnet/ops/cuda/gram.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations 2*M*HEIGHT*WIDTH*J*N: 11 GFLOP for 512 images of 16 x 16 x 32 and K = 5, where the
// upper triangle of the patches' products takes 84. Bytes of the partial sums 8*items*J*N; limited
// by fp32 arithmetic.
#include "gram_regions.cuh"
#include "image_tile.cuh"
#include "outer_product.cuh"
#include "warp_groups.cuh"

constexpr int REACH = KERNEL_SIZE - 1, SPAN = 2 * KERNEL_SIZE - 1;  // d = (0..REACH, +-REACH)
constexpr int OFFSETS = KERNEL_SIZE * SPAN - REACH;                 // without those before (0, 0)
constexpr int COLUMNS_OUT = 1 + OFFSETS * IN_MAPS;
static_assert(ITEM_SIZE == IN_MAPS * COLUMNS_OUT, "the launcher counts as the kernel does");
constexpr int PATCH_COLUMNS = 1 + KERNEL_SIZE * KERNEL_SIZE * IN_MAPS;

// Segments of partner floats that lie side by side: the maps of one d, or, where there are few
// maps, all of one row of d (with those before (0, 0), which are left out at the end).
constexpr bool FEW_MAPS = IN_MAPS < 8;
constexpr int CHUNKS = FEW_MAPS ? 1 : (IN_MAPS + CHUNK_MAPS - 1) / CHUNK_MAPS;
constexpr int PITCH = FEW_MAPS ? IN_MAPS : CHUNK_MAPS;
constexpr int SEGMENT_LENGTH = FEW_MAPS ? SPAN * IN_MAPS : CHUNK_MAPS;
constexpr int SEGMENT_SLOTS = (SEGMENT_LENGTH + 3) / 4;
constexpr int SEGMENT_FLOATS = SEGMENT_SLOTS * 4;
constexpr int ALL_FLOATS = (FEW_MAPS ? KERNEL_SIZE : OFFSETS) * SEGMENT_FLOATS;
constexpr int SLOT_OFFSETS = FEW_MAPS ? 4 : 1;

constexpr int THREADS = WARPS_COLUMNS * WARPS_DEPTH * 32, GROUP_THREADS = WARPS_COLUMNS * 32;
constexpr int BLOCKS_AT_ONCE = THREADS <= 256 ? 2 : 1;  // of a multiprocessor: 128 registers
constexpr int BLOCK_SLOTS = WARPS_COLUMNS * SLOTS * SLOT_LANES;
constexpr int OVERHANG = 8;  // floats that the last pixel's vectors may reach too far
constexpr int BUFFER = BUFFER_PIXELS * PITCH + OVERHANG;
constexpr int CHUNK_BUFFERS = CHUNKS > 1 ? 2 : 1;  // anchors and partners, where they differ
static_assert(LANE_ROWS * ROW_LANES >= PITCH && PITCH <= 32, "a warp has all maps of a chunk");
static_assert(BUFFER_PIXELS >= (TILE_HEIGHT + REACH) * (TILE_WIDTH + 2 * REACH), "a tile fits");

// Column (d, j') of a float of a segment, counted from (0, 0), or -1: padding, or before (0, 0).
__device__ __forceinline__ int column_of(int chunk, int segment, int e) {
    if (FEW_MAPS) {
        const int column = (segment * SPAN - REACH) * IN_MAPS + e;
        return e < SEGMENT_LENGTH && column >= 0 ? column : -1;
    }
    const int j = chunk * CHUNK_MAPS + e;
    return j < IN_MAPS ? segment * IN_MAPS + j : -1;
}

// Shared memory: max(2 * CHUNK_BUFFERS * BUFFER, (WARPS_DEPTH > 1) * SUMS * GROUP_THREADS) floats.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) gram_offsets_slices(
    const float* __restrict__ x,   // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    float* __restrict__ partials,  // (items, ITEM_SIZE)
    int M,
    int positions,
    int items) {
    extern __shared__ __align__(16) float shared[];
    int slice = blockIdx.x, index = 0;
    while (slice >= slices_of(region_at(index), M, positions))
        slice -= slices_of(region_at(index++), M, positions);
    const Region region = region_at(index);
    const int slices = slices_of(region, M, positions), images_each = (M + slices - 1) / slices;
    const int begin = min(slice * images_each, M), end = min(begin + images_each, M);

    // A stage: a tile of at most TILE_HEIGHT x TILE_WIDTH pixels of some images, and its partners.
    const int seen_rows = min(region.rows, TILE_HEIGHT) + REACH;
    const int seen_columns = min(region.columns, TILE_WIDTH) + 2 * REACH;
    const int stage_images = BUFFER_PIXELS / (seen_rows * seen_columns);
    const int stages_a_tile = (end - begin + stage_images - 1) / stage_images;
    const int tiles_across = (region.columns + TILE_WIDTH - 1) / TILE_WIDTH;
    const int tiles = (region.rows + TILE_HEIGHT - 1) / TILE_HEIGHT * tiles_across;
    const int stages = tiles * stages_a_tile;
    const auto rectangle_of = [&](int stage) {
        const int tile = stage / stages_a_tile;
        const int image = begin + stage % stages_a_tile * stage_images;
        return Rectangle{image, region.top + tile / tiles_across * TILE_HEIGHT,
                         region.left + tile % tiles_across * TILE_WIDTH - REACH,
                         min(stage_images, end - image), seen_rows, seen_columns};
    };
    const int anchor_chunk = blockIdx.y / CHUNKS, partner_chunk = blockIdx.y % CHUNKS;
    const auto load_chunk = [&](float* buffer, const Rectangle& seen, int chunk) {
        load_rectangle<HEIGHT, WIDTH, IN_MAPS, PITCH, PITCH, 1, THREADS>(buffer, x, end, seen,
                                                                          chunk * CHUNK_MAPS);
        if (threadIdx.x < OVERHANG)
            buffer[seen.images * seen_rows * seen_columns * PITCH + threadIdx.x] = 0.0f;
    };
    const auto load_stage = [&](int stage) {
        if (stage < stages) {
            float* buffer = shared + stage % 2 * CHUNK_BUFFERS * BUFFER;
            const Rectangle seen = rectangle_of(stage);
            load_chunk(buffer, seen, partner_chunk);
            if (CHUNKS > 1) load_chunk(buffer + BUFFER, seen, anchor_chunk);
        }
        async_copy_commit();
    };

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_column = warp % WARPS_COLUMNS, warp_depth = warp / WARPS_COLUMNS;
    const int row = lane / SLOT_LANES * LANE_ROWS;
    const int warp_slot = blockIdx.z * BLOCK_SLOTS + warp_column * SLOTS * SLOT_LANES;
    // The float of the segments that a lane has in place e of its slot q: four neighbours a slot,
    // to be read at once; of few maps, which are read one by one, neighbouring lanes have
    // neighbours, so that they lie in different banks.
    const auto float_at = [&](int q, int e) {
        const int slot_lane = lane % SLOT_LANES;
        return FEW_MAPS ? warp_slot * 4 + (q * 4 + e) * SLOT_LANES + slot_lane
                        : (warp_slot + q * SLOT_LANES + slot_lane) * 4 + e;
    };
    int offset[SLOTS * SLOT_OFFSETS];  // from the anchor; beyond the last float: of the first
    for (int i = 0; i < SLOTS * SLOT_OFFSETS; ++i) {
        const int at = float_at(i / SLOT_OFFSETS, i % SLOT_OFFSETS), in = at < ALL_FLOATS ? at : 0;
        const int segment = in / SEGMENT_FLOATS, d = FEW_MAPS ? segment * SPAN : segment + REACH;
        offset[i] =
            (d / SPAN * seen_columns + d % SPAN - REACH) * PITCH + in % SEGMENT_FLOATS;
    }
    const bool has_ones = partner_chunk == 0 && blockIdx.z == 0 && warp_column == 0;

    float sum[SUMS] = {}, ones = 0.0f;  // times map `lane`
    load_stage(0);
    for (int stage = 0; stage < stages; ++stage) {
        load_stage(stage + 1);
        async_copy_wait<1>();
        __syncthreads();  // this stage is complete
        const float* partners = shared + stage % 2 * CHUNK_BUFFERS * BUFFER;
        const float* anchors = partners + (CHUNKS > 1 ? BUFFER : 0);
        const Rectangle seen = rectangle_of(stage);
        const int rows = min(seen_rows - REACH, region.top + region.rows - seen.top);
        const int columns =
            min(seen_columns - 2 * REACH, region.left + region.columns - (seen.left + REACH));
        for (int line = warp_depth; line < seen.images * rows; line += WARPS_DEPTH) {
            const int seen_row = line / rows * seen_rows + line % rows;
            int pixel = (seen_row * seen_columns + REACH) * PITCH;
#pragma unroll 2
            for (int c = 0; c < columns; ++c, pixel += PITCH) {
                add_outer_product<!FEW_MAPS, !FEW_MAPS>(
                    sum, anchors + pixel + (row < PITCH ? row : 0), partners + pixel, offset);
                if (has_ones) ones += anchors[pixel + lane % PITCH];
            }
        }
        __syncthreads();  // all have read before the stage after next overwrites
    }
    const int place = threadIdx.x % GROUP_THREADS;
    sum_groups<SUMS, WARPS_DEPTH, GROUP_THREADS>(sum, shared, warp_depth, place);
    sum_groups<1, WARPS_DEPTH, GROUP_THREADS>(&ones, shared, warp_depth, place);
    if (warp_depth > 0) return;

    float* partial = partials + (long long)blockIdx.x * ITEM_SIZE;
    const int ones_map = anchor_chunk * CHUNK_MAPS + lane;
    if (has_ones && lane < PITCH && ones_map < IN_MAPS) partial[ones_map * COLUMNS_OUT] = ones;
#pragma unroll
    for (int i = 0; i < LANE_ROWS; ++i) {
        const int j = anchor_chunk * CHUNK_MAPS + row + i;
        if (row + i >= PITCH || j >= IN_MAPS) continue;
#pragma unroll
        for (int q = 0; q < SLOTS; ++q) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int at = float_at(q, e);
                const int column =
                    column_of(partner_chunk, at / SEGMENT_FLOATS, at % SEGMENT_FLOATS);
                if (at < ALL_FLOATS && column >= 0)
                    partial[j * COLUMNS_OUT + 1 + column] = sum[(i * SLOTS + q) * 4 + e];
            }
        }
    }
}

// out[row][column] and its mirror image; a decay of zero does not read what stood there.
__device__ __forceinline__ void write_both(float* out, int row, int column, float value,
                                           float decay) {
    float* entry = out + row * PATCH_COLUMNS + column;
    if (decay != 0.0f) value += decay * *entry;
    *entry = value;
    out[column * PATCH_COLUMNS + row] = value;
}

extern "C" __global__ void __launch_bounds__(SUM_BLOCK) gram_offsets_sum(
    const float* __restrict__ partials,  // (items, ITEM_SIZE)
    float* __restrict__ out,             // ((1 + KERNEL_SIZE**2 * IN_MAPS)**2)
    int M,
    int positions,
    int items,
    float scale,
    float decay) {
    __shared__ float of_regions[REGIONS][SUM_BLOCK];
    const int thread = blockIdx.x * SUM_BLOCK + threadIdx.x;
    if (thread >= ITEM_SIZE) return;  // no barrier below: a thread reads only its own sums
    const float* partial = partials + thread;
    for (int index = 0; index < REGIONS; ++index) {
        const int slices = slices_of(region_at(index), M, positions);
        float sum = 0.0f;
#pragma unroll 4
        for (int slice = 0; slice < slices; ++slice, partial += ITEM_SIZE) sum += *partial;
        of_regions[index][threadIdx.x] = sum;
    }
    const auto window_sum = [&](int delta_r, int delta_c) {
        float sum = 0.0f;
        for (int r = ROWS.begin[delta_r]; r < ROWS.end[delta_r]; ++r)
            for (int c = COLUMNS.begin[delta_c]; c < COLUMNS.end[delta_c]; ++c)
                sum += of_regions[r * COLUMNS.count + c][threadIdx.x];
        return scale * sum;
    };

    const int j = thread / COLUMNS_OUT, column = thread % COLUMNS_OUT - 1;
    if (thread == 0) write_both(out, 0, 0, scale * (float(M) * OUT_HEIGHT * OUT_WIDTH), decay);
    const int d = column < 0 ? REACH : column / IN_MAPS + REACH, partner = column % IN_MAPS;
    const int d_r = d / SPAN, d_c = d % SPAN - REACH;
    if (column >= 0 && d_r == 0 && d_c == 0 && partner < j) return;  // the mirror image writes it
    for (int r = 0; r + d_r < KERNEL_SIZE; ++r)
        for (int c = max(0, -d_c); c < KERNEL_SIZE + min(0, -d_c); ++c) {
            const int row = 1 + (r * KERNEL_SIZE + c) * IN_MAPS + j;
            const int other = column < 0
                                  ? 0 : 1 + ((r + d_r) * KERNEL_SIZE + c + d_c) * IN_MAPS + partner;
            write_both(out, row, other, window_sum(r, c), decay);
        }
}
