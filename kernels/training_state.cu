// kernels/training_state.cu: what a captured training step counts by itself, on the device.
//
//   count_step    sums (4) += [sum of losses, wrong, clipped or not, nu], the latter NaN without a
//                 clip; where the loss is not finite, nonfinite_step = step, unless it is set (-1:
//                 not set); then step += 1
//   advance_step  step += 1
//
// A step is counted before its update, which stands still once nonfinite_step is set. The host
// reads the sums now and then.
// One thread.
// Launchers: kfcnet/ops/cuda/launcher.py, kfcnet/ops/cuda/updates.py. Tests:
// tests/test_kernels_elementwise.py.
// A few bytes.

__device__ __forceinline__ bool finite(float value) {
    return value - value == 0.0f;  // infinity - infinity is NaN
}

extern "C" __global__ void count_step(
    const float* __restrict__ totals,       // (2)
    const float* __restrict__ clip_scale,   // or null: (1)
    const float* __restrict__ nu,           // or null: (1)
    long long* __restrict__ step,           // (1)
    float* __restrict__ sums,               // (4)
    long long* __restrict__ nonfinite_step  // (1)
) {
    sums[0] += totals[0];
    sums[1] += totals[1];
    if (clip_scale) sums[2] += *clip_scale < 1.0f;
    sums[3] += nu ? *nu : nanf("");
    if (!finite(totals[0]) && *nonfinite_step < 0) *nonfinite_step = *step;
    *step += 1;
}

extern "C" __global__ void advance_step(
    long long* __restrict__ step  // (1)
) {
    *step += 1;
}
