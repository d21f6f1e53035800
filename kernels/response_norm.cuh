// kernels/response_norm.cuh: the power law shared by both kinds of response normalisation.
#pragma once

// d^-POWER, d >= 1. Three quarters, the published exponent, from square roots.
__device__ __forceinline__ float inverse_power(float d) {
    if (POWER == 0.75f) {
        const float root = rsqrtf(d);
        return root * sqrtf(root);
    }
    return powf(d, -POWER);
}
