// kernels/training_state.cu: what a captured training step counts by itself, on the device.
//
//   accumulate_totals  running (5) += [sum of losses, wrong, nu, clipped or not, 1]; where the loss
//                      or nu is not finite, nonfinite_step = step, unless it is set (-1: not set)
//   advance_step       step += 1
//
// The totals come before the update, which stands still once nonfinite_step is set; the advance
// comes after everything that reads the step. The host reads and clears running now and then.
// One thread.
// Launcher: kfcnet/ops/cuda.py.
// Tests: tests/test_kernels_elementwise.py.
// A few bytes.

__device__ __forceinline__ bool finite(float value) {
    return value - value == 0.0f;  // infinity - infinity is NaN
}

extern "C" __global__ void accumulate_totals(
    const float* __restrict__ totals,      // (2)
    const float* __restrict__ nu,          // or null: (1)
    const float* __restrict__ clip_scale,  // or null: (1)
    const long long* __restrict__ step,    // (1)
    float* __restrict__ running,           // (5)
    long long* __restrict__ nonfinite_step  // (1)
) {
    running[0] += totals[0];
    running[1] += totals[1];
    if (nu) running[2] += *nu;
    if (clip_scale) running[3] += *clip_scale < 1.0f;
    running[4] += 1.0f;
    const bool sound = finite(totals[0]) && (!nu || finite(*nu));
    if (!sound && *nonfinite_step < 0) *nonfinite_step = *step;
}

extern "C" __global__ void advance_step(
    long long* __restrict__ step  // (1)
) {
    *step += 1;
}
