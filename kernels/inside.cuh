// kernels/inside.cuh: a coordinate moved into the image.
#pragma once

// Loads need no branch; what was outside is not used.
__device__ __forceinline__ int inside(int coordinate, int side) {
    return min(max(coordinate, 0), side - 1);
}
