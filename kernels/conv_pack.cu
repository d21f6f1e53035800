// kernels/conv_pack.cu: the weights in the order in which the convolution's tiles read them.
//
// A row of weight (OUT_MAPS, P) starts with the bias, so that none of its segments is aligned; here
// the biases come first (zero beyond OUT_MAPS), then for each tile of TILE_MAPS maps, each chunk
// and each segment (conv_segments.cuh) a slab of SEGMENT_DEPTH x TILE_MAPS weights, zero where it
// is padded:
//     FRAGMENTS 0   [depth][map], for conv_forward_register
//     FRAGMENTS 1   [depth / 8][map / 16][lane] four floats, the lane's parts of two fragments of
//                   mma.sync, rounded to TF32, for conv_forward_tf32
// conv_pack_flipped packs the transposed convolution of backward-data, with IN_MAPS and OUT_MAPS as
// that one sees them: the layer's weight is (IN_MAPS, 1 + K*K*OUT_MAPS), its offsets are reversed,
// and there is no bias.
// One thread: one packed weight.
// Launcher: kfcnet/ops/cuda/convolution.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Bytes 8*OUT_MAPS*P, 0.2 MB for 32 x 801: the launch is the cost.
#include "conv_segments.cuh"

constexpr int PATCH = KERNEL_SIZE * KERNEL_SIZE * IN_MAPS;
constexpr int PADDED_MAPS = (OUT_MAPS + TILE_MAPS - 1) / TILE_MAPS * TILE_MAPS;
constexpr int SLAB = SEGMENT_DEPTH * TILE_MAPS;

// To nearest, ties away from zero, as cvt.rna.tf32 does, but for every architecture; infinities and
// NaN stay.
__device__ __forceinline__ float rounded_to_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return finite ? __uint_as_float((bits + 0x1000u) & 0xffffe000u) : x;
}

// What stands at packed[index]; weight_at(map, element of the patch) reads the layer's weights.
template <class WeightAt>
__device__ __forceinline__ float packed_weight(int index, WeightAt weight_at) {
    const int slab = (index - PADDED_MAPS) / SLAB, within = (index - PADDED_MAPS) % SLAB;
    int depth = within / TILE_MAPS, map = within % TILE_MAPS;
    if (FRAGMENTS) {
        const int part = within % 4, lane = within / 4 % 32, pair = within / 128 % (TILE_MAPS / 16);
        depth = within / (8 * TILE_MAPS) * 8 + part % 2 * 4 + lane % 4;
        map = pair * 16 + part / 2 * 8 + lane / 4;
    }
    const int segment = slab % SEGMENTS, chunk = slab / SEGMENTS % CHUNKS;
    map += slab / (SEGMENTS * CHUNKS) * TILE_MAPS;
    const int element = segment_element(chunk, segment, depth);
    if (map >= OUT_MAPS || element < 0) return 0.0f;
    return FRAGMENTS ? rounded_to_tf32(weight_at(map, element)) : weight_at(map, element);
}

extern "C" __global__ void conv_pack(
    const float* __restrict__ weight,  // (OUT_MAPS, 1 + KERNEL_SIZE**2 * IN_MAPS)
    float* __restrict__ packed,        // (size)
    int size) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= size) return;
    if (index < PADDED_MAPS) {
        packed[index] = index < OUT_MAPS ? weight[index * (1 + PATCH)] : 0.0f;
        return;
    }
    packed[index] = packed_weight(
        index, [&](int map, int element) { return weight[map * (1 + PATCH) + 1 + element]; });
}

extern "C" __global__ void conv_pack_flipped(
    const float* __restrict__ weight,  // (IN_MAPS, 1 + KERNEL_SIZE**2 * OUT_MAPS)
    float* __restrict__ packed,        // (size)
    int size) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= size) return;
    packed[index] = index < PADDED_MAPS ? 0.0f : packed_weight(index, [&](int map, int element) {
        const int delta = KERNEL_SIZE * KERNEL_SIZE - 1 - element / IN_MAPS, j = element % IN_MAPS;
        return weight[j * (1 + KERNEL_SIZE * KERNEL_SIZE * OUT_MAPS) + 1 + delta * OUT_MAPS + map];
    });
}
