// TF32 tensor cores, compute capability 8.0 and up: one warp multiplies a 16 x 8 by an 8 x 8 tile.
// With g = lane / 4 and t = lane % 4, a thread holds
//     a = A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]     b = B[t][g], B[t + 4][g]
//     c, d = [g][2t], [g][2t + 1], [g + 8][2t], [g + 8][2t + 1]
// load_a_fragment reads a from 16 rows of eight floats in shared memory at once (ldmatrix.x4).
// The PTX and its counterpart for tests without a GPU stand side by side.
// Test: tests/test_cuda_on_cpu.py.
#pragma once

#ifdef CUDA_ON_CPU

__device__ __forceinline__ unsigned to_tf32(float x) {
    return __float_as_uint(cudacpu::to_tf32(x));
}

#define mma_m16n8k8_tf32(d, a, b, c) CUDACPU_MMA_M16N8K8_TF32(d, a, b, c)
#define load_a_fragment(a, row) CUDACPU_LOAD_A_FRAGMENT(a, row)

#else

// Round to nearest, ties away from zero: without it the unit would cut the low 13 bits off.
__device__ __forceinline__ unsigned to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// d = a b + c in fp32, by all 32 lanes together.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4],
                                                 const unsigned (&b)[2], const float (&c)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),
          "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Lane 16*h + r gives the address of A[r][4h], a multiple of 16 bytes; the instruction deals out
// four matrices of 8 x 16 bytes, whose rows are the addresses of eight lanes.
__device__ __forceinline__ void load_a_fragment(unsigned (&a)[4], const float* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
}

#endif
