// kernels/step_count.cuh: a step as it is counted in the running sums.
#pragma once

__device__ __forceinline__ bool finite(float value) {
    return value - value == 0.0f;  // infinity - infinity is NaN
}

// The results of a step and where they are counted.
struct StepCount {
    const float *totals, *clip_scale, *nu;
    long long* step;
    float* sums;
    long long* nonfinite_step;

    // By one thread: see training_state.cu.
    __device__ __forceinline__ void count() const {
        sums[0] += totals[0];
        sums[1] += totals[1];
        if (clip_scale) sums[2] += *clip_scale < 1.0f;
        sums[3] += nu ? *nu : nanf("");
        if (!finite(totals[0]) && *nonfinite_step < 0) *nonfinite_step = *step;
        *step += 1;
    }

    // Whether the loss of this step or of one before was not finite. Any thread may ask beside
    // `count`: that writes nonfinite_step only where the loss alone is the answer.
    __device__ __forceinline__ bool has_failed() const {
        return !finite(totals[0]) || *nonfinite_step >= 0;
    }
};
