// kernels/momentum_update.cu: one step of descent with momentum, over the whole parameter vector.
//
//   descent  = learning_rate * clip_scale * (direction + weight_decay*theta)
//   velocity = momentum*velocity - descent
//   theta   += velocity                         momentum_update
//   theta   += momentum*velocity - descent      nesterov_update, the look-ahead form of Sutskever
//                                               et al. (2013); without clip_scale
//   average  = averaging_decay*average + (1 - averaging_decay)*theta
//
// All vectors (count), in the order of theta. Without weight_decay or clip_scale their term or
// factor is left out. The step is counted as in training_state.cu; where nonfinite_step is not
// negative then nothing moves: the parameters that led to the first non-finite loss can be looked
// at.
//
// One thread: four neighbours, in variables with a 4 behind their names. What changes from step to
// step is read from device memory, so that a captured graph follows it.
// Launcher: kfcnet/ops/cuda/updates.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes an element: 28, with weight decay 32; limited by memory.
#include "step_count.cuh"
#include "vector_load.cuh"

using Four = Vector<float, 4>;

// Counts the step, by one thread; whether nothing may move.
__device__ __forceinline__ bool stands_still(const StepCount& counted) {
    if (!counted.totals) return false;
    if (blockIdx.x == 0 && threadIdx.x == 0) counted.count();
    return counted.has_failed();
}

template <bool looks_ahead>
__device__ __forceinline__ void update(const float* direction, const float* weight_decay,
                                       float step_size, float momentum, float averaging_decay,
                                       float* theta, float* velocity, float* average, int count) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    Four direction4 = load_four(direction, first, count), theta4 = load_four(theta, first, count);
    Four velocity4 = load_four(velocity, first, count), average4 = load_four(average, first, count);
    if (weight_decay) {
        const Four decay4 = load_four(weight_decay, first, count);
        for (int lane = 0; lane < 4; ++lane) direction4[lane] += decay4[lane] * theta4[lane];
    }
    for (int lane = 0; lane < 4; ++lane) {
        velocity4[lane] = momentum * velocity4[lane] - step_size * direction4[lane];
        theta4[lane] += looks_ahead ? momentum * velocity4[lane] - step_size * direction4[lane]
                                    : velocity4[lane];
        average4[lane] = averaging_decay * average4[lane] + (1.0f - averaging_decay) * theta4[lane];
    }
    store_four(velocity, first, count, velocity4);
    store_four(theta, first, count, theta4);
    store_four(average, first, count, average4);
}

extern "C" __global__ void momentum_update(
    const float* __restrict__ direction,        // (count)
    const float* __restrict__ weight_decay,     // or null: (count)
    const float* __restrict__ learning_rate,    // (1)
    const float* __restrict__ momentum,         // (1)
    const float* __restrict__ clip_scale,       // or null: (1)
    const float* __restrict__ averaging_decay,  // (1)
    const float* __restrict__ totals,           // or null: (2)
    const float* __restrict__ nu,               // or null: (1)
    long long* __restrict__ step,               // or null: (1)
    float* __restrict__ sums,                   // or null: (4)
    long long* __restrict__ nonfinite_step,     // or null: (1)
    float* __restrict__ theta,                  // (count)
    float* __restrict__ velocity,               // (count)
    float* __restrict__ average,                // (count)
    int count) {
    if (stands_still({totals, clip_scale, nu, step, sums, nonfinite_step})) return;
    const float step_size = clip_scale ? *learning_rate * *clip_scale : *learning_rate;
    update<false>(direction, weight_decay, step_size, *momentum, *averaging_decay, theta, velocity,
                  average, count);
}

extern "C" __global__ void nesterov_update(
    const float* __restrict__ direction,        // (count)
    const float* __restrict__ weight_decay,     // or null: (count)
    const float* __restrict__ learning_rate,    // (1)
    const float* __restrict__ momentum,         // (1)
    const float* __restrict__ averaging_decay,  // (1)
    const float* __restrict__ totals,           // or null: (2)
    long long* __restrict__ step,               // or null: (1)
    float* __restrict__ sums,                   // or null: (4)
    long long* __restrict__ nonfinite_step,     // or null: (1)
    float* __restrict__ theta,                  // (count)
    float* __restrict__ velocity,               // (count)
    float* __restrict__ average,                // (count)
    int count) {
    if (stands_still({totals, nullptr, nullptr, step, sums, nonfinite_step})) return;
    update<true>(direction, weight_decay, *learning_rate, *momentum, *averaging_decay, theta,
                 velocity, average, count);
}
