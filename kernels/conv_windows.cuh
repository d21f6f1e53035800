// kernels/conv_windows.cuh: the windows of the maximum pool behind a convolution.
#pragma once
#include "conv_tile.cuh"
#include "max_window.cuh"

using Windows =
    MaxWindows<4, POOL_SIZE, POOL_STRIDE, OUT_HEIGHT, OUT_WIDTH, POOLED_HEIGHT, POOLED_WIDTH>;
static_assert(POOL_SIZE == 0 || (TILE_IMAGES == 1 && OUT_MAPS % 4 == 0),
              "a tile is of one image, and the maps come in fours");
static_assert(POOL_SIZE * POOL_SIZE < 256, "an offset in a window is a byte, as is none");
