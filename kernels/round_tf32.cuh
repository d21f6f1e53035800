// kernels/round_tf32.cuh: a float with the 10 bits of mantissa that the tensor cores use.
#pragma once

// To nearest, ties away from zero, as cvt.rna.tf32 does, on every architecture; infinities and NaN
// stay. Without it the tensor cores would cut the low 13 bits off.
__device__ __forceinline__ float rounded_to_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return finite ? __uint_as_float((bits + 0x1000u) & 0xffffe000u) : x;
}
