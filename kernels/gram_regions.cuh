// kernels/gram_regions.cuh: the regions of an image that the offsets of a kernel tell apart.
//
// Offset delta of a kernel sees, over all output locations t, the pixels s = t + delta - PADDING of
// a window: OUT_HEIGHT rows from delta_r - PADDING on, OUT_WIDTH columns likewise, less what lies
// outside. The windows' borders cut the rows of the image into classes, and the columns: in a
// region, a class of rows times a class of columns, every window has all pixels or none. "Same"
// padding makes KERNEL_SIZE classes, most of them one pixel wide.
#pragma once

struct Classes {
    int count;                                 // at least 1
    int first[2 * KERNEL_SIZE + 2];            // of each class; behind the last, the side itself
    int begin[KERNEL_SIZE], end[KERNEL_SIZE];  // the classes in the window of each offset
};

__device__ constexpr Classes classes_of(int side, int out_side) {
    Classes classes = {};
    for (int s = 0; s <= side; ++s) {
        bool border = s == 0 || s == side;
        for (int delta = 0; delta < KERNEL_SIZE; ++delta)
            border = border || s == delta - PADDING || s == delta - PADDING + out_side;
        if (border) classes.first[classes.count++] = s;
    }
    --classes.count;  // the last border is the end of the last class
    for (int delta = 0; delta < KERNEL_SIZE; ++delta)
        for (int c = 0; c < classes.count; ++c) {
            classes.begin[delta] += classes.first[c] < delta - PADDING;
            classes.end[delta] += classes.first[c] < delta - PADDING + out_side;
        }
    return classes;
}

__constant__ constexpr Classes ROWS = classes_of(HEIGHT, OUT_HEIGHT);
__constant__ constexpr Classes COLUMNS = classes_of(WIDTH, OUT_WIDTH);
constexpr int REGIONS = ROWS.count * COLUMNS.count;

struct Region {
    int top, left, rows, columns;
};
__device__ __forceinline__ Region region_at(int index) {
    const int r = index / COLUMNS.count, c = index % COLUMNS.count;
    return {ROWS.first[r], COLUMNS.first[c], ROWS.first[r + 1] - ROWS.first[r],
            COLUMNS.first[c + 1] - COLUMNS.first[c]};
}

// Number of slices of the M images in which a region is summed: about `positions` pixels in each.
__device__ __forceinline__ int slices_of(const Region& region, int M, int positions) {
    return (M * region.rows * region.columns + positions - 1) / positions;
}
