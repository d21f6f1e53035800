// kernels/training_state.cu: what a captured training step counts by itself, on the device.
//
//   count_step    sums (4) += [sum of losses, wrong, clipped or not, nu], the latter NaN without a
//                 clip; where the loss is not finite, nonfinite_step = step, unless it is set (-1:
//                 not set); then step += 1
//   advance_step  step += 1
//
// A step is counted before its update, which stands still once nonfinite_step is set. The host
// reads the sums now and then.
// One thread. The updates with momentum count by themselves, in momentum_update.cu.
// Launchers: kfcnet/ops/cuda/launcher.py, kfcnet/ops/cuda/updates.py. Tests:
// tests/test_kernels_elementwise.py.
// A few bytes.
#include "step_count.cuh"

extern "C" __global__ void count_step(
    const float* __restrict__ totals,       // (2)
    const float* __restrict__ clip_scale,   // or null: (1)
    const float* __restrict__ nu,           // or null: (1)
    long long* __restrict__ step,           // (1)
    float* __restrict__ sums,               // (4)
    long long* __restrict__ nonfinite_step  // (1)
) {
    StepCount{totals, clip_scale, nu, step, sums, nonfinite_step}.count();
}

extern "C" __global__ void advance_step(
    long long* __restrict__ step  // (1)
) {
    *step += 1;
}
