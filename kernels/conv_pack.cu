// kernels/conv_pack.cu: the weights in the order in which the convolution's tiles read them.
//
// Of several convolutions at once, because each launch costs more than its bytes: PACKS is a table
// {place, begin, {in_maps, kernel_size, chunk_maps}, out_maps, tile_maps, flipped}, ... Weights are
// read from parameters from `place` on, and packed from `begin` on.
//
// A row of weights (out_maps, P) starts with the bias, so that none of its segments is aligned; here
// the biases come first (zero beyond out_maps), then for each tile of tile_maps maps, each chunk
// and each segment (conv_segments.cuh) a slab of depth x tile_maps weights, zero where it is padded:
//     FRAGMENTS 0   [depth][map], for conv_forward_register
//     FRAGMENTS 1   [depth / 8][map / 16][lane] four floats, the lane's parts of two fragments of
//                   mma.sync, rounded to TF32, for conv_forward_tf32
// flipped packs the transposed convolution of backward-data, with in_maps and out_maps as that one
// sees them: the layer's weights are (in_maps, 1 + K*K*out_maps), its offsets are reversed, and
// there is no bias.
// One thread: one packed weight.
// Launcher: kfcnet/ops/cuda/convolution.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Bytes 8*out_maps*P, 0.2 MB for 32 x 801: the launch is the cost.
#include "conv_segments.cuh"

struct Pack {
    int place, begin;
    Segmentation patch;
    int out_maps, tile_maps, flipped;
};

// To nearest, ties away from zero, as cvt.rna.tf32 does, but for every architecture; infinities and
// NaN stay.
__device__ __forceinline__ float rounded_to_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return finite ? __uint_as_float((bits + 0x1000u) & 0xffffe000u) : x;
}

// The weight of an input, element `element` of the patch, in a map of the output.
__device__ __forceinline__ float weight_at(const float* weights, const Pack& pack, int map,
                                           int element) {
    const int offsets = pack.patch.kernel_size * pack.patch.kernel_size;
    if (!pack.flipped) return weights[map * (1 + offsets * pack.patch.in_maps) + 1 + element];
    const int delta = offsets - 1 - element / pack.patch.in_maps;
    const int row = element % pack.patch.in_maps;
    return weights[row * (1 + offsets * pack.out_maps) + 1 + delta * pack.out_maps + map];
}

extern "C" __global__ void conv_pack(
    const float* __restrict__ parameters,  // (count)
    float* __restrict__ packed,            // (size)
    int count,
    int size) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= size) return;
    constexpr Pack packs[] = {PACKS};
    Pack pack = packs[0];
#pragma unroll
    for (const Pack& next : packs)
        if (index >= next.begin) pack = next;
    const float* weights = parameters + pack.place;
    const Segmentation patch = pack.patch;

    const int tile_maps = pack.tile_maps, slab_size = patch.depth() * tile_maps;
    const int biases = (pack.out_maps + tile_maps - 1) / tile_maps * tile_maps;
    const int place = index - pack.begin - biases;
    if (place < 0) {
        const int map = index - pack.begin;
        const bool has_bias = !pack.flipped && map < pack.out_maps;
        packed[index] = has_bias ? weight_at(weights, pack, map, -1) : 0.0f;
        return;
    }
    const int slab = place / slab_size, within = place % slab_size;
    int depth = within / tile_maps, map = within % tile_maps;
    if (FRAGMENTS) {
        const int part = within % 4, lane = within / 4 % 32, pair = within / 128 % (tile_maps / 16);
        depth = within / (8 * tile_maps) * 8 + part % 2 * 4 + lane % 4;
        map = pair * 16 + part / 2 * 8 + lane / 4;
    }
    const int segment = slab % patch.segments(), chunk = slab / patch.segments() % patch.chunks();
    map += slab / (patch.segments() * patch.chunks()) * tile_maps;
    const int element = patch.element(chunk, segment, depth);
    const bool is_padding = map >= pack.out_maps || element < 0;
    const float weight = is_padding ? 0.0f : weight_at(weights, pack, map, element);
    packed[index] = FRAGMENTS ? rounded_to_tf32(weight) : weight;
}
